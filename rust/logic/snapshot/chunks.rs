// SPDX-License-Identifier: GPL-2.0

//! Chunks: the units in which a snapshot copies, of the origin and of the COW device.
//!
//! C counterparts: `chunk_t`, `sector_to_chunk()`, and the fields `chunk_size`, `chunk_mask` and
//! `chunk_shift` of `struct dm_exception_store`.

use crate::env::fmt;
use crate::logic::units::{
    Sector,
    Sectors,
    SECTOR_SHIFT, //
};

/// The binary logarithm of the largest chunk size in sectors: 1 GiB.
const MAX_SHIFT: u32 = 21;

/// The maximum number of usable chunks of a COW device: the exception table stores 48 bits.
///
/// C stores 56 bits.
pub(crate) const COW_CHUNKS: u64 = 1 << 48;

/// The number of a chunk of the origin.
///
/// Any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Chunk(pub(crate) u64);

impl fmt::Display for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The number of a chunk of the COW device.
///
/// Any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CowChunk(pub(crate) u64);

impl CowChunk {
    /// A chunk after the end of every device: I/O to it fails.
    pub(crate) const OUT_OF_RANGE: CowChunk = CowChunk(u64::MAX);
}

impl fmt::Display for CowChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Consecutive chunks of the origin: from `start`, up to but not including `end`.
///
/// Any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunks {
    /// The first chunk.
    pub(crate) start: Chunk,
    /// The chunk after the last one.
    pub(crate) end: Chunk,
}

impl Chunks {
    /// Returns the number of chunks.
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Returns whether the range has no chunk.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.end <= self.start
    }
}

/// The size of a chunk: a power of two of sectors, up to 1 GiB.
///
/// Any context.
///
/// # Invariants
///
/// The field is the binary logarithm of the number of sectors, at most [`MAX_SHIFT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChunkSize(u32);

impl ChunkSize {
    /// The largest size.
    #[cfg(test)]
    pub(crate) const MAX: Self = Self(MAX_SHIFT);

    /// Converts a number of sectors, or returns `None` if it is not a valid chunk size.
    pub(crate) fn from_sectors(sectors: u32) -> Option<Self> {
        let shift = sectors.trailing_zeros();
        // INVARIANT: The shift is at most `MAX_SHIFT`.
        (sectors.is_power_of_two() && shift <= MAX_SHIFT).then_some(Self(shift))
    }

    /// Returns the size as a number of sectors.
    #[inline]
    pub(crate) fn sectors(self) -> u32 {
        1u32.wrapping_shl(self.0)
    }

    /// Returns the size as a length.
    #[inline]
    pub(crate) fn len(self) -> Sectors {
        Sectors(self.sectors().into())
    }

    /// Returns the size in bytes.
    #[inline]
    pub(crate) fn bytes(self) -> u32 {
        // By the invariant, this is at most 2^30.
        self.sectors().wrapping_shl(SECTOR_SHIFT)
    }

    /// Returns the chunk of the origin that contains `sector`.
    #[inline]
    pub(crate) fn chunk(self, sector: Sector) -> Chunk {
        Chunk(sector.get().wrapping_shr(self.0))
    }

    /// Returns the first sector of `chunk` on the origin, or `None` on overflow.
    #[inline]
    pub(crate) fn start(self, chunk: Chunk) -> Option<Sector> {
        chunk.0.checked_mul(self.len().get()).map(Sector)
    }

    /// Returns the first sector of `chunk` on the COW device, or `None` on overflow.
    #[inline]
    pub(crate) fn cow_start(self, chunk: CowChunk) -> Option<Sector> {
        chunk.0.checked_mul(self.len().get()).map(Sector)
    }

    /// Returns the offset of `sector` in its chunk.
    #[inline]
    pub(crate) fn offset(self, sector: Sector) -> Sectors {
        Sectors(sector.get() & self.len().get().wrapping_sub(1))
    }

    /// Returns the number of whole chunks in `len`.
    #[inline]
    pub(crate) fn chunks_in(self, len: Sectors) -> u64 {
        len.get().wrapping_shr(self.0)
    }

    /// Returns the number of usable chunks of a COW device of length `len`.
    #[inline]
    pub(crate) fn cow_chunks(self, len: Sectors) -> u64 {
        self.chunks_in(len).min(COW_CHUNKS)
    }

    /// Returns the chunks of the origin that `len` sectors from `sector` on touch.
    ///
    /// Returns an empty range if `len` is zero.
    #[inline]
    pub(crate) fn touched(self, sector: Sector, len: Sectors) -> Chunks {
        let start = self.chunk(sector);
        let end = match len.get().checked_sub(1) {
            None => start,
            Some(more) => {
                let last = self.chunk(Sector(sector.get().saturating_add(more)));
                Chunk(last.0.saturating_add(1))
            }
        };
        Chunks { start, end }
    }
}

impl fmt::Display for ChunkSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.sectors(), f)
    }
}
