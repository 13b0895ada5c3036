// SPDX-License-Identifier: GPL-2.0

//! The bios between `map` and the device below, and the worker that takes them on.

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

/// Bios between `map` and the device below.
#[derive(Default)]
pub(super) struct DeferredLists {
    /// Their region is hydrated: to be submitted.
    pub(super) ready: CloneBioQueue,
    /// To be looked at again: their copy failed with others, a discard's range became free, or
    /// there was no room.
    pub(super) retry: CloneBioQueue,
    /// Writes that need a copy for which there is no slot, or no room in the log.
    pub(super) stalled_copies: CloneBioQueue,
    /// Overwrites for which there is no slot or no room in the log, and discards that lack the
    /// latter.
    pub(super) stalled: CloneBioQueue,
    /// Flushes and FUA writes: to be submitted or ended after a commit.
    pub(super) flush: CloneBioQueue,
    /// FUA overwrites whose data is written: to be ended after a commit.
    pub(super) fua_written: CloneBioQueue,
    /// Pieces of copies that have been read or written.
    pub(super) segments: RequestList<Segment>,
    /// Discards that are to write zeros first.
    pub(super) zeroing: CloneBioQueue,
    /// What is to be copied before all else.
    pub(super) priority: PriorityRanges,
}

impl CloneTarget {
    /// A bio that the worker is to look at again.
    pub(super) fn reevaluate(self: ArcBorrow<'_, Self>, bio: Option<CloneBio>) {
        if let Some(bio) = bio {
            self.deferred.lock().retry.push(bio);
            self.wake_worker();
        }
    }

    /// A bio that must wait for a commit.
    pub(super) fn defer_flush(self: ArcBorrow<'_, Self>, bio: CloneBio) {
        self.deferred.lock().flush.push(bio);
        self.wake_committer();
    }

    /// Asks for regions to be copied before all others. Any context.
    pub(super) fn prioritize(self: ArcBorrow<'_, Self>, range: RegionRange) {
        {
            let mut deferred = self.deferred.lock();
            deferred.priority.push(range);
            self.priority_pending.store(true, Relaxed);
        }
        self.wake_hydration();
    }

    /// A bio for which there is no slot or no room in the log.
    ///
    /// The end of a slot makes room, and so does a commit. If there is no slot to end, or the log
    /// is what is full, a commit is asked for; it looks at stalled bios even if there is nothing to
    /// commit by then.
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

    /// Stalled bios of each kind that are looked at again when one slot has ended.
    pub(super) const STALLED_BATCH: usize = 4;

    /// Lets the worker look at all stalled bios again. Any context.
    pub(super) fn wake_all_stalled(self: ArcBorrow<'_, Self>) {
        self.wake_stalled(usize::MAX, usize::MAX);
    }

    /// Lets the worker look at some of those stalled bios for which there is room. Any context.
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

    pub(super) fn wake_worker(self: ArcBorrow<'_, Self>) {
        self.queue
            .enqueue::<CloneTarget, { work_id::WORKER }>(self.into());
    }
}

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
                this.as_arc_borrow().process_discard(bio);
            } else {
                this.as_arc_borrow().process_write(bio);
            }
        }
        // Those may have needed less room than there was; the next ones then need not wait for a
        // slot to end.
        if retried {
            this.as_arc_borrow().wake_stalled_with_room();
        }
    }
}
