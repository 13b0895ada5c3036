// SPDX-License-Identifier: GPL-2.0

//! The `snapshot-merge` target: the origin as its snapshot has it. Exceptions are merged into the
//! origin while the target is in use.
//!
//! ```text
//!  flush                           ─────────────────────────▶ origin and COW device
//!  discard                         ── completed, no effect
//!  read of chunks with exception   ─────────────────────────▶ COW device
//!  write of chunks with exception  ── tracked ──────────────▶ COW device ─▶ end_io: not tracked
//!  write to the batch              ── waits for its end ────▶ COW device or origin
//!  other reads and writes          ── as `snapshot-origin` ─▶ origin
//! ```
//!
//! Exceptions are merged batch by batch, the last records first. [`MergeState`] decides what comes
//! next, and one work item does it (`merger.rs`). Whatever the work item waits for queues it again.
//!
//! C counterparts: `snapshot_merge_map()` and the other hooks of `merge_target`.

mod merger;

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
use merger::Merger;

/// The progress of a merge, under a lock that `map` takes too.
struct MergeProgress {
    state: MergeState,
    /// The exceptions of the batch, sorted by chunks of the origin.
    batch: KVVec<Run>,
    /// Of the batch: the first exception that is not yet preserved in all other snapshots; after
    /// that, the first whose copy has not started.
    next: usize,
    /// Writes to the batch wait in `waiting`.
    closed: bool,
    /// It is unknown whether the records of the batch are on disk. They have to be written back
    /// before the batch is written to.
    in_doubt: bool,
    /// A dm event has told users that the merge has finished or failed.
    event_raised: bool,
    /// Writes to the batch.
    waiting: BioQueue<PerBioData>,
}

/// A merge of a snapshot into its origin: one line of a table.
#[pin_data]
pub(crate) struct MergeTarget {
    /// The snapshot that is merged.
    snapshot: Arc<SnapshotTarget>,
    /// Takes the bios that need no exception, and preserves their chunks in other snapshots.
    origin_target: Arc<OriginTarget>,
    #[pin]
    progress: IrqLock<MergeProgress>,
    /// The state of the work item.
    #[pin]
    merger: Mutex<Merger>,
    /// For [`halt`](Self::halt).
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
        let (snapshot, reservation) = SnapshotTarget::construct(builder, origins, args, true)?;
        let made = Self::new(&snapshot);
        match &made {
            Ok(this) => snapshot.group.members.lock().set_merge(Some(this.clone())),
            Err(_) => SnapshotTarget::dtr(&snapshot),
        }
        drop(reservation);
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
            // A chunk that is merged later would not stay discarded.
            return bio.end(BlkStatus::OK);
        }
        if snapshot.store().state() != StoreState::Valid
            || snapshot.handover_state() == HandoverState::HandedOver
        {
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
        if this.snapshot.handover_state() == HandoverState::Live {
            // An earlier table may have pending exceptions for writes to the origin. Device-mapper
            // maps no bio to this table until this returns, so no new ones come.
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
    /// Maps a write: to the COW device if its chunk has an exception, to the origin if it has none
    /// any more. A write to the batch waits.
    fn write<'a>(
        this: ArcBorrow<'_, Self>,
        mut bio: MapBio<'a, PerBioData>,
        span: Span,
    ) -> Mapped<'a> {
        let snapshot = &this.snapshot;
        loop {
            let in_batch = |chunk, most| this.progress.lock().in_closed_batch(chunk, most);
            match snapshot
                .store()
                .find_for_merge_write(span.chunk, span.chunks, in_batch)
            {
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
            // The batch may have ended meanwhile: then the chunk is looked up again.
            let mut progress = this.progress.lock();
            // Not across stripes: `release()` may track this bio, and per-bio data has one stripe.
            let (_, left) = snapshot.store().stripe_of(span.chunk);
            if let BatchLookup::Inside(len) =
                progress.in_closed_batch(span.chunk, span.chunks.min(left))
            {
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

    /// Makes the merge of a snapshot. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    fn new(snapshot: &Arc<SnapshotTarget>) -> Result<Arc<Self>, CtrError> {
        let memory = c"Cannot allocate private snapshot structure";
        let most = snapshot.store().alloc_merge_buffers().or_message(memory)?;
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

    /// Returns the snapshot that is merged. Any context.
    pub(super) fn snapshot(&self) -> &Arc<SnapshotTarget> {
        &self.snapshot
    }

    /// Queues the work item unless the merge is at rest. Any context.
    pub(super) fn wake(self: &Arc<Self>) {
        self.wake_locked(&self.progress.lock());
    }

    /// Queues the work item unless the merge is at rest. Called with `progress` held: whoever has
    /// seen the merge at rest under that lock knows that the work item does not run again.
    fn wake_locked(self: &Arc<Self>, progress: &MergeProgress) {
        if !progress.state.is_idle() {
            let io_queue = self.snapshot.group.io_queue();
            io_queue.enqueue::<MergeTarget, { work_id::MERGER }>(self.clone());
        }
    }

    /// Starts the merge, unless the snapshot is invalid or another table has taken over its store.
    /// Any context.
    fn start(self: &Arc<Self>) {
        if self.snapshot.store().state() != StoreState::Valid
            || self.snapshot.handover_state() != HandoverState::Live
        {
            err!("snapshots", "Snapshot is invalid: can't merge");
            return;
        }
        let mut progress = self.progress.lock();
        progress.state.start();
        progress.event_raised = false;
        self.wake_locked(&progress);
    }

    /// Stops the merge, and waits until the batch has ended. May sleep.
    fn stop(self: &Arc<Self>) {
        self.halt(MergeState::stop);
    }

    /// Applies a change that brings the merge to rest, and waits until it is. May sleep.
    fn halt(self: &Arc<Self>, change: impl FnOnce(&mut MergeState)) {
        let mut progress = self.progress.lock();
        change(&mut progress.state);
        self.wake_locked(&progress);
        drop(progress);
        self.rest_wait
            .wait_until(|| self.progress.lock().state.is_idle());
    }

    /// Pauses the merge between two batches until the guard is dropped. Another snapshot of the
    /// origin is activated only during a pause. Waits until the batch has ended. May sleep.
    pub(super) fn pause(self: Arc<Self>) -> MergePause {
        self.halt(MergeState::pause);
        MergePause(self)
    }

    /// Records the end of a copy. Called by the thread of kcopyd.
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

/// Keeps a merge between two batches; see [`MergeTarget::pause`].
pub(super) struct MergePause(Arc<MergeTarget>);

impl MergePause {
    /// Returns whether this pauses `merge`. Any context.
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
    /// Returns whether writes to a chunk have to wait for the batch, and for how many chunks from
    /// there on, up to `most`, the same is true.
    fn in_closed_batch(&self, chunk: Chunk, most: u64) -> BatchLookup {
        if self.closed {
            BatchLookup::find(&self.batch, chunk, most)
        } else {
            BatchLookup::Outside(most)
        }
    }
}
