// SPDX-License-Identifier: GPL-2.0

//! The rollover from one era to the next, and the messages that ask for it.
//!
//! When `checkpoint` or `take_metadata_snap` returns without an error, every write that is recorded
//! only in eras before the new one has completed, and later writes are recorded in the new era. So
//! a backup that notes the era number and then copies misses nothing.
//!
//! ```text
//!             old epoch: bits of era N             new epoch: no bits
//!  ─────────────────────────────────────────┐ ┌───────────────────────────> writes
//!  sender:  commit (N archived, N+1 begun)  │ switch, grace period, drain, clear old bits, flush
//! ```
//!
//! 1. **Commit**: era N is archived and era N+1 begins, in one commit. Writes still pass by the
//!    in-core bits of era N and are counted in the old epoch.
//! 2. **Switch**: the other epoch becomes current, with the metadata lock still held, so nothing is
//!    marked between commit and switch. The new epoch has no in-core bits: each write is marked in
//!    era N+1, durably, before it passes.
//! 3. **Grace period**: when it is over, each write that has read the old epoch has counted itself
//!    there.
//! 4. **Drain**: waits until no write of the old epoch is in flight.
//! 5. **Clear**: the in-core bits of the old epoch are cleared for its next use.
//! 6. **Flush**: the origin is flushed, so that a power cut cannot undo a write that the backup
//!    copies and that no later era records.
//!
//! If the commit fails, there is no switch. It may have reached the device all the same; opening
//! the metadata again finds another era then and clears the in-core bits of era N
//! (`metadata_opened`).
//!
//! The sender can be killed while it waits in 4 or 6. The era has ended then, but nothing is
//! promised. If it is killed in 4, `needs_drain` stays set, and the next rollover drains the old
//! epoch before it begins.
//!
//! C counterpart: `metadata_checkpoint()` and `metadata_era_rollover()`; the C target neither
//! drains nor flushes.

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

/// The numbered requests to flush the origin.
pub(super) struct OriginFlush {
    /// The last request.
    requested: Atomic<u64>,
    /// The last request whose flush has completed. That flush began after the request.
    completed: Atomic<u64>,
    /// The last request whose flush failed.
    failed: Atomic<u64>,
}

impl OriginFlush {
    pub(super) fn new() -> Self {
        OriginFlush {
            requested: Atomic::new(0),
            completed: Atomic::new(0),
            failed: Atomic::new(0),
        }
    }
}

/// Flushes the origin for the last request.
impl WorkItem<{ work_id::FLUSH_ORIGIN }> for EraTarget {
    type Pointer = Arc<EraTarget>;

    fn run(this: Arc<EraTarget>) {
        let _noio = NoIo::enter();
        let request = this.origin_flush.requested.load(Acquire);
        if this.origin.flush().is_err() {
            this.origin_flush.failed.store(request, Relaxed);
        }
        this.origin_flush.completed.store(request, Release);
        this.rollover_wait.wake_all();
    }
}

/// The lock that serialises rollovers and other messages. Its waiters can be killed.
struct RolloverGuard<'a>(&'a EraTarget);

impl<'a> RolloverGuard<'a> {
    /// Waits for the lock. May sleep.
    ///
    /// # Errors
    ///
    /// `EINTR` if the thread is killed.
    fn acquire(era: &'a EraTarget) -> Result<Self> {
        let acquired = || era.rollover_busy.cmpxchg(0, 1, Acquire).is_ok();
        era.rollover_wait.wait_killable(acquired)?;
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
    /// The message `checkpoint`: ends the current era. May sleep.
    pub(super) fn checkpoint(self: &Arc<Self>) -> Result {
        let guard = RolloverGuard::acquire(self)?;
        self.roll_over(&guard)
    }

    /// The message `take_metadata_snap`: ends the current era, and takes a metadata snapshot of
    /// the archived ones. May sleep.
    pub(super) fn take_metadata_snap(self: &Arc<Self>) -> Result {
        let guard = RolloverGuard::acquire(self)?;
        if self.has_metadata_snap()? {
            err!(
                "era",
                "metadata_take_snap: metadata snapshot already exists"
            );
            return Err(EINVAL);
        }
        self.roll_over(&guard)?;
        let _noio = NoIo::enter();
        let mut state = self.metadata.lock();
        let space = self.run_step(&mut state, OnError::KeepWorking, |md| {
            // The first try may have reached the device although its commit failed.
            let space = if md.has_metadata_snap() {
                FreeSpace::Enough
            } else {
                md.take_metadata_snap()?
            };
            md.commit()?;
            Ok(space)
        })?;
        match space {
            FreeSpace::Enough => Ok(()),
            FreeSpace::Short => Err(ENOSPC),
        }
    }

    /// The message `drop_metadata_snap`: drops the metadata snapshot. May sleep.
    pub(super) fn drop_metadata_snap(self: &Arc<Self>) -> Result {
        let _guard = RolloverGuard::acquire(self)?;
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

    /// Whether there is a metadata snapshot. May sleep.
    fn has_metadata_snap(self: &Arc<Self>) -> Result<bool> {
        let _noio = NoIo::enter();
        let mut state = self.metadata.lock();
        self.run_step(&mut state, OnError::KeepWorking, |md| {
            Ok(md.has_metadata_snap())
        })
    }

    /// Ends the current era: the sequence that the head of this file describes. May sleep.
    fn roll_over(self: &Arc<Self>, _guard: &RolloverGuard<'_>) -> Result {
        // The sender of the previous rollover may have been killed: its old epoch must be drained
        // and its in-core bits cleared before that epoch is used again.
        self.drain_old_epoch()?;
        while !self.try_roll_over()? {}
        self.wake_digester();
        self.drain_old_epoch()?;
        self.flush_origin()
    }

    /// Flushes the origin, from a work item, so that the waiting sender can be killed.
    ///
    /// Called with the rollover lock held. May sleep.
    ///
    /// # Errors
    ///
    /// `EINTR` if the thread is killed, `EIO` if the flush failed.
    fn flush_origin(self: &Arc<Self>) -> Result {
        let request = self.origin_flush.requested.load(Relaxed).wrapping_add(1);
        self.origin_flush.requested.store(request, Release);
        self.queue
            .enqueue::<EraTarget, { work_id::FLUSH_ORIGIN }>(self.clone());
        let completed = || self.origin_flush.completed.load(Acquire) == request;
        self.rollover_wait.wait_killable(completed)?;
        match self.origin_flush.failed.load(Relaxed) {
            failed if failed == request => Err(EIO),
            _ => Ok(()),
        }
    }

    /// Commits the end of the current era and switches the epoch. Returns false if it digested
    /// older eras instead, to make space for a new one. If the table is not live, it only archives
    /// an era that a failed suspend has left. May sleep.
    ///
    /// # Errors
    ///
    /// `EOVERFLOW` if this is the last era, `ENOSPC` if digestion cannot make space, the error of
    /// the commit.
    fn try_roll_over(self: &Arc<Self>) -> Result<bool> {
        let _noio = NoIo::enter();
        let mut state = self.metadata.lock();
        // The era of a suspended device has ended, unless the suspend could not archive it; the
        // resume begins the next one.
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
        let (is_last, has_space) = self.run_step(&mut state, OnError::KeepWorking, |md| {
            Ok((md.era().is_last(), md.has_space_for_era()?))
        })?;
        if is_last {
            warning!("era", "{}: there is no era after this one", self.handle);
            self.handle.raise_event();
            return Err(EOVERFLOW);
        }
        if !has_space {
            return match self.digest_slice(&mut state)? {
                DigestProgress::More => Ok(false),
                _ => Err(ENOSPC),
            };
        }
        self.run_step(&mut state, OnError::FailMetadata, |md| {
            md.begin_next_era()?;
            md.commit()
        })?;
        // `state` is still locked: nothing is marked between the commit and the switch.
        self.needs_drain.store(true, Relaxed);
        self.writeset_era.store(state.era().0, Relaxed);
        self.epochs.switch_to(self.epochs.current().other());
        Ok(true)
    }

    /// Waits until no write of the old epoch is in flight, and clears its in-core bits.
    ///
    /// Called with the rollover lock held. May sleep.
    ///
    /// # Errors
    ///
    /// `EINTR` if the thread is killed; then `needs_drain` stays set.
    fn drain_old_epoch(&self) -> Result {
        if self.needs_drain.load(Relaxed) {
            let old = self.epochs.current().other();
            self.epochs.drain(old)?;
            old.of(&self.writesets).clear();
            self.needs_drain.store(false, Relaxed);
        }
        Ok(())
    }

    /// Clears all in-core bits. Called while the device is suspended, with no write in flight.
    pub(super) fn clear_writesets(&self) {
        self.writesets.0.clear();
        self.writesets.1.clear();
        self.needs_drain.store(false, Relaxed);
    }

    /// Clears the in-core bits if the metadata was opened with another era than theirs.
    ///
    /// Called with `Metadata::state` locked.
    pub(super) fn metadata_opened(&self, era: EraNr) {
        if self.writeset_era.load(Relaxed) != era.0 {
            self.epochs.current().of(&self.writesets).clear();
            self.writeset_era.store(era.0, Relaxed);
        }
    }

    /// Starts the digestion of archived eras, or continues it. Any context.
    pub(super) fn wake_digester(self: &Arc<Self>) {
        if self.live.load(Relaxed) {
            self.queue
                .enqueue::<EraTarget, { work_id::DIGEST }>(self.clone());
        }
    }
}
