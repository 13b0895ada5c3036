// SPDX-License-Identifier: GPL-2.0

//! How far the copy of a slot is, and which copy goes on next.
//!
//! A copy is done in pieces: each is read from the source, then written to the destination. Between the two it can be given
//! up, because nothing has happened yet that anybody could notice; so a source that does not answer holds up nobody.
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
pub(crate) const MAX_PIECE: Sectors = Sectors(1024);
/// Pieces of one copy that may be under way at a time.
const PARALLEL: u32 = 8;

/// Who wants a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// A write to a part of the region waits in the slot.
    Write,
    /// The background hydration.
    Sweep,
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
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
pub(crate) struct Copy {
    next: Sector,
    end: Sector,
    reading: u32,
    writing: u32,
    failed: bool,
    given_up: bool,
    /// In a lane, to be continued.
    queued: bool,
    whose: For,
}

impl Copy {
    /// A copy of so many sectors, of which nothing has been done yet.
    pub(crate) fn new(start: Sector, len: Sectors, whose: For) -> Self {
        Self {
            next: start,
            end: Sector(start.get().saturating_add(len.get())),
            reading: 0,
            writing: 0,
            failed: false,
            given_up: false,
            queued: false,
            whose,
        }
    }

    /// Who wants it.
    pub(crate) fn whose(&self) -> For {
        self.whose
    }

    /// The next piece to read, if there is one and not too many are under way.
    pub(crate) fn next_piece(&self) -> Option<(Sector, Sectors)> {
        let rest = self.end.get().saturating_sub(self.next.get());
        let busy = self.reading.saturating_add(self.writing);
        if rest == 0 || self.failed || self.given_up || busy >= PARALLEL {
            return None;
        }
        Some((self.next, Sectors(rest).min(MAX_PIECE)))
    }

    /// Starts to read the next piece, if it is the one that starts at `start`.
    pub(crate) fn take(&mut self, start: Sector) -> bool {
        match self.next_piece() {
            Some((next, len)) if next == start => {
                self.next = Sector(next.get().saturating_add(len.get()));
                self.reading = self.reading.saturating_add(1);
                true
            }
            _ => false,
        }
    }

    /// A piece has been read, or could not be. Returns whether to write it.
    pub(crate) fn read(&mut self, ok: bool) -> bool {
        self.reading = self.reading.saturating_sub(1);
        self.failed |= !ok;
        let write = ok && !self.failed && !self.given_up;
        if write {
            self.writing = self.writing.saturating_add(1);
        }
        write
    }

    /// A piece has been written, or could not be.
    pub(crate) fn written(&mut self, ok: bool) {
        self.writing = self.writing.saturating_sub(1);
        self.failed |= !ok;
    }

    /// Starts nothing more. Pieces that are being read are forgotten, those being written are waited for; if there are no
    /// others, the copy goes to its end.
    pub(crate) fn give_up(&mut self) {
        self.given_up |= self.reading != 0 || self.next < self.end;
        self.reading = 0;
    }

    /// How it ended, if it has.
    pub(crate) fn end(&self) -> Option<End> {
        if self.reading != 0 || self.writing != 0 {
            None
        } else if self.given_up {
            Some(End::GivenUp)
        } else if self.failed {
            Some(End::Failed)
        } else if self.next >= self.end {
            Some(End::Copied)
        } else {
            None
        }
    }
}

/// The slots whose copies can go on: those that a write waits for, then those of the sweep.
///
/// # Invariants
///
/// Each ring has room for every slot. A live slot is in one at most, and only if its copy is marked as queued.
pub(crate) struct Lanes {
    write: Ring,
    sweep: Ring,
}

impl Lanes {
    /// Empty lanes for as many slots. May sleep.
    pub(crate) fn new(slots: usize) -> Result<Self> {
        Ok(Self {
            write: Ring::new(slots)?,
            sweep: Ring::new(slots)?,
        })
    }

    fn lane(&mut self, whose: For) -> &mut Ring {
        match whose {
            For::Write => &mut self.write,
            For::Sweep => &mut self.sweep,
        }
    }

    /// Queues a copy that has a piece to start, if it is not queued already.
    pub(crate) fn push(&mut self, slot: Slot, copy: &mut Copy) {
        if !copy.queued && copy.next_piece().is_some() {
            copy.queued = self.lane(copy.whose).push(slot);
        }
    }

    /// The copy to go on with.
    pub(crate) fn first(&self) -> Option<Slot> {
        self.write.first().or_else(|| self.sweep.first())
    }

    /// Takes the first slot out; with its copy, if there is one still.
    pub(crate) fn pop(&mut self, copy: Option<&mut Copy>) {
        if self.write.pop().is_none() {
            self.sweep.pop();
        }
        if let Some(copy) = copy {
            copy.queued = false;
        }
    }

    /// Forgets all slots: their copies have been given up.
    pub(crate) fn clear(&mut self) {
        self.write.clear();
        self.sweep.clear();
    }
}

/// A first-in-first-out queue of slots in fixed memory.
struct Ring {
    slots: KVVec<Option<Slot>>,
    first: usize,
    len: usize,
}

impl Ring {
    fn new(capacity: usize) -> Result<Self> {
        let mut slots = KVVec::with_capacity(capacity, GFP_KERNEL)?;
        for _ in 0..capacity {
            slots.push_within_capacity(None)?;
        }
        Ok(Self {
            slots,
            first: 0,
            len: 0,
        })
    }

    /// The place of the `n`-th slot from the first; both are at most the capacity.
    fn place(&self, n: usize) -> usize {
        let place = self.first.saturating_add(n);
        place.checked_sub(self.slots.len()).unwrap_or(place)
    }

    /// Adds a slot, or returns false if there is no room.
    fn push(&mut self, slot: Slot) -> bool {
        if self.len >= self.slots.len() {
            return false;
        }
        let place = self.place(self.len);
        let Some(free) = self.slots.get_mut(place) else {
            return false;
        };
        *free = Some(slot);
        self.len = self.len.saturating_add(1);
        true
    }

    fn first(&self) -> Option<Slot> {
        if self.len == 0 {
            return None;
        }
        self.slots.get(self.first).copied().flatten()
    }

    fn pop(&mut self) -> Option<Slot> {
        let slot = self.first()?;
        self.first = self.place(1);
        self.len = self.len.saturating_sub(1);
        Some(slot)
    }

    fn clear(&mut self) {
        self.len = 0;
    }
}
