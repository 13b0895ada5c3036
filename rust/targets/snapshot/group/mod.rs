// SPDX-License-Identifier: GPL-2.0

//! All that has to do with one origin: its snapshots, its `snapshot-origin` targets, and the worker
//! that copies.
//!
//! ```text
//!  write to the origin ──┐                ┌─▶ kcopyd ─▶ copied ─┐
//!  write to a snapshot ──┴─▶ worker: book ┤                     ├─▶ committer: record ─▶ worker: table ─▶ bios go on
//!                                         └─▶ direct write ─────┘
//! ```
//!
//! Whoever has the roster is the worker: the work item, or a committer whose batch has become
//! durable. The worker alone takes exceptions out of the books, so what it found there stays until
//! it is done. It does no I/O and waits for none: bios and copies that it decides on are sent by
//! others (`sending.rs`).

mod chunk_copy;
mod members;
mod origin_writes;
mod origins;
mod snapshot_writes;
mod worker;

use super::{
    io::PerBioData,
    merge::MergePause,
    MergeTarget,
    SnapshotTarget, //
};
use crate::{
    dm::{
        bio::BioQueue,
        io::{
            Request,
            RequestList, //
        },
        target::TargetBuilder, //
    },
    logic::{
        snapshot::lists,
        units::{
            Sector,
            Sectors, //
        }, //
    },
    sys::{
        delay::delay_point,
        irq_lock::{
            new_irq_lock,
            IrqLock, //
        },
        noio::NoIo,
        pool::Pool,
        queue::{
            cancel_delayed,
            enqueue_delayed,
            flush,
            HasQueue,
            QueueKind,
            WorkQueue, //
        },
        rw_sem::{
            new_rw_sem,
            RwSem, //
        }, //
    }, //
};
use chunk_copy::ChunkCopy;
pub(super) use chunk_copy::CopyQueue;
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::Atomic,
        Arc,
        Mutex, //
    },
    time::Delta,
    workqueue::{
        impl_has_delayed_work,
        impl_has_work,
        new_delayed_work,
        new_work,
        DelayedWork,
        Work, //
    }, //
};
pub(super) use members::{
    ActivationGuard,
    Membership,
    Reservation, //
};
use members::{
    Members,
    Merging, //
};
pub(crate) use origins::Origins;
use worker::RetryWork;

/// Copies that can always be started.
const COPIES: u16 = 16;

/// After so long the worker looks for memory again.
const AGAIN: Delta = Delta::from_millis(20);

/// What came for the worker.
#[derive(Default)]
struct DeferredWork {
    /// Copies that have ended.
    done_copies: RequestList<ChunkCopy>,
    /// Writes to the origin that wait for room, or for a header that says that a snapshot is
    /// invalid.
    origin_writes: BioQueue<PerBioData>,
}

/// See above.
#[pin_data]
pub(crate) struct OriginGroup {
    number: u32,
    origins: Arc<Origins>,
    /// Of its own, as snapshots may lie upon each other: what is below must not wait for what is
    /// above.
    worker_queue: WorkQueue,
    io_queue: WorkQueue,
    /// Copies to several snapshots. Others are their table's.
    shared_copies: Arc<CopyQueue>,
    copy_pool: Arc<Pool<Request<ChunkCopy>>>,
    /// Somebody waits for memory for a job.
    waiting_for_memory: Atomic<bool>,
    #[pin]
    pub(super) members: Mutex<Members>,
    /// The snapshots of all tables once more, for `map`. A table that becomes active, or ceases to
    /// be, does so under this lock.
    #[pin]
    active: RwSem<KVVec<Arc<SnapshotTarget>>>,
    #[pin]
    deferred: IrqLock<DeferredWork>,
    #[pin]
    worker: Work<OriginGroup, 1>,
    #[pin]
    retry: DelayedWork<OriginGroup, { RetryWork::ID }>,
}

impl_has_work! {
    impl HasWork<OriginGroup, 1> for OriginGroup { self.worker }
}

impl_has_delayed_work! {
    impl HasDelayedWork<OriginGroup, { RetryWork::ID }> for OriginGroup { self.retry }
}

impl HasQueue for OriginGroup {
    fn queue(&self) -> &WorkQueue {
        &self.worker_queue
    }
}

impl OriginGroup {
    fn new(builder: &TargetBuilder<'_>, origins: &Arc<Origins>, number: u32) -> Result<Arc<Self>> {
        let worker_queue = builder.queue(c"dm-snap", QueueKind::PerCpu)?;
        let io_queue = builder.queue(c"dm-snap-commit", QueueKind::PerCpu)?;
        let shared_copies = CopyQueue::new(builder)?;
        let copy_pool = Pool::new(COPIES)?;
        Arc::pin_init(
            pin_init!(OriginGroup {
                number,
                origins: origins.clone(),
                worker_queue,
                io_queue,
                shared_copies,
                copy_pool,
                waiting_for_memory: Atomic::new(false),
                members <- new_mutex!(Members::default(), "dm_snap_members"),
                active <- new_rw_sem!(KVVec::new(), "dm_snap_active"),
                deferred <- new_irq_lock!(DeferredWork::default(), "dm_snap_deferred"),
                worker <- new_work!("dm_snap_worker"),
                retry <- new_delayed_work!("dm_snap_retry"),
            }),
            GFP_KERNEL,
        )
    }

    /// Takes a new table in. Sleeps.
    pub(super) fn add_snapshot(&self, snapshot: &Arc<SnapshotTarget>) -> Result {
        let _noio = NoIo::enter();
        let mut members = self.members.lock();
        lists::push(&mut members.snapshots, snapshot.clone(), GFP_KERNEL)?;
        let added = self.add_for_map(snapshot, members.snapshots.len());
        if added.is_err() {
            members.remove_snapshot(snapshot);
        }
        added
    }

    /// A target is going. Sleeps.
    pub(super) fn leave(self: &Arc<Self>) {
        self.origins.leave(self);
    }

    /// The queue for the work items of its targets, which wait for I/O.
    pub(super) fn io_queue(&self) -> &WorkQueue {
        &self.io_queue
    }

    /// Lets the worker look. Any context.
    pub(super) fn wake(self: &Arc<Self>) {
        self.worker_queue.enqueue::<OriginGroup, 1>(self.clone());
    }

    /// Lets the worker look after a while, when there may be memory again. Any context.
    pub(super) fn wake_later(self: &Arc<Self>) {
        enqueue_delayed::<OriginGroup, { RetryWork::ID }>(self.clone(), AGAIN);
    }

    /// Puts a table on the list for `map`, which then has so many. Sleeps.
    fn add_for_map(&self, snapshot: &Arc<SnapshotTarget>, count: usize) -> Result {
        let mut old = KVVec::with_capacity(count.saturating_mul(2), GFP_KERNEL)?;
        let mut active = self.active.write();
        if active.len() == active.capacity() {
            for snapshot in active.iter() {
                old.push_within_capacity(snapshot.clone())?;
            }
            core::mem::swap(&mut *active, &mut old);
        }
        active.push_within_capacity(snapshot.clone())?;
        // What is left of the one list is dropped outside of the lock.
        drop(active);
        drop(old);
        Ok(())
    }

    /// Takes a table off that list. Sleeps.
    pub(super) fn remove_for_map(&self, snapshot: &Arc<SnapshotTarget>) {
        let taken = lists::remove_first(&mut self.active.write(), |it| Arc::ptr_eq(it, snapshot));
        drop(taken);
    }

    /// Changes roles: for a write to the origin, all at once.
    pub(super) fn exclude_map(&self, change: impl FnOnce()) {
        let _active = self.active.write();
        change();
    }

    /// Takes the roster at a moment when a table may go live: if origin writes will care about it,
    /// no merge of the origin is in a batch then, and none begins before the roster is let go.
    /// Sleeps, as long as a batch takes.
    pub(super) fn lock_for_activation(&self, snapshot: &SnapshotTarget) -> ActivationGuard<'_> {
        let mut pause: Option<MergePause> = None;
        loop {
            delay_point!(c"snapshot: merge paused, not yet live");
            let members = self.members.lock();
            let merge = match &members.merging {
                Merging::Present(merge) if !snapshot.is_merged => Some(merge.clone()),
                _ => None,
            };
            let is_paused = |merge| pause.as_ref().is_some_and(|pause| pause.is_of(merge));
            if merge.as_ref().is_none_or(is_paused) {
                return ActivationGuard {
                    members,
                    _pause: pause,
                };
            }
            drop(members);
            // It came meanwhile.
            pause = merge.map(MergeTarget::pause);
        }
    }

    /// How much of a write to the origin, from its start on, no snapshot cares about. Process
    /// context; sleeps while the list is being changed.
    pub(super) fn preserved_len(&self, start: Sector, len: Sectors) -> Sectors {
        let active = self.active.read();
        let snapshots = active.iter().filter(|snapshot| snapshot.has_to_be_checked());
        snapshots.fold(len, |len, snapshot| snapshot.preserved_len(start, len))
    }

    /// Waits until copies and worker have let go of the family, if it has no snapshots any more.
    /// Sleeps.
    ///
    /// Nothing of it is to be on its way when its last target leaves: another family may be made
    /// for the origin.
    pub(super) fn drain(self: &Arc<Self>) {
        let is_last = self.members.lock().snapshots.is_empty();
        if is_last {
            self.shared_copies.drain();
            // Without tables the worker does not ask for it again.
            flush::<OriginGroup, 1>(self);
            cancel_delayed::<OriginGroup, { RetryWork::ID }>(self);
            // A table that came meanwhile may have asked for it.
            self.wake();
        }
        flush::<OriginGroup, 1>(self);
    }
}
