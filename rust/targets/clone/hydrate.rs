// SPDX-License-Identifier: GPL-2.0

//! The background hydration ("sweep").
//!
//! What to copy next, and when, is decided by [`Sweep`](crate::logic::clone::sweep::Sweep). Here it
//! is carried out.

use super::{
    metadata::SLOTS,
    Clone, //
};
use crate::{
    logic::clone::{
        copying::For,
        status::Mode,
        sweep::{
            Limits,
            Step, //
        }, //
    },
    logic::units::Sectors,
    sys::{
        noio::NoIo,
        params,
        queue::rearm,
        time::now_ms, //
    }, //
};
use kernel::{
    sync::{
        atomic::{
            Full,
            Relaxed, //
        },
        Arc,
        ArcBorrow, //
    },
    time::Delta,
    workqueue::WorkItem, //
};

/// The longest copy: a write that comes in between waits for all of it.
const LONGEST: Sectors = Sectors(16 * 1024);

/// Copies of the sweep in flight at most: half of all slots.
const MOST_COPIES: u32 = 512;
/// Copies of the sweep that find a slot however many writes are in flight.
pub(super) const SURE_COPIES: u32 = 16;
/// Slots that nobody may have who waits for the source, the above aside: what writes to whole
/// regions need is the destination alone.
const SPARE_SLOTS: usize = 128 + 16;
/// Copies in flight at most, for writes and of the sweep.
// CAST: A small number.
pub(super) const MAX_COPIES: u64 = (SLOTS - SPARE_SLOTS) as u64;

impl Clone {
    /// Whether the sweep has something to do at all.
    fn may_sweep(&self) -> bool {
        (self.hydration.load(Relaxed) || self.wished.load(Relaxed))
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
        let mut started = false;
        let step = loop {
            if !self.may_sweep() {
                break Step::Blocked;
            }
            match self.start_copy() {
                Step::Copy(_) => started = true,
                step => break step,
            }
        };
        if started {
            self.wake_reader();
        }
        if let Step::Wait(ms) = step {
            let delay = Delta::from_millis(i64::try_from(ms).unwrap_or(i64::MAX));
            rearm::<Clone, { SweepTimer::ID }>(self.into(), delay);
        }
    }

    /// Regions that are filled at a time at most, so that nobody waits for them for long.
    pub(super) fn longest(&self) -> u64 {
        let region = self.metadata.geometry().region_size().sectors();
        (LONGEST.get() / region.get().max(1)).max(1)
    }

    /// Begins the copy that the sweep wants next, or says why there is none.
    fn start_copy(&self) -> Step {
        let geometry = self.metadata.geometry();
        let mut sweep = self.sweep.lock();
        {
            let mut lists = self.lists.lock();
            sweep.want(&mut lists.wishes);
            self.wished.store(sweep.is_wanted(), Relaxed);
        }
        let limits = Limits {
            threshold: self.threshold.load(Relaxed),
            batch: self.batch.load(Relaxed),
            longest: self.longest(),
            copies: MOST_COPIES,
            sure_copies: SURE_COPIES,
            spare_slots: SPARE_SLOTS,
            throttle: params::hydration_throttle(),
            enabled: self.hydration.load(Relaxed),
            // With full order, so that a bio that did not see the copy's slot is seen here.
            user_busy: self.user_ios.fetch_add(0, Full) > 0,
        };
        let now = now_ms();
        let mut state = self.metadata.state().lock();
        if self.is_suspended() {
            // Seen under the lock, so that no copy begins behind the back of `give_up_copies`.
            return Step::Blocked;
        }
        let step = sweep.next(now, &limits, self.metadata.map(), &state.inflight);
        let Step::Copy(range) = step else {
            return step;
        };
        match state.claim_free(range) {
            Some(slot) => {
                let whose = if sweep.was_wanted() {
                    For::Wish
                } else {
                    For::Sweep
                };
                state.begin_copy(slot, &self.lanes, geometry, whose);
                step
            }
            None => {
                // The end of a copy or a commit makes room, and wakes the sweep again.
                sweep.put_back(now, range);
                Step::Blocked
            }
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
