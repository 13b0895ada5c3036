// SPDX-License-Identifier: GPL-2.0

//! All targets on one origin, and their worker.
//!
//! ```text
//!  origin write ───┐                   ┌─▶ kcopyd ────────────┐
//!  snapshot write ─┴▶ worker: reserve ─┤                      ├─▶ committer: write record ─┐
//!                                      └─▶ full chunk write ──┘                            │
//!  bios continue ◀──────────────────────── worker: insert into the exception table ◀───────┘
//! ```
//!
//! The worker is a work item that holds `members`. A committer runs it as well, after its batch
//! became durable. Pending exceptions are removed only with `members` held, by the worker or by a
//! merge that preserves chunks; so those that the holder has found stay until it is done. The
//! worker does no I/O, and waits for none: work items submit the bios (`submitter.rs`) and start
//! the copies (`chunk_copy.rs`) that it decides on.
//!
//! C counterpart: `struct origin`, which has no worker: there the thread of each bio, and that of
//! kcopyd, do its work under the locks of the snapshots.

mod chunk_copy;
mod members;
mod origin_writes;
mod origins;
mod preserved;
mod snapshot_writes;
mod worker;

use super::{
    merge::MergePause,
    per_bio::PerBioData,
    work_id,
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
    logic::snapshot::{
        lists,
        preserved::PreservedMap, //
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
        rcu::RcuCell,
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

/// Number of copies for which memory is reserved.
const RESERVED_COPIES: u16 = 16;

/// Delay before the worker tries to allocate memory again.
const RETRY_DELAY: Delta = Delta::from_millis(20);

/// Work for the worker that belongs to no single target.
#[derive(Default)]
struct DeferredWork {
    /// Copies that have completed.
    done_copies: RequestList<ChunkCopy>,
    /// Origin writes that wait for memory, for room for pending exceptions, or for the header of a
    /// snapshot that became invalid.
    origin_writes: BioQueue<PerBioData>,
}

/// All targets on one origin.
#[pin_data]
pub(crate) struct OriginGroup {
    /// The device number of the origin.
    number: u32,
    origins: Arc<Origins>,
    /// Each group has queues of its own, as the origin of one group may be a snapshot of another: a
    /// lower device must not wait for an upper one.
    worker_queue: WorkQueue,
    io_queue: WorkQueue,
    /// Copies to several snapshots. Copies to one are in that snapshot's own queue.
    shared_copies: Arc<CopyQueue>,
    copy_pool: Arc<Pool<Request<ChunkCopy>>>,
    /// A copy could not be allocated: the next one that completes wakes the worker.
    waiting_for_memory: Atomic<bool>,
    #[pin]
    pub(super) members: Mutex<Members>,
    /// The same snapshots as in `members`, for `map` of origin writes, which must not wait for the
    /// worker. A snapshot becomes active or inactive under this lock.
    #[pin]
    map_snapshots: RwSem<KVVec<Arc<SnapshotTarget>>>,
    /// What they have all preserved, for `map` too. Replaced, with `members` and `map_snapshots`
    /// held, when a snapshot becomes active.
    preserved: RcuCell<PreservedMap>,
    #[pin]
    deferred: IrqLock<DeferredWork>,
    #[pin]
    worker: Work<OriginGroup, { work_id::WORKER }>,
    #[pin]
    retry: DelayedWork<OriginGroup, { work_id::WORKER_RETRY }>,
}

impl_has_work! {
    impl HasWork<OriginGroup, { work_id::WORKER }> for OriginGroup { self.worker }
}

impl_has_delayed_work! {
    impl HasDelayedWork<OriginGroup, { work_id::WORKER_RETRY }> for OriginGroup { self.retry }
}

impl HasQueue for OriginGroup {
    fn queue(&self) -> &WorkQueue {
        &self.worker_queue
    }
}

impl OriginGroup {
    fn new(builder: &TargetBuilder<'_>, origins: &Arc<Origins>, number: u32) -> Result<Arc<Self>> {
        let worker_queue = builder.queue(c"dm-snap", QueueKind::PerCpu)?;
        let io_queue = builder.queue(c"dm-snap-io", QueueKind::PerCpu)?;
        let shared_copies = CopyQueue::new(builder)?;
        let copy_pool = Pool::new(RESERVED_COPIES)?;
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
                map_snapshots <- new_rw_sem!(KVVec::new(), "dm_snap_map_snapshots"),
                preserved: RcuCell::empty(),
                deferred <- new_irq_lock!(DeferredWork::default(), "dm_snap_group_deferred"),
                worker <- new_work!("dm_snap_worker"),
                retry <- new_delayed_work!("dm_snap_retry"),
            }),
            GFP_KERNEL,
        )
    }

    /// Adds a snapshot under construction. May sleep.
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

    /// Drops one target's use of the group. May sleep.
    pub(super) fn leave(self: &Arc<Self>) {
        self.origins.leave(self);
    }

    /// The queue for work items that wait for I/O: those of the targets and of the copy queues.
    pub(super) fn io_queue(&self) -> &WorkQueue {
        &self.io_queue
    }

    /// Queues the worker. Any context.
    pub(super) fn wake(self: &Arc<Self>) {
        self.worker_queue
            .enqueue::<OriginGroup, { work_id::WORKER }>(self.clone());
    }

    /// Queues the worker after a delay, to try again what memory was short for. Any context.
    pub(super) fn wake_later(self: &Arc<Self>) {
        enqueue_delayed::<OriginGroup, { work_id::WORKER_RETRY }>(self.clone(), RETRY_DELAY);
    }

    /// Adds a snapshot to the list for `map`, which `count` snapshots are about to be on. May
    /// sleep.
    fn add_for_map(&self, snapshot: &Arc<SnapshotTarget>, count: usize) -> Result {
        // Allocated before the lock, which `map` waits for.
        let mut spare = KVVec::with_capacity(count.saturating_mul(2), GFP_KERNEL)?;
        let mut snapshots = self.map_snapshots.write();
        if snapshots.len() == snapshots.capacity() {
            for snapshot in snapshots.iter() {
                spare.push_within_capacity(snapshot.clone())?;
            }
            core::mem::swap(&mut *snapshots, &mut spare);
        }
        snapshots.push_within_capacity(snapshot.clone())?;
        // The list that is no longer used is freed outside of the lock.
        drop(snapshots);
        drop(spare);
        Ok(())
    }

    /// Removes a snapshot from the list for `map`. May sleep.
    pub(super) fn remove_for_map(&self, snapshot: &Arc<SnapshotTarget>) {
        let taken = lists::remove_first(&mut self.map_snapshots.write(), |it| {
            Arc::ptr_eq(it, snapshot)
        });
        drop(taken);
    }

    /// Locks `members` for the activation of a snapshot. Unless the snapshot is itself the merge, a
    /// merge of the origin is paused between two batches until the guard is dropped: a batch
    /// overwrites chunks that the snapshot has no copies of. May sleep, for as long as a batch
    /// takes.
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
            // Pausing sleeps, so it is done without the lock; then check again, as the merge may be
            // another one by now.
            pause = merge.map(MergeTarget::pause);
        }
    }

    /// Waits until the worker has run; if the group has no snapshots any more, also until the
    /// copies and the worker hold no references to it. May sleep.
    ///
    /// When the last target leaves nothing of the group may be in flight: another group may be made
    /// for the same origin.
    pub(super) fn drain(self: &Arc<Self>) {
        let is_last = self.members.lock().snapshots.is_empty();
        if is_last {
            self.shared_copies.drain();
            // Without snapshots the worker does not queue its retry again.
            flush::<OriginGroup, { work_id::WORKER }>(self);
            cancel_delayed::<OriginGroup, { work_id::WORKER_RETRY }>(self);
            // A snapshot that was added meanwhile may have needed that retry.
            self.wake();
        }
        flush::<OriginGroup, { work_id::WORKER }>(self);
    }
}
