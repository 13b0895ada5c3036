// SPDX-License-Identifier: GPL-2.0

//! Copies from the source to the destination, piece by piece.
//!
//! ```text
//!  begin_copy ─▶ lanes ─▶ reader ─▶ (source) ─▶ copier: still wanted? ─▶ (destination) ─▶ copier: next, or the end
//! ```
//!
//! How far a copy is lies in its slot, under the state lock
//! ([`copying`](crate::logic::clone::copying)); its pieces carry only the slot's name. A copy that
//! is given up takes its slot along: when the source answers at last, the name finds nothing, and
//! the piece is dropped. So nobody but the destructor waits for the source, and the reader, which
//! sends it requests and does nothing else: the source may have no room for another one.
//!
//! Lanes belong to a table, slots to the metadata that all tables share: a table that is on its way
//! out cannot take what the next one began.

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
            self,
            err, //
        },
        noio::NoIo,
        plug::plugged,
        pool::PoolBox,
        queue::enqueue_delayed,
        time::{
            self,
            Millis, //
        }, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc,
        ArcBorrow, //
    },
    workqueue::WorkItem, //
};

/// After so long the reader looks for memory again.
const READ_AGAIN: Millis = Millis(100);

/// A piece of a copy on its way. Keeps the clone, and so its devices, alive.
pub(super) struct Segment {
    clone: Arc<CloneTarget>,
    slot: Slot,
    start: Sector,
    pages: Pages,
    stage: Stage,
    ok: bool,
}

/// What was asked of the device below.
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

/// What follows the end of a piece's I/O.
enum NextStep {
    /// It is to be written to the destination.
    Write,
    /// Nothing: other pieces are on their way, or the copy has been given up.
    Drop,
    /// It was the last one of its copy.
    Finish(CopyResult, CopyReason),
}

impl RegionState {
    /// Queues a copy of a slot's regions. The caller wakes the reader.
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

    /// Takes note of the end of a piece's I/O. Returns what to do with the piece.
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
    /// Reads pieces as long as there are any, and memory for them. Reader only.
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
                // Given up meanwhile.
                None => false,
            };
            if taken {
                self.source_io
                    .submit(Transfer::Read, &self.source, start, segment);
            }
        }
    }

    /// There is no memory for another piece. All of the reserve is on its way, and its return wakes
    /// the reader; but the source may have it, and keep it, so the reader tries again after a while
    /// as well.
    fn read_later(self: ArcBorrow<'_, Self>) {
        enqueue_delayed::<CloneTarget, { work_id::READ_RETRY_TIMER }>(self.into(), READ_AGAIN);
    }

    /// Takes a piece on. Copier only.
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
        // Gone if it was given up just now: then that has been told.
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
                .copy_done(time::now().0, range, result, is_priority);
            self.wake_hydration();
        }
    }

    /// Says that a copy failed; it may be the last one of the background hydration that is allowed
    /// to. Process context, sleeps.
    fn copy_failed(&self, reason: CopyReason) {
        if log::allowed() {
            err!("clone", "{}: hydration failed", self.handle);
        }
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

    /// Gives all copies up, except for what is being written: that ends soon. Process context.
    ///
    /// While the clone is suspended, so that no new ones begin. Who waits for a copy is looked at
    /// again.
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

    /// Lets the reader go on. Any context.
    pub(super) fn wake_reader(self: ArcBorrow<'_, Self>) {
        self.read_queue
            .enqueue::<CloneTarget, { work_id::SOURCE_READER }>(self.into());
    }

    /// Lets the copier go on. Any context.
    fn wake_copier(self: ArcBorrow<'_, Self>) {
        self.queue
            .enqueue::<CloneTarget, { work_id::COPIER }>(self.into());
    }
}

/// Asks the source for pieces. It may have to wait for the source, so nobody waits for it.
impl WorkItem<{ work_id::SOURCE_READER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        let _noio = NoIo::enter();
        plugged(|| this.as_arc_borrow().start_segments());
    }
}

/// Runs the reader after a wait.
impl WorkItem<{ work_id::READ_RETRY_TIMER }> for CloneTarget {
    type Pointer = Arc<CloneTarget>;

    fn run(this: Arc<CloneTarget>) {
        this.as_arc_borrow().wake_reader();
    }
}

/// Takes pieces on that have been read or written.
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
