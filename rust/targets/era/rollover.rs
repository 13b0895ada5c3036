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
//!   the era on md.
//! - Whoever waits can be killed. The era has ended all the same, but the promise was not given:
//!   the next message first drains the old epoch to its end.

use super::{
    disk::{
        DigestProgress,
        FreeSpace, //
    },
    metadata::OnError,
    work_id,
    EraTarget, //
};
use crate::{
    logic::era::era_nr::EraNr,
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
pub(super) struct OriginFlush {
    wanted: Atomic<u64>,
    /// The last one that has ended: it began when its number was the last one wanted.
    ended: Atomic<u64>,
    /// The last one that failed.
    failed: Atomic<u64>,
}

impl OriginFlush {
    pub(super) fn new() -> Self {
        OriginFlush {
            wanted: Atomic::new(0),
            ended: Atomic::new(0),
            failed: Atomic::new(0),
        }
    }
}

impl WorkItem<{ work_id::FLUSH_ORIGIN }> for EraTarget {
    type Pointer = Arc<EraTarget>;

    fn run(this: Arc<EraTarget>) {
        let _noio = NoIo::enter();
        let wanted = this.origin_flush.wanted.load(Acquire);
        if this.origin.flush().is_err() {
            this.origin_flush.failed.store(wanted, Relaxed);
        }
        this.origin_flush.ended.store(wanted, Release);
        this.rollover_wait.wake_all();
    }
}

/// The right to roll over: one thread at a time has it.
struct RolloverGuard<'a>(&'a EraTarget);

impl<'a> RolloverGuard<'a> {
    /// Waits for the right. `EINTR` if the thread is killed.
    fn take(era: &'a EraTarget) -> Result<Self> {
        let free = || era.rollover_busy.cmpxchg(0, 1, Acquire).is_ok();
        era.rollover_wait.wait_killable(free)?;
        Ok(RolloverGuard(era))
    }
}

impl Drop for RolloverGuard<'_> {
    fn drop(&mut self) {
        self.0.rollover_busy.store(0, Release);
        self.0.rollover_wait.wake_all();
    }
}

impl EraTarget {
    /// Ends the present era. Sleeps for I/O, and until the writes of the era have ended.
    pub(super) fn checkpoint(self: &Arc<Self>) -> Result {
        let rollover_busy = RolloverGuard::take(self)?;
        self.roll_over(&rollover_busy)
    }

    /// Ends the present era, and keeps what is archived for user space to read.
    pub(super) fn take_metadata_snap(self: &Arc<Self>) -> Result {
        let rollover_busy = RolloverGuard::take(self)?;
        if self.has_metadata_snap()? {
            err!(
                "era",
                "metadata_take_snap: metadata snapshot already exists"
            );
            return Err(EINVAL);
        }
        self.roll_over(&rollover_busy)?;
        let _noio = NoIo::enter();
        let mut state = self.metadata.lock();
        let room = self.run_step(&mut state, OnError::KeepWorking, |md| {
            // A commit that was said to have failed may have done it.
            let room = if md.has_metadata_snap() {
                FreeSpace::Enough
            } else {
                md.take_metadata_snap()?
            };
            md.commit()?;
            Ok(room)
        })?;
        match room {
            FreeSpace::Enough => Ok(()),
            FreeSpace::Short => Err(ENOSPC),
        }
    }

    /// Lets the kept state go.
    pub(super) fn drop_metadata_snap(self: &Arc<Self>) -> Result {
        let _guard = RolloverGuard::take(self)?;
        if !self.has_metadata_snap()? {
            err!("era", "metadata_drop_snap: no snap to drop");
            return Err(EINVAL);
        }
        let _noio = NoIo::enter();
        let mut state = self.metadata.lock();
        self.run_step(&mut state, OnError::KeepWorking, |md| {
            if md.has_metadata_snap() {
                md.drop_metadata_snap(self.metadata.device())?;
            }
            md.commit()
        })?;
        drop(state);
        self.wake_digester();
        Ok(())
    }

    fn has_metadata_snap(self: &Arc<Self>) -> Result<bool> {
        let _noio = NoIo::enter();
        let mut state = self.metadata.lock();
        self.run_step(&mut state, OnError::KeepWorking, |md| {
            Ok(md.has_metadata_snap())
        })
    }

    fn roll_over(self: &Arc<Self>, _guard: &RolloverGuard<'_>) -> Result {
        // Of one that was killed. Its bits must be clear before they are used again.
        self.drain_old_epoch()?;
        while !self.try_roll_over()? {}
        self.wake_digester();
        self.drain_old_epoch()?;
        // Durable too: a backup may copy it now, and a power cut must not take it back unseen.
        self.flush_origin()
    }

    /// Flushes the origin. In a work item, so that whoever waits can be killed. Under the turn.
    fn flush_origin(self: &Arc<Self>) -> Result {
        let wanted = self.origin_flush.wanted.load(Relaxed).wrapping_add(1);
        self.origin_flush.wanted.store(wanted, Release);
        self.queue
            .enqueue::<EraTarget, { work_id::FLUSH_ORIGIN }>(self.clone());
        let ended = || self.origin_flush.ended.load(Acquire) == wanted;
        self.rollover_wait.wait_killable(ended)?;
        match self.origin_flush.failed.load(Relaxed) {
            failed if failed == wanted => Err(EIO),
            _ => Ok(()),
        }
    }

    /// Begins a new era, or makes room for one and returns false.
    fn try_roll_over(self: &Arc<Self>) -> Result<bool> {
        let _noio = NoIo::enter();
        let mut state = self.metadata.lock();
        // Suspended, its era has ended already, unless that failed; and resuming begins a new one.
        if !self.is_live(&state) {
            let failed = state.is_failed();
            self.run_step(&mut state, OnError::KeepWorking, |md| {
                md.archive_era()?;
                if md.is_dirty() || failed {
                    md.commit()?;
                }
                Ok(())
            })?;
            return Ok(true);
        }
        let (last, room) = self.run_step(&mut state, OnError::KeepWorking, |md| {
            Ok((md.era().is_last(), md.has_space_for_era()?))
        })?;
        if last {
            warning!("era", "{}: there is no era behind this one", self.handle);
            self.handle.raise_event();
            return Err(EOVERFLOW);
        }
        if !room {
            return match self.digest_slice(&mut state)? {
                DigestProgress::More => Ok(false),
                _ => Err(ENOSPC),
            };
        }
        self.run_step(&mut state, OnError::FailMetadata, |md| {
            md.begin_next_era()?;
            md.commit()
        })?;
        // Under the lock: nothing is marked between the commit and the switch.
        self.needs_drain.store(true, Relaxed);
        self.writeset_era.store(state.era().0, Relaxed);
        self.epochs.switch_to(self.epochs.current().other());
        Ok(true)
    }

    /// Waits until what passed by the bits of the epoch before has ended, and clears them. Under
    /// the turn.
    fn drain_old_epoch(&self) -> Result {
        if self.needs_drain.load(Relaxed) {
            let old = self.epochs.current().other();
            self.epochs.drain(old)?;
            old.of(&self.writesets).clear();
            self.needs_drain.store(false, Relaxed);
        }
        Ok(())
    }

    /// Clears what is known of eras before. With no write in flight: the device is suspended.
    pub(super) fn clear_writesets(&self) {
        self.writesets.0.clear();
        self.writesets.1.clear();
        self.needs_drain.store(false, Relaxed);
    }

    /// The metadata was opened. If its era is not the one that the bits are of, they say nothing
    /// any more.
    pub(super) fn metadata_opened(&self, era: EraNr) {
        if self.writeset_era.load(Relaxed) != era.0 {
            self.epochs.current().of(&self.writesets).clear();
            self.writeset_era.store(era.0, Relaxed);
        }
    }

    /// Makes the digestion of archived eras begin, or go on.
    pub(super) fn wake_digester(self: &Arc<Self>) {
        if self.live.load(Relaxed) {
            self.queue
                .enqueue::<EraTarget, { work_id::DIGEST }>(self.clone());
        }
    }
}
