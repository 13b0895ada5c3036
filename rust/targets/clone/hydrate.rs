// SPDX-License-Identifier: GPL-2.0

//! The background hydration.
//!
//! [`Hydration`](crate::logic::clone::hydration::Hydration) decides what to copy next, and when.
//! This file carries it out. C counterpart: `do_hydration()`.

use super::{
    work_id,
    CloneTarget, //
};
use crate::{
    logic::{
        clone::{
            hydration::{
                HydrationLimits,
                HydrationStep, //
            },
            region_copy::CopyReason,
            slots::{
                OVERWRITE_SLOTS,
                RESERVED_COPIES, //
            },
            status::Mode, //
        },
        units::Sectors, //
    },
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

/// Maximum length of a copy: a write to any of its regions waits for all of it.
const MAX_COPY_LEN: Sectors = Sectors(16 * 1024);

/// Maximum number of background copies in flight: half of all slots.
const MAX_HYDRATION_COPIES: u32 = 512;

impl CloneTarget {
    /// Whether there may be something to hydrate. Any context.
    fn may_hydrate(&self) -> bool {
        (self.hydration_enabled.load(Relaxed) || self.priority_pending.load(Relaxed))
            && !self.is_suspended()
            && !self.metadata.is_hydration_done()
            && self.metadata.mode() == Mode::ReadWrite
    }

    /// Queues the hydrator, if there may be something to hydrate. Any context.
    pub(super) fn wake_hydration(self: ArcBorrow<'_, Self>) {
        if self.may_hydrate() {
            self.queue
                .enqueue::<CloneTarget, { work_id::HYDRATOR }>(self.into());
        }
    }

    /// Starts copies until the decision is to wait. Process context.
    fn run_hydration(self: ArcBorrow<'_, Self>) {
        let _noio = NoIo::enter();
        let mut started = false;
        let step = loop {
            if !self.may_hydrate() {
                break HydrationStep::Blocked;
            }
            match self.start_next_hydration() {
                HydrationStep::Copy(_) => started = true,
                step => break step,
            }
        };
        if started {
            self.wake_reader();
        }
        if let HydrationStep::Wait(ms) = step {
            let delay = Delta::from_millis(i64::try_from(ms).unwrap_or(i64::MAX));
            rearm::<CloneTarget, { work_id::HYDRATION_TIMER }>(self.into(), delay);
        }
    }

    /// Starts the next background copy, or returns why there is none. Process context.
    ///
    /// C counterpart: `__start_next_hydration()`.
    fn start_next_hydration(&self) -> HydrationStep {
        let geometry = self.metadata.geometry();
        let mut hydration = self.hydration.lock();
        {
            let mut deferred = self.deferred.lock();
            hydration.prioritize(&mut deferred.priority);
            self.priority_pending
                .store(hydration.has_priority(), Relaxed);
        }
        let limits = HydrationLimits {
            threshold: self.threshold.load(Relaxed),
            batch: self.batch.load(Relaxed),
            max_regions: self.max_copy_regions(),
            max_copies: MAX_HYDRATION_COPIES,
            reserved_copies: RESERVED_COPIES,
            overwrite_slots: OVERWRITE_SLOTS,
            throttle: params::hydration_throttle(),
            enabled: self.hydration_enabled.load(Relaxed),
            // Full order, against a bio that counts itself before it looks for a slot.
            user_busy: self.ios_in_flight.fetch_add(0, Full) > 0,
        };
        let now = now_ms();
        let mut state = self.metadata.state().lock();
        if self.is_suspended() {
            // Checked with the lock held, so that no copy starts after `give_up_copies` has looked.
            return HydrationStep::Blocked;
        }
        let step = hydration.next(now, &limits, self.metadata.map(), &state.slots.inflight);
        let HydrationStep::Copy(range) = step else {
            return step;
        };
        match state.slots.reserve(range) {
            Some(slot) => {
                let reason = if hydration.was_priority() {
                    CopyReason::Priority
                } else {
                    CopyReason::Hydration
                };
                state.start_copy(slot, &self.ready_copies, geometry, reason);
                step
            }
            None => {
                // The end of a fill or a commit makes room, and wakes the hydrator.
                hydration.put_back(now, range);
                HydrationStep::Blocked
            }
        }
    }

    /// Returns the maximum number of regions that are filled at a time, which bounds how long a bio
    /// waits for them. Any context.
    pub(super) fn max_copy_regions(&self) -> u64 {
        let region = self.metadata.geometry().region_size().sectors();
        (MAX_COPY_LEN.get() / region.get().max(1)).max(1)
    }
}

/// The hydrator: runs the background hydration.
impl WorkItem<{ work_id::HYDRATOR }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        this.as_arc_borrow().run_hydration();
    }
}

/// Runs the background hydration after a wait.
impl WorkItem<{ work_id::HYDRATION_TIMER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        this.as_arc_borrow().run_hydration();
    }
}
