// SPDX-License-Identifier: GPL-2.0

//! Copies by kcopyd, and the work item that starts them.
//!
//! C counterparts: `start_copy`, `copy_callback`, `merge_callback`, `zero_callback`.

use super::OriginGroup;
use crate::{
    dm::{
        bio::Bio,
        device::Device,
        io::{
            Request,
            RequestList, //
        },
        kcopyd::{
            CopyJob,
            KcopydClient,
            KcopydResult,
            MAX_DESTINATIONS, //
        },
        target::TargetBuilder, //
    },
    logic::{
        snapshot::{
            pending::Seq, //
            run::Run,
        },
        units::{
            Sector,
            Sectors, //
        }, //
    },
    sys::{
        irq_lock::{
            new_irq_lock,
            IrqLock, //
        },
        noio::NoIo,
        pool::PoolBox,
        queue::{
            flush,
            WorkQueue, //
        }, //
    },
    targets::snapshot::{
        per_bio::PerBioData,
        work_id,
        MergeTarget,
        SnapshotTarget, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};

/// One destination of a copy: the COW chunks of a pending exception.
pub(super) struct CopyDestination {
    pub(super) snapshot: Arc<SnapshotTarget>,
    pub(super) seq: Seq,
    start: Sector,
}

/// A copy that has no destinations yet.
pub(super) const NO_DESTINATIONS: [Option<CopyDestination>; MAX_DESTINATIONS] =
    [const { None }; MAX_DESTINATIONS];

impl CopyDestination {
    pub(super) fn new(snapshot: &Arc<SnapshotTarget>, seq: Seq, run: Run) -> Self {
        CopyDestination {
            snapshot: snapshot.clone(),
            seq,
            start: snapshot
                .store()
                .chunk_size()
                .cow_start(run.new)
                .unwrap_or(Sector::OUT_OF_RANGE),
        }
    }
}

/// A job for kcopyd.
pub(in super::super) struct ChunkCopy {
    pub(super) group: Arc<OriginGroup>,
    pub(super) kind: CopyKind,
    pub(super) len: Sectors,
    /// The result, on the way from [`CopyJob::done`] to the worker.
    pub(super) result: Option<KcopydResult>,
}

/// What is copied from where to where.
pub(super) enum CopyKind {
    /// Chunks of the origin, to the COW devices of up to [`MAX_DESTINATIONS`] snapshots.
    Preserve {
        from: Sector,
        to: [Option<CopyDestination>; MAX_DESTINATIONS],
    },
    /// COW chunks, back to the origin.
    Merge {
        merge: Arc<MergeTarget>,
        from: Sector,
        to: Sector,
    },
    /// Zeros for a discard, to COW chunks. The bio completes with the copy.
    Zero {
        snapshot: Arc<SnapshotTarget>,
        start: Sector,
        bio: Bio<PerBioData>,
    },
}

impl CopyJob for ChunkCopy {
    fn source(&self) -> Option<(&Device, Sector)> {
        match &self.kind {
            CopyKind::Preserve { from, to } => {
                let first = to.first()?.as_ref()?;
                Some((&first.snapshot.origin, *from))
            }
            CopyKind::Merge { merge, from, .. } => Some((&merge.snapshot().cow, *from)),
            CopyKind::Zero { .. } => None,
        }
    }

    fn sectors(&self) -> Sectors {
        self.len
    }

    fn destination(&self, number: usize) -> Option<(&Device, Sector)> {
        match &self.kind {
            CopyKind::Preserve { to, .. } => {
                let to = to.get(number)?.as_ref()?;
                Some((&to.snapshot.cow, to.start))
            }
            CopyKind::Merge { merge, to, .. } => {
                (number == 0).then_some((&merge.snapshot().origin, *to))
            }
            CopyKind::Zero {
                snapshot, start, ..
            } => (number == 0).then_some((&snapshot.cow, *start)),
        }
    }

    /// Reports the copy to whoever continues: the committer, the merge, or the worker. Runs in the
    /// thread of kcopyd.
    fn done(mut this: PoolBox<Request<Self>>, result: KcopydResult) {
        let group = this.context.group.clone();
        match &this.context.kind {
            // The common case needs no worker: the committer is woken directly.
            CopyKind::Preserve { to, .. } if all_written(to, result) => {
                for to in to.iter().flatten() {
                    to.snapshot.data_written(to.seq);
                }
                drop(this);
                if group.waiting_for_memory.load(Relaxed) {
                    group.wake();
                }
            }
            CopyKind::Merge { merge, .. } => {
                let merge = merge.clone();
                // The memory is freed first: the merge starts its next copy with it.
                drop(this);
                if group.waiting_for_memory.load(Relaxed) {
                    group.wake();
                }
                merge.copy_done(result);
            }
            _ => {
                this.context.result = Some(result);
                group.deferred.lock().done_copies.push(this);
                group.wake();
            }
        }
    }
}

/// Whether all destinations that the copy has were written.
fn all_written(to: &[Option<CopyDestination>], result: KcopydResult) -> bool {
    let mut used = (0..MAX_DESTINATIONS).zip(to.iter().flatten());
    used.all(|(number, _)| result.is_written(number))
}

impl OriginGroup {
    /// Makes a copy that reads the origin from a sector on, without destinations yet. Returns
    /// `None` if memory is short: then the worker runs again when another copy has completed. Any
    /// context.
    pub(super) fn new_preserving_copy(
        self: &Arc<Self>,
        from: Sector,
    ) -> Option<PoolBox<Request<ChunkCopy>>> {
        let copy = ChunkCopy {
            group: self.clone(),
            kind: CopyKind::Preserve {
                from,
                to: NO_DESTINATIONS,
            },
            len: Sectors(0),
            result: None,
        };
        self.try_alloc_copy(Request::new(copy)).ok()
    }

    /// Makes a copy from a COW device back to the origin. Returns `None` if memory is short: then
    /// the worker wakes the merge when another copy has completed. Any context.
    pub(in super::super) fn new_merge_copy(
        self: &Arc<Self>,
        merge: &Arc<MergeTarget>,
        (from, to): (Sector, Sector),
        len: Sectors,
    ) -> Option<PoolBox<Request<ChunkCopy>>> {
        let copy = ChunkCopy {
            group: self.clone(),
            kind: CopyKind::Merge {
                merge: merge.clone(),
                from,
                to,
            },
            len,
            result: None,
        };
        self.try_alloc_copy(Request::new(copy)).ok()
    }

    /// Moves a copy into memory of the pool, without sleeping. If memory is short the copy is given
    /// back, and the completion of another copy wakes the worker. Any context.
    // A box for the error would need the memory that is short.
    #[allow(clippy::result_large_err)]
    pub(super) fn try_alloc_copy(
        &self,
        copy: Request<ChunkCopy>,
    ) -> Result<PoolBox<Request<ChunkCopy>>, Request<ChunkCopy>> {
        self.copy_pool.try_boxed(copy).or_else(|copy| {
            // After the flag is set, try again: the last copy may have completed just before, and
            // not have seen the flag.
            self.waiting_for_memory.store(true, Relaxed);
            self.copy_pool.try_boxed(copy)
        })
    }
}

/// Copies that wait to be started by one client of kcopyd.
///
/// Starting a copy may sleep until the client's reserve of memory has room, so a work item does it
/// instead of the worker. Each client has a thread, which may have to wait for a device: so a
/// snapshot has a client of its own.
#[pin_data]
pub(in super::super) struct CopyQueue {
    client: KcopydClient,
    #[pin]
    copies: IrqLock<RequestList<ChunkCopy>>,
    #[pin]
    starter: Work<CopyQueue, { work_id::COPY_STARTER }>,
}

impl_has_work! {
    impl HasWork<CopyQueue, { work_id::COPY_STARTER }> for CopyQueue { self.starter }
}

impl CopyQueue {
    /// Makes a queue with a client of its own. May sleep.
    pub(in super::super) fn new(builder: &TargetBuilder<'_>) -> Result<Arc<Self>> {
        let client = builder.copy_client()?;
        let queue = pin_init!(CopyQueue {
            client,
            copies <- new_irq_lock!(RequestList::default(), "dm_snap_copies"),
            starter <- new_work!("dm_snap_starter"),
        });
        Arc::pin_init(queue, GFP_KERNEL)
    }

    /// Lets the target under construction use the queue too. May sleep.
    pub(in super::super) fn share(&self, builder: &TargetBuilder<'_>) -> Result {
        builder.share(&self.client)
    }

    /// Queues a copy, and the work item that starts it. Any context.
    pub(in super::super) fn start(
        self: &Arc<Self>,
        copy: PoolBox<Request<ChunkCopy>>,
        queue: &WorkQueue,
    ) {
        self.copies.lock().push(copy);
        queue.enqueue::<CopyQueue, { work_id::COPY_STARTER }>(self.clone());
    }

    /// Waits until all queued copies have completed and dropped their references. May sleep.
    pub(in super::super) fn drain(self: &Arc<Self>) {
        flush::<CopyQueue, { work_id::COPY_STARTER }>(self);
        self.client.drain();
    }
}

impl WorkItem<{ work_id::COPY_STARTER }> for CopyQueue {
    type Pointer = Arc<CopyQueue>;

    /// Starts the queued copies. May sleep until other copies of the client have completed; no lock
    /// is held meanwhile.
    fn run(this: Arc<CopyQueue>) {
        let _noio = NoIo::enter();
        let copies = this.copies.lock().take();
        // The list is last in, first out: copies start in the order in which they were queued.
        let mut copies = copies.reversed();
        while let Some(copy) = copies.pop() {
            this.client.copy(copy);
        }
    }
}
