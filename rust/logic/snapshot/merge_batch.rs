// SPDX-License-Identifier: GPL-2.0

//! The batch of a merge: its size, and which chunks belong to it.

use crate::logic::snapshot::{
    chunks::Chunk,
    lists::partition_point,
    run::Run, //
};

/// Whether a chunk belongs to a batch, and for how many chunks, this one included, that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BatchLookup {
    /// It belongs to the batch.
    Inside(u64),
    /// It does not.
    Outside(u64),
}

impl BatchLookup {
    /// Looks up a chunk in runs that are sorted by their chunks of the origin. Counts up to `max`
    /// chunks.
    pub(crate) fn find(runs: &[Run], chunk: Chunk, max: u64) -> Self {
        let after = partition_point(runs, |run| run.old <= chunk);
        let last = after.checked_sub(1).and_then(|last| runs.get(last));
        let offset = last.map_or(0, |run| chunk.0.saturating_sub(run.old.0));
        if let Some(left) = last.and_then(|run| run.len.checked_sub(offset)) {
            if left != 0 {
                return BatchLookup::Inside(left.min(max));
            }
        }
        let gap = runs.get(after).map(|run| run.old.0.saturating_sub(chunk.0));
        BatchLookup::Outside(gap.map_or(max, |gap| gap.min(max)))
    }
}

/// The size of a batch, adjusted so that a batch takes at most about a fifth of a second.
///
/// A write to the batch may have to wait this long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BatchSize {
    bytes: u64,
}

impl BatchSize {
    /// The next batch is larger if one took less than this, in milliseconds.
    const SHORT: u64 = 50;
    /// The next batch is smaller if one took at least this, in milliseconds.
    const LONG: u64 = 200;
    /// The minimum size in bytes.
    const MIN: u64 = 1 << 12;
    /// The size of the first batch in bytes.
    const FIRST: u64 = 1 << 20;
    /// The maximum size in bytes.
    const MAX: u64 = 1 << 24;

    /// Returns the size of the first batch.
    pub(crate) const fn new() -> Self {
        BatchSize { bytes: Self::FIRST }
    }

    /// Returns the maximum number of chunks of the next batch, at least one.
    pub(crate) fn chunks(&self, chunk_bytes: u32) -> u64 {
        self.bytes
            .checked_div(chunk_bytes.into())
            .unwrap_or(0)
            .max(1)
    }

    /// Adjusts the size after a batch that took `milliseconds`.
    pub(crate) fn adjust(&mut self, milliseconds: u64) {
        let bytes = match milliseconds {
            0..Self::SHORT => self.bytes.saturating_mul(2),
            Self::SHORT..Self::LONG => self.bytes,
            _ => self.bytes / 2,
        };
        self.bytes = bytes.clamp(Self::MIN, Self::MAX);
    }
}
