// SPDX-License-Identifier: GPL-2.0

//! Runs of chunks that are consecutive on the origin and on the COW device.
//!
//! C counterpart: a `struct dm_exception` with a consecutive chunk count, of at most 256 chunks.

use crate::logic::snapshot::chunks::{
    Chunk,
    CowChunk,
    COW_CHUNKS, //
};

/// The maximum number of chunks of a run that is passed to a function of the exception table.
pub(crate) const MAX_RUN_CHUNKS: u64 = 1 << 15;

/// Consecutive chunks of the origin that are stored in consecutive chunks of the COW device.
///
/// Any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first chunk of the origin, C's `old_chunk`.
    pub(crate) old: Chunk,
    /// The chunk of the COW device that stores it, C's `new_chunk`.
    pub(crate) new: CowChunk,
    /// The number of chunks.
    pub(crate) len: u64,
}

impl Run {
    /// Returns the number of the first chunk of the origin after the run.
    #[inline]
    pub(crate) fn end(&self) -> u64 {
        self.old.0.wrapping_add(self.len)
    }

    /// Returns whether `other` begins where this run ends, on both devices.
    #[inline]
    pub(crate) fn is_continued_by(&self, other: &Self) -> bool {
        self.end() == other.old.0 && self.new.0.wrapping_add(self.len) == other.new.0
    }

    /// Returns the run without its first `count` chunks.
    #[inline]
    pub(crate) fn without_first(&self, count: u64) -> Self {
        Self {
            old: Chunk(self.old.0.wrapping_add(count)),
            new: CowChunk(self.new.0.wrapping_add(count)),
            len: self.len.wrapping_sub(count),
        }
    }
}

/// A run of up to [`MAX_RUN_CHUNKS`] chunks, packed into 16 bytes.
///
/// Any context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PackedRun {
    old: u64,
    /// The chunk of the COW device in the lower 48 bits, the length in the upper 16.
    new: u64,
}

impl PackedRun {
    /// Packs a run that the exception table accepts.
    #[inline]
    pub(crate) fn new(run: Run) -> Self {
        Self {
            old: run.old.0,
            new: run.new.0 | run.len.wrapping_shl(COW_CHUNKS.trailing_zeros()),
        }
    }

    /// Returns the number of the first chunk of the origin.
    #[inline]
    pub(crate) fn old(&self) -> u64 {
        self.old
    }

    /// Unpacks the run.
    #[inline]
    pub(crate) fn run(&self) -> Run {
        Run {
            old: Chunk(self.old),
            new: CowChunk(self.new & COW_CHUNKS.wrapping_sub(1)),
            len: self.new.wrapping_shr(COW_CHUNKS.trailing_zeros()),
        }
    }
}

const _: () = assert!(MAX_RUN_CHUNKS < 1 << (u64::BITS - COW_CHUNKS.trailing_zeros()));
