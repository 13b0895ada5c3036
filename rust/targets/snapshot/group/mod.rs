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
pub(super) use chunk_copy::Copies;
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
    Calm,
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
    jobs: RequestList<ChunkCopy>,
    /// Writes to the origin that wait for room, or for a header that says that a snapshot is
    /// invalid.
    origin: BioQueue<PerBioData>,
}

/// See above.
#[pin_data]
pub(crate) struct OriginGroup {
    number: u32,
    origins: Arc<Origins>,
    /// Of its own, as snapshots may lie upon each other: what is below must not wait for what is
    /// above.
    queue: WorkQueue,
    commits: WorkQueue,
    /// Copies to several snapshots. Others are their table's.
    copies: Arc<Copies>,
    jobs: Arc<Pool<Request<ChunkCopy>>>,
    /// Somebody waits for memory for a job.
    starved: Atomic<bool>,
    #[pin]
    pub(super) members: Mutex<Members>,
    /// The snapshots of all tables once more, for `map`. A table that becomes active, or ceases to
    /// be, does so under this lock.
    #[pin]
    active: RwSem<KVVec<Arc<SnapshotTarget>>>,
    #[pin]
    inbox: IrqLock<DeferredWork>,
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
        &self.queue
    }
}

impl OriginGroup {
    fn new(new: &TargetBuilder<'_>, origins: &Arc<Origins>, number: u32) -> Result<Arc<Self>> {
        let queue = new.queue(c"dm-snap", QueueKind::PerCpu)?;
        let commits = new.queue(c"dm-snap-commit", QueueKind::PerCpu)?;
        let copies = Copies::new(new)?;
        let jobs = Pool::new(COPIES)?;
        Arc::pin_init(
            pin_init!(OriginGroup {
                number,
                origins: origins.clone(),
                queue,
                commits,
                copies,
                jobs,
                starved: Atomic::new(false),
                members <- new_mutex!(Members::default(), "dm_snap_members"),
                active <- new_rw_sem!(KVVec::new(), "dm_snap_active"),
                inbox <- new_irq_lock!(DeferredWork::default(), "dm_snap_deferred"),
                worker <- new_work!("dm_snap_worker"),
                retry <- new_delayed_work!("dm_snap_retry"),
            }),
            GFP_KERNEL,
        )
    }

    /// Takes a new table in. Sleeps.
    pub(super) fn enter(&self, table: &Arc<SnapshotTarget>) -> Result {
        let _noio = NoIo::enter();
        let mut members = self.members.lock();
        lists::push(&mut members.tables, table.clone(), GFP_KERNEL)?;
        let added = self.add(table, members.tables.len());
        if added.is_err() {
            members.remove(table);
        }
        added
    }

    /// A target is going. Sleeps.
    pub(super) fn leave(self: &Arc<Self>) {
        self.origins.leave(self);
    }

    /// The queue for the work items of its targets, which wait for I/O.
    pub(super) fn commits(&self) -> &WorkQueue {
        &self.commits
    }

    /// Lets the worker look. Any context.
    pub(super) fn wake(self: &Arc<Self>) {
        self.queue.enqueue::<OriginGroup, 1>(self.clone());
    }

    /// Lets the worker look after a while, when there may be memory again. Any context.
    pub(super) fn wake_later(self: &Arc<Self>) {
        enqueue_delayed::<OriginGroup, { RetryWork::ID }>(self.clone(), AGAIN);
    }

    /// Puts a table on the list for `map`, which then has so many. Sleeps.
    fn add(&self, table: &Arc<SnapshotTarget>, tables: usize) -> Result {
        let mut before = KVVec::with_capacity(tables.saturating_mul(2), GFP_KERNEL)?;
        let mut active = self.active.write();
        if active.len() == active.capacity() {
            for table in active.iter() {
                before.push_within_capacity(table.clone())?;
            }
            core::mem::swap(&mut *active, &mut before);
        }
        active.push_within_capacity(table.clone())?;
        // What is left of the one list is dropped outside of the lock.
        drop(active);
        drop(before);
        Ok(())
    }

    /// Takes a table off that list. Sleeps.
    pub(super) fn forget(&self, table: &Arc<SnapshotTarget>) {
        let taken = lists::remove_first(&mut self.active.write(), |it| Arc::ptr_eq(it, table));
        drop(taken);
    }

    /// Changes roles: for a write to the origin, all at once.
    pub(super) fn switch(&self, change: impl FnOnce()) {
        let _active = self.active.write();
        change();
    }

    /// Takes the roster at a moment when a table may go live: if origin writes will care about it,
    /// no merge of the origin is in a batch then, and none begins before the roster is let go.
    /// Sleeps, as long as a batch takes.
    pub(super) fn calm(&self, table: &SnapshotTarget) -> Calm<'_> {
        let mut pause: Option<MergePause> = None;
        loop {
            delay_point!(c"snapshot: merge paused, not yet live");
            let members = self.members.lock();
            let merge = match &members.merging {
                Merging::There(merge) if !table.is_merged => Some(merge.clone()),
                _ => None,
            };
            let is_paused = |merge| pause.as_ref().is_some_and(|pause| pause.is_of(merge));
            if merge.as_ref().is_none_or(is_paused) {
                return Calm {
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
    pub(super) fn clear(&self, start: Sector, len: Sectors) -> Sectors {
        let active = self.active.read();
        let tables = active.iter().filter(|table| table.is_watched());
        tables.fold(len, |len, table| table.clear(start, len))
    }

    /// Waits until copies and worker have let go of the family, if it has no snapshots any more.
    /// Sleeps.
    ///
    /// Nothing of it is to be on its way when its last target leaves: another family may be made
    /// for the origin.
    pub(super) fn settle(self: &Arc<Self>) {
        let is_last = self.members.lock().tables.is_empty();
        if is_last {
            self.copies.drain();
            // Without tables the worker does not ask for it again.
            flush::<OriginGroup, 1>(self);
            cancel_delayed::<OriginGroup, { RetryWork::ID }>(self);
            // A table that came meanwhile may have asked for it.
            self.wake();
        }
        flush::<OriginGroup, 1>(self);
    }
}
