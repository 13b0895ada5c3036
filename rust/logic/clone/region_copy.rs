// SPDX-License-Identifier: GPL-2.0

//! How far the copy of a slot is, and which copy goes on next.
//!
//! A copy is done in pieces: each is read from the source, then written to the destination. Between
//! the two it can be given up, because nothing has happened yet that anybody could notice; so a
//! source that does not answer holds up nobody.
//!
//! ```text
//!              take            read              written
//!   (rest) ----------> reading ------> writing ----------> (done)
//!                         |               |
//!                         | give up       | give up: waits for the write
//!                         v               v
//!                       (gone)          (gone)
//! ```

use crate::env::{
    KVVec,
    Result,
    GFP_KERNEL, //
};
use crate::logic::clone::inflight::Slot;
use crate::logic::units::{
    Sector,
    Sectors, //
};

/// The most that is read or written at once.
pub(crate) const MAX_SEGMENT: Sectors = Sectors(1024);
/// Pieces of one copy that may be under way at a time.
const MAX_PARALLEL_SEGMENTS: u32 = 8;

/// Who wants a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyReason {
    /// A write to a part of the region waits in the slot.
    Write,
    /// The background hydration.
    Hydration,
    /// The background hydration, because a user asked for the range.
    Priority,
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyResult {
    /// All of it is on the destination.
    Copied,
    /// A piece could not be read or written.
    Failed,
    /// It was given up.
    GivenUp,
}

/// One copy under way.
///
/// # Invariants
///
/// Without pieces under way and with nothing to start, the copy has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegionCopy {
    next: Sector,
    end: Sector,
    reading: u32,
    writing: u32,
    failed: bool,
    given_up: bool,
    reason: CopyReason,
}

impl RegionCopy {
    /// A copy of so many sectors, of which nothing has been done yet.
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

    /// Who wants it.
    pub(crate) fn reason(&self) -> CopyReason {
        self.reason
    }

    /// The next piece to read, if there is one and not too many are under way.
    pub(crate) fn next_segment(&self) -> Option<(Sector, Sectors)> {
        let rest = self.end.get().saturating_sub(self.next.get());
        let busy = self.reading.saturating_add(self.writing);
        if rest == 0 || self.failed || self.given_up || busy >= MAX_PARALLEL_SEGMENTS {
            return None;
        }
        Some((self.next, Sectors(rest).min(MAX_SEGMENT)))
    }

    /// Starts to read the next piece, if it is the one that starts at `start`.
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

    /// A piece has been read, or could not be. Returns whether to write it.
    pub(crate) fn read_done(&mut self, ok: bool) -> bool {
        self.reading = self.reading.saturating_sub(1);
        self.failed |= !ok;
        let write = ok && !self.failed && !self.given_up;
        if write {
            self.writing = self.writing.saturating_add(1);
        }
        write
    }

    /// A piece has been written, or could not be.
    pub(crate) fn write_done(&mut self, ok: bool) {
        self.writing = self.writing.saturating_sub(1);
        self.failed |= !ok;
    }

    /// Starts nothing more. Pieces that are being read are forgotten, those being written are
    /// waited for; if there are no others, the copy goes to its end.
    pub(crate) fn give_up(&mut self) {
        self.given_up |= self.reading != 0 || self.next < self.end;
        self.reading = 0;
    }

    /// How it ended, if it has.
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

/// The slots whose copies can go on: those that a write waits for, then the others.
pub(crate) struct ReadyCopies {
    write: SlotQueue,
    hydration: SlotQueue,
}

impl ReadyCopies {
    /// Empty lanes for slots in so many places. May sleep.
    pub(crate) fn new(places: usize) -> Result<Self> {
        Ok(Self {
            write: SlotQueue::new(places)?,
            hydration: SlotQueue::new(places)?,
        })
    }

    /// Queues a copy if it has a piece to start, and is not queued already.
    pub(crate) fn push(&mut self, slot: Slot, copy: &RegionCopy) {
        if copy.next_segment().is_some() {
            match copy.reason {
                CopyReason::Write => self.write.push(slot),
                CopyReason::Hydration | CopyReason::Priority => self.hydration.push(slot),
            }
        }
    }

    /// The copy to go on with, if it is not over.
    pub(crate) fn first(&self) -> Option<Slot> {
        self.write.first().or_else(|| self.hydration.first())
    }

    /// Takes the first slot out.
    pub(crate) fn pop(&mut self) {
        if self.write.pop().is_none() {
            self.hydration.pop();
        }
    }

    /// Forgets all slots.
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
/// A place is in `order` once if it has a slot in `queued`, else not at all. So there is always
/// room.
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

    /// Where the `n`-th from the first is; both are at most the number of places.
    fn position(&self, n: usize) -> usize {
        let position = self.first.saturating_add(n);
        position.checked_sub(self.order.len()).unwrap_or(position)
    }

    /// Adds a slot. One that was in the same place before, and is over, leaves it its turn.
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
