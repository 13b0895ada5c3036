// SPDX-License-Identifier: GPL-2.0

//! The end of an era, and the messages that bring it about.
//!
//! When `checkpoint` or `take_metadata_snap` returns, every write that is recorded only in older
//! eras has ended; what comes later is recorded in the new one. So a backup that notes the era, and
//! then copies, misses nothing.
//!
//! ```text
//!             old epoch: bits of era N               new epoch: no bits
//!  ─────────────────────────────────────────┐ ┌──────────────────────────────>  writes
//!  caller:  commit (N archived, N+1 begun)  │ switch  grace period  drain old   clear its bits  return
//! ```
//!
//! - Up to the switch, writes pass by the bits of era N and are counted in the old epoch. Those
//!   that pass during the commit, or were let pass before, may end later: the drain waits for them.
//! - From the switch on, there are no bits: each write is marked in era N+1, and committed, before
//!   it passes.
//! - A write that has read the old epoch has counted itself when the grace period is over, so the
//!   drain misses none.
//! - If the commit fails, there is no switch. If it has reached the device all the same, the bits
//!   of era N are cleared when the metadata is opened again: nothing passes by them that is not in
//!   the era on disk.
//! - Whoever waits can be killed. The era has ended all the same, but the promise was not given:
//!   the next message first drains the old epoch to its end.

use super::{
    digest::Digester,
    disk::{
        Digested,
        Room, //
    },
    metadata::Weight,
    Era, //
};
use crate::{
    logic::era::number::Era as Number,
    sys::{
        log::{
            err,
            warning, //
        },
        noio::NoIo, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    workqueue::WorkItem, //
};

/// Flushes of the origin, numbered.
pub(super) struct Flush {
    wanted: Atomic<u64>,
    /// The last one that has ended: it began when its number was the last one wanted.
    ended: Atomic<u64>,
    /// The last one that failed.
    failed: Atomic<u64>,
}

impl Flush {
    pub(super) fn new() -> Self {
        Flush {
            wanted: Atomic::new(0),
            ended: Atomic::new(0),
            failed: Atomic::new(0),
        }
    }
}

/// Flushes the origin.
pub(super) struct Flusher;

impl Flusher {
    pub(super) const ID: u64 = 4;
}

impl WorkItem<4> for Era {
    type Pointer = Arc<Era>;

    fn run(this: Arc<Era>) {
        let _noio = NoIo::enter();
        let wanted = this.flush.wanted.load(Acquire);
        if this.origin.flush().is_err() {
            this.flush.failed.store(wanted, Relaxed);
        }
        this.flush.ended.store(wanted, Release);
        this.turns.wake_all();
    }
}

/// The right to roll over: one thread at a time has it.
struct Turn<'a>(&'a Era);

impl<'a> Turn<'a> {
    /// Waits for the right. `EINTR` if the thread is killed.
    fn take(era: &'a Era) -> Result<Self> {
        let free = || era.turn.cmpxchg(0, 1, Acquire).is_ok();
        era.turns.wait_killable(free)?;
        Ok(Turn(era))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.turn.store(0, Release);
        self.0.turns.wake_all();
    }
}

impl Era {
    /// Ends the present era. Sleeps for I/O, and until the writes of the era have ended.
    pub(super) fn checkpoint(self: &Arc<Self>) -> Result {
        let turn = Turn::take(self)?;
        self.roll_over(&turn)
    }

    /// Ends the present era, and keeps what is archived for user space to read.
    pub(super) fn take_snapshot(self: &Arc<Self>) -> Result {
        let turn = Turn::take(self)?;
        if self.has_snapshot()? {
            err!(
                "era",
                "metadata_take_snap: metadata snapshot already exists"
            );
            return Err(EINVAL);
        }
        self.roll_over(&turn)?;
        let _noio = NoIo::enter();
        let mut core = self.metadata.lock();
        let room = self.attempt(&mut core, Weight::Light, |disk| {
            // A commit that was said to have failed may have done it.
            let room = if disk.has_snapshot() {
                Room::Enough
            } else {
                disk.take_snapshot()?
            };
            disk.commit()?;
            Ok(room)
        })?;
        match room {
            Room::Enough => Ok(()),
            Room::None => Err(ENOSPC),
        }
    }

    /// Lets the kept state go.
    pub(super) fn drop_snapshot(self: &Arc<Self>) -> Result {
        let _turn = Turn::take(self)?;
        if !self.has_snapshot()? {
            err!("era", "metadata_drop_snap: no snap to drop");
            return Err(EINVAL);
        }
        let _noio = NoIo::enter();
        let mut core = self.metadata.lock();
        self.attempt(&mut core, Weight::Light, |disk| {
            if disk.has_snapshot() {
                disk.drop_snapshot(self.metadata.device())?;
            }
            disk.commit()
        })?;
        drop(core);
        self.wake_digester();
        Ok(())
    }

    fn has_snapshot(self: &Arc<Self>) -> Result<bool> {
        let _noio = NoIo::enter();
        let mut core = self.metadata.lock();
        self.attempt(&mut core, Weight::Light, |disk| Ok(disk.has_snapshot()))
    }

    fn roll_over(self: &Arc<Self>, _turn: &Turn<'_>) -> Result {
        // Of one that was killed. Its bits must be clear before they are used again.
        self.drain()?;
        while !self.try_roll_over()? {}
        self.wake_digester();
        self.drain()?;
        // Durable too: a backup may copy it now, and a power cut must not take it back unseen.
        self.flush_origin()
    }

    /// Flushes the origin. In a work item, so that whoever waits can be killed. Under the turn.
    fn flush_origin(self: &Arc<Self>) -> Result {
        let wanted = self.flush.wanted.load(Relaxed).wrapping_add(1);
        self.flush.wanted.store(wanted, Release);
        self.queue.enqueue::<Era, { Flusher::ID }>(self.clone());
        let ended = || self.flush.ended.load(Acquire) == wanted;
        self.turns.wait_killable(ended)?;
        match self.flush.failed.load(Relaxed) {
            failed if failed == wanted => Err(EIO),
            _ => Ok(()),
        }
    }

    /// Begins a new era, or makes room for one and returns false.
    fn try_roll_over(self: &Arc<Self>) -> Result<bool> {
        let _noio = NoIo::enter();
        let mut core = self.metadata.lock();
        // Suspended, its era has ended already, unless that failed; and resuming begins a new one.
        if !self.is_live(&core) {
            let failed = core.is_failed();
            self.attempt(&mut core, Weight::Light, |disk| {
                disk.archive()?;
                if disk.is_dirty() || failed {
                    disk.commit()?;
                }
                Ok(())
            })?;
            return Ok(true);
        }
        let (last, room) = self.attempt(&mut core, Weight::Light, |disk| {
            Ok((disk.era().is_last(), disk.has_room_for_era()?))
        })?;
        if last {
            warning!("era", "{}: there is no era behind this one", self.handle);
            self.handle.raise_event();
            return Err(EOVERFLOW);
        }
        if !room {
            return match self.digest_slice(&mut core)? {
                Digested::Some => Ok(false),
                _ => Err(ENOSPC),
            };
        }
        self.attempt(&mut core, Weight::Vital, |disk| {
            disk.roll_over()?;
            disk.commit()
        })?;
        // Under the lock: nothing is marked between the commit and the switch.
        self.undrained.store(true, Relaxed);
        self.marked.store(core.era().0, Relaxed);
        self.epochs.switch_to(self.epochs.current().other());
        Ok(true)
    }

    /// Waits until what passed by the bits of the epoch before has ended, and clears them. Under
    /// the turn.
    fn drain(&self) -> Result {
        if self.undrained.load(Relaxed) {
            let old = self.epochs.current().other();
            self.epochs.drain(old)?;
            old.of(&self.marks).clear();
            self.undrained.store(false, Relaxed);
        }
        Ok(())
    }

    /// Clears what is known of eras before. With no write in flight: the device is suspended.
    pub(super) fn forget_marks(&self) {
        self.marks.0.clear();
        self.marks.1.clear();
        self.undrained.store(false, Relaxed);
    }

    /// The metadata was opened. If its era is not the one that the bits are of, they say nothing
    /// any more.
    pub(super) fn opened(&self, era: Number) {
        if self.marked.load(Relaxed) != era.0 {
            self.epochs.current().of(&self.marks).clear();
            self.marked.store(era.0, Relaxed);
        }
    }

    /// Makes the digestion of archived eras begin, or go on.
    pub(super) fn wake_digester(self: &Arc<Self>) {
        if self.live.load(Relaxed) {
            self.queue.enqueue::<Era, { Digester::ID }>(self.clone());
        }
    }
}
