// SPDX-License-Identifier: GPL-2.0

//! Layout and allocation, compared with a model that allocates one chunk at a time.

use proptest::prelude::*;
use std::vec::Vec;

use crate::logic::{
    snapshot::{
        chunks::{
            ChunkSize,
            CowChunk, //
        },
        layout::*, //
    },
    units::Sectors, //
};

/// The chunk sizes that LVM uses, and smaller ones.
fn all_sizes() -> impl Iterator<Item = u32> {
    (0..=10).map(|shift| 1 << shift)
}

fn size(sectors: u32) -> ChunkSize {
    ChunkSize::from_sectors(sectors).unwrap()
}

fn layout(sectors: u32) -> Layout {
    Layout::new(size(sectors))
}

/// The allocation of C, which also reserves room for the end of the list.
#[derive(Clone)]
struct Model {
    sectors: u64,
    per_area: u64,
    next: u64,
    records: u64,
}

impl Model {
    fn new(sectors: u32, next: u64, records: u64) -> Self {
        let sectors = u64::from(sectors);
        let mut model = Self {
            sectors,
            per_area: sectors * 32,
            next: next.max(2),
            records,
        };
        model.skip();
        model
    }

    fn skip(&mut self) {
        if self.next % (self.per_area + 1) == 1 {
            self.next += 1;
        }
    }

    fn one(&mut self, cow: u64) -> Option<u64> {
        if cow < (self.next + 1) * self.sectors {
            return None;
        }
        let records = self.records + 1;
        if records % self.per_area == 0 {
            let area = 1 + records / self.per_area * (self.per_area + 1);
            if cow < (area + 1) * self.sectors {
                return None;
            }
        }
        let chunk = self.next;
        self.records = records;
        self.next += 1;
        self.skip();
        Some(chunk)
    }

    fn allocate(&mut self, most: u64, cow: u64) -> Option<(CowChunk, u64)> {
        let mut run: Option<(u64, u64)> = None;
        for _ in 0..most {
            let mut ahead = self.clone();
            let Some(chunk) = ahead.one(cow) else { break };
            match &mut run {
                None => run = Some((chunk, 1)),
                Some((first, len)) if *first + *len == chunk => *len += 1,
                Some(_) => break,
            }
            *self = ahead;
        }
        run.map(|(first, len)| (CowChunk(first), len))
    }
}

/// The examples of `Documentation/snapshot-format.md`.
#[test]
fn known_layouts() {
    for (sectors, per_area, area_1) in [
        (1, 32, 34),
        (8, 256, 258),
        (32, 1024, 1026),
        (128, 4096, 4098),
        (1024, 32_768, 32_770),
    ] {
        let layout = layout(sectors);
        assert_eq!(layout.size(), size(sectors));
        assert_eq!(layout.exceptions_per_area(), per_area);
        assert_eq!(layout.stride(), per_area + 1);
        assert_eq!(layout.area_location(0), CowChunk(1));
        assert_eq!(layout.area_location(1), CowChunk(area_1));
        assert_eq!(layout.chunk_of_record(0), CowChunk(2));
        assert_eq!(layout.metadata(0), Sectors(u64::from(sectors) * 2));
        assert_eq!(layout.metadata(3), Sectors(u64::from(sectors) * 5));
    }
    let most = Layout::new(ChunkSize::MAX);
    assert_eq!(most.exceptions_per_area(), 1 << 26);
}

/// Each chunk is the header, an area, or belongs to one record, in order.
#[test]
fn every_chunk_has_one_use() {
    for sectors in all_sizes() {
        let layout = layout(sectors);
        let (mut area, mut record) = (0, 0);
        for chunk in (0..3 * layout.stride() + 5).map(CowChunk) {
            let metadata = chunk == CowChunk(0) || chunk == layout.area_location(area);
            assert_eq!(layout.is_metadata(chunk), metadata, "{sectors} {chunk}");
            if chunk == layout.area_location(area) {
                area += 1;
            } else if !metadata {
                assert_eq!(layout.chunk_of_record(record), chunk);
                assert_eq!(layout.slot(record).0, area - 1);
                assert_eq!(
                    layout.area_location(area - 1).0 + layout.slot(record).1 + 1,
                    chunk.0
                );
                record += 1;
            }
            let cow = (chunk.0 + 1) * u64::from(sectors);
            assert!(layout.has_area(area.saturating_sub(1), Sectors(cow)) || area == 0);
            assert!(!layout.has_area(area, Sectors(cow)));
        }
    }
}

/// No device has chunks whose numbers overflow.
#[test]
fn ends_of_numbers() {
    for layout in [layout(1), layout(1024), Layout::new(ChunkSize::MAX)] {
        for number in [u64::MAX, u64::MAX / 2, 1 << 60] {
            assert!(!layout.has_area(number, Sectors(u64::MAX)));
            let mut allocator = PersistentAllocator::new(layout, CowChunk(number), number);
            assert_eq!(allocator.allocate(u64::MAX, Sectors(1 << 48)), None);
            allocator.shrink_to(number);
            assert!(allocator.used().get() > 1 << 48);
        }
        assert_eq!(layout.metadata(u64::MAX), Sectors(u64::MAX));
        let mut huge = PersistentAllocator::new(layout, CowChunk(0), 0);
        let (first, len) = huge.allocate(u64::MAX, Sectors(u64::MAX)).unwrap();
        assert_eq!((first, len), (CowChunk(2), layout.exceptions_per_area()));
    }
    let mut huge = TransientAllocator::new(size(1));
    let all = Some((CowChunk(0), 1 << 48));
    assert_eq!(huge.allocate(u64::MAX, Sectors(u64::MAX)), all);
    assert_eq!(huge.allocate(1, Sectors(u64::MAX)), None);
}

/// A store has the capacity that LVM computes: the device without the header and without the areas
/// up to the end of the list.
#[test]
fn room_near_whole_stripes() {
    for sectors in all_sizes() {
        let layout = layout(sectors);
        for areas in 0..4 {
            let whole = 1 + areas * layout.stride();
            for chunks in whole.saturating_sub(3)..whole + 4 {
                for odd in [0, sectors - 1] {
                    let cow = Sectors(chunks * u64::from(sectors) + u64::from(odd));
                    let mut allocator = PersistentAllocator::new(layout, CowChunk(0), 0);
                    let (mut taken, mut last) = (0, 0);
                    while let Some((first, len)) = allocator.allocate(u64::MAX, cow) {
                        assert!((first.0..first.0 + len).all(|c| !layout.is_metadata(CowChunk(c))));
                        taken += len;
                        last = first.0 + len - 1;
                    }
                    let needed = |n: u64| 1 + n + (n + 1).div_ceil(layout.exceptions_per_area());
                    assert!(taken == 0 || needed(taken) <= chunks, "{sectors} {chunks}");
                    assert!(needed(taken + 1) > chunks, "{sectors} {chunks}");
                    assert_eq!(allocator.records(), taken);
                    assert!(taken == 0 || last < chunks);
                }
            }
        }
    }
}

/// The case in which C writes beyond the end of the device: the last slot of an area, on a device
/// that ends before the next area.
#[test]
fn last_slot_of_a_device_of_whole_stripes() {
    let layout = layout(8);
    let cow = Sectors(258 * 8);
    let mut allocator = PersistentAllocator::new(layout, CowChunk(0), 0);
    assert_eq!(allocator.allocate(300, cow), Some((CowChunk(2), 255)));
    assert_eq!(allocator.allocate(1, cow), None);
    assert_eq!(allocator.used(), Sectors(257 * 8));
    // The device grows by the next area.
    let cow = Sectors(259 * 8);
    assert_eq!(allocator.allocate(300, cow), Some((CowChunk(257), 1)));
    assert_eq!(allocator.used(), Sectors(259 * 8));
    assert_eq!(allocator.allocate(1, cow), None);
    let cow = Sectors(260 * 8);
    assert_eq!(allocator.allocate(300, cow), Some((CowChunk(259), 1)));
}

/// The room that is left depends on the records. There may be fewer of them than chunks in use, or
/// more, if some of them have no meaning.
#[test]
fn records_and_chunks_out_of_step() {
    let layout = layout(1);
    // Chunks are skipped, so the area is not full when its chunks are used up.
    let mut allocator = PersistentAllocator::new(layout, CowChunk(33), 5);
    assert_eq!(allocator.allocate(9, Sectors(34)), Some((CowChunk(33), 1)));
    assert_eq!(allocator.next_free(), CowChunk(35));
    // There are more records than chunks, so the area is full before its chunks are used up.
    let mut allocator = PersistentAllocator::new(layout, CowChunk(10), 30);
    assert_eq!(allocator.allocate(9, Sectors(34)), Some((CowChunk(10), 1)));
    assert_eq!(allocator.allocate(9, Sectors(34)), None);
    assert_eq!(allocator.allocate(9, Sectors(35)), Some((CowChunk(11), 9)));
}

/// After a load, the next free chunk is never metadata, and lies after all chunks in use.
#[test]
fn free_after_load() {
    for sectors in all_sizes() {
        let layout = layout(sectors);
        let per_area = layout.exceptions_per_area();
        for records in [
            0,
            1,
            per_area - 1,
            per_area,
            per_area + 1,
            2 * per_area,
            10 * per_area + 7,
        ] {
            let behind = match records {
                0 => CowChunk(2),
                records => CowChunk(layout.chunk_of_record(records - 1).0 + 1),
            };
            let allocator = PersistentAllocator::new(layout, behind, records);
            assert_eq!(allocator.next_free(), layout.chunk_of_record(records));
            assert!(!layout.is_metadata(allocator.next_free()));
        }
    }
}

/// A merge lowers the usage to the two chunks of an empty store.
#[test]
fn merging_to_the_end() {
    for sectors in [1, 8] {
        let layout = layout(sectors);
        let mut allocator = PersistentAllocator::new(layout, CowChunk(1000), 700);
        for records in (0..700).rev() {
            allocator.shrink_to(records);
            let (area, index) = layout.slot(records);
            let next = 1 + area * layout.stride() + index + 1;
            assert_eq!(allocator.used(), Sectors(next * u64::from(sectors)));
            assert_eq!(allocator.records(), records);
        }
        assert_eq!(allocator.used(), layout.metadata(0));
    }
}

/// Sizes of devices in sectors, near the positions of areas.
fn devices(sectors: u32) -> impl Strategy<Value = u64> {
    let (sectors, stride) = (u64::from(sectors), u64::from(sectors) * 32 + 1);
    (0u64..4, 0..12u64, 0..sectors).prop_map(move |(areas, near, odd)| {
        ((areas * stride + near).saturating_sub(4)) * sectors + odd
    })
}

fn steps() -> impl Strategy<Value = (u32, Vec<(u64, u64)>)> {
    prop::sample::select(all_sizes().collect::<Vec<_>>()).prop_flat_map(|sectors| {
        let stride = u64::from(sectors) * 32 + 1;
        let most = prop_oneof![0..4u64, stride - 4..stride + 4, 0..4 * stride];
        let steps = prop::collection::vec((most, devices(sectors)), 1..12);
        (Just(sectors), steps)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Runs are what the model allocates chunk by chunk, while the device grows and shrinks.
    #[test]
    fn runs_are_single_chunks_in_a_row(
        (sectors, steps) in steps(), grows in any::<bool>(), next in 0..80u64, records in 0..100u64,
        fresh in any::<bool>(),
    ) {
        let (next, records) = if fresh { (0, 0) } else { (next, records) };
        let layout = layout(sectors);
        let mut allocator = PersistentAllocator::new(layout, CowChunk(next), records);
        let mut model = Model::new(sectors, next, records);
        let mut highest = 0;
        for (most, cow) in steps {
            highest = cow.max(highest);
            let cow = if grows { highest } else { cow };
            let run = allocator.allocate(most, Sectors(cow));
            prop_assert_eq!(run, model.allocate(most, cow));
            prop_assert_eq!(allocator.next_free(), CowChunk(model.next));
            prop_assert_eq!(allocator.records(), model.records);
            prop_assert_eq!(allocator.used(), Sectors(model.next * u64::from(sectors)));
        }
    }

    /// The same for a transient store.
    #[test]
    fn transient_runs((sectors, steps) in steps()) {
        let mut transient = TransientAllocator::new(size(sectors));
        let (sectors, mut next) = (u64::from(sectors), 0);
        for (most, cow) in steps {
            let mut len = 0;
            while len < most && cow >= (next + len) * sectors + sectors {
                len += 1;
            }
            let run = (len > 0).then_some((CowChunk(next), len));
            prop_assert_eq!(transient.allocate(most, Sectors(cow)), run);
            next += len;
            prop_assert_eq!(transient.used(), Sectors(next * sectors));
        }
    }
}
