// SPDX-License-Identifier: GPL-2.0

//! Where things lie on the COW device, and which chunks come next.
//!
//! In a persistent store chunk 0 is the header. Then come stripes of one chunk of records, the
//! area, and as many chunks of data as the area has records:
//!
//! | chunk | contents |
//! | --- | --- |
//! | 0 | header |
//! | 1 + a * stride | area a |
//! | the `stride - 1` behind it | data |
//!
//! A transient store has data alone. C counterparts: `persistent_prepare_exception` of
//! `drivers/md/dm-snap-persistent.c`, and `drivers/md/dm-snap-transient.c`.

use core::num::NonZeroU64;

use crate::logic::{
    snapshot::{
        chunks::{
            ChunkSize,
            CowChunk, //
        },
        record::RECORD_SIZE, //
    },
    units::Sectors, //
};

/// The layout of a persistent store.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    size: ChunkSize,
    exceptions_per_area: NonZeroU64,
    stride: NonZeroU64,
}

impl Layout {
    /// The layout for chunks of a size.
    pub(crate) fn new(size: ChunkSize) -> Self {
        let records = u64::from(size.bytes()).checked_div(RECORD_SIZE as u64);
        let exceptions_per_area = records.and_then(NonZeroU64::new).unwrap_or(NonZeroU64::MIN);
        Self {
            size,
            exceptions_per_area,
            stride: exceptions_per_area.saturating_add(1),
        }
    }

    /// The size of a chunk.
    #[inline]
    pub(crate) fn size(&self) -> ChunkSize {
        self.size
    }

    /// The records of an area.
    #[inline]
    pub(crate) fn exceptions_per_area(&self) -> u64 {
        self.exceptions_per_area.get()
    }

    /// The distance from area to area, in chunks.
    #[inline]
    pub(crate) fn stride(&self) -> u64 {
        self.stride.get()
    }

    /// Where an area is; at the end of all numbers if it would lie behind.
    #[inline]
    pub(crate) fn area_location(&self, area: u64) -> CowChunk {
        CowChunk(area.saturating_mul(self.stride()).saturating_add(1))
    }

    /// Whether a chunk is header or area.
    #[inline]
    pub(crate) fn is_metadata(&self, chunk: CowChunk) -> bool {
        chunk.0 == 0 || chunk.0 % self.stride == 1
    }

    /// The area in which a record is, counted from zero over all areas, and its slot there.
    #[inline]
    pub(crate) fn slot(&self, record: u64) -> (u64, u64) {
        (
            record / self.exceptions_per_area,
            record % self.exceptions_per_area,
        )
    }

    /// The chunk of a record in a store without gaps, which is that of the allocation with the same
    /// number.
    #[inline]
    pub(crate) fn chunk_of_record(&self, record: u64) -> CowChunk {
        let (area, _) = self.slot(record);
        CowChunk(record.saturating_add(area).saturating_add(2))
    }

    /// The first area behind a chunk, other than the header.
    #[inline]
    pub(crate) fn next_area(&self, chunk: CowChunk) -> CowChunk {
        let area = chunk.0.saturating_sub(1) / self.stride;
        self.area_location(area.saturating_add(1))
    }

    /// Whether an area is inside a COW device.
    #[inline]
    pub(crate) fn has_area(&self, area: u64, cow: Sectors) -> bool {
        self.area_location(area).0 < self.size.cow_chunks(cow)
    }

    /// What header and areas take of the COW device, up to the area that records are added to.
    #[inline]
    pub(crate) fn metadata(&self, area: u64) -> Sectors {
        Sectors(area.saturating_add(2).saturating_mul(self.size.len().get()))
    }
}

/// Gives out the chunks of a persistent store, each together with the next record.
///
/// Chunks are never given back. Does no I/O, never sleeps; the caller sees that it is used by one
/// at a time.
///
/// # Invariants
///
/// `next` is never a metadata chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PersistentAllocator {
    layout: Layout,
    next: CowChunk,
    records: u64,
}

impl PersistentAllocator {
    /// Begins with a store that has so many records; `next` is behind the last chunk that they
    /// name.
    pub(crate) fn new(layout: Layout, next: CowChunk, records: u64) -> Self {
        let mut allocator = Self {
            layout,
            next: next.max(layout.chunk_of_record(0)),
            records,
        };
        allocator.skip_metadata();
        allocator
    }

    /// The next free chunk.
    #[inline]
    pub(crate) fn next_free(&self) -> CowChunk {
        self.next
    }

    /// The number of records, those of chunks that were given out included.
    #[inline]
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// What is in use of the COW device, as the status line tells it.
    #[inline]
    pub(crate) fn used(&self) -> Sectors {
        used(self.layout.size, self.next)
    }

    /// Gives out up to `most` consecutive chunks of a COW device that has `cow` sectors now: the
    /// first, and how many.
    ///
    /// None if it is full. It is full too if the record would be the last of an area, and the next
    /// area, in which the list of records has to end then, would lie behind the end.
    pub(crate) fn allocate(&mut self, most: u64, cow: Sectors) -> Option<(CowChunk, u64)> {
        let (area, slot) = self.layout.slot(self.records);
        let free = self.layout.size.cow_chunks(cow).checked_sub(self.next.0)?;
        let stripe = self.left_in_stripe();
        let mut len = most.min(free).min(stripe);
        let slots = self.layout.exceptions_per_area().saturating_sub(slot);
        if len >= slots && !self.layout.has_area(area.saturating_add(1), cow) {
            len = slots.saturating_sub(1);
        }
        if len == 0 {
            return None;
        }
        let first = self.next;
        self.next = CowChunk(first.0.saturating_add(len));
        self.records = self.records.saturating_add(len);
        self.skip_metadata();
        Some((first, len))
    }

    /// Notes that a merge has left so many records. What is free then is of use for the status line
    /// only: chunks of records that are left may lie behind it.
    pub(crate) fn shrink_to(&mut self, records: u64) {
        self.next = self.layout.chunk_of_record(records);
        self.records = records;
    }

    /// The chunks from the next one up to the next area.
    fn left_in_stripe(&self) -> u64 {
        // The chunk behind an area is 2 modulo the stride, and has all but the area before it.
        let behind_area = self.next.0.saturating_sub(1) % self.layout.stride;
        self.layout.stride().saturating_sub(behind_area)
    }

    fn skip_metadata(&mut self) {
        if self.layout.is_metadata(self.next) {
            // INVARIANT: Two metadata chunks follow each other at the start alone, which `new`
            // leaves out.
            self.next = CowChunk(self.next.0.saturating_add(1));
        }
    }
}

/// Gives out the chunks of a transient store.
///
/// As [`PersistentAllocator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TransientAllocator {
    size: ChunkSize,
    next: CowChunk,
}

impl TransientAllocator {
    /// Begins with an empty store.
    pub(crate) fn new(size: ChunkSize) -> Self {
        Self {
            size,
            next: CowChunk(0),
        }
    }

    /// What is in use of the COW device, as the status line tells it.
    #[inline]
    pub(crate) fn used(&self) -> Sectors {
        used(self.size, self.next)
    }

    /// Gives out up to `most` consecutive chunks of a COW device that has `cow` sectors now: the
    /// first, and how many.
    pub(crate) fn allocate(&mut self, most: u64, cow: Sectors) -> Option<(CowChunk, u64)> {
        let free = self.size.cow_chunks(cow).checked_sub(self.next.0)?;
        let (first, len) = (self.next, most.min(free));
        self.next = CowChunk(first.0.saturating_add(len));
        (len != 0).then_some((first, len))
    }
}

/// What chunks below `next` take of the COW device.
fn used(size: ChunkSize, next: CowChunk) -> Sectors {
    Sectors(next.0.saturating_mul(size.len().get()))
}
