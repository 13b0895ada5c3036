// SPDX-License-Identifier: GPL-2.0

//! Which regions were hydrated since the last commit, per transaction.
//!
//! The metadata may say "hydrated" only of regions whose data a flush of the destination has made
//! durable. Hence a commit must know the regions that were filled *before* that flush. There are
//! two logs of ranges: one that records, and one that a commit has taken out.
//!
//! ```text
//!                reserve, record
//!                      |
//!                      v            begin_commit
//!                 [ current ] ----------------------> [ committing ] ---> normalize, words
//!                      ^                                    |
//!                      |    end_commit(failed): comes back  |  end_commit(done): emptied,
//!                      +------------------------------------+  kept for the next swap
//! ```
//!
//! Memory is bounded, and allocated at construction. A fill reserves room for the entry that will
//! record its end, so the record itself, which may be made in interrupt context, cannot fail. With
//! a capacity of `n`, the current log and the reservations together stay within `n` entries. Both
//! logs have room for `2n` entries; current log, reservations and committing log together stay
//! within that, so that there is room for what a failed commit returns.
//!
//! C counterpart: `struct dirty_map`, and `dmap[2]` of `struct dm_clone_metadata`.

use crate::env::{
    KVVec,
    Result,
    EINVAL,
    EOVERFLOW,
    GFP_KERNEL, //
};
use crate::logic::count::subtract_len;
use crate::logic::regions::RegionRange;

/// A range of regions in 8 bytes. A clone has at most 2^31 regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PackedRange {
    start: u32,
    end: u32,
}

impl PackedRange {
    /// Packs a range. `None` if it is empty or out of bounds.
    #[inline]
    fn new(range: RegionRange) -> Option<Self> {
        if range.is_empty() {
            return None;
        }
        Some(Self {
            start: u32::try_from(range.start.get()).ok()?,
            end: u32::try_from(range.end.get()).ok()?,
        })
    }

    /// Returns the range that covers both, if there is no gap between them.
    #[inline]
    fn join(self, other: Self) -> Option<Self> {
        if self.end < other.start || other.end < self.start {
            return None;
        }
        Some(Self {
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        })
    }
}

/// A log of ranges of regions, in the order in which they were recorded, or sorted.
///
/// Its owner is [`DirtyLogs`], or the commit that has taken it out.
#[derive(Debug)]
#[must_use = "a log that is not given back by end_commit blocks all further commits"]
pub(crate) struct RangeLog {
    entries: KVVec<PackedRange>,
}

impl RangeLog {
    /// Makes an empty log with room for `capacity` ranges. May sleep.
    fn new(capacity: usize) -> Result<Self> {
        Ok(Self {
            entries: KVVec::with_capacity(capacity, GFP_KERNEL)?,
        })
    }

    /// Returns the number of entries.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is recorded.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Iterates over the recorded ranges, in the order of the log.
    #[cfg(test)]
    pub(crate) fn ranges(&self) -> impl Iterator<Item = RegionRange> + '_ {
        use crate::logic::regions::Region;

        self.entries.iter().map(|entry| {
            RegionRange::new(Region(u64::from(entry.start)), Region(u64::from(entry.end)))
        })
    }

    /// Adds a range, or widens the last one if there is no gap. `None` if the log is full.
    fn push(&mut self, entry: PackedRange) -> Option<()> {
        if let Some(last) = self.entries.last_mut() {
            if let Some(joined) = last.join(entry) {
                *last = joined;
                return Some(());
            }
        }
        self.entries.push_within_capacity(entry).ok()
    }

    /// Sorts the ranges, and joins those without a gap between them.
    ///
    /// Takes linear time if the log is sorted already, n log n otherwise, and no memory. Never
    /// sleeps.
    pub(crate) fn normalize(&mut self) {
        if !self.entries.is_sorted_by_key(|entry| entry.start) {
            heap_sort(&mut self.entries);
        }
        let mut kept = 0usize;
        let mut run: Option<PackedRange> = None;
        for index in 0..self.entries.len() {
            let Some(entry) = self.entries.get(index).copied() else {
                break;
            };
            run = match run.map(|run| (run, run.join(entry))) {
                None => Some(entry),
                Some((_, Some(joined))) => Some(joined),
                Some((run, None)) => {
                    set_entry(&mut self.entries, kept, run);
                    kept = kept.saturating_add(1);
                    Some(entry)
                }
            };
        }
        if let Some(run) = run {
            set_entry(&mut self.entries, kept, run);
            kept = kept.saturating_add(1);
        }
        self.entries.truncate(kept);
    }

    /// Iterates over the words of the on-disk bitset that get new bits: index, and bits to set.
    ///
    /// After [`Self::normalize`] the indices ascend, and each comes once.
    pub(crate) fn words(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        BitmapWords {
            entries: &self.entries,
            done: 0,
        }
    }
}

/// The iterator behind [`RangeLog::words`].
struct BitmapWords<'a> {
    /// The ranges that are not used up.
    entries: &'a [PackedRange],
    /// Regions below this one are done.
    done: u32,
}

impl Iterator for BitmapWords<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let mut word: Option<(u32, u64)> = None;
        while let Some((entry, rest)) = self.entries.split_first() {
            let start = entry.start.max(self.done);
            if start >= entry.end {
                self.entries = rest;
                // In a sorted log no range starts below the end of an earlier one.
                self.done = 0;
                continue;
            }
            let index = start >> 6;
            if word.is_some_and(|(open, _)| open != index) {
                break;
            }
            // The first region of the next word. It saturates beyond all regions only.
            let next = index.saturating_add(1).saturating_mul(64);
            let end = entry.end.min(next);
            let ones = u64::MAX.wrapping_shr(64u32.saturating_sub(end.saturating_sub(start)));
            let mask = ones.wrapping_shl(start & 63);
            word = Some((index, mask | word.map_or(0, |(_, bits)| bits)));
            self.done = end;
        }
        word.map(|(index, bits)| (u64::from(index), bits))
    }
}

/// Writes `entry` to position `index`, which exists.
#[inline]
fn set_entry(entries: &mut [PackedRange], index: usize, entry: PackedRange) {
    if let Some(slot) = entries.get_mut(index) {
        *slot = entry;
    }
}

/// Sorts by start, in place: the sorts of `core` may panic, and the kernel must not.
fn heap_sort(entries: &mut [PackedRange]) {
    let len = entries.len();
    for root in (0..len / 2).rev() {
        if let Some(entry) = entries.get(root).copied() {
            sift_down(entries, root, entry);
        }
    }
    for end in (1..len).rev() {
        let Some((head, _)) = entries.split_at_mut_checked(end.saturating_add(1)) else {
            return;
        };
        let (Some(largest), Some(last)) = (head.first().copied(), head.last().copied()) else {
            return;
        };
        set_entry(head, end, largest);
        if let Some(heap) = head.get_mut(..end) {
            sift_down(heap, 0, last);
        }
    }
}

/// Sinks `entry` from position `hole` of a heap, until nothing below it is larger.
fn sift_down(heap: &mut [PackedRange], mut hole: usize, entry: PackedRange) {
    loop {
        let left = hole.saturating_mul(2).saturating_add(1);
        let right = left.saturating_add(1);
        let child = match (heap.get(left).copied(), heap.get(right).copied()) {
            (Some(a), Some(b)) if a.start < b.start => Some((right, b)),
            (Some(a), _) => Some((left, a)),
            (None, _) => None,
        };
        match child {
            Some((index, larger)) if larger.start > entry.start => {
                set_entry(heap, hole, larger);
                hole = index;
            }
            _ => break,
        }
    }
    set_entry(heap, hole, entry);
}

/// The log that records, and the log of the commit under way.
///
/// Called with the lock of the map's writer held. Only [`Self::new`] may sleep.
///
/// # Invariants
///
/// - `current + reserved <= capacity`, unless entries of a failed commit are in `current`.
/// - `current + reserved + committing <= 2 * capacity`, the room of each log.
/// - `spare` is `None` exactly while a commit is under way.
#[derive(Debug)]
pub(crate) struct DirtyLogs {
    current: RangeLog,
    spare: Option<RangeLog>,
    /// Number of entries that the commit has taken out.
    committing: usize,
    /// Number of records that will come.
    reserved: usize,
    capacity: usize,
}

impl DirtyLogs {
    /// Makes logs for `capacity` entries that are recorded or reserved at a time. May sleep.
    ///
    /// A good capacity is at least twice the number of slots.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a capacity of zero, `EOVERFLOW`, `ENOMEM`.
    pub(crate) fn new(capacity: usize) -> Result<Self> {
        if capacity == 0 {
            return Err(EINVAL);
        }
        let room = capacity.checked_mul(2).ok_or(EOVERFLOW)?;
        Ok(Self {
            current: RangeLog::new(room)?,
            spare: Some(RangeLog::new(room)?),
            committing: 0,
            reserved: 0,
            capacity,
        })
    }

    /// Reserves room for `n` records, all or nothing. Returns whether it does.
    ///
    /// If not, a commit makes room; if nothing is recorded, fills that end do.
    pub(crate) fn reserve(&mut self, n: usize) -> bool {
        let reserved = self.reserved.saturating_add(n);
        let live = reserved.saturating_add(self.current.len());
        if live > self.capacity
            || live.saturating_add(self.committing) > self.capacity.saturating_mul(2)
        {
            return false;
        }
        self.reserved = reserved;
        true
    }

    /// Returns `n` reservations of fills that failed or did not start.
    pub(crate) fn unreserve(&mut self, n: usize) {
        self.reserved = subtract_len(self.reserved, n);
    }

    /// Returns the number of reservations that are neither used nor returned.
    #[cfg(test)]
    pub(crate) fn reserved(&self) -> usize {
        self.reserved
    }

    /// Records that the regions of `range` are hydrated, and uses one reservation.
    ///
    /// Regions of the range may be recorded already. Returns `false`, with the range lost, only
    /// without a reservation and without room.
    pub(crate) fn record(&mut self, range: RegionRange) -> bool {
        self.reserved = subtract_len(self.reserved, 1);
        if range.is_empty() {
            return true;
        }
        PackedRange::new(range)
            .and_then(|entry| self.current.push(entry))
            .is_some()
    }

    /// Whether there is anything that the disk may not know: recorded, being committed, or left
    /// over from a commit that failed.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.current.is_empty() || self.is_committing()
    }

    /// Whether a commit has taken a log out, and not returned it.
    pub(crate) fn is_committing(&self) -> bool {
        self.spare.is_none()
    }

    /// Whether it is time for a commit, because records use half of the room.
    pub(crate) fn is_half_full(&self) -> bool {
        self.current.len() >= self.capacity.div_ceil(2)
    }

    /// Begins a commit: hands out the recorded ranges. Later records belong to the next commit.
    ///
    /// `None` if nothing is recorded or a commit is under way. The caller flushes the destination
    /// after this call, and before it writes the log to the metadata.
    pub(crate) fn begin_commit(&mut self) -> Option<RangeLog> {
        if self.current.is_empty() {
            return None;
        }
        let spare = self.spare.take()?;
        let log = core::mem::replace(&mut self.current, spare);
        self.committing = log.len();
        Some(log)
    }

    /// Ends a commit. `committed` says that the superblock which refers to the bits of the log is
    /// durable.
    ///
    /// Otherwise the ranges stay dirty, and come first in the next commit.
    pub(crate) fn end_commit(&mut self, mut log: RangeLog, committed: bool) {
        self.committing = 0;
        if committed {
            log.entries.clear();
            self.spare = Some(log);
            return;
        }
        for entry in self.current.entries.iter() {
            // The invariant guarantees room.
            let _ = log.push(*entry);
        }
        let mut rest = core::mem::replace(&mut self.current, log);
        rest.entries.clear();
        self.spare = Some(rest);
    }
}
