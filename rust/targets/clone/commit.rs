// SPDX-License-Identifier: GPL-2.0

//! The committer, threads that wait for it, and reports to users.

use super::{
    metadata::{
        log_operation_failed,
        CommitError,
        CommitOutcome,
        CommitStep, //
    },
    per_bio::PerBioData,
    work_id,
    CloneTarget,
    COMMIT_DELAY, //
};
use crate::{
    dm::bio::{
        BioQueue,
        BlkStatus, //
    },
    logic::clone::status::Mode,
    sys::{
        log::info,
        noio::NoIo,
        queue::enqueue_delayed,
        wait::{
            new_wait_queue,
            WaitQueue, //
        }, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        Arc,
        ArcBorrow, //
    },
    workqueue::WorkItem, //
};

impl CloneTarget {
    /// Schedules a commit of regions that were just marked. Any context.
    ///
    /// The commit starts at once if the log fills up or all regions are hydrated, otherwise some
    /// time after the first change.
    pub(super) fn schedule_commit(self: ArcBorrow<'_, Self>, was_dirty: bool, is_half_full: bool) {
        if is_half_full || self.metadata.is_hydration_done() {
            self.wake_committer();
        } else if !was_dirty {
            enqueue_delayed::<CloneTarget, { work_id::COMMIT_TIMER }>(self.into(), COMMIT_DELAY);
        }
    }

    /// Queues the committer. Any context.
    pub(super) fn wake_committer(self: ArcBorrow<'_, Self>) {
        self.commit_queue
            .enqueue::<CloneTarget, { work_id::COMMITTER }>(self.into());
    }

    /// Waits until all earlier changes are committed, or cannot be. May sleep.
    ///
    /// Only the committer waits for the devices, so that the caller can be killed.
    ///
    /// # Errors
    ///
    /// `EINTR` if the thread is killed.
    pub(super) fn wait_for_commit(self: ArcBorrow<'_, Self>) -> Result {
        if !self.metadata.is_dirty() || self.metadata.mode() != Mode::ReadWrite {
            return Ok(());
        }
        let run = self.commit_runs.next();
        self.wake_committer();
        self.commit_runs.wait(run)
    }

    /// Commits, and reports what users are to know of it. May sleep.
    ///
    /// C counterpart: `commit_metadata()`.
    pub(super) fn commit(&self) -> Result<CommitOutcome> {
        let result = self
            .metadata
            .commit(&self.handle, || self.destination.flush());
        match &result {
            Ok(CommitOutcome::Complete) => self.handle.raise_event(),
            Err(CommitError {
                degraded: Some(mode),
                ..
            }) => self.report_mode(*mode),
            _ => {}
        }
        result.map_err(|failure| failure.error)
    }

    /// Handles the failure of a flush that no commit asked for. Any context.
    ///
    /// The flush may have lost data of a region that is in flight. To mark that region would make
    /// the loss permanent.
    #[cold]
    pub(super) fn flush_failed(self: ArcBorrow<'_, Self>) {
        if self.metadata.flush_failed() {
            self.wake_committer();
        }
    }

    /// Reports a change of the mode by a failed flush that no commit asked for. May sleep.
    fn report_flush_failure(&self) {
        if self.metadata.take_flush_failure() {
            log_operation_failed(&self.handle, CommitStep::Flush, EIO);
            self.report_mode(Mode::ReadOnly);
        }
    }

    /// Reports a new mode: logs it, and raises a dm event. May sleep.
    pub(super) fn report_mode(&self, mode: Mode) {
        info!(
            "clone",
            "{}: Switching to {} mode",
            self.handle,
            mode.description()
        );
        self.handle.raise_event();
    }
}

/// The committer: commits, then ends or submits the bios that waited for it.
impl WorkItem<{ work_id::COMMITTER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        let _noio = NoIo::enter();
        let run = this.commit_runs.begin();
        this.report_flush_failure();
        // Take the lists before the commit begins: its flush of the destination must come after
        // their data.
        let (mut flush, mut written) = {
            let mut deferred = this.deferred.lock();
            (deferred.flush.take(), deferred.fua_written.take())
        };
        let mut ready = BioQueue::new();
        match this.commit() {
            Ok(committed) => {
                written.end_all(BlkStatus::OK);
                while let Some(mut bio) = flush.pop() {
                    if bio.is_flush() && committed != CommitOutcome::Nothing {
                        bio.end(BlkStatus::OK);
                        continue;
                    }
                    if bio.is_flush() {
                        bio.set_per_bio(PerBioData::FLUSH);
                    }
                    ready.push(bio);
                }
                // Suspending commits by itself, and resuming arms the timer again.
                if this.metadata.is_dirty() && !this.is_suspended() {
                    enqueue_delayed::<CloneTarget, { work_id::COMMIT_TIMER }>(
                        this.clone(),
                        COMMIT_DELAY,
                    );
                }
            }
            Err(_) => {
                written.end_all(BlkStatus::IO_ERROR);
                flush.end_all(BlkStatus::IO_ERROR);
            }
        }
        this.as_arc_borrow().wake_all_stalled();
        this.as_arc_borrow().wake_hydration();
        this.commit_runs.end(run);
        // Submit last: it may wait for a request of the destination, or for the budget of a cgroup.
        while let Some(bio) = ready.pop() {
            bio.submit(&this.destination);
        }
    }
}

/// Runs the committer some time after a change that nobody waits for.
impl WorkItem<{ work_id::COMMIT_TIMER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        this.as_arc_borrow().wake_committer();
    }
}

/// Counts the runs of the committer, which never overlap.
pub(super) struct CommitRuns {
    begun: Atomic<u32>,
    ended: Atomic<u32>,
    waiters: Pin<KBox<WaitQueue>>,
}

impl CommitRuns {
    /// Makes a count of zero runs. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new() -> Result<Self> {
        Ok(CommitRuns {
            begun: Atomic::new(0),
            ended: Atomic::new(0),
            waiters: KBox::pin_init(new_wait_queue!("dm_clone_runs"), GFP_KERNEL)?,
        })
    }

    /// Begins a run. Returns its number.
    fn begin(&self) -> u32 {
        // Full order: a change that precedes a call of `next` which does not see this run is seen
        // by the run.
        self.begun.fetch_add(1, Full).wrapping_add(1)
    }

    /// Ends the run of this number.
    fn end(&self, run: u32) {
        self.ended.store(run, Release);
        self.waiters.wake_all();
    }

    /// Returns the number of the next run to begin.
    fn next(&self) -> u32 {
        // A load that is ordered after the change that the caller wants to be committed.
        self.begun.fetch_add(0, Full).wrapping_add(1)
    }

    /// Waits until the run of this number has ended. May sleep.
    ///
    /// # Errors
    ///
    /// `EINTR` if the thread is killed.
    fn wait(&self, run: u32) -> Result {
        // The counts wrap around, but no waiter waits for so many runs.
        let ended = || self.ended.load(Acquire).wrapping_sub(run) < u32::MAX / 2;
        self.waiters.wait_killable(ended)
    }
}
