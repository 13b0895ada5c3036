// SPDX-License-Identifier: GPL-2.0

//! Chunks, the units in which a snapshot copies, of the origin and of the COW device.

use crate::env::fmt;
use crate::logic::units::{
    Sector,
    Sectors,
    SECTOR_SHIFT, //
};

/// The binary logarithm of the largest chunk size in sectors: 1 GiB.
const MAX_SHIFT: u32 = 21;

/// The number of chunks of a COW device that can be used: what the table of exceptions can name. C
/// can name 2^56.
pub(crate) const COW_CHUNKS: u64 = 1 << 48;

/// The number of a chunk of the origin.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Chunk(pub(crate) u64);

impl fmt::Display for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The number of a chunk of the COW device.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CowChunk(pub(crate) u64);

impl fmt::Display for CowChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Consecutive chunks of the origin: from `start`, up to but not including `end`.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunks {
    /// The first chunk.
    pub(crate) start: Chunk,
    /// The chunk behind the last one.
    pub(crate) end: Chunk,
}

impl Chunks {
    /// Returns the number of chunks.
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Tells whether there is no chunk in the range.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.end <= self.start
    }
}

/// The size of a chunk: a power of two of sectors, up to 1 GiB.
///
/// A plain value, free to use in any context.
///
/// # Invariants
///
/// Holds the binary logarithm of the number of sectors, at most [`MAX_SHIFT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChunkSize(u32);

impl ChunkSize {
    /// The largest size.
    pub(crate) const MAX: Self = Self(MAX_SHIFT);

    /// Makes a chunk size of a number of sectors.
    pub(crate) fn from_sectors(sectors: u32) -> Option<Self> {
        let shift = sectors.trailing_zeros();
        // INVARIANT: As checked here.
        (sectors.is_power_of_two() && shift <= MAX_SHIFT).then_some(Self(shift))
    }

    /// The size as a number of sectors.
    #[inline]
    pub(crate) fn sectors(self) -> u32 {
        1u32.wrapping_shl(self.0)
    }

    /// The size as a length.
    #[inline]
    pub(crate) fn len(self) -> Sectors {
        Sectors(self.sectors().into())
    }

    /// The size in bytes.
    #[inline]
    pub(crate) fn bytes(self) -> u32 {
        // At most 2^30, by the invariant.
        self.sectors().wrapping_shl(SECTOR_SHIFT)
    }

    /// The chunk of the origin that holds `sector`.
    #[inline]
    pub(crate) fn chunk(self, sector: Sector) -> Chunk {
        Chunk(sector.get().wrapping_shr(self.0))
    }

    /// Where `chunk` starts on the origin, or `None` past the end of all numbers.
    #[inline]
    pub(crate) fn start(self, chunk: Chunk) -> Option<Sector> {
        chunk.0.checked_mul(self.len().get()).map(Sector)
    }

    /// Where `chunk` starts on the COW device, or `None` past the end of all numbers.
    #[inline]
    pub(crate) fn cow_start(self, chunk: CowChunk) -> Option<Sector> {
        chunk.0.checked_mul(self.len().get()).map(Sector)
    }

    /// How far `sector` is behind the start of its chunk.
    #[inline]
    pub(crate) fn offset(self, sector: Sector) -> Sectors {
        Sectors(sector.get() & self.len().get().wrapping_sub(1))
    }

    /// How many whole chunks fit into `len`.
    #[inline]
    pub(crate) fn chunks_in(self, len: Sectors) -> u64 {
        len.get().wrapping_shr(self.0)
    }

    /// How many chunks of a COW device of `len` can be used.
    #[inline]
    pub(crate) fn cow_chunks(self, len: Sectors) -> u64 {
        self.chunks_in(len).min(COW_CHUNKS)
    }

    /// The chunks of the origin that `len` sectors from `sector` on touch; none if `len` is zero.
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
