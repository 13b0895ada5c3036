// SPDX-License-Identifier: GPL-2.0

//! The workers that take deferred bios on.

use super::{
    io::PerBioData,
    metadata::CommitOutcome,
    work_id,
    CloneTarget,
    COMMIT_DELAY, //
};
use crate::{
    dm::bio::{
        BioQueue,
        BlkStatus,
        Op, //
    },
    logic::clone::status::Mode,
    sys::{
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

/// Takes on the bios that are ready, and decides again on those that were not.
impl WorkItem<{ work_id::WORKER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        let _noio = NoIo::enter();
        let (mut ready, mut retry) = {
            let mut deferred = this.deferred.lock();
            (deferred.ready.take(), deferred.retry.take())
        };
        while let Some(bio) = ready.pop() {
            bio.submit(&this.destination);
        }
        let retried = !retry.is_empty();
        while let Some(bio) = retry.pop() {
            if bio.op() == Op::Discard {
                this.as_arc_borrow().discard(bio);
            } else {
                this.as_arc_borrow().write(bio);
            }
        }
        // Those may have needed less room than there was; the next ones then need not wait for a
        // slot to end.
        if retried {
            this.as_arc_borrow().wake_stalled_with_room();
        }
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
            (deferred.flush.take(), deferred.written.take())
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

impl CloneTarget {
    /// Waits until what has been done up to now is committed, or cannot be. Sleeps, and the thread
    /// can be killed meanwhile: it is the committer that waits for the devices.
    pub(super) fn committed(self: ArcBorrow<'_, Self>) -> Result {
        if !self.metadata.is_dirty() || self.metadata.mode() != Mode::ReadWrite {
            return Ok(());
        }
        let run = self.commit_runs.next();
        self.wake_committer();
        self.commit_runs.wait(run)
    }
}

/// Commits some time after a change that nobody waits for.
impl WorkItem<{ work_id::COMMIT_TIMER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        this.as_arc_borrow().wake_committer();
    }
}

/// Writes zeros for discards.
impl WorkItem<{ work_id::ZEROER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        let _noio = NoIo::enter();
        loop {
            let next = this.deferred.lock().zero.pop();
            let Some(bio) = next else { return };
            this.as_arc_borrow().zero(bio);
        }
    }
}
