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
struct Progress {
    machine: MergeState,
    /// The batch, sorted by chunks of the origin.
    runs: KVVec<Run>,
    /// The first of them that another snapshot may need, then the first that is not being copied
    /// yet.
    next: usize,
    /// Writes to the batch wait.
    closed: bool,
    /// Writes to the batch have to be preceded by its records.
    in_doubt: bool,
    /// Users were told how it ended.
    told: bool,
    waiting: BioQueue<PerBioData>,
}

/// A merge: one line of a table.
#[pin_data]
pub(crate) struct MergeTarget {
    table: Arc<SnapshotTarget>,
    /// The origin, where nothing has to be merged.
    front: Arc<OriginTarget>,
    #[pin]
    progress: IrqLock<Progress>,
    #[pin]
    own: Mutex<Own>,
    /// For those who wait until it rests.
    #[pin]
    rest: WaitQueue,
    #[pin]
    merger: Work<MergeTarget, { work_id::MERGER }>,
}

impl_has_work! {
    impl HasWork<MergeTarget, { work_id::MERGER }> for MergeTarget { self.merger }
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
        let (table, claim) = SnapshotTarget::construct(builder, origins, args, true)?;
        let made = Self::make(&table);
        match &made {
            Ok(this) => table.group.members.lock().set_merge(Some(this.clone())),
            Err(_) => SnapshotTarget::dtr(&table),
        }
        drop(claim);
        made
    }

    fn dtr(this: &Arc<Self>) {
        this.stop();
        this.table.group.members.lock().set_merge(None);
        flush::<MergeTarget, { work_id::MERGER }>(this);
        this.front.remove_from_group();
        SnapshotTarget::dtr(&this.table);
    }

    fn map<'a>(this: ArcBorrow<'_, Self>, mut bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
        let table = &this.table;
        bio.set_per_bio(PerBioData::NONE);
        if bio.is_flush() {
            return match bio.target_bio_nr() {
                0 => bio.remap(&table.origin),
                _ => bio.remap(&table.cow),
            };
        }
        if bio.op() == Op::Discard {
            // What is merged later would not stay discarded.
            return bio.end(BlkStatus::OK);
        }
        if table.store().state() != StoreState::Valid || table.role() == HandoverState::HandedOver {
            return this.front.map_to_origin(bio);
        }
        let span = table.span(&bio);
        if bio.op() != Op::Read {
            return Self::write(this, bio, span);
        }
        match table.store().find(span.chunk, span.chunks, false).0 {
            Lookup::Mapped(builder, len) => {
                bio.accept_partial(table.part(&span, len));
                bio.set_sector(table.cow_sector(builder, span.at));
                bio.remap(&table.cow)
            }
            Lookup::Hole(len) => {
                bio.accept_partial(table.part(&span, len));
                this.front.map_to_origin(bio)
            }
        }
    }

    fn end_io<'a>(this: ArcBorrow<'_, Self>, bio: EndBio<'a, PerBioData>) -> Ended<'a> {
        if let BioKind::Tracked(stripe, generation) = bio.per_bio().kind() {
            if this.table.store().leave(stripe, generation) {
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
        SnapshotTarget::postsuspend(this.table.as_arc_borrow());
    }

    fn preresume(this: ArcBorrow<'_, Self>) -> Result {
        SnapshotTarget::preresume(this.table.as_arc_borrow())
    }

    fn resume(this: ArcBorrow<'_, Self>) {
        SnapshotTarget::resume(this.table.as_arc_borrow());
        if this.table.role() == HandoverState::Live {
            // A table before may have begun exceptions for other targets of the origin. There are
            // no new ones, and nothing is mapped before this returns.
            this.table.store().wait_idle(|| false);
        }
        Arc::<Self>::from(this).start();
    }

    fn status(this: ArcBorrow<'_, Self>, kind: StatusKind, _: bool, out: &mut StatusBuf<'_>) {
        let failed = this.progress.lock().machine.has_failed();
        this.table.emit_status::<Self>(kind, failed, out);
    }

    fn iterate_devices(
        this: ArcBorrow<'_, Self>,
        visitor: &mut DeviceVisitor<'_>,
    ) -> Result<(), Stop> {
        SnapshotTarget::iterate_devices(this.table.as_arc_borrow(), visitor)
    }

    fn io_hints(this: ArcBorrow<'_, Self>, limits: &mut Limits<'_>) {
        SnapshotTarget::io_hints(this.table.as_arc_borrow(), limits);
    }
}

impl MergeTarget {
    /// Makes the rest, when the table is there.
    fn make(table: &Arc<SnapshotTarget>) -> Result<Arc<Self>, CtrError> {
        let memory = c"Cannot allocate private snapshot structure";
        let most = table.store().prepare_merge().or_message(memory)?;
        let progress = Progress {
            machine: MergeState::new(),
            runs: KVVec::with_capacity(most, GFP_KERNEL).or_message(memory)?,
            next: 0,
            closed: false,
            in_doubt: false,
            told: false,
            waiting: BioQueue::new(),
        };
        let front = OriginTarget::add_to_group(
            table.group.clone(),
            table.origin.shared(),
            table.begin,
            table.len,
        );
        let front = front.or_message(memory)?;
        let (own_table, own_front) = (table.clone(), front.clone());
        let this = Arc::pin_init(
            pin_init!(MergeTarget {
                table: own_table,
                front: own_front,
                progress <- new_irq_lock!(progress, "dm_snap_merge"),
                own <- new_mutex!(Own::new(), "dm_snap_merger"),
                rest <- new_wait_queue!("dm_snap_merge_rest"),
                merger <- new_work!("dm_snap_merger"),
            }),
            GFP_KERNEL,
        );
        if this.is_err() {
            front.remove_from_group();
        }
        this.or_message(memory)
    }

    /// A write: to the COW device, to the origin if that has been merged, and neither while it is.
    fn write<'a>(
        this: ArcBorrow<'_, Self>,
        mut bio: MapBio<'a, PerBioData>,
        span: Span,
    ) -> Mapped<'a> {
        let table = &this.table;
        loop {
            let within = |chunk, most| this.progress.lock().within(chunk, most);
            match table.store().find_open(span.chunk, span.chunks, within) {
                Place::Open(builder, len, per_bio) => {
                    bio.accept_partial(table.part(&span, len));
                    bio.set_per_bio(per_bio);
                    bio.set_sector(table.cow_sector(builder, span.at));
                    return bio.remap(&table.cow);
                }
                Place::Merged(len) => {
                    bio.accept_partial(table.part(&span, len));
                    return this.front.map_to_origin(bio);
                }
                Place::Closed => {}
            }
            // It may be open again by now.
            let mut progress = this.progress.lock();
            // A bio is counted in one part of the table.
            let (_, left) = table.store().stripe(span.chunk);
            if let BatchLookup::Inside(len) = progress.within(span.chunk, span.chunks.min(left)) {
                bio.accept_partial(table.part(&span, len));
                let (bio, mapped) = bio.take();
                progress.waiting.push(bio);
                progress.machine.request_restore();
                if progress.machine.next_step() == MergeStep::Restore {
                    Arc::<Self>::from(this).wake_locked(&progress);
                }
                return mapped;
            }
        }
    }

    pub(super) fn snapshot(&self) -> &Arc<SnapshotTarget> {
        &self.table
    }

    /// Lets the work item look. Any context.
    pub(super) fn wake(self: &Arc<Self>) {
        self.wake_locked(&self.progress.lock());
    }

    /// The same under the lock: who has seen that it rests knows that the work item does not come
    /// again.
    fn wake_locked(self: &Arc<Self>, progress: &Progress) {
        if !progress.machine.is_idle() {
            let io_queue = self.table.group.io_queue();
            io_queue.enqueue::<MergeTarget, { work_id::MERGER }>(self.clone());
        }
    }

    /// Begins to merge, unless the snapshot is lost, or the store has gone to another table. Any
    /// context.
    fn start(self: &Arc<Self>) {
        if self.table.store().state() != StoreState::Valid || self.table.role() != HandoverState::Live {
            err!("snapshots", "Snapshot is invalid: can't merge");
            return;
        }
        let mut progress = self.progress.lock();
        progress.machine.start();
        progress.told = false;
        self.wake_locked(&progress);
    }

    /// Ends it, and waits for that: as long as a batch takes. Sleeps.
    fn stop(self: &Arc<Self>) {
        self.come_to_rest(MergeState::stop);
    }

    fn come_to_rest(self: &Arc<Self>, change: impl FnOnce(&mut MergeState)) {
        let mut progress = self.progress.lock();
        change(&mut progress.machine);
        self.wake_locked(&progress);
        drop(progress);
        self.rest
            .wait_until(|| self.progress.lock().machine.is_idle());
    }

    /// Keeps it between two batches until the result is dropped: what is about to become another
    /// snapshot of the origin does so then. Sleeps as long as a batch takes.
    pub(super) fn pause(self: Arc<Self>) -> MergePause {
        self.come_to_rest(MergeState::pause);
        MergePause(self)
    }

    /// A copy has ended. In the thread of kcopyd.
    pub(super) fn copy_done(self: &Arc<Self>, result: KcopydResult) {
        let mut progress = self.progress.lock();
        let failed = progress.machine.copy_done(result.is_written(0));
        if progress.machine.next_step() != MergeStep::Nothing {
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
        progress.machine.unpause();
        self.0.wake_locked(&progress);
    }
}

impl Progress {
    /// Whether a chunk is closed, and for how many from it on that is so.
    fn within(&self, chunk: Chunk, most: u64) -> BatchLookup {
        if self.closed {
            BatchLookup::find(&self.runs, chunk, most)
        } else {
            BatchLookup::Outside(most)
        }
    }
}
