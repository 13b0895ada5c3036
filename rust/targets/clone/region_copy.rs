// SPDX-License-Identifier: GPL-2.0

//! Copies of regions from the source to the destination, segment by segment.
//!
//! ```text
//!  start_copy -> ready copies -> source reader -> (source) -> copier -> (destination) -> copier
//!                     ^                                         |                          |
//!                     |                                  drop if given up                  v
//!                     +------------------------------------------------- next segment, or end
//! ```
//!
//! The progress of a copy is in its slot, under the state lock
//! ([`RegionCopy`](crate::logic::clone::region_copy::RegionCopy)); a segment carries the name of
//! the slot only. A copy that is given up frees its slot: when the source answers at last, the name
//! finds nothing, and the segment is dropped.
//!
//! Hence only the destructor waits for the source, and so does the source reader, which does
//! nothing but send requests: the source may have no room for another one.
//!
//! C counterparts: `hydration_copy()`, `hydration_kcopyd_callback()`.

use super::{
    metadata::RegionState,
    work_id,
    CloneTarget, //
};
use crate::{
    dm::{
        io::{
            IoContext,
            Request,
            Transfer, //
        },
        pages::Pages, //
    },
    logic::{
        clone::{
            geometry::Geometry,
            inflight::Slot,
            region_copy::{
                CopyReason,
                CopyResult,
                ReadyCopies, //
            },
            slots::FillResult, //
        },
        regions::RegionRange,
        units::Sector, //
    },
    sys::{
        irq_lock::IrqLock,
        log::{
            err,
            err_limit, //
        },
        noio::NoIo,
        plug::plugged,
        pool::PoolBox,
        queue::enqueue_delayed,
        time::now_ms, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc,
        ArcBorrow, //
    },
    time::Delta,
    workqueue::WorkItem, //
};

/// How long the source reader waits for memory before it tries again.
const READ_AGAIN: Delta = Delta::from_millis(100);

/// A segment of a copy in flight. It keeps the target, and with it the devices, alive.
pub(super) struct Segment {
    clone: Arc<CloneTarget>,
    /// The slot of the copy. It names nothing once the copy was given up.
    slot: Slot,
    /// The first sector.
    start: Sector,
    /// The data.
    pages: Pages,
    /// The I/O that is in flight, or has just ended.
    stage: Stage,
    /// Whether that I/O succeeded.
    ok: bool,
}

/// The I/O of a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Reading,
    Writing,
}

impl IoContext for Segment {
    fn pages(&mut self) -> &mut Pages {
        &mut self.pages
    }

    fn done(mut this: PoolBox<Request<Self>>, result: Result) {
        this.context.ok = result.is_ok();
        let clone = this.context.clone.clone();
        clone.deferred.lock().segments.push(this);
        clone.as_arc_borrow().wake_copier();
    }
}

/// What follows the end of the I/O of a segment.
enum NextStep {
    /// Write it to the destination.
    Write,
    /// Drop it: other segments are in flight, or the copy was given up.
    Drop,
    /// Drop it, and end the copy: it was the last segment.
    Finish(CopyResult, CopyReason),
}

impl RegionState {
    /// Starts to copy the regions of a slot. The caller wakes the source reader.
    pub(super) fn start_copy(
        &mut self,
        slot: Slot,
        ready_copies: &IrqLock<ReadyCopies>,
        geometry: &Geometry,
        reason: CopyReason,
    ) {
        if let Some(copy) = self.slots.start_copy(slot, geometry, reason) {
            ready_copies.lock().push(slot, copy);
        }
    }

    /// Records the end of the I/O of a segment. Returns what to do with the segment.
    fn segment_done(
        &mut self,
        slot: Slot,
        ready_copies: &IrqLock<ReadyCopies>,
        stage: Stage,
        ok: bool,
    ) -> NextStep {
        let Some(copy) = self.slots.copy(slot) else {
            return NextStep::Drop;
        };
        match stage {
            Stage::Reading if copy.read_done(ok) => return NextStep::Write,
            Stage::Reading => {}
            Stage::Writing => copy.write_done(ok),
        }
        match copy.result() {
            Some(result) => NextStep::Finish(result, copy.reason()),
            None => {
                ready_copies.lock().push(slot, copy);
                NextStep::Drop
            }
        }
    }
}

impl CloneTarget {
    /// Reads segments while there are any, and memory for them. Source reader only.
    fn start_segments(self: ArcBorrow<'_, Self>) {
        loop {
            let next = {
                let mut state = self.metadata.state().lock();
                let mut ready_copies = self.ready_copies.lock();
                state.slots.next_segment(&mut ready_copies)
            };
            let Some((slot, start, len)) = next else {
                return;
            };
            let Some(pages) = self.pages.take(len) else {
                return self.read_later();
            };
            let segment = Segment {
                clone: self.into(),
                slot,
                start,
                pages,
                stage: Stage::Reading,
                ok: false,
            };
            let Ok(segment) = self.segment_pool.try_boxed(Request::new(segment)) else {
                return self.read_later();
            };
            let taken = match self.metadata.state().lock().slots.copy(slot) {
                Some(copy) => copy.start_read(start),
                // The copy was given up meanwhile.
                None => false,
            };
            if taken {
                self.source_io
                    .submit(Transfer::Read, &self.source, start, segment);
            }
        }
    }

    /// Tries again later, because there is no memory for another segment.
    ///
    /// The return of a segment of the reserve wakes the source reader; but the source may hold all
    /// of them, and never answer. Hence the timer.
    fn read_later(self: ArcBorrow<'_, Self>) {
        enqueue_delayed::<CloneTarget, { work_id::READ_RETRY_TIMER }>(self.into(), READ_AGAIN);
    }

    /// Continues a segment whose I/O has ended. Copier only.
    fn segment_done(self: ArcBorrow<'_, Self>, mut segment: PoolBox<Request<Segment>>) {
        let (slot, start) = (segment.context.slot, segment.context.start);
        let (stage, ok) = (segment.context.stage, segment.context.ok);
        let then = self
            .metadata
            .state()
            .lock()
            .segment_done(slot, &self.ready_copies, stage, ok);
        match then {
            NextStep::Write => {
                segment.context.stage = Stage::Writing;
                self.destination_io.submit(
                    Transfer::WriteBehind,
                    &self.destination,
                    start,
                    segment,
                );
            }
            NextStep::Drop => drop(segment),
            NextStep::Finish(result, reason) => {
                drop(segment);
                self.copy_done(slot, result, reason);
            }
        }
    }

    /// Ends the slot of a copy. Process context.
    fn copy_done(self: ArcBorrow<'_, Self>, slot: Slot, result: CopyResult, reason: CopyReason) {
        let filled = match result {
            CopyResult::Copied => FillResult::Filled,
            CopyResult::Failed => FillResult::CopyFailed,
            CopyResult::GivenUp => FillResult::GivenUp,
        };
        // The slot is free if the copy was given up just now: then that was reported.
        let Some((range, _)) = self.complete_fill(slot, filled) else {
            return;
        };
        if result == CopyResult::Failed {
            self.copy_failed(reason);
        }
        if reason != CopyReason::Write {
            let is_priority = reason == CopyReason::Priority;
            self.hydration
                .lock()
                .copy_done(now_ms(), range, result, is_priority);
            self.wake_hydration();
        }
    }

    /// Reports that a copy failed, and disables background hydration after the last failure that it
    /// is allowed. May sleep.
    fn copy_failed(&self, reason: CopyReason) {
        err_limit!("clone", "{}: hydration failed", self.handle);
        if reason == CopyReason::Write {
            return;
        }
        let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
        let most = self.max_failures.load(Relaxed);
        if most != 0 && failures >= most && self.hydration_enabled.load(Relaxed) {
            self.hydration_enabled.store(false, Relaxed);
            err!(
                "clone",
                "{}: {} copies failed: hydration is disabled",
                self.handle,
                failures
            );
            self.handle.raise_event();
        }
    }

    /// Gives up all copies, except for segments that are being written: those end soon. Process
    /// context.
    ///
    /// Called while the target is suspended, so that no copies start. Bios that wait for a copy are
    /// reevaluated.
    pub(super) fn give_up_copies(self: ArcBorrow<'_, Self>) {
        let mut rest = self.metadata.geometry().all();
        loop {
            let mut state = self.metadata.state().lock();
            let Some((slot, range)) = state.slots.inflight.first_overlap(rest) else {
                return self.ready_copies.lock().clear();
            };
            rest = RegionRange::new(range.end, rest.end);
            let Some(copy) = state.slots.copy(slot) else {
                continue;
            };
            copy.give_up();
            let (result, reason) = (copy.result(), copy.reason());
            drop(state);
            if let Some(result) = result {
                self.copy_done(slot, result, reason);
            }
        }
    }

    /// Queues the source reader. Any context.
    pub(super) fn wake_reader(self: ArcBorrow<'_, Self>) {
        self.read_queue
            .enqueue::<CloneTarget, { work_id::SOURCE_READER }>(self.into());
    }

    /// Queues the copier. Any context.
    fn wake_copier(self: ArcBorrow<'_, Self>) {
        self.queue
            .enqueue::<CloneTarget, { work_id::COPIER }>(self.into());
    }
}

/// The source reader: reads segments. It may wait for the source, so nothing waits for it but the
/// destructor.
impl WorkItem<{ work_id::SOURCE_READER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        let _noio = NoIo::enter();
        plugged(|| this.as_arc_borrow().start_segments());
    }
}

/// Runs the source reader after a wait.
impl WorkItem<{ work_id::READ_RETRY_TIMER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        this.as_arc_borrow().wake_reader();
    }
}

/// The copier: continues segments that were read or written.
impl WorkItem<{ work_id::COPIER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        let _noio = NoIo::enter();
        let this = this.as_arc_borrow();
        plugged(|| {
            let ended = this.deferred.lock().segments.take();
            let mut ended = ended.reversed();
            while let Some(segment) = ended.pop() {
                this.segment_done(segment);
            }
        });
        if this.ready_copies.lock().first().is_some() {
            this.wake_reader();
        }
    }
}
