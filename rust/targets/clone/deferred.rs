// SPDX-License-Identifier: GPL-2.0

//! Bios between `map` and the device below, and the worker that submits them.

use super::{
    per_bio::{
        CloneBio,
        CloneBioQueue, //
    },
    region_copy::Segment,
    work_id,
    CloneTarget, //
};
use crate::{
    dm::{
        bio::Op,
        io::RequestList, //
    },
    logic::{
        clone::{
            hydration::PriorityRanges,
            slots::FillKind, //
        },
        regions::RegionRange, //
    },
    sys::noio::NoIo, //
};
use kernel::{
    sync::{
        atomic::Relaxed,
        Arc,
        ArcBorrow, //
    },
    workqueue::WorkItem, //
};

/// The lists of deferred bios, and of other work for process context.
///
/// C counterparts: `deferred_bios`, `deferred_discard_bios`, `deferred_flush_bios` and
/// `deferred_flush_completions` of `struct clone`.
#[derive(Default)]
pub(super) struct DeferredLists {
    /// Bios to a hydrated region: to be submitted.
    pub(super) ready: CloneBioQueue,
    /// Bios to decide on again: the copy that they waited for failed, the range of a discard became
    /// free, or there was no room.
    pub(super) retry: CloneBioQueue,
    /// Writes that need a copy, and found no slot or no room in the log.
    pub(super) stalled_copies: CloneBioQueue,
    /// Overwrites that found no slot or no room in the log, and discards that found no room in the
    /// log.
    pub(super) stalled: CloneBioQueue,
    /// Flushes and FUA writes: to be submitted or ended after a commit.
    pub(super) flush: CloneBioQueue,
    /// FUA overwrites whose data is written: to be ended after a commit.
    pub(super) fua_written: CloneBioQueue,
    /// Segments of copies that were read or written.
    pub(super) segments: RequestList<Segment>,
    /// Discards that write zeros first.
    pub(super) zeroing: CloneBioQueue,
    /// Ranges to copy before all others.
    pub(super) priority: PriorityRanges,
}

impl CloneTarget {
    /// Lets the worker decide on a bio again.
    pub(super) fn reevaluate(self: ArcBorrow<'_, Self>, bio: Option<CloneBio>) {
        if let Some(bio) = bio {
            self.deferred.lock().retry.push(bio);
            self.wake_worker();
        }
    }

    /// Defers a bio until after a commit.
    pub(super) fn defer_flush(self: ArcBorrow<'_, Self>, bio: CloneBio) {
        self.deferred.lock().flush.push(bio);
        self.wake_committer();
    }

    /// Requests that a range is copied before all others. Any context.
    pub(super) fn prioritize(self: ArcBorrow<'_, Self>, range: RegionRange) {
        {
            let mut deferred = self.deferred.lock();
            deferred.priority.push(range);
            self.priority_pending.store(true, Relaxed);
        }
        self.wake_hydration();
    }

    /// Defers a bio that found no slot or no room in the log.
    ///
    /// The end of a fill makes room, and so does a commit. If nothing is in flight, or the log is
    /// what is full, this requests a commit, which reevaluates stalled bios even if it finds
    /// nothing to commit.
    pub(super) fn stall(self: ArcBorrow<'_, Self>, bio: CloneBio) {
        let needs_copy = bio.op() != Op::Discard && !self.is_overwrite(&bio);
        let mut deferred = self.deferred.lock();
        if needs_copy {
            deferred.stalled_copies.push(bio);
        } else {
            deferred.stalled.push(bio);
        }
        drop(deferred);
        let state = self.metadata.state().lock();
        let commit = state.slots.inflight.is_empty() || state.slots.logs.is_half_full();
        drop(state);
        if commit {
            self.wake_committer();
        }
    }

    /// Stalled bios of each kind that are reevaluated when one slot becomes free.
    pub(super) const STALLED_BATCH: usize = 4;

    /// Lets the worker reevaluate all stalled bios. Any context.
    pub(super) fn wake_all_stalled(self: ArcBorrow<'_, Self>) {
        self.wake_stalled(usize::MAX, usize::MAX);
    }

    /// Lets the worker reevaluate some of the stalled bios for which there is room. Any context.
    pub(super) fn wake_stalled_with_room(self: ArcBorrow<'_, Self>) {
        let mut state = self.metadata.state().lock();
        let mut step = |kind| match state.slots.has_room(kind) {
            true => Self::STALLED_BATCH,
            false => 0,
        };
        let (copies, others) = (step(FillKind::Copy), step(FillKind::Overwrite));
        drop(state);
        self.wake_stalled(copies, others);
    }

    /// Lets the worker reevaluate up to `copies` stalled writes that need a copy, and up to
    /// `others` other bios. Any context.
    pub(super) fn wake_stalled(self: ArcBorrow<'_, Self>, copies: usize, others: usize) {
        let mut guard = self.deferred.lock();
        let deferred = &mut *guard;
        let mut woken = false;
        for (stalled, most) in [
            (&mut deferred.stalled_copies, copies),
            (&mut deferred.stalled, others),
        ] {
            for _ in 0..most {
                let Some(bio) = stalled.pop() else {
                    break;
                };
                deferred.retry.push(bio);
                woken = true;
            }
        }
        drop(guard);
        if woken {
            self.wake_worker();
        }
    }

    /// Queues the worker. Any context.
    pub(super) fn wake_worker(self: ArcBorrow<'_, Self>) {
        self.queue
            .enqueue::<CloneTarget, { work_id::WORKER }>(self.into());
    }
}

/// The worker: submits ready bios, and reevaluates deferred ones.
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
                this.as_arc_borrow().process_discard(bio);
            } else {
                this.as_arc_borrow().process_write(bio);
            }
        }
        // The reevaluated bios may have used less than the room that there was: let more follow
        // now.
        if retried {
            this.as_arc_borrow().wake_stalled_with_room();
        }
    }
}
