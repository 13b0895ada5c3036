// SPDX-License-Identifier: GPL-2.0

//! The progress of the copy of a slot, and the order in which copies continue.
//!
//! A copy is done in segments: each is read from the source, then written to the destination.
//! Between the two it can be given up, because nothing has been written yet; so a source that does
//! not answer holds up nobody.
//!
//! ```text
//!              start_read          read_done         write_done
//!   (to read) ------------> reading --------> writing ----------> (done)
//!                              |                 |
//!                              | give_up         | give_up: waits for the write
//!                              v                 v
//!                         (forgotten)         (done)
//! ```

use crate::env::{
    KVVec,
    Result,
    GFP_KERNEL, //
};
use crate::logic::clone::inflight::Slot;
use crate::logic::count::subtract;
use crate::logic::units::{
    Sector,
    Sectors, //
};

/// Maximum length of a segment: what is read or written at once.
pub(crate) const MAX_SEGMENT: Sectors = Sectors(1024);
/// Maximum number of segments of one copy in flight.
const MAX_PARALLEL_SEGMENTS: u64 = 8;

/// Why regions are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyReason {
    /// A write to a part of the region waits in the slot.
    Write,
    /// The background hydration has reached them.
    Hydration,
    /// The background hydration copies them before all others, because a user has requested it.
    Priority,
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyResult {
    /// All of it is on the destination.
    Copied,
    /// A segment could not be read or written.
    Failed,
    /// It was given up.
    GivenUp,
}

/// The copy of a range of regions.
///
/// C counterpart: `struct dm_clone_region_hydration`, while kcopyd works on it.
///
/// # Invariants
///
/// A copy with no segment in flight and none to start has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegionCopy {
    next: Sector,
    end: Sector,
    reading: u64,
    writing: u64,
    failed: bool,
    given_up: bool,
    reason: CopyReason,
}

impl RegionCopy {
    /// Makes a copy of `len` sectors from `start`, of which nothing is done yet.
    pub(crate) fn new(start: Sector, len: Sectors, reason: CopyReason) -> Self {
        Self {
            next: start,
            end: Sector(start.get().saturating_add(len.get())),
            reading: 0,
            writing: 0,
            failed: false,
            given_up: false,
            reason,
        }
    }

    /// Returns why the regions are copied.
    pub(crate) fn reason(&self) -> CopyReason {
        self.reason
    }

    /// Returns the next segment to read, if there is one and not too many are in flight.
    pub(crate) fn next_segment(&self) -> Option<(Sector, Sectors)> {
        let rest = self.end.get().saturating_sub(self.next.get());
        let busy = self.reading.saturating_add(self.writing);
        if rest == 0 || self.failed || self.given_up || busy >= MAX_PARALLEL_SEGMENTS {
            return None;
        }
        Some((self.next, Sectors(rest).min(MAX_SEGMENT)))
    }

    /// Starts to read the next segment, if it starts at `start`. Returns whether it does.
    pub(crate) fn start_read(&mut self, start: Sector) -> bool {
        match self.next_segment() {
            Some((next, len)) if next == start => {
                self.next = Sector(next.get().saturating_add(len.get()));
                self.reading = self.reading.saturating_add(1);
                true
            }
            _ => false,
        }
    }

    /// Records that a segment was read, or failed to be. Returns whether to write it.
    pub(crate) fn read_done(&mut self, ok: bool) -> bool {
        if self.given_up {
            // `give_up` has taken it off the count.
            return false;
        }
        self.reading = subtract(self.reading, 1);
        self.failed |= !ok;
        let write = ok && !self.failed;
        if write {
            self.writing = self.writing.saturating_add(1);
        }
        write
    }

    /// Records that a segment was written, or failed to be.
    pub(crate) fn write_done(&mut self, ok: bool) {
        self.writing = subtract(self.writing, 1);
        self.failed |= !ok;
    }

    /// Gives the copy up: it starts no more segments and forgets those that are being read.
    ///
    /// Segments that are being written still end. A copy that has nothing left to read, and is
    /// reading nothing, is not given up.
    pub(crate) fn give_up(&mut self) {
        self.given_up |= self.reading != 0 || self.next < self.end;
        self.reading = 0;
    }

    /// Returns how the copy ended, if it has.
    pub(crate) fn result(&self) -> Option<CopyResult> {
        if self.reading != 0 || self.writing != 0 {
            None
        } else if self.given_up {
            Some(CopyResult::GivenUp)
        } else if self.failed {
            Some(CopyResult::Failed)
        } else if self.next >= self.end {
            Some(CopyResult::Copied)
        } else {
            None
        }
    }
}

/// The slots whose copies have a segment to read: those that a write waits for come first.
pub(crate) struct ReadyCopies {
    write: SlotQueue,
    hydration: SlotQueue,
}

impl ReadyCopies {
    /// Makes empty queues for the slots of a structure with `places` slots. May sleep.
    pub(crate) fn new(places: usize) -> Result<Self> {
        Ok(Self {
            write: SlotQueue::new(places)?,
            hydration: SlotQueue::new(places)?,
        })
    }

    /// Queues a copy if it has a segment to start, and is not queued already.
    pub(crate) fn push(&mut self, slot: Slot, copy: &RegionCopy) {
        if copy.next_segment().is_some() {
            match copy.reason {
                CopyReason::Write => self.write.push(slot),
                CopyReason::Hydration | CopyReason::Priority => self.hydration.push(slot),
            }
        }
    }

    /// Returns the slot whose copy continues next. The copy may have ended meanwhile.
    pub(crate) fn first(&self) -> Option<Slot> {
        self.write.first().or_else(|| self.hydration.first())
    }

    /// Removes the first slot.
    pub(crate) fn pop(&mut self) {
        if self.write.pop().is_none() {
            self.hydration.pop();
        }
    }

    /// Removes all slots.
    pub(crate) fn clear(&mut self) {
        while self.first().is_some() {
            self.pop();
        }
    }
}

/// A first-in-first-out queue of slots in fixed memory.
///
/// # Invariants
///
/// `order` holds each place that has a slot in `queued` once, and no other place. Hence there is
/// always room.
struct SlotQueue {
    order: KVVec<usize>,
    queued: KVVec<Option<Slot>>,
    first: usize,
    len: usize,
}

impl SlotQueue {
    fn new(places: usize) -> Result<Self> {
        let mut order = KVVec::with_capacity(places, GFP_KERNEL)?;
        let mut queued = KVVec::with_capacity(places, GFP_KERNEL)?;
        for _ in 0..places {
            order.push_within_capacity(0)?;
            queued.push_within_capacity(None)?;
        }
        Ok(Self {
            order,
            queued,
            first: 0,
            len: 0,
        })
    }

    /// Returns the index of the `n`-th slot from the first. Both are at most the number of places.
    fn position(&self, n: usize) -> usize {
        let position = self.first.saturating_add(n);
        position.checked_sub(self.order.len()).unwrap_or(position)
    }

    /// Adds a slot. If an earlier slot of the same place is queued, the new one takes its turn.
    fn push(&mut self, slot: Slot) {
        let end = self.position(self.len);
        let Some(queued) = self.queued.get_mut(slot.index()) else {
            return;
        };
        if queued.replace(slot).is_some() {
            return;
        }
        if let Some(last) = self.order.get_mut(end) {
            *last = slot.index();
            self.len = self.len.saturating_add(1);
        }
    }

    fn first(&self) -> Option<Slot> {
        if self.len == 0 {
            return None;
        }
        let place = self.order.get(self.first)?;
        self.queued.get(*place).copied().flatten()
    }

    fn pop(&mut self) -> Option<Slot> {
        let slot = self.first()?;
        *self.queued.get_mut(slot.index())? = None;
        self.first = self.position(1);
        self.len = self.len.saturating_sub(1);
        Some(slot)
    }
}
