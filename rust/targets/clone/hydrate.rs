// SPDX-License-Identifier: GPL-2.0

//! Copies from the source to the destination: for writes, and in the background.
//!
//! What to copy next, and when, is decided by [`Sweep`](crate::logic::clone::sweep::Sweep). Here it is carried out.

use super::{
    io::Filled,
    Clone, //
};
use crate::{
    dm::kcopyd::{
        CopyDone,
        CopyResult,
        Extent, //
    },
    logic::{
        clone::{
            inflight::Slot,
            status::Mode,
            sweep::{
                Limits,
                Outcome,
                Step, //
            }, //
        },
        regions::RegionRange, //
    },
    sys::{
        log::{
            self,
            err, //
        },
        noio::NoIo,
        pool::PoolBox,
        time::{
            self,
            Millis, //
        }, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Full,
            Relaxed, //
        },
        Arc,
        ArcBorrow, //
    },
    workqueue::WorkItem, //
};

/// Who wants a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// A write to a part of the region waits in the slot.
    Write,
    /// The background hydration.
    Sweep,
}

/// A copy on its way. Keeps the clone, and so its devices, alive.
pub(super) struct CopyJob {
    clone: Arc<Clone>,
    slot: Slot,
    range: RegionRange,
    whose: For,
}

impl CopyDone for CopyJob {
    fn done(this: PoolBox<Self>, result: CopyResult) {
        let CopyJob {
            clone,
            slot,
            range,
            whose,
        } = this.into_inner();
        let copied = result == CopyResult::Copied;
        if !copied && log::allowed() {
            err!("clone", "{}: hydration failed", clone.handle);
        }
        let (filled, outcome) = if copied {
            (Filled::Yes, Outcome::Copied)
        } else {
            (Filled::Copy, Outcome::Failed)
        };
        clone.as_arc_borrow().finish(slot, filled);
        if whose == For::Sweep {
            clone.sweep.lock().finished(time::now().0, range, outcome);
            clone.as_arc_borrow().wake_sweep();
        }
    }
}

impl Clone {
    /// Starts to copy the regions of a slot. Process context, sleeps at most for memory of a reserve.
    pub(super) fn copy(self: ArcBorrow<'_, Self>, slot: Slot, range: RegionRange, whose: For) {
        let (start, len) = self.metadata.geometry().extent(range);
        let from = Extent {
            device: &self.source,
            start,
            len,
        };
        let to = Extent {
            device: &self.destination,
            start,
            len,
        };
        let job = self.jobs.boxed(CopyJob {
            clone: self.into(),
            slot,
            range,
            whose,
        });
        self.kcopyd.copy(&from, &to, job);
    }

    /// Whether the sweep has something to do at all.
    fn may_sweep(&self) -> bool {
        self.hydration.load(Relaxed)
            && !self.is_suspended()
            && !self.metadata.is_done()
            && self.metadata.mode() == Mode::ReadWrite
    }

    /// Lets the sweep decide anew. Any context.
    pub(super) fn wake_sweep(self: ArcBorrow<'_, Self>) {
        if self.may_sweep() {
            self.queue.enqueue::<Clone, { Sweeper::ID }>(self.into());
        }
    }

    /// Starts copies until the sweep says wait. Process context.
    fn run_sweep(self: ArcBorrow<'_, Self>) {
        let _noio = NoIo::enter();
        while self.may_sweep() {
            match self.next_copy() {
                Ok((slot, range)) => self.copy(slot, range, For::Sweep),
                Err(Step::Wait(ms)) => {
                    return self
                        .queue
                        .rearm::<Clone, { SweepTimer::ID }>(self.into(), Millis(ms));
                }
                Err(_) => return,
            }
        }
    }

    /// Claims the sweep's next batch, or says why there is none.
    fn next_copy(&self) -> Result<(Slot, RegionRange), Step> {
        let mut sweep = self.sweep.lock();
        let limits = Limits {
            threshold: self.threshold.load(Relaxed),
            batch: self.batch.load(Relaxed),
            // With full order, so that a bio that did not see the copy's slot is seen here.
            user_busy: self.user_ios.fetch_add(0, Full) > 0,
        };
        let now = time::now().0;
        let mut state = self.metadata.state().lock();
        match sweep.next(now, &limits, self.metadata.map(), &state.inflight) {
            Step::Copy(range) => match state.claim_free(range) {
                Some(slot) => Ok((slot, range)),
                None => {
                    drop(state);
                    // The end of a copy or a commit makes room, and wakes the sweep again.
                    sweep.put_back(range);
                    Err(Step::Blocked)
                }
            },
            step => Err(step),
        }
    }
}

/// Runs the sweep.
pub(super) struct Sweeper;

impl Sweeper {
    pub(super) const ID: u64 = 4;
}

impl WorkItem<4> for Clone {
    type Pointer = Arc<Clone>;

    fn run(this: Arc<Clone>) {
        this.as_arc_borrow().run_sweep();
    }
}

/// Runs the sweep after a wait.
pub(super) struct SweepTimer;

impl SweepTimer {
    pub(super) const ID: u64 = 5;
}

impl WorkItem<5> for Clone {
    type Pointer = Arc<Clone>;

    fn run(this: Arc<Clone>) {
        this.as_arc_borrow().run_sweep();
    }
}
