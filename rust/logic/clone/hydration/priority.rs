// SPDX-License-Identifier: GPL-2.0

//! Ranges that the background hydration copies before all others.

use super::next_run;
use crate::logic::clone::inflight::InFlight;
use crate::logic::clone::map::RegionMap;
use crate::logic::regions::RegionRange;

/// Maximum number of priority ranges that are kept.
const PRIORITY_RANGES: usize = 32;

/// A queue of ranges to copy before all others, in fixed memory.
///
/// When it is full, the oldest range is dropped: the scan copies it in its turn.
#[derive(Debug, Default)]
pub(crate) struct PriorityRanges {
    ranges: [RegionRange; PRIORITY_RANGES],
    first: usize,
    pub(super) len: usize,
}

impl PriorityRanges {
    /// Adds a range. It is joined with the last one if they touch.
    pub(crate) fn push(&mut self, range: RegionRange) {
        let last = self.len.wrapping_sub(1).wrapping_add(self.first) % PRIORITY_RANGES;
        if let Some(last) = self.ranges.get_mut(last).filter(|_| self.len != 0) {
            if range.start <= last.end && last.start <= range.end {
                *last = RegionRange::new(last.start.min(range.start), last.end.max(range.end));
                return;
            }
        }
        if self.len == PRIORITY_RANGES {
            self.pop();
        }
        let place = self.first.saturating_add(self.len) % PRIORITY_RANGES;
        if let Some(free) = self.ranges.get_mut(place) {
            *free = range;
            self.len = self.len.saturating_add(1);
        }
    }

    /// Moves all ranges of `other` to the end.
    pub(crate) fn append(&mut self, other: &mut Self) {
        while other.len != 0 {
            if let Some(range) = other.ranges.get(other.first) {
                self.push(*range);
            }
            other.pop();
        }
    }

    /// Removes the first range.
    fn pop(&mut self) {
        self.first = self.first.saturating_add(1) % PRIORITY_RANGES;
        self.len = self.len.saturating_sub(1);
    }

    /// Takes the first regions, at most `batch`, that are neither hydrated nor in flight.
    pub(super) fn next<W: Default>(
        &mut self,
        batch: u64,
        map: &RegionMap,
        inflight: &InFlight<W>,
    ) -> Option<RegionRange> {
        while self.len != 0 {
            let range = self.ranges.get_mut(self.first)?;
            if let Some(found) = next_run(map, inflight, *range, batch) {
                range.start = found.end;
                return Some(found);
            }
            self.pop();
        }
        None
    }
}
