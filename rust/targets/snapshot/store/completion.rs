// SPDX-License-Identifier: GPL-2.0

//! How pending exceptions end: they are completed, or abandoned.
//!
//! The worker moves a durable exception into the exception table, waits for the reads of the origin
//! that came before (draining), and only then releases the writes to the origin. An exception whose
//! data or record could not be written is abandoned, and its snapshot is invalidated.
//!
//! C counterpart: `pending_complete()`.

use super::{
    allocation::WaitingBios,
    CowStore,
    StoreState, //
};
use crate::{
    dm::bio::{
        Bio,
        BioQueue,
        BlkStatus, //
    },
    logic::snapshot::{
        exception_table::{
            InsertError,
            SpareNodes, //
        },
        pending::{
            PendingException,
            Seq,
            Stage, //
        }, //
    },
    targets::snapshot::per_bio::PerBioData, //
};
use kernel::sync::atomic::{
    Relaxed,
    Release, //
};

/// Bios that the end of an exception releases.
#[derive(Default)]
pub(crate) struct ReleasedBios {
    /// Writes to the snapshot, to be sent to the COW device.
    pub(crate) ready: BioQueue<PerBioData>,
    /// Writes of whole chunks, to be completed without an error.
    pub(crate) completed: BioQueue<PerBioData>,
    /// Writes to the origin, to be evaluated again.
    pub(crate) retry: BioQueue<PerBioData>,
    /// Writes were queued for [`CowStore::end_failed_writes`].
    pub(crate) has_failed: bool,
}

impl CowStore {
    /// Moves durable exceptions into the exception table, ends those that have drained, and
    /// collects the bios that waited for them in `out`.
    ///
    /// Returns false if memory is short: the caller tries again after a while. Exceptions that need
    /// no memory are completed nonetheless. Called with `members` held. May sleep.
    pub(crate) fn complete_committed(
        &self,
        spares: &mut SpareNodes,
        out: &mut ReleasedBios,
    ) -> bool {
        let (mut has_memory, mut is_done) = (true, true);
        let mut from = self.allocation.lock().pending.first_seq();
        loop {
            let mut allocation = self.allocation.lock();
            let wanted = |stage: &Stage| matches!(stage, Stage::Committed | Stage::Draining(_));
            let Some(seq) = allocation.pending.find_by_stage(from, wanted) else {
                break;
            };
            from = seq.next();
            let Some(pending) = allocation.pending.get(seq) else {
                continue;
            };
            let (run, stage) = (pending.run, pending.stage);
            let stage = if let Stage::Draining(barrier) = stage {
                if !self.try_finish_drain(self.stripe_of(run.old).0, barrier) {
                    continue;
                }
                Stage::Committed
            } else {
                drop(allocation);
                let stage = match self.insert_completed(run, spares, &mut has_memory) {
                    Ok(stage) => stage,
                    Err(InsertError::NoMemory) => {
                        is_done = false;
                        continue;
                    }
                    Err(_) => {
                        // Not reached: a chunk is reserved once. Invalidates the snapshot.
                        self.commit_failed.store(true, Release);
                        return false;
                    }
                };
                // Only writes to the origin have to wait for the reads that drain.
                allocation = self.allocation.lock();
                if let Some(pending) = allocation.pending.get(seq) {
                    pending.stage = stage;
                    out.ready.append(&mut pending.waiting.snapshot_bios);
                    if let Some(bio) = pending.waiting.full_bio.take() {
                        out.completed.push(bio);
                    }
                }
                stage
            };
            if stage == Stage::Committed {
                if let Some(mut pending) = allocation.pending.remove(seq) {
                    out.ready.append(&mut pending.waiting.snapshot_bios);
                    out.retry.append(&mut pending.waiting.origin_bios);
                }
                if allocation.pending.is_empty() {
                    drop(allocation);
                    self.idle_wait.wake_all();
                }
            }
        }
        is_done
    }

    /// Removes a pending exception that will never be completed, and returns it with the bios that
    /// wait for it. Any context.
    pub(crate) fn abandon(&self, seq: Seq) -> Option<PendingException<WaitingBios>> {
        let mut allocation = self.allocation.lock();
        let pending = allocation.pending.remove(seq)?;
        let is_empty = allocation.pending.is_empty();
        drop(allocation);
        if is_empty {
            self.idle_wait.wake_all();
        }
        if let Stage::Draining(_) = pending.stage {
            self.cancel_drain(self.stripe_of(pending.run.old).0);
        }
        Some(pending)
    }

    /// Fails the writes to the snapshot that waited for an abandoned exception, and releases the
    /// writes to the origin. Any context.
    pub(crate) fn fail_waiting(&self, mut waiting: WaitingBios, out: &mut ReleasedBios) {
        out.has_failed |= !waiting.snapshot_bios.is_empty() || waiting.full_bio.is_some();
        let mut failed = self.failed_writes.lock();
        failed.append(&mut waiting.snapshot_bios);
        if let Some(bio) = waiting.full_bio.take() {
            failed.push(bio);
        }
        drop(failed);
        out.retry.append(&mut waiting.origin_bios);
    }

    /// Queues a write for [`end_failed_writes`](Self::end_failed_writes). Any context.
    pub(crate) fn fail_write(&self, bio: Bio<PerBioData>) {
        self.failed_writes.lock().push(bio);
    }

    /// Ends the queued writes with an error. While the store is being invalidated it keeps them: a
    /// write must not fail before the header on disk says why. Called with `members` held.
    pub(crate) fn end_failed_writes(&self) {
        if self.state() == StoreState::Invalidating {
            return;
        }
        let mut failed = self.failed_writes.lock().take();
        while let Some(mut bio) = failed.pop() {
            bio.set_per_bio(PerBioData::NONE);
            bio.end(BlkStatus::IO_ERROR);
        }
    }

    /// Abandons the pending exceptions of a store that is no longer valid, and fails the bios that
    /// wait for them.
    ///
    /// Exceptions that are being copied or committed stay, without waiting bios, until that ends.
    /// Called with `members` held.
    pub(crate) fn abandon_all(&self, out: &mut ReleasedBios) {
        let mut from = self.allocation.lock().pending.first_seq();
        loop {
            let mut allocation = self.allocation.lock();
            let Some(seq) = allocation.pending.find_by_stage(from, |_| true) else {
                break;
            };
            from = seq.next();
            let Some(pending) = allocation.pending.get(seq) else {
                continue;
            };
            let waiting = core::mem::take(&mut pending.waiting);
            let is_busy = matches!(pending.stage, Stage::Copying | Stage::Committing);
            drop(allocation);
            self.fail_waiting(waiting, out);
            if !is_busy {
                self.abandon(seq);
            }
        }
    }

    /// Abandons the exceptions of a batch that could not be committed. The store is no longer
    /// valid. Called with `members` held.
    pub(crate) fn abandon_batch(&self, out: &mut ReleasedBios) {
        self.commit_failed.store(false, Relaxed);
        loop {
            let mut allocation = self.allocation.lock();
            let first = allocation.pending.first_seq();
            let is_in_batch = |stage: &Stage| *stage == Stage::Committing;
            let Some(seq) = allocation.pending.find_by_stage(first, is_in_batch) else {
                return;
            };
            drop(allocation);
            if let Some(pending) = self.abandon(seq) {
                self.fail_waiting(pending.waiting, out);
            }
        }
    }
}
