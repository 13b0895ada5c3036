// SPDX-License-Identifier: GPL-2.0

//! The state machine of a merge, which moves a snapshot into its origin batch by batch.
//!
//! C counterparts: `snapshot_merge_next_chunks()`, `merge_callback()`, and the bits
//! `RUNNING_MERGE` and `SHUTDOWN_MERGE` of `struct dm_snapshot`.
//!
//! ```text
//!              ┌─────────────────────────────── merged ─────────────────────────────────┐
//!              ▼                                                                        │
//!  Stopped ─▶ Reading ─▶ Preserving ─▶ Draining ─▶ Copying ─▶ Committing ─▶ Releasing ──┘
//! ```
//!
//! | state | work | next state |
//! | --- | --- | --- |
//! | Stopped, Failed | none | Reading; in doubt Committing, or Restoring for a write |
//! | Reading | read the last records: the batch | Preserving, Stopped, Failed, Finished |
//! | Preserving | copy the origin's data to other snapshots | Draining; Stopped by stop, pause |
//! | Draining | queue new writes, wait for those in flight | Copying; Releasing by stop, pause |
//! | Copying | copy the batch to the origin | Committing; Releasing if a copy fails |
//! | Committing | flush the origin, then clear the records durably | Releasing |
//! | Releasing | reopen the batch, submit queued writes | Reading, Stopped, Failed |
//! | Restoring | write back the records of a batch in doubt | Releasing |
//! | Finished | none | |
//!
//! Until the records are cleared, the batch is read from and written to the COW device. Whatever
//! happens before leaves a merge that can begin again. A failure stops the merge until it is
//! started again.
//!
//! A pause is a stop by another part of the module. It ends a batch at the same points as a stop,
//! and no batch begins before the last pause ends. Starts and stops during a pause take effect
//! then.
//!
//! If clearing the records failed and their contents are unknown, the batch is in doubt. Origin and
//! COW device have the same data, so the batch can be read, but it must not be written. A write to
//! it first has the records written back (Restoring), and fails if that fails.

use crate::logic::count::Count;

/// What the merge must do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MergeStep {
    /// Nothing, until another function is called.
    Nothing,
    /// Read the last records, then call [`MergeState::batch_read`].
    Read,
    /// Copy the data that the batch will overwrite to the other snapshots that lack it, then call
    /// [`MergeState::batch_preserved`].
    Preserve,
    /// Wait until no write to the batch is in flight, then call [`MergeState::batch_drained`].
    Drain,
    /// Copy the batch: call [`MergeState::start_copy`] before each copy, and
    /// [`MergeState::all_copies_started`] after the last.
    Copy,
    /// Flush the origin and clear the records, then call [`MergeState::batch_committed`].
    Commit,
    /// Write back the records of a batch in doubt, then call [`MergeState::records_restored`].
    Restore,
    /// Reopen the batch and submit the writes to it, then call [`MergeState::batch_released`].
    Release(BatchResult),
}

/// Result of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BatchResult {
    /// The batch was merged: from now on it is read from and written to the origin.
    Merged,
    /// The batch is still on the COW device.
    Kept,
    /// The batch is in doubt, and stays closed.
    InDoubt,
}

/// Result of clearing the records of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CommitResult {
    /// The records are cleared, durably.
    Cleared,
    /// The records were not cleared.
    Kept,
    /// An error left their contents unknown.
    InDoubt,
}

/// The state of the batch; see the table in the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum MergeStage {
    Stopped {
        in_doubt: bool,
    },
    Reading,
    Preserving,
    Draining,
    Copying {
        in_flight: Count,
        all_copies_started: bool,
        failed: bool,
    },
    Committing,
    Restoring {
        failed: bool,
    },
    Releasing {
        result: BatchResult,
        failed: bool,
    },
    Failed {
        in_doubt: bool,
    },
    Finished,
}

/// A merge.
///
/// The owner protects it with a lock. A report that comes too late, in another state, changes
/// nothing. Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MergeState {
    state: MergeStage,
    /// Whether the merge was started, and not stopped since.
    wanted: bool,
    /// The number of pauses that have not ended.
    pauses: Count,
}

impl MergeState {
    /// Makes a merge that is stopped.
    pub(crate) const fn new() -> Self {
        MergeState {
            state: MergeStage::Stopped { in_doubt: false },
            wanted: false,
            pauses: Count::zero(),
        }
    }

    /// Returns whether a batch may begin.
    fn may_begin(&self) -> bool {
        self.wanted && self.pauses.is_zero()
    }

    /// Returns the next step.
    pub(crate) fn next_step(&self) -> MergeStep {
        match self.state {
            MergeStage::Stopped { .. } | MergeStage::Failed { .. } | MergeStage::Finished => {
                MergeStep::Nothing
            }
            MergeStage::Reading => MergeStep::Read,
            MergeStage::Preserving => MergeStep::Preserve,
            MergeStage::Draining => MergeStep::Drain,
            MergeStage::Copying {
                all_copies_started: false,
                failed: false,
                ..
            } => MergeStep::Copy,
            MergeStage::Copying { .. } => MergeStep::Nothing,
            MergeStage::Committing => MergeStep::Commit,
            MergeStage::Restoring { .. } => MergeStep::Restore,
            MergeStage::Releasing { result, .. } => MergeStep::Release(result),
        }
    }

    /// Returns whether nothing happens until the merge is started, or its last pause ends.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(
            self.state,
            MergeStage::Stopped { .. } | MergeStage::Failed { .. } | MergeStage::Finished
        )
    }

    /// Returns whether the merge has failed, and was not started again.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(
            self.state,
            MergeStage::Failed { .. }
                | MergeStage::Restoring { failed: true }
                | MergeStage::Releasing { failed: true, .. }
        )
    }

    /// Returns whether nothing is left to merge.
    pub(crate) fn is_finished(&self) -> bool {
        self.state == MergeStage::Finished
    }

    /// Starts the merge, also after a failure. It begins when the last pause ends.
    pub(crate) fn start(&mut self) {
        self.wanted = true;
        match self.state {
            MergeStage::Failed { in_doubt } => self.state = MergeStage::Stopped { in_doubt },
            MergeStage::Restoring { .. } => self.state = MergeStage::Restoring { failed: false },
            // Forget a failure, so that the next batch begins after the release.
            MergeStage::Releasing { result, .. } => self.release_batch(result, false),
            _ => {}
        }
        self.begin();
    }

    /// Begins a batch if the merge is stopped and may begin.
    fn begin(&mut self) {
        if let (MergeStage::Stopped { in_doubt }, true) = (self.state, self.may_begin()) {
            self.state = if in_doubt {
                // The data is on the origin durably, and has not changed since.
                MergeStage::Committing
            } else {
                MergeStage::Reading
            };
        }
    }

    /// Stops the merge soon: a batch whose copies have started is still committed.
    pub(crate) fn stop(&mut self) {
        self.wanted = false;
        self.cancel_batch();
    }

    /// Pauses the merge between two batches, until [`unpause`](Self::unpause) was called as often.
    ///
    /// The merge may be started and stopped meanwhile.
    pub(crate) fn pause(&mut self) {
        self.pauses.increment();
        self.cancel_batch();
    }

    /// Ends a [`pause`](Self::pause).
    pub(crate) fn unpause(&mut self) {
        self.pauses.decrement();
        self.begin();
    }

    /// Ends a batch that has not written anything yet.
    fn cancel_batch(&mut self) {
        match self.state {
            MergeStage::Preserving => self.state = MergeStage::Stopped { in_doubt: false },
            MergeStage::Draining => self.release_batch(BatchResult::Kept, false),
            _ => {}
        }
    }

    /// Releases the batch with a result; `failed` tells whether the merge has failed.
    fn release_batch(&mut self, result: BatchResult, failed: bool) {
        self.state = MergeStage::Releasing { result, failed };
    }

    /// Reports that the last records were read, and whether there are any.
    pub(crate) fn batch_read(&mut self, any: Result<bool, ()>) {
        if self.state == MergeStage::Reading {
            self.state = match any {
                Err(()) => MergeStage::Failed { in_doubt: false },
                Ok(false) => MergeStage::Finished,
                Ok(true) if self.may_begin() => MergeStage::Preserving,
                Ok(true) => MergeStage::Stopped { in_doubt: false },
            };
        }
    }

    /// Reports that no other snapshot lacks data of the batch.
    ///
    /// Returns whether the caller must close the batch, before it drops the lock.
    pub(crate) fn batch_preserved(&mut self) -> bool {
        let is_current = self.state == MergeStage::Preserving;
        if is_current {
            self.state = MergeStage::Draining;
        }
        is_current
    }

    /// Reports that no write to the batch is in flight.
    pub(crate) fn batch_drained(&mut self) {
        if self.state == MergeStage::Draining {
            self.state = MergeStage::Copying {
                in_flight: Count::zero(),
                all_copies_started: false,
                failed: false,
            };
        }
    }

    /// Counts a copy that is about to start. Returns whether it may start.
    pub(crate) fn start_copy(&mut self) -> bool {
        match &mut self.state {
            MergeStage::Copying {
                in_flight,
                all_copies_started: false,
                failed: false,
            } => {
                in_flight.increment();
                true
            }
            _ => false,
        }
    }

    /// Reports that no more copies will start.
    pub(crate) fn all_copies_started(&mut self) {
        if let MergeStage::Copying {
            all_copies_started, ..
        } = &mut self.state
        {
            *all_copies_started = true;
            self.check_copies();
        }
    }

    /// Reports that a copy ended. Returns whether it is the first copy of the batch that failed.
    pub(crate) fn copy_done(&mut self, ok: bool) -> bool {
        let MergeStage::Copying {
            in_flight, failed, ..
        } = &mut self.state
        else {
            return false;
        };
        let is_first = !ok && !*failed;
        in_flight.decrement();
        *failed |= !ok;
        self.check_copies();
        is_first
    }

    /// Ends the copying if no copy is in flight, and none will start.
    fn check_copies(&mut self) {
        match self.state {
            MergeStage::Copying {
                in_flight,
                failed: true,
                ..
            } if in_flight.is_zero() => self.release_batch(BatchResult::Kept, true),
            MergeStage::Copying {
                in_flight,
                all_copies_started: true,
                failed: false,
            } if in_flight.is_zero() => self.state = MergeStage::Committing,
            _ => {}
        }
    }

    /// Reports the result of flushing the origin and clearing the records.
    pub(crate) fn batch_committed(&mut self, records: CommitResult) {
        if self.state == MergeStage::Committing {
            match records {
                CommitResult::Cleared => self.release_batch(BatchResult::Merged, false),
                CommitResult::Kept => self.release_batch(BatchResult::Kept, true),
                CommitResult::InDoubt => self.release_batch(BatchResult::InDoubt, true),
            }
        }
    }

    /// Requests that the records of a batch in doubt are written back, for a write to the batch.
    pub(crate) fn request_restore(&mut self) {
        match self.state {
            MergeStage::Failed { in_doubt: true } => {
                self.state = MergeStage::Restoring { failed: true }
            }
            MergeStage::Stopped { in_doubt: true } => {
                self.state = MergeStage::Restoring { failed: false }
            }
            _ => {}
        }
    }

    /// Reports whether the records of a batch in doubt were written back.
    pub(crate) fn records_restored(&mut self, ok: bool) {
        if let MergeStage::Restoring { failed } = self.state {
            let result = if ok {
                BatchResult::Kept
            } else {
                BatchResult::InDoubt
            };
            self.release_batch(result, failed || !ok && !self.wanted);
        }
    }

    /// Reports that the batch was reopened and its writes were submitted.
    pub(crate) fn batch_released(&mut self) {
        if let MergeStage::Releasing { result, failed } = self.state {
            let in_doubt = result == BatchResult::InDoubt;
            if failed {
                self.state = MergeStage::Failed { in_doubt };
            } else {
                self.state = MergeStage::Stopped { in_doubt };
                self.begin();
            }
        }
    }
}
