// SPDX-License-Identifier: GPL-2.0

//! The workers that take deferred bios on.

use super::{
    metadata::Committed,
    Clone,
    COMMIT_DELAY, //
};
use crate::{
    dm::bio::{
        Op,
        Status, //
    },
    sys::noio::NoIo, //
};
use kernel::{
    sync::Arc,
    workqueue::WorkItem, //
};

/// Takes on the bios that are ready, and decides again on those that were not.
pub(super) struct Worker;

impl Worker {
    pub(super) const ID: u64 = 1;
}

impl WorkItem<1> for Clone {
    type Pointer = Arc<Clone>;

    fn run(this: Arc<Clone>) {
        let _noio = NoIo::enter();
        let (mut ready, mut again) = {
            let mut lists = this.lists.lock();
            (lists.ready.take(), lists.again.take())
        };
        while let Some(bio) = ready.pop() {
            bio.submit(&this.destination);
        }
        let looked = !again.is_empty();
        while let Some(bio) = again.pop() {
            if bio.op() == Op::Discard {
                this.as_arc_borrow().discard(bio);
            } else {
                this.as_arc_borrow().write(bio);
            }
        }
        // Those may have needed less room than there was; the next ones then need not wait for a slot to end.
        if looked && this.metadata.state().lock().has_room() {
            this.as_arc_borrow().wake_stalled(Clone::STALLED_STEP);
        }
    }
}

/// Commits, and ends or sends on who waited for it.
pub(super) struct Committer;

impl Committer {
    pub(super) const ID: u64 = 2;
}

impl WorkItem<2> for Clone {
    type Pointer = Arc<Clone>;

    fn run(this: Arc<Clone>) {
        let _noio = NoIo::enter();
        // Taken before the commit begins, so that its flush of the destination comes after their data.
        let (mut flush, mut written) = {
            let mut lists = this.lists.lock();
            (lists.flush.take(), lists.written.take())
        };
        match this.commit() {
            Ok(committed) => {
                written.end_all(Status::OK);
                while let Some(bio) = flush.pop() {
                    if bio.is_flush() && committed != Committed::Nothing {
                        bio.end(Status::OK);
                    } else {
                        bio.submit(&this.destination);
                    }
                }
                // Suspending commits by itself, and resuming starts the timer again.
                if this.metadata.is_dirty() && !this.is_suspended() {
                    this.queue
                        .enqueue_delayed::<Clone, { CommitTimer::ID }>(this.clone(), COMMIT_DELAY);
                }
            }
            Err(_) => {
                written.end_all(Status::IO_ERROR);
                flush.end_all(Status::IO_ERROR);
            }
        }
        this.as_arc_borrow().wake_stalled(usize::MAX);
        this.as_arc_borrow().wake_sweep();
    }
}

/// Commits some time after a change that nobody waits for.
pub(super) struct CommitTimer;

impl CommitTimer {
    pub(super) const ID: u64 = 3;
}

impl WorkItem<3> for Clone {
    type Pointer = Arc<Clone>;

    fn run(this: Arc<Clone>) {
        this.as_arc_borrow().wake_committer();
    }
}

/// Writes zeros for discards.
pub(super) struct Zeroer;

impl Zeroer {
    pub(super) const ID: u64 = 7;
}

impl WorkItem<7> for Clone {
    type Pointer = Arc<Clone>;

    fn run(this: Arc<Clone>) {
        let _noio = NoIo::enter();
        loop {
            let next = this.lists.lock().zero.pop();
            let Some(bio) = next else { return };
            this.as_arc_borrow().zero(bio);
        }
    }
}
