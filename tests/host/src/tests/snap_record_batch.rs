// SPDX-License-Identifier: GPL-2.0

//! Batches of records on a disk that loses power: whatever has reached the disk, the list is what
//! was committed, and perhaps the first records of the batch that was being written.

use core::num::NonZeroU64;
use proptest::{
    prelude::*,
    strategy::ValueTree, //
};
use std::{
    collections::BTreeMap,
    vec::Vec, //
};

use crate::logic::{
    snapshot::{
        chunks::ChunkSize,
        layout::Layout,
        record_batch::*, //
    },
    units::Sectors, //
};

/// What a slot of an area holds: the number of a record, or an old record that must not come back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Slot {
    Zero,
    Record(u64),
    Stale,
}

/// A block: its area, and its first slot.
type Block = (u64, u64);

/// A disk with a write cache. A write of several blocks may be cut between any two of them.
struct Disk {
    layout: Layout,
    block: u64,
    durable: BTreeMap<Block, Vec<Slot>>,
    cached: Vec<(Block, Vec<Slot>)>,
}

impl Disk {
    fn write(&mut self, area: u64, start: u64, slots: &[Slot]) {
        for (number, block) in slots.chunks(self.block as usize).enumerate() {
            let at = (area, start + number as u64 * self.block);
            self.cached.push((at, block.to_vec()));
        }
    }

    fn zero_areas(&mut self, (first, end): (u64, u64)) {
        let zeros = vec![Slot::Zero; self.layout.exceptions_per_area() as usize];
        for area in first..end {
            self.write(area, 0, &zeros);
        }
    }

    fn flush(&mut self) {
        for (at, block) in self.cached.drain(..) {
            self.durable.insert(at, block);
        }
    }

    /// The disk after a power cut, if the cached writes in `kept` have reached it.
    fn cut(&self, kept: &[bool]) -> BTreeMap<Block, Vec<Slot>> {
        let mut disk = self.durable.clone();
        for ((at, block), kept) in self.cached.iter().zip(kept.iter().cycle()) {
            if *kept {
                disk.insert(*at, block.clone());
            }
        }
        disk
    }

    /// The records up to the first zero.
    fn list(&self, disk: &BTreeMap<Block, Vec<Slot>>) -> Vec<Slot> {
        let mut list = Vec::new();
        loop {
            let (area, slot) = self.layout.slot(list.len() as u64);
            let block = disk.get(&(area, slot / self.block * self.block));
            match block.map_or(Slot::Stale, |block| block[(slot % self.block) as usize]) {
                Slot::Zero => return list,
                found => list.push(found),
            }
            assert!(list.len() < 100_000, "the list does not end");
        }
    }
}

/// Checks a list of `durable` records, after which up to `end` may follow.
fn check(list: &[Slot], durable: u64, end: u64) {
    assert!(list.len() as u64 >= durable, "committed records are lost");
    assert!(list.len() as u64 <= end);
    for (number, slot) in (0..).zip(list) {
        assert_eq!(*slot, Slot::Record(number));
    }
}

/// A mistake in the order of writes.
#[derive(Clone, Copy, PartialEq)]
enum Mistake {
    None,
    /// Only the first new area is zeroed.
    OneArea,
    /// The zeros are not flushed before the records.
    NoFlush,
    /// The areas ahead count as zeroed after a power cut.
    Trust,
}

/// The batches of a store, as `store/persistent/commit.rs` writes them.
struct RecordStore {
    mistake: Mistake,
    disk: Disk,
    zeroed: ZeroedAreas,
    records: u64,
}

impl RecordStore {
    fn new(sectors: u32, block: u64, mistake: Mistake) -> Self {
        let layout = Layout::new(ChunkSize::from_sectors(sectors).unwrap());
        let mut store = RecordStore {
            mistake,
            disk: Disk {
                layout,
                block,
                durable: BTreeMap::new(),
                cached: Vec::new(),
            },
            zeroed: ZeroedAreas::new(layout, 0),
            records: 0,
        };
        store.disk.zero_areas((0, 1));
        store.disk.flush();
        store
    }

    /// Commits `added` records; calls `cut` at each moment at which power may fail.
    fn commit(&mut self, added: u64, room: u64, mut cut: impl FnMut(&Disk, u64, u64)) {
        let (layout, block) = (self.disk.layout, self.disk.block);
        let (durable, end) = (self.records, self.records + added);
        let needed = self.zeroed.needed(layout, end);
        self.disk.zero_areas(if self.mistake == Mistake::OneArea {
            (needed.0, needed.1.min(needed.0 + 1))
        } else {
            needed
        });
        self.zeroed.set_zeroed(needed.1);
        cut(&self.disk, durable, durable);
        if self.mistake != Mistake::NoFlush {
            self.disk.flush();
        }
        let nonzero = NonZeroU64::new(block).unwrap();
        while self.records < end {
            let mut areas = Vec::new();
            for write in AreaWrites::new(layout, nonzero, self.records, end, room) {
                assert!(!areas.contains(&write.area), "two writes to one area");
                areas.push(write.area);
                assert_eq!((write.start % block, write.slots % block), (0, 0));
                assert!(write.start + write.slots <= layout.exceptions_per_area());
                let base = write.first - write.slots_before(layout);
                let slots = (base..base + write.slots).map(|number| {
                    if number < write.first + write.records {
                        Slot::Record(number)
                    } else {
                        Slot::Zero
                    }
                });
                let slots: Vec<Slot> = slots.collect();
                self.disk.write(write.area, write.start, &slots);
                assert_eq!(write.first, self.records);
                self.records += write.records;
            }
            assert!(!areas.is_empty());
            cut(&self.disk, durable, end);
            // Each write has FUA.
            self.disk.flush();
            cut(&self.disk, self.records, end);
        }
    }
}

/// A store, its batches, each with whether areas ahead are zeroed after it, and where power fails.
#[derive(Clone, Debug)]
struct Scenario {
    sectors: u32,
    whole_blocks: bool,
    room_blocks: u64,
    batches: Vec<(u64, bool)>,
    kept: Vec<bool>,
    cut_at: usize,
}

fn scenario() -> impl Strategy<Value = Scenario> {
    (
        prop_oneof![Just(1u32), Just(2), Just(8)],
        any::<bool>(),
        1u64..12,
        proptest::collection::vec((1u64..400, any::<bool>()), 1..8),
        proptest::collection::vec(any::<bool>(), 1..24),
        0usize..24,
    )
        .prop_map(
            |(sectors, whole_blocks, room_blocks, batches, kept, cut_at)| Scenario {
                sectors,
                whole_blocks,
                room_blocks,
                batches,
                kept,
                cut_at,
            },
        )
}

/// Checks the list at each moment at which power may fail. At one of them it does, and any writes
/// since the last flush are lost. Then another store goes on, which knows nothing of the areas
/// ahead.
fn run(scenario: &Scenario, mistake: Mistake) {
    let per_area = u64::from(scenario.sectors) * 32;
    let block = if scenario.whole_blocks { per_area } else { 32 };
    let mut store = RecordStore::new(scenario.sectors, block, mistake);
    let mut moment = 0;
    let mut crashed = None;
    for (added, idle) in &scenario.batches {
        let mut at_cut = |disk: &Disk, durable: u64, end: u64| {
            let after = disk.cut(&scenario.kept);
            let list = disk.list(&after);
            check(&list, durable, end);
            if moment == scenario.cut_at {
                crashed = Some((after, list.len() as u64));
            }
            moment += 1;
        };
        store.commit(*added, scenario.room_blocks * block, &mut at_cut);
        let layout = store.disk.layout;
        if *idle {
            let ahead = store
                .zeroed
                .ahead(layout, store.records, *added, Sectors(u64::MAX));
            store.disk.zero_areas(ahead);
            store.zeroed.set_zeroed(ahead.1);
            at_cut(&store.disk, store.records, store.records);
        }
        let Some((after, records)) = crashed.take() else {
            continue;
        };
        store.disk.durable = after;
        store.disk.cached.clear();
        store.records = records;
        if mistake != Mistake::Trust {
            store.zeroed = ZeroedAreas::new(layout, records);
        }
        let (area, slot) = layout.slot(records);
        let next = (slot / block + 1) * block;
        for area in area..area + 8 {
            for start in (0..per_area).step_by(block as usize) {
                let at = (area, start);
                // What was ahead may be anything now. The rest of the last area is zeroed, though,
                // before the next record.
                let content = if area != layout.slot(records).0 {
                    Slot::Stale
                } else if start >= next {
                    Slot::Zero
                } else {
                    continue;
                };
                store.disk.durable.insert(at, vec![content; block as usize]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn power_cuts_leave_a_list(scenario in scenario()) {
        run(&scenario, Mistake::None);
    }
}

#[test]
fn mistakes_are_noticed() {
    for mistake in [Mistake::OneArea, Mistake::NoFlush, Mistake::Trust] {
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let found = (0..512).any(|_| {
            let scenario = scenario().new_tree(&mut runner).unwrap().current();
            std::panic::catch_unwind(|| run(&scenario, mistake)).is_err()
        });
        assert!(found);
    }
}

/// Areas ahead are those of a batch as large as the last one, and never beyond the device.
#[test]
fn areas_ahead() {
    let layout = Layout::new(ChunkSize::from_sectors(8).unwrap());
    let zeroed = ZeroedAreas::new(layout, 0);
    let large = Sectors(u64::MAX);
    assert_eq!(zeroed.needed(layout, 255), (1, 1));
    assert_eq!(zeroed.needed(layout, 256), (1, 2));
    assert_eq!(zeroed.ahead(layout, 32, 32, large), (1, 1));
    assert_eq!(zeroed.ahead(layout, 192, 32, large), (1, 2));
    assert_eq!(zeroed.ahead(layout, 2048, 2048, large), (1, 25));
    // Area 2 is chunk 515.
    assert_eq!(zeroed.ahead(layout, 600, 600, Sectors(516 * 8)), (1, 3));
    assert_eq!(zeroed.ahead(layout, 600, 600, Sectors(515 * 8)), (1, 2));
}
