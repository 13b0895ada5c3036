// SPDX-License-Identifier: GPL-2.0

//! The batch of a merge: how many chunks it has, and which.

use crate::logic::snapshot::{
    chunks::Chunk,
    lists::partition_point,
    run::Run, //
};

/// Whether a chunk is one of those of sorted runs, and for how many chunks from it on that is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BatchLookup {
    /// It is.
    Inside(u64),
    /// It is not.
    Outside(u64),
}

impl BatchLookup {
    /// Looks for a chunk in runs that are sorted by their chunks of the origin, at most for so many
    /// chunks.
    pub(crate) fn find(runs: &[Run], chunk: Chunk, most: u64) -> Self {
        let behind = partition_point(runs, |run| run.old <= chunk);
        let last = behind.checked_sub(1).and_then(|last| runs.get(last));
        let offset = last.map_or(0, |run| chunk.0.saturating_sub(run.old.0));
        if let Some(left) = last.and_then(|run| run.len.checked_sub(offset)) {
            if left != 0 {
                return BatchLookup::Inside(left.min(most));
            }
        }
        let gap = runs
            .get(behind)
            .map(|run| run.old.0.saturating_sub(chunk.0));
        BatchLookup::Outside(gap.map_or(most, |gap| gap.min(most)))
    }
}

/// How much is merged at a time: as much as takes about a fifth of a second, as long a write may
/// have to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct BatchSize {
    bytes: u64,
}

impl BatchSize {
    /// Milliseconds below which the next batch may be larger, and above which it is smaller.
    const SHORT: u64 = 50;
    const LONG: u64 = 200;
    const LEAST: u64 = 1 << 12;
    const FIRST: u64 = 1 << 20;
    const MOST: u64 = 1 << 24;

    /// The pace of a beginning.
    pub(crate) const fn new() -> Self {
        BatchSize { bytes: Self::FIRST }
    }

    /// How many chunks of a size the next batch may have, at least one.
    pub(crate) fn chunks(&self, size: u32) -> u64 {
        self.bytes.checked_div(size.into()).unwrap_or(0).max(1)
    }

    /// A batch took so many milliseconds.
    pub(crate) fn adjust(&mut self, milliseconds: u64) {
        let bytes = match milliseconds {
            0..Self::SHORT => self.bytes.saturating_mul(2),
            Self::SHORT..Self::LONG => self.bytes,
            _ => self.bytes / 2,
        };
        self.bytes = bytes.clamp(Self::LEAST, Self::MOST);
    }
}
