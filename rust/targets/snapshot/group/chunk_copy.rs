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
            KcopydResult,
            CopyJob,
            KcopydClient,
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
        io::PerBioData,
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

/// Where a copy goes to.
pub(super) struct CopyDestination {
    pub(super) snapshot: Arc<SnapshotTarget>,
    pub(super) seq: Seq,
    start: Sector,
}

/// No destinations.
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
                .unwrap_or_default(),
        }
    }
}

/// A copy from the origin to the COW devices of one or more snapshots, or back; or zeros for a
/// discard.
pub(in super::super) struct ChunkCopy {
    pub(super) group: Arc<OriginGroup>,
    pub(super) kind: CopyKind,
    pub(super) len: Sectors,
    pub(super) result: Option<KcopydResult>,
}

pub(super) enum CopyKind {
    Preserve {
        from: Sector,
        to: [Option<CopyDestination>; MAX_DESTINATIONS],
    },
    Merge {
        merge: Arc<MergeTarget>,
        from: Sector,
        to: Sector,
    },
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
            CopyKind::Zero { snapshot, start, .. } => (number == 0).then_some((&snapshot.cow, *start)),
        }
    }

    fn done(mut this: PoolBox<Request<Self>>, result: KcopydResult) {
        let group = this.context.group.clone();
        match &this.context.kind {
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
                // Its memory first, for the next one.
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

fn all_written(to: &[Option<CopyDestination>], result: KcopydResult) -> bool {
    let mut used = (0..MAX_DESTINATIONS).zip(to.iter().flatten());
    used.all(|(number, _)| result.is_written(number))
}

impl OriginGroup {
    /// A copy without destinations, from a sector of the origin; none if there is no memory, until
    /// another one has ended.
    pub(super) fn new_preserving_copy(self: &Arc<Self>, from: Sector) -> Option<PoolBox<Request<ChunkCopy>>> {
        let copy = ChunkCopy {
            group: self.clone(),
            kind: CopyKind::Preserve { from, to: NO_DESTINATIONS },
            len: Sectors(0),
            result: None,
        };
        self.try_alloc_copy(Request::new(copy)).ok()
    }

    /// A copy from a snapshot to its origin; none if there is no memory: then the merge is called
    /// when there is.
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

    /// Takes memory for a job, or gives it back if there is none; then the end of another job wakes
    /// the worker.
    #[allow(clippy::result_large_err)] // The job itself comes back: a box would need the memory that there is none of.
    pub(super) fn try_alloc_copy(
        &self,
        copy: Request<ChunkCopy>,
    ) -> Result<PoolBox<Request<ChunkCopy>>, Request<ChunkCopy>> {
        self.copy_pool.try_boxed(copy).or_else(|copy| {
            // Once more: the last of them may have ended just before it could know.
            self.waiting_for_memory.store(true, Relaxed);
            self.copy_pool.try_boxed(copy)
        })
    }
}

/// Copies of one client of kcopyd, whose thread sends their I/O and may have to wait for a device
/// as well.
#[pin_data]
pub(in super::super) struct CopyQueue {
    client: KcopydClient,
    #[pin]
    copies: IrqLock<RequestList<ChunkCopy>>,
    #[pin]
    starter: Work<CopyQueue, 1>,
}

impl_has_work! {
    impl HasWork<CopyQueue, 1> for CopyQueue { self.starter }
}

impl CopyQueue {
    /// Sleeps.
    pub(in super::super) fn new(new: &TargetBuilder<'_>) -> Result<Arc<Self>> {
        let client = new.copy_client()?;
        let new = pin_init!(CopyQueue {
            client,
            copies <- new_irq_lock!(RequestList::default(), "dm_snap_copies"),
            starter <- new_work!("dm_snap_starter"),
        });
        Arc::pin_init(new, GFP_KERNEL)
    }

    /// Makes another target one of those that it belongs to. Sleeps.
    pub(in super::super) fn share(&self, new: &TargetBuilder<'_>) -> Result {
        new.share(&self.client)
    }

    /// Starts a copy soon. Any context.
    pub(in super::super) fn start(
        self: &Arc<Self>,
        copy: PoolBox<Request<ChunkCopy>>,
        queue: &WorkQueue,
    ) {
        self.copies.lock().push(copy);
        queue.enqueue::<CopyQueue, 1>(self.clone());
    }

    /// Waits until all copies that were started have ended, and let go of what they used. Sleeps.
    pub(in super::super) fn drain(self: &Arc<Self>) {
        flush::<CopyQueue, 1>(self);
        self.client.drain();
    }
}

impl WorkItem<1> for CopyQueue {
    type Pointer = Arc<CopyQueue>;

    /// Sleeps until there is memory for the copies, which may be until others have ended. No lock
    /// is held then.
    fn run(this: Arc<CopyQueue>) {
        let _noio = NoIo::enter();
        let copies = this.copies.lock().take();
        let mut copies = copies.reversed();
        while let Some(copy) = copies.pop() {
            this.client.copy(copy);
        }
    }
}
