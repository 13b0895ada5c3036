// SPDX-License-Identifier: GPL-2.0

//! What becomes of a write, case by case and against the invariants of the slots.

use proptest::prelude::*;
use std::vec::Vec;

use super::{
    range,
    with_all_faults, //
};
use crate::logic::clone::geometry::{
    Geometry,
    RegionSize, //
};
use crate::logic::clone::inflight::Slot;
use crate::logic::clone::map::*;
use crate::logic::clone::region_copy::*;
use crate::logic::clone::slots::*;
use crate::logic::clone::status::Mode;
use crate::logic::units::Sectors;

const LIVE: WriteConditions = WriteConditions {
    mode: Mode::ReadWrite,
    requeue_copies: false,
};
const READ_ONLY: WriteConditions = WriteConditions {
    mode: Mode::ReadOnly,
    requeue_copies: false,
};
const SUSPENDING: WriteConditions = WriteConditions {
    mode: Mode::ReadWrite,
    requeue_copies: true,
};

const REGIONS: u64 = 4096;

/// Regions, and writes to them.
struct Regions {
    map: RegionMap,
    writer: MapWriter,
    slots: RegionSlots<()>,
    geometry: Geometry,
}

impl Regions {
    fn new() -> Self {
        let (map, writer) = RegionMap::new(REGIONS).unwrap();
        let size = RegionSize::from_sectors(8).unwrap();
        Self {
            map,
            writer,
            slots: RegionSlots::new().unwrap(),
            geometry: Geometry::new(size, Sectors(REGIONS * 8)).unwrap(),
        }
    }

    fn hydrate(&mut self, start: u64, end: u64) {
        self.map.insert(&mut self.writer, range(start, end));
    }

    /// Decides on a write to all of some regions.
    fn overwrite(&mut self, start: u64, end: u64, conditions: WriteConditions) -> WriteDecision {
        let range = range(start, end);
        self.slots
            .decide_write(&self.map, range, FillKind::Overwrite, conditions)
    }

    /// Decides on a write to a part of a region, and starts the copy that it needs.
    fn write(&mut self, region: u64, conditions: WriteConditions) -> WriteDecision {
        let range = range(region, region + 1);
        let decision = self
            .slots
            .decide_write(&self.map, range, FillKind::Copy, conditions);
        if let WriteDecision::Copy(slot) = decision {
            let copy = self
                .slots
                .start_copy(slot, &self.geometry, CopyReason::Write);
            assert!(copy.is_some());
        }
        decision
    }

    /// Completes a slot.
    fn complete(&mut self, slot: Slot) {
        let (range, _) = self.slots.remove(slot).unwrap();
        assert!(self.slots.logs.record(range));
        self.map.insert(&mut self.writer, range);
    }

    /// Fails the I/O of a slot.
    fn fail(&mut self, slot: Slot) {
        self.slots.remove(slot).unwrap();
        self.slots.logs.unreserve(1);
    }

    fn check(&self) {
        assert_eq!(self.slots.logs.reserved(), self.slots.inflight.len());
    }
}

fn slot_of(decision: WriteDecision) -> Slot {
    match decision {
        WriteDecision::Overwrite(slot, _) | WriteDecision::Copy(slot) => slot,
        other => panic!("{other:?} has no slot of its own"),
    }
}

#[test]
fn a_hydrated_region_takes_every_write() {
    let mut regions = Regions::new();
    regions.hydrate(3, 5);
    for conditions in [LIVE, READ_ONLY, SUSPENDING] {
        assert_eq!(regions.write(3, conditions), WriteDecision::Submit);
        assert_eq!(regions.overwrite(4, 9, conditions), WriteDecision::Submit);
    }
    regions.check();
}

#[test]
fn a_write_waits_for_a_region_in_flight_whatever_the_mode() {
    let mut regions = Regions::new();
    let copy = slot_of(regions.write(3, LIVE));
    let overwrite = slot_of(regions.overwrite(7, 9, LIVE));
    for conditions in [LIVE, READ_ONLY, SUSPENDING] {
        assert_eq!(regions.write(3, conditions), WriteDecision::Wait(copy));
        assert_eq!(regions.write(8, conditions), WriteDecision::Wait(overwrite));
        assert_eq!(
            regions.overwrite(3, 4, conditions),
            WriteDecision::Wait(copy)
        );
    }
    regions.check();
}

#[test]
fn an_overwrite_ends_where_regions_are_hydrated_or_in_flight() {
    let mut regions = Regions::new();
    regions.hydrate(10, 11);
    regions.write(5, LIVE);
    let WriteDecision::Overwrite(slot, filled) = regions.overwrite(2, 20, LIVE) else {
        panic!("not an overwrite");
    };
    assert_eq!(filled, range(2, 5));
    regions.complete(slot);
    let WriteDecision::Overwrite(_, filled) = regions.overwrite(6, 20, LIVE) else {
        panic!("not an overwrite");
    };
    assert_eq!(filled, range(6, 10));
    regions.check();
}

#[test]
fn read_only_metadata_fails_what_would_hydrate() {
    let mut regions = Regions::new();
    assert_eq!(regions.write(1, READ_ONLY), WriteDecision::Fail);
    assert_eq!(regions.overwrite(1, 4, READ_ONLY), WriteDecision::Fail);
    // Without room too: it does not stall.
    for region in 0..SLOTS as u64 {
        regions.overwrite(region * 2, region * 2 + 1, LIVE);
    }
    assert_eq!(regions.overwrite(4000, 4001, LIVE), WriteDecision::Stall);
    assert_eq!(
        regions.overwrite(4000, 4001, READ_ONLY),
        WriteDecision::Fail
    );
    regions.check();
}

#[test]
fn suspending_without_flushing_hands_back_what_needs_the_source() {
    let mut regions = Regions::new();
    assert_eq!(regions.write(1, SUSPENDING), WriteDecision::Requeue);
    assert!(regions.slots.inflight.is_empty());
    regions.check();
    assert!(matches!(
        regions.overwrite(1, 2, SUSPENDING),
        WriteDecision::Overwrite(..)
    ));
    regions.check();
}

#[test]
fn copies_leave_slots_to_overwrites_and_both_to_the_hydration() {
    let mut regions = Regions::new();
    let mut copies = 0;
    while matches!(regions.write(copies, LIVE), WriteDecision::Copy(_)) {
        copies += 1;
    }
    assert_eq!(copies, MAX_COPIES);
    assert_eq!(regions.write(copies, LIVE), WriteDecision::Stall);
    assert!(!regions.slots.has_room(FillKind::Copy));
    assert!(regions.slots.has_room(FillKind::Overwrite));

    let mut overwrites = 0;
    let mut region = 2000;
    while let WriteDecision::Overwrite(..) = regions.overwrite(region, region + 1, LIVE) {
        overwrites += 1;
        region += 1;
    }
    assert_eq!(
        overwrites + copies,
        SLOTS as u64 - u64::from(RESERVED_COPIES)
    );
    assert_eq!(
        regions.overwrite(region, region + 1, LIVE),
        WriteDecision::Stall
    );
    assert!(!regions.slots.has_room(FillKind::Overwrite));

    for region in 3000..3000 + u64::from(RESERVED_COPIES) {
        assert!(regions.slots.reserve(range(region, region + 1)).is_some());
    }
    assert_eq!(regions.slots.reserve(range(3500, 3501)), None);
    regions.check();
}

#[test]
fn a_full_log_stalls_writes_until_a_commit() {
    let mut regions = Regions::new();
    let mut region = 0;
    // Regions that do not touch each other, again and again: each record takes an entry.
    while regions.slots.has_room(FillKind::Overwrite) {
        assert!(regions.slots.logs.reserve(1));
        assert!(regions.slots.logs.record(range(region, region + 1)));
        region = (region + 2) % REGIONS;
    }
    assert_eq!(regions.write(1, LIVE), WriteDecision::Stall);
    assert_eq!(regions.overwrite(1, 2, LIVE), WriteDecision::Stall);
    let log = regions.slots.logs.begin_commit().unwrap();
    regions.slots.logs.end_commit(log, true);
    assert!(matches!(regions.write(1, LIVE), WriteDecision::Copy(_)));
    regions.check();
}

#[test]
fn the_next_segment_is_that_of_a_copy_under_way() {
    let mut regions = Regions::new();
    let mut ready = ReadyCopies::new(SLOTS).unwrap();
    let slots: Vec<_> = (0..3)
        .map(|region| slot_of(regions.write(region, LIVE)))
        .collect();
    for slot in &slots {
        let copy = *regions.slots.copy(*slot).unwrap();
        ready.push(*slot, &copy);
    }
    regions.fail(slots[0]);
    let (slot, start, len) = regions.slots.next_segment(&mut ready).unwrap();
    assert_eq!((slot, start.get(), len.get()), (slots[1], 8, 8));
    assert!(regions.slots.copy(slot).unwrap().start_read(start));
    let (slot, start, _) = regions.slots.next_segment(&mut ready).unwrap();
    assert_eq!((slot, start.get()), (slots[2], 16));
    regions.complete(slot);
    assert_eq!(regions.slots.next_segment(&mut ready), None);
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, u8),
    Overwrite(u64, u64, u8),
    Complete(prop::sample::Index),
    Fail(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0..64u64, 0..3u8).prop_map(|(region, conditions)| Op::Write(region, conditions)),
        3 => (0..64u64, 1..9u64, 0..3u8)
            .prop_map(|(start, len, conditions)| Op::Overwrite(start, len, conditions)),
        3 => index().prop_map(Op::Complete),
        1 => index().prop_map(Op::Fail),
    ]
}

proptest! {
    #[test]
    fn each_region_is_filled_once_at_a_time(ops in prop::collection::vec(op(), 0..200)) {
        let mut regions = Regions::new();
        let mut slots: Vec<Slot> = Vec::new();
        for op in ops {
            let (start, decision, conditions) = match op {
                Op::Write(region, which) => {
                    let conditions = [LIVE, READ_ONLY, SUSPENDING][usize::from(which)];
                    let hydrated = regions.map.contains(range(region, region + 1).start);
                    let busy = regions.slots.inflight.find(range(region, region + 1).start);
                    let decision = regions.write(region, conditions);
                    let expected = match (hydrated, busy, which) {
                        (true, ..) => Some(WriteDecision::Submit),
                        (false, Some(slot), _) => Some(WriteDecision::Wait(slot)),
                        (false, None, 1) => Some(WriteDecision::Fail),
                        (false, None, 2) => Some(WriteDecision::Requeue),
                        (false, None, _) => None,
                    };
                    match expected {
                        Some(expected) => prop_assert_eq!(decision, expected),
                        None => prop_assert!(matches!(decision, WriteDecision::Copy(_))),
                    }
                    (region, decision, conditions)
                }
                Op::Overwrite(start, len, which) => {
                    let conditions = [LIVE, READ_ONLY, SUSPENDING][usize::from(which)];
                    (start, regions.overwrite(start, start + len, conditions), conditions)
                }
                Op::Complete(index) if !slots.is_empty() => {
                    let slot = slots.swap_remove(index.index(slots.len()));
                    regions.complete(slot);
                    continue;
                }
                Op::Fail(index) if !slots.is_empty() => {
                    let slot = slots.swap_remove(index.index(slots.len()));
                    regions.fail(slot);
                    continue;
                }
                _ => continue,
            };
            if let WriteDecision::Overwrite(slot, filled) = decision {
                prop_assert_eq!(filled.start.0, start);
                prop_assert_eq!(regions.slots.inflight.range(slot), Some(filled));
                prop_assert_eq!(regions.map.run(filled), Run::Clear(filled.len()));
            }
            if let WriteDecision::Overwrite(slot, _) | WriteDecision::Copy(slot) = decision {
                prop_assert_eq!(conditions.mode, Mode::ReadWrite);
                slots.push(slot);
            }
            prop_assert_eq!(regions.slots.inflight.len(), slots.len());
            regions.check();
        }
    }
}

#[test]
fn allocations_may_fail() {
    let (_, failures) = with_all_faults(RegionSlots::<()>::new);
    assert_eq!(failures, 4);
}
