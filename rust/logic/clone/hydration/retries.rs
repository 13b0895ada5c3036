// SPDX-License-Identifier: GPL-2.0

//! Regions of failed batches, which are retried one at a time.

use super::next_free;
use crate::logic::clone::inflight::InFlight;
use crate::logic::clone::map::RegionMap;
use crate::logic::regions::{
    Region,
    RegionRange, //
};

/// Maximum number of failed batches that are kept apart.
const RETRIES: usize = 16;

/// Failed batches, in fixed memory; their regions are retried one at a time.
///
/// When the list is full, its last range is widened to cover the new batch too. Of the regions in
/// between, hydrated ones are skipped and the others are copied one at a time: slow, but correct.
#[derive(Debug, Default)]
pub(super) struct Retries {
    ranges: [RegionRange; RETRIES],
    len: usize,
    /// The region of this list that is in flight.
    pub(super) trying: Option<Region>,
}

impl Retries {
    /// Adds a failed batch.
    pub(super) fn push(&mut self, range: RegionRange) {
        if let Some(slot) = self.ranges.get_mut(self.len) {
            *slot = range;
            self.len = self.len.saturating_add(1);
        } else if let Some(last) = self.ranges.last_mut() {
            *last = RegionRange::new(last.start.min(range.start), last.end.max(range.end));
        }
    }

    /// Returns the next region to retry, if none is in flight, and drops all regions before it.
    pub(super) fn next<W: Default>(
        &mut self,
        map: &RegionMap,
        inflight: &InFlight<W>,
    ) -> Option<Region> {
        if self.trying.is_some() {
            return None;
        }
        while let Some(top) = self.len.checked_sub(1) {
            let range = self.ranges.get_mut(top)?;
            if let Some(region) = next_free(map, inflight, *range) {
                range.start = region;
                return Some(region);
            }
            self.len = top;
        }
        None
    }

    /// Records that `region`, as returned by [`Self::next`], is being copied.
    pub(super) fn start(&mut self, region: Region) {
        self.trying = Some(region);
        let last = self
            .len
            .checked_sub(1)
            .and_then(|top| self.ranges.get_mut(top));
        if let Some(range) = last {
            range.start = Region(region.get().saturating_add(1));
        }
    }

    /// Whether a region is being retried, or remains to be.
    pub(super) fn is_busy(&self) -> bool {
        self.trying.is_some() || self.len != 0
    }

    /// Records the end of a copy, if it was a retry.
    pub(super) fn copy_done(&mut self, range: RegionRange) {
        if self.trying.is_some_and(|region| range.contains(region)) {
            self.trying = None;
        }
    }
}
