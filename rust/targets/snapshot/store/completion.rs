// SPDX-License-Identifier: GPL-2.0

//! How pending exceptions end: in the exception table, or not at all.

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

/// Bios that may go on.
#[derive(Default)]
pub(crate) struct ReleasedBios {
    /// Writes to the snapshot that may go to the COW device.
    pub(crate) ready: BioQueue<PerBioData>,
    /// Writes that have ended well.
    pub(crate) completed: BioQueue<PerBioData>,
    /// Writes to the origin, to be looked at again.
    pub(crate) retry: BioQueue<PerBioData>,
    /// There are writes for [`CowStore::end_failed_writes`].
    pub(crate) has_failed: bool,
}

impl CowStore {
    /// Takes what is durable on: into the table, and out of the book. What waited goes to `ready`
    /// (writes to the snapshot), `ended` (those that were the data) and `again` (writes to the
    /// origin). False if memory is short: then try again after a while; exceptions that need none
    /// have been taken on. The family's worker only.
    pub(crate) fn complete_committed(&self, spares: &mut SpareNodes, out: &mut ReleasedBios) -> bool {
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
                        // It cannot be: chunks are given out once. Then the snapshot is lost.
                        self.commit_failed.store(true, Release);
                        return false;
                    }
                };
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

    /// Takes an exception out that will never be, and what waited for it.
    pub(crate) fn abandon(&self, seq: Seq) -> Option<PendingException<WaitingBios>> {
        let mut allocation = self.allocation.lock();
        let pending = allocation.pending.remove(seq)?;
        let empty = allocation.pending.is_empty();
        drop(allocation);
        if empty {
            self.idle_wait.wake_all();
        }
        if let Stage::Draining(_) = pending.stage {
            self.cancel_drain(self.stripe_of(pending.run.old).0);
        }
        Some(pending)
    }

    /// Lets go of what waited for an exception that will never be.
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

    /// Fails a write, by [`end_failed_writes`](Self::end_failed_writes). Any context.
    pub(crate) fn fail_write(&self, bio: Bio<PerBioData>) {
        self.failed_writes.lock().push(bio);
    }

    /// Ends writes that have failed; but if the store is lost, not before its header says so. The
    /// worker only.
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

    /// Takes everything out that no copy or commit has in its hands, and what waits for the rest.
    /// The store is lost.
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
            let busy = matches!(pending.stage, Stage::Copying | Stage::Committing);
            drop(allocation);
            self.fail_waiting(waiting, out);
            if !busy {
                self.abandon(seq);
            }
        }
    }

    /// Takes out what a lost batch had in its hands. The store is not valid any more.
    pub(crate) fn abandon_batch(&self, out: &mut ReleasedBios) {
        self.commit_failed.store(false, Relaxed);
        loop {
            let mut allocation = self.allocation.lock();
            let first = allocation.pending.first_seq();
            let lost = |stage: &Stage| *stage == Stage::Committing;
            let Some(seq) = allocation.pending.find_by_stage(first, lost) else {
                return;
            };
            drop(allocation);
            if let Some(pending) = self.abandon(seq) {
                self.fail_waiting(pending.waiting, out);
            }
        }
    }
}
