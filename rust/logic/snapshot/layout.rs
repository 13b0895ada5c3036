// SPDX-License-Identifier: GPL-2.0

//! The layout of the COW device, and the allocation of its chunks.
//!
//! In a persistent store, chunk 0 is the header. It is followed by groups of one chunk of records,
//! the area, and as many chunks of data as the area has records:
//!
//! | chunk | contents |
//! | --- | --- |
//! | 0 | header |
//! | 1 + a * stride | area a |
//! | the `stride - 1` chunks after area a | data |
//!
//! A transient store consists of data only.
//!
//! C counterparts: `area_location()`, `skip_metadata()` and `persistent_prepare_exception()` of
//! `dm-snap-persistent.c`, and `transient_prepare_exception()` of `dm-snap-transient.c`.

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
/// Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    size: ChunkSize,
    exceptions_per_area: NonZeroU64,
    stride: NonZeroU64,
}

impl Layout {
    /// Returns the layout for a chunk size.
    pub(crate) fn new(size: ChunkSize) -> Self {
        let records = u64::from(size.bytes()).checked_div(RECORD_SIZE as u64);
        let exceptions_per_area = records.and_then(NonZeroU64::new).unwrap_or(NonZeroU64::MIN);
        Self {
            size,
            exceptions_per_area,
            stride: exceptions_per_area.saturating_add(1),
        }
    }

    /// Returns the chunk size.
    #[inline]
    pub(crate) fn size(&self) -> ChunkSize {
        self.size
    }

    /// Returns the number of records of an area.
    #[inline]
    pub(crate) fn exceptions_per_area(&self) -> u64 {
        self.exceptions_per_area.get()
    }

    /// Returns the distance between two areas, in chunks.
    #[inline]
    pub(crate) fn stride(&self) -> u64 {
        self.stride.get()
    }

    /// Returns the chunk of an area, or a chunk that no device has if the number overflows.
    #[inline]
    pub(crate) fn area_location(&self, area: u64) -> CowChunk {
        CowChunk(area.saturating_mul(self.stride()).saturating_add(1))
    }

    /// Returns whether a chunk is the header or an area.
    #[inline]
    pub(crate) fn is_metadata(&self, chunk: CowChunk) -> bool {
        chunk.0 == 0 || chunk.0 % self.stride == 1
    }

    /// Returns the area of a record, which is counted from zero over all areas, and its slot there.
    #[inline]
    pub(crate) fn slot(&self, record: u64) -> (u64, u64) {
        (
            record / self.exceptions_per_area,
            record % self.exceptions_per_area,
        )
    }

    /// Returns the chunk that a record names in a store without gaps, where the n-th record and the
    /// n-th allocation belong together.
    #[inline]
    pub(crate) fn chunk_of_record(&self, record: u64) -> CowChunk {
        let (area, _) = self.slot(record);
        CowChunk(record.saturating_add(area).saturating_add(2))
    }

    /// Returns the first area after a chunk, which must not be the header.
    #[inline]
    pub(crate) fn next_area(&self, chunk: CowChunk) -> CowChunk {
        let area = chunk.0.saturating_sub(1) / self.stride;
        self.area_location(area.saturating_add(1))
    }

    /// Returns whether a COW device of `cow` sectors has an area.
    #[inline]
    pub(crate) fn has_area(&self, area: u64, cow: Sectors) -> bool {
        self.area_location(area).0 < self.size.cow_chunks(cow)
    }

    /// Returns the sectors that the header and the areas up to `area` take.
    #[inline]
    pub(crate) fn metadata(&self, area: u64) -> Sectors {
        Sectors(area.saturating_add(2).saturating_mul(self.size.len().get()))
    }
}

/// Allocates the chunks of a persistent store, each together with the next record.
///
/// Chunks are never freed. Any context.
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
    /// Makes an allocator for a store of `records` records. `next` is the chunk after the highest
    /// one that they name.
    pub(crate) fn new(layout: Layout, next: CowChunk, records: u64) -> Self {
        let mut allocator = Self {
            layout,
            next: next.max(layout.chunk_of_record(0)),
            records,
        };
        allocator.skip_metadata();
        allocator
    }

    /// Returns the next free chunk.
    #[cfg(test)]
    #[inline]
    pub(crate) fn next_free(&self) -> CowChunk {
        self.next
    }

    /// Returns the number of records, including those of all allocated chunks.
    #[cfg(test)]
    #[inline]
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// Returns the sectors in use, as the status line shows them.
    #[inline]
    pub(crate) fn used(&self) -> Sectors {
        used(self.layout.size, self.next)
    }

    /// Allocates up to `max` consecutive chunks of a COW device that has `cow` sectors now.
    ///
    /// Returns the first chunk and the number of chunks, or `None` if the device is full. The
    /// device also counts as full if the record would be the last of an area and the device does
    /// not have the next area, in which the list of records would have to end.
    pub(crate) fn allocate(&mut self, max: u64, cow: Sectors) -> Option<(CowChunk, u64)> {
        let (area, slot) = self.layout.slot(self.records);
        let free = self.layout.size.cow_chunks(cow).checked_sub(self.next.0)?;
        let before_area = self.chunks_before_area();
        let mut len = max.min(free).min(before_area);
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

    /// Sets the number of records that a merge has left.
    ///
    /// The next free chunk then serves the status line only: remaining records may name chunks
    /// after it.
    pub(crate) fn shrink_to(&mut self, records: u64) {
        self.next = self.layout.chunk_of_record(records);
        self.records = records;
    }

    /// Returns the number of chunks from the next free one up to the next area.
    fn chunks_before_area(&self) -> u64 {
        // An area is 1 modulo the stride.
        let after_area = self.next.0.saturating_sub(1) % self.layout.stride;
        self.layout.stride().saturating_sub(after_area)
    }

    fn skip_metadata(&mut self) {
        if self.layout.is_metadata(self.next) {
            // INVARIANT: Only the first two chunks of the device are consecutive metadata chunks,
            // and `new` skips both.
            self.next = CowChunk(self.next.0.saturating_add(1));
        }
    }
}

/// Allocates the chunks of a transient store.
///
/// Chunks are never freed. Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TransientAllocator {
    size: ChunkSize,
    next: CowChunk,
}

impl TransientAllocator {
    /// Makes an allocator for an empty store.
    pub(crate) fn new(size: ChunkSize) -> Self {
        Self {
            size,
            next: CowChunk(0),
        }
    }

    /// Returns the sectors in use, as the status line shows them.
    #[inline]
    pub(crate) fn used(&self) -> Sectors {
        used(self.size, self.next)
    }

    /// Allocates up to `max` consecutive chunks of a COW device that has `cow` sectors now.
    ///
    /// Returns the first chunk and the number of chunks, or `None` if the device is full.
    pub(crate) fn allocate(&mut self, max: u64, cow: Sectors) -> Option<(CowChunk, u64)> {
        let free = self.size.cow_chunks(cow).checked_sub(self.next.0)?;
        let (first, len) = (self.next, max.min(free));
        self.next = CowChunk(first.0.saturating_add(len));
        (len != 0).then_some((first, len))
    }
}

/// Returns the sectors of all chunks before `next`.
fn used(size: ChunkSize, next: CowChunk) -> Sectors {
    Sectors(next.0.saturating_mul(size.len().get()))
}
