// SPDX-License-Identifier: GPL-2.0

//! Commits: the committer, those who wait for it, and what a commit changes for users.

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
    /// Sees to it that what was just marked will be committed. Any context.
    ///
    /// At once if the log fills up or nothing is left to hydrate; otherwise some time after the
    /// first change.
    pub(super) fn schedule_commit(self: ArcBorrow<'_, Self>, was_dirty: bool, is_half_full: bool) {
        if is_half_full || self.metadata.is_hydration_done() {
            self.wake_committer();
        } else if !was_dirty {
            enqueue_delayed::<CloneTarget, { work_id::COMMIT_TIMER }>(self.into(), COMMIT_DELAY);
        }
    }

    pub(super) fn wake_committer(self: ArcBorrow<'_, Self>) {
        self.commit_queue
            .enqueue::<CloneTarget, { work_id::COMMITTER }>(self.into());
    }

    /// Waits until what has been done up to now is committed, or cannot be. Sleeps, and the thread
    /// can be killed meanwhile: it is the committer that waits for the devices.
    pub(super) fn wait_for_commit(self: ArcBorrow<'_, Self>) -> Result {
        if !self.metadata.is_dirty() || self.metadata.mode() != Mode::ReadWrite {
            return Ok(());
        }
        let run = self.commit_runs.next();
        self.wake_committer();
        self.commit_runs.wait(run)
    }

    /// Commits, and tells the world what changed by it. Sleeps for I/O.
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

    /// A flush of the destination failed that no commit asked for. What it lost may be what fills a
    /// region just now: marking it would make the loss permanent. Any context.
    #[cold]
    pub(super) fn flush_failed(self: ArcBorrow<'_, Self>) {
        if self.metadata.flush_failed() {
            self.wake_committer();
        }
    }

    /// Tells the world if the mode has changed because of a flush that failed, and that no commit
    /// asked for. Sleeps.
    fn report_flush_failure(&self) {
        if self.metadata.take_flush_failure() {
            log_operation_failed(&self.handle, CommitStep::Flush, EIO);
            self.report_mode(Mode::ReadOnly);
        }
    }

    /// Tells the world of a new mode. Sleeps.
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

/// Commits, and ends or sends on who waited for it.
impl WorkItem<{ work_id::COMMITTER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        let _noio = NoIo::enter();
        let run = this.commit_runs.begin();
        this.report_flush_failure();
        // Taken before the commit begins, so that its flush of the destination comes after their
        // data.
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
                // Suspending commits by itself, and resuming starts the timer again.
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
        // Last, since this may have to wait: for a request of the destination, or for the budget of
        // a cgroup.
        while let Some(bio) = ready.pop() {
            bio.submit(&this.destination);
        }
    }
}

/// Commits some time after a change that nobody waits for.
impl WorkItem<{ work_id::COMMIT_TIMER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        this.as_arc_borrow().wake_committer();
    }
}

/// Counts the runs of the committer, which never run side by side.
pub(super) struct CommitRuns {
    begun: Atomic<u32>,
    ended: Atomic<u32>,
    waiters: Pin<KBox<WaitQueue>>,
}

impl CommitRuns {
    /// Counts from zero. Sleeps.
    pub(super) fn new() -> Result<Self> {
        Ok(CommitRuns {
            begun: Atomic::new(0),
            ended: Atomic::new(0),
            waiters: KBox::pin_init(new_wait_queue!("dm_clone_runs"), GFP_KERNEL)?,
        })
    }

    /// A run begins. Returns its number.
    fn begin(&self) -> u32 {
        // With full order: what happened before a waiter did not see this run is seen by the run.
        self.begun.fetch_add(1, Full).wrapping_add(1)
    }

    /// The run of this number ends.
    fn end(&self, run: u32) {
        self.ended.store(run, Release);
        self.waiters.wake_all();
    }

    /// The number of the next run to begin.
    fn next(&self) -> u32 {
        self.begun.fetch_add(0, Full).wrapping_add(1)
    }

    /// Waits until a run has ended, `EINTR` if the thread is killed.
    fn wait(&self, run: u32) -> Result {
        // The counts wrap around, but never while somebody waits.
        let ended = || self.ended.load(Acquire).wrapping_sub(run) < u32::MAX / 2;
        self.waiters.wait_killable(ended)
    }
}
