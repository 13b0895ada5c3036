// SPDX-License-Identifier: GPL-2.0

//! Ranges that are hydrated before all others.

use super::next_run;
use crate::logic::clone::inflight::InFlight;
use crate::logic::clone::map::RegionMap;
use crate::logic::regions::RegionRange;

/// The number of ranges to be copied first that are remembered.
const PRIORITY_RANGES: usize = 32;

/// Ranges that are to be copied before all others, in fixed memory.
///
/// When it is full, the oldest ones are forgotten: they are copied in their turn, like all others.
#[derive(Debug, Default)]
pub(crate) struct PriorityRanges {
    ranges: [RegionRange; PRIORITY_RANGES],
    first: usize,
    pub(super) len: usize,
}

impl PriorityRanges {
    /// Adds a range; one that touches the last joins it.
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

    /// Takes all ranges of `other`.
    pub(crate) fn append(&mut self, other: &mut Self) {
        while other.len != 0 {
            if let Some(range) = other.ranges.get(other.first) {
                self.push(*range);
            }
            other.pop();
        }
    }

    fn pop(&mut self) {
        self.first = self.first.saturating_add(1) % PRIORITY_RANGES;
        self.len = self.len.saturating_sub(1);
    }

    /// Takes up to `batch` regions that are neither hydrated nor in flight.
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
