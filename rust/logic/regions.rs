// SPDX-License-Identifier: GPL-2.0

//! Region numbers and half-open ranges of regions, used by all structures of the clone target.
//!
//! All functions: any context.

use crate::env::fmt;

/// The number of a region, counted from the start of the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Region(pub(crate) u64);

impl Region {
    /// Makes the region with the number `index`.
    #[cfg(test)]
    #[inline]
    pub(crate) const fn new(index: u64) -> Self {
        Self(index)
    }

    /// Returns the number of the region.
    #[inline]
    pub(crate) const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Consecutive regions from `start` up to, but not including, `end`.
///
/// # Invariants
///
/// `start <= end`, for ranges made by the functions below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RegionRange {
    /// The first region.
    pub(crate) start: Region,
    /// The region after the last one.
    pub(crate) end: Region,
}

impl RegionRange {
    /// Makes the range from `start` to before `end`; empty at `start` if `end` is not greater.
    #[inline]
    pub(crate) fn new(start: Region, end: Region) -> Self {
        // INVARIANT: `end` is raised to `start` if it is smaller.
        Self {
            start,
            end: end.max(start),
        }
    }

    /// Makes the range of `len` regions from `start`, up to the highest region number.
    #[inline]
    pub(crate) fn with_len(start: Region, len: u64) -> Self {
        // INVARIANT: A saturating sum is not below its first term.
        Self {
            start,
            end: Region(start.0.saturating_add(len)),
        }
    }

    /// Makes the range that holds `region` alone.
    #[inline]
    pub(crate) fn single(region: Region) -> Self {
        Self::with_len(region, 1)
    }

    /// Returns the number of regions.
    #[inline]
    pub(crate) fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether the range is empty.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    /// Whether `region` is in the range.
    #[inline]
    pub(crate) fn contains(&self, region: Region) -> bool {
        self.start <= region && region < self.end
    }

    /// Returns the regions that are in both ranges, which may be none.
    #[inline]
    pub(crate) fn intersect(&self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Returns the first `len` regions, or all if there are fewer.
    #[inline]
    pub(crate) fn first(&self, len: u64) -> Self {
        Self::with_len(self.start, len.min(self.len()))
    }
}

impl fmt::Display for RegionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_fmt(fmt!("{}..{}", self.start, self.end))
    }
}
