// SPDX-License-Identifier: GPL-2.0

//! The `snapshot-merge` target: the origin with all that its snapshot has, which is copied there
//! while it is used.
//!
//! ```text
//!   map ─┬─ read or write of chunks with an exception ──────────────────> COW device; writes are counted until end_io
//!        ├─ write to a chunk that is being merged: waits, then again ───> COW device or origin, as the batch ended
//!        └─ all else: as through `snapshot-origin` ─────────────────────> origin
//! ```
//!
//! The merge goes batch by batch, the last records first; [`MergeState`] has the steps. One work item
//! does what is to be done; whatever ends that it waits for calls it again.

mod merger;

use merger::Merger;
use super::{
    io::Span,
    per_bio::{
        BioKind,
        PerBioData, //
    },
    store::StoreState,
    work_id,
    OriginTarget,
    Origins,
    SnapshotTarget, //
};
use crate::{
    dm::{
        arguments::Arguments,
        bio::{
            BioQueue,
            BlkStatus,
            EndBio,
            Ended,
            MapBio,
            Mapped,
            Op, //
        },
        kcopyd::KcopydResult,
        limits::Limits,
        status::{
            StatusBuf,
            StatusKind, //
        },
        target::{
            CtrError,
            DeviceVisitor,
            OrMessage,
            Stop,
            Target,
            TargetBuilder, //
        }, //
    },
    logic::snapshot::{
        chunks::Chunk,
        exception_table::Lookup,
        handover::HandoverState,
        merge::{
            MergeState,
            MergeStep, //
        },
        merge_batch::BatchLookup,
        run::Run, //
    },
    sys::{
        irq_lock::{
            new_irq_lock,
            IrqLock, //
        },
        log::err,
        queue::flush,
        wait::{
            new_wait_queue,
            WaitQueue, //
        }, //
    }, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow,
        Mutex, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work, //
    }, //
};

/// Where the merge is.
struct MergeProgress {
    state: MergeState,
    /// The batch, sorted by chunks of the origin.
    batch: KVVec<Run>,
    /// The first of them that another snapshot may need, then the first that is not being copied
    /// yet.
    next: usize,
    /// Writes to the batch wait.
    closed: bool,
    /// Writes to the batch have to be preceded by its records.
    in_doubt: bool,
    /// Users were told how it ended.
    event_raised: bool,
    waiting: BioQueue<PerBioData>,
}

/// A merge: one line of a table.
#[pin_data]
pub(crate) struct MergeTarget {
    snapshot: Arc<SnapshotTarget>,
    /// The origin, where nothing has to be merged.
    origin_target: Arc<OriginTarget>,
    #[pin]
    progress: IrqLock<MergeProgress>,
    #[pin]
    merger: Mutex<Merger>,
    /// For those who wait until it rests.
    #[pin]
    rest_wait: WaitQueue,
    #[pin]
    work: Work<MergeTarget, { work_id::MERGER }>,
}

impl_has_work! {
    impl HasWork<MergeTarget, { work_id::MERGER }> for MergeTarget { self.work }
}

#[vtable]
impl Target for MergeTarget {
    const NAME: &'static CStr = c"snapshot-merge";
    const VERSION: [u32; 3] = [1, 5, 0];
    const C_MODULE: &'static str = "dm_snapshot";
    const NOWAIT: bool = false;
    type PerBio = PerBioData;
    type Shared = Arc<Origins>;

    fn ctr(
        builder: &mut TargetBuilder<'_>,
        origins: &Arc<Origins>,
        args: Arguments<'_>,
    ) -> Result<Arc<Self>, CtrError> {
        let (snapshot, claim) = SnapshotTarget::construct(builder, origins, args, true)?;
        let made = Self::new(&snapshot);
        match &made {
            Ok(this) => snapshot.group.members.lock().set_merge(Some(this.clone())),
            Err(_) => SnapshotTarget::dtr(&snapshot),
        }
        drop(claim);
        made
    }

    fn dtr(this: &Arc<Self>) {
        this.stop();
        this.snapshot.group.members.lock().set_merge(None);
        flush::<MergeTarget, { work_id::MERGER }>(this);
        this.origin_target.remove_from_group();
        SnapshotTarget::dtr(&this.snapshot);
    }

    fn map<'a>(this: ArcBorrow<'_, Self>, mut bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
        let snapshot = &this.snapshot;
        bio.set_per_bio(PerBioData::NONE);
        if bio.is_flush() {
            return match bio.target_bio_nr() {
                0 => bio.remap(&snapshot.origin),
                _ => bio.remap(&snapshot.cow),
            };
        }
        if bio.op() == Op::Discard {
            // What is merged later would not stay discarded.
            return bio.end(BlkStatus::OK);
        }
        if snapshot.store().state() != StoreState::Valid || snapshot.role() == HandoverState::HandedOver {
            return this.origin_target.map_to_origin(bio);
        }
        let span = snapshot.span(&bio);
        if bio.op() != Op::Read {
            return Self::write(this, bio, span);
        }
        match snapshot.store().find(span.chunk, span.chunks) {
            Lookup::Mapped(new, len) => {
                bio.accept_partial(snapshot.leading_sectors(&span, len));
                bio.set_sector(snapshot.cow_sector(new, span.at));
                bio.remap(&snapshot.cow)
            }
            Lookup::Hole(len) => {
                bio.accept_partial(snapshot.leading_sectors(&span, len));
                this.origin_target.map_to_origin(bio)
            }
        }
    }

    fn end_io<'a>(this: ArcBorrow<'_, Self>, bio: EndBio<'a, PerBioData>) -> Ended<'a> {
        if let BioKind::Tracked(stripe, generation) = bio.per_bio().kind() {
            if this.snapshot.store().untrack(stripe, generation) {
                Arc::<Self>::from(this).wake();
            }
        }
        bio.done()
    }

    fn presuspend(this: ArcBorrow<'_, Self>) {
        Arc::<Self>::from(this).stop();
    }

    fn presuspend_undo(this: ArcBorrow<'_, Self>) {
        Arc::<Self>::from(this).start();
    }

    fn postsuspend(this: ArcBorrow<'_, Self>) {
        SnapshotTarget::postsuspend(this.snapshot.as_arc_borrow());
    }

    fn preresume(this: ArcBorrow<'_, Self>) -> Result {
        SnapshotTarget::preresume(this.snapshot.as_arc_borrow())
    }

    fn resume(this: ArcBorrow<'_, Self>) {
        SnapshotTarget::resume(this.snapshot.as_arc_borrow());
        if this.snapshot.role() == HandoverState::Live {
            // A table before may have begun exceptions for other targets of the origin. There are
            // no new ones, and nothing is mapped before this returns.
            this.snapshot.store().wait_idle(|| false);
        }
        Arc::<Self>::from(this).start();
    }

    fn status(this: ArcBorrow<'_, Self>, kind: StatusKind, _: bool, out: &mut StatusBuf<'_>) {
        let failed = this.progress.lock().state.has_failed();
        this.snapshot.emit_status::<Self>(kind, failed, out);
    }

    fn iterate_devices(
        this: ArcBorrow<'_, Self>,
        visitor: &mut DeviceVisitor<'_>,
    ) -> Result<(), Stop> {
        SnapshotTarget::iterate_devices(this.snapshot.as_arc_borrow(), visitor)
    }

    fn io_hints(this: ArcBorrow<'_, Self>, limits: &mut Limits<'_>) {
        SnapshotTarget::io_hints(this.snapshot.as_arc_borrow(), limits);
    }
}

impl MergeTarget {
    /// Makes the rest, when the table is there.
    fn new(snapshot: &Arc<SnapshotTarget>) -> Result<Arc<Self>, CtrError> {
        let memory = c"Cannot allocate private snapshot structure";
        let most = snapshot.store().alloc_merge_buffer().or_message(memory)?;
        let progress = MergeProgress {
            state: MergeState::new(),
            batch: KVVec::with_capacity(most, GFP_KERNEL).or_message(memory)?,
            next: 0,
            closed: false,
            in_doubt: false,
            event_raised: false,
            waiting: BioQueue::new(),
        };
        let origin_target = OriginTarget::add_to_group(
            snapshot.group.clone(),
            snapshot.origin.shared(),
            snapshot.begin,
            snapshot.len,
        );
        let origin_target = origin_target.or_message(memory)?;
        let (own_snapshot, own_origin_target) = (snapshot.clone(), origin_target.clone());
        let this = Arc::pin_init(
            pin_init!(MergeTarget {
                snapshot: own_snapshot,
                origin_target: own_origin_target,
                progress <- new_irq_lock!(progress, "dm_snap_merge"),
                merger <- new_mutex!(Merger::new(), "dm_snap_merger"),
                rest_wait <- new_wait_queue!("dm_snap_merge_rest"),
                work <- new_work!("dm_snap_merger"),
            }),
            GFP_KERNEL,
        );
        if this.is_err() {
            origin_target.remove_from_group();
        }
        this.or_message(memory)
    }

    /// A write: to the COW device, to the origin if that has been merged, and neither while it is.
    fn write<'a>(
        this: ArcBorrow<'_, Self>,
        mut bio: MapBio<'a, PerBioData>,
        span: Span,
    ) -> Mapped<'a> {
        let snapshot = &this.snapshot;
        loop {
            let within = |chunk, most| this.progress.lock().within(chunk, most);
            match snapshot.store().find_for_merge_write(span.chunk, span.chunks, within) {
                Some((Lookup::Mapped(new, len), per_bio)) => {
                    bio.accept_partial(snapshot.leading_sectors(&span, len));
                    bio.set_per_bio(per_bio);
                    bio.set_sector(snapshot.cow_sector(new, span.at));
                    return bio.remap(&snapshot.cow);
                }
                Some((Lookup::Hole(len), _)) => {
                    bio.accept_partial(snapshot.leading_sectors(&span, len));
                    return this.origin_target.map_to_origin(bio);
                }
                None => {}
            }
            // It may be open again by now.
            let mut progress = this.progress.lock();
            // A bio is counted in one part of the table.
            let (_, left) = snapshot.store().stripe_of(span.chunk);
            if let BatchLookup::Inside(len) = progress.within(span.chunk, span.chunks.min(left)) {
                bio.accept_partial(snapshot.leading_sectors(&span, len));
                let (bio, mapped) = bio.take();
                progress.waiting.push(bio);
                progress.state.request_restore();
                if progress.state.next_step() == MergeStep::Restore {
                    Arc::<Self>::from(this).wake_locked(&progress);
                }
                return mapped;
            }
        }
    }

    pub(super) fn snapshot(&self) -> &Arc<SnapshotTarget> {
        &self.snapshot
    }

    /// Lets the work item look. Any context.
    pub(super) fn wake(self: &Arc<Self>) {
        self.wake_locked(&self.progress.lock());
    }

    /// The same under the lock: who has seen that it rests knows that the work item does not come
    /// again.
    fn wake_locked(self: &Arc<Self>, progress: &MergeProgress) {
        if !progress.state.is_idle() {
            let io_queue = self.snapshot.group.io_queue();
            io_queue.enqueue::<MergeTarget, { work_id::MERGER }>(self.clone());
        }
    }

    /// Begins to merge, unless the snapshot is lost, or the store has gone to another table. Any
    /// context.
    fn start(self: &Arc<Self>) {
        if self.snapshot.store().state() != StoreState::Valid || self.snapshot.role() != HandoverState::Live {
            err!("snapshots", "Snapshot is invalid: can't merge");
            return;
        }
        let mut progress = self.progress.lock();
        progress.state.start();
        progress.event_raised = false;
        self.wake_locked(&progress);
    }

    /// Ends it, and waits for that: as long as a batch takes. Sleeps.
    fn stop(self: &Arc<Self>) {
        self.halt(MergeState::stop);
    }

    fn halt(self: &Arc<Self>, change: impl FnOnce(&mut MergeState)) {
        let mut progress = self.progress.lock();
        change(&mut progress.state);
        self.wake_locked(&progress);
        drop(progress);
        self.rest_wait
            .wait_until(|| self.progress.lock().state.is_idle());
    }

    /// Keeps it between two batches until the result is dropped: what is about to become another
    /// snapshot of the origin does so then. Sleeps as long as a batch takes.
    pub(super) fn pause(self: Arc<Self>) -> MergePause {
        self.halt(MergeState::pause);
        MergePause(self)
    }

    /// A copy has ended. In the thread of kcopyd.
    pub(super) fn copy_done(self: &Arc<Self>, result: KcopydResult) {
        let mut progress = self.progress.lock();
        let failed = progress.state.copy_done(result.is_written(0));
        if progress.state.next_step() != MergeStep::Nothing {
            self.wake_locked(&progress);
        }
        drop(progress);
        if failed {
            let what = if result.is_read() { "Write" } else { "Read" };
            err!("snapshots", "{} error: shutting down merge.", what);
        }
    }
}

/// A merge that rests between two batches.
pub(super) struct MergePause(Arc<MergeTarget>);

impl MergePause {
    pub(super) fn is_of(&self, merge: &Arc<MergeTarget>) -> bool {
        Arc::ptr_eq(&self.0, merge)
    }
}

impl Drop for MergePause {
    fn drop(&mut self) {
        let mut progress = self.0.progress.lock();
        progress.state.unpause();
        self.0.wake_locked(&progress);
    }
}

impl MergeProgress {
    /// Whether a chunk is closed, and for how many from it on that is so.
    fn within(&self, chunk: Chunk, most: u64) -> BatchLookup {
        if self.closed {
            BatchLookup::find(&self.batch, chunk, most)
        } else {
            BatchLookup::Outside(most)
        }
    }
}
