// SPDX-License-Identifier: GPL-2.0

//! The steps of a merge, batch by batch.
//!
//! ```text
//!                                ┌──────────────────────────────────────────────────────────────────────────┐
//!          start                 ▼                                                                          │
//!  Stopped ──────────────────▶ Reading ─▶ Guarding ─▶ Draining ─▶ Copying ─▶ Committing ─▶ LettingGo ─ merged ┤
//!   ▲  ▲                      │  │ └ none │ stop      │ stop      │ failed    │ failed     ▲   │            │
//!   │  └──────────────────────│──│────────┘           └───────────┴───────────┴────────────┘   │ kept       │
//!   │                 failed  ▼  ▼                                                             ▼            │
//!   │                    Failed  Finished                                           Stopped or Failed       │
//!   └───────────────────────────────────── stop, pause ─────────────────────────────────────────────────────┘
//! ```
//!
//! | state | what is done | then |
//! | --- | --- | --- |
//! | Reading | the last records are read: the batch | there is a batch, or no record is left |
//! | Guarding | other snapshots get what the origin holds there | none lacks anything |
//! | Draining | the batch is closed: writes to it wait from now on | those of before have ended |
//! | Copying | its chunks are copied to the origin | all copies have ended |
//! | Committing | the origin is flushed, then the records are cleared, durably | that is so, or has failed |
//! | LettingGo | the batch is open again, in memory as on disk; who waited goes on | |
//!
//! Until the records are cleared everything is read from and written to the COW device; so whatever
//! happens before that leaves a merge that can begin again. A failure ends it until it is started
//! anew.
//!
//! A pause is a stop by others than the user: it ends a batch in the same places, and none begins
//! before all pauses have ended. Starts and stops meanwhile are remembered.
//!
//! If nobody knows whether the records are cleared the batch is in doubt: origin and COW device
//! have the same, and it must not be written to. Who wants to has the records written back first
//! (Restoring), and fails if that does.

use crate::logic::count::Count;

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum MergeStep {
    /// Nothing, until somebody calls.
    Nothing,
    /// Read the last records, then [`MergeState::batch_read`].
    Read,
    /// See that no other snapshot needs what the batch overwrites, then [`MergeState::batch_preserved`].
    Preserve,
    /// See that no write to the batch is in flight, then [`MergeState::batch_drained`].
    Drain,
    /// Start copies: each with [`MergeState::start_copy`], and behind the last [`MergeState::all_copies_started`].
    Copy,
    /// Flush the origin and clear the records, then [`MergeState::batch_committed`].
    Commit,
    /// Write the records back that are in doubt, then [`MergeState::records_restored`].
    Restore,
    /// Let what waits for the batch go on, then [`MergeState::batch_released`].
    Release(BatchResult),
}

/// What has become of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BatchResult {
    /// It is on the origin: that is where it is written to from now on.
    Merged,
    /// It is where it was.
    Kept,
    /// It is in doubt, and stays closed.
    InDoubt,
}

/// What has become of the records of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CommitResult {
    /// They are cleared, durably.
    Cleared,
    /// They could not be cleared, but are there.
    Kept,
    /// Nobody knows.
    InDoubt,
}

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
        fate: BatchResult,
        failed: bool,
    },
    Failed {
        in_doubt: bool,
    },
    Finished,
}

/// A merge. Never sleeps; its user locks it. What is reported too late, in another state, changes
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MergeState {
    state: MergeStage,
    wanted: bool,
    /// How many keep it between two batches.
    pauses: Count,
}

impl MergeState {
    /// A merge that was not started yet.
    pub(crate) const fn new() -> Self {
        MergeState {
            state: MergeStage::Stopped { in_doubt: false },
            wanted: false,
            pauses: Count::zero(),
        }
    }

    /// Whether it may begin a batch.
    fn may_begin(&self) -> bool {
        self.wanted && self.pauses.is_zero()
    }

    /// What is to be done.
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
            MergeStage::Releasing { fate, .. } => MergeStep::Release(fate),
        }
    }

    /// Whether nothing is done any more until it is started.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(
            self.state,
            MergeStage::Stopped { .. } | MergeStage::Failed { .. } | MergeStage::Finished
        )
    }

    /// Whether it has failed, and was not started again.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(
            self.state,
            MergeStage::Failed { .. }
                | MergeStage::Restoring { failed: true }
                | MergeStage::Releasing { failed: true, .. }
        )
    }

    /// Whether there is nothing left to merge.
    pub(crate) fn is_finished(&self) -> bool {
        self.state == MergeStage::Finished
    }

    /// Lets it begin, or begin again behind a failure; not before the last pause ends.
    pub(crate) fn start(&mut self) {
        self.wanted = true;
        match self.state {
            MergeStage::Failed { in_doubt } => self.state = MergeStage::Stopped { in_doubt },
            MergeStage::Restoring { .. } => self.state = MergeStage::Restoring { failed: false },
            // Not to rest then, but to begin.
            MergeStage::Releasing { fate, .. } => self.release_batch(fate, false),
            _ => {}
        }
        self.begin();
    }

    /// Begins if it may, and does not yet.
    fn begin(&mut self) {
        if let (MergeStage::Stopped { in_doubt }, true) = (self.state, self.may_begin()) {
            self.state = if in_doubt {
                // The data is on the origin, durably, and has not changed since.
                MergeStage::Committing
            } else {
                MergeStage::Reading
            };
        }
    }

    /// Lets it end, soon: what has been copied is committed.
    pub(crate) fn stop(&mut self) {
        self.wanted = false;
        self.cancel_batch();
    }

    /// Keeps it between two batches, soon, until [`unpause`](Self::unpause) is called as often. It may
    /// be started and stopped meanwhile.
    pub(crate) fn pause(&mut self) {
        self.pauses.increment();
        self.cancel_batch();
    }

    /// Ends a [`pause`](Self::pause).
    pub(crate) fn unpause(&mut self) {
        self.pauses.decrement();
        self.begin();
    }

    /// Ends a batch that has not changed anything yet.
    fn cancel_batch(&mut self) {
        match self.state {
            MergeStage::Preserving => self.state = MergeStage::Stopped { in_doubt: false },
            MergeStage::Draining => self.release_batch(BatchResult::Kept, false),
            _ => {}
        }
    }

    fn release_batch(&mut self, fate: BatchResult, failed: bool) {
        self.state = MergeStage::Releasing { fate, failed };
    }

    /// The last records were read; whether there are any.
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

    /// No other snapshot needs anything. Tells whether the batch is to be closed, which is done
    /// before anybody else can call.
    pub(crate) fn batch_preserved(&mut self) -> bool {
        let goes_on = self.state == MergeStage::Preserving;
        if goes_on {
            self.state = MergeStage::Draining;
        }
        goes_on
    }

    /// No write to the batch is in flight.
    pub(crate) fn batch_drained(&mut self) {
        if self.state == MergeStage::Draining {
            self.state = MergeStage::Copying {
                in_flight: Count::zero(),
                all_copies_started: false,
                failed: false,
            };
        }
    }

    /// A copy is about to start. Tells whether it may.
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

    /// There are no more copies to start.
    pub(crate) fn all_copies_started(&mut self) {
        if let MergeStage::Copying {
            all_copies_started, ..
        } = &mut self.state
        {
            *all_copies_started = true;
            self.check_copies();
        }
    }

    /// A copy has ended. Tells whether it is the first one that failed.
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

    /// The origin was flushed and the records were cleared, or that has failed.
    pub(crate) fn batch_committed(&mut self, records: CommitResult) {
        if self.state == MergeStage::Committing {
            match records {
                CommitResult::Cleared => self.release_batch(BatchResult::Merged, false),
                CommitResult::Kept => self.release_batch(BatchResult::Kept, true),
                CommitResult::InDoubt => self.release_batch(BatchResult::InDoubt, true),
            }
        }
    }

    /// A write waits for a batch in doubt.
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

    /// The records of a batch in doubt were written back, or that has failed.
    pub(crate) fn records_restored(&mut self, ok: bool) {
        if let MergeStage::Restoring { failed } = self.state {
            let fate = if ok {
                BatchResult::Kept
            } else {
                BatchResult::InDoubt
            };
            self.release_batch(fate, failed || !ok && !self.wanted);
        }
    }

    /// What waited for the batch goes on.
    pub(crate) fn batch_released(&mut self) {
        if let MergeStage::Releasing { fate, failed } = self.state {
            let in_doubt = fate == BatchResult::InDoubt;
            if failed {
                self.state = MergeStage::Failed { in_doubt };
            } else {
                self.state = MergeStage::Stopped { in_doubt };
                self.begin();
            }
        }
    }
}
