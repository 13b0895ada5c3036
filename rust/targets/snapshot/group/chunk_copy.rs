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
pub(super) struct Destination {
    pub(super) table: Arc<SnapshotTarget>,
    pub(super) seq: Seq,
    start: Sector,
}

/// No destinations.
pub(super) const NOWHERE: [Option<Destination>; MAX_DESTINATIONS] =
    [const { None }; MAX_DESTINATIONS];

impl Destination {
    pub(super) fn new(table: &Arc<SnapshotTarget>, seq: Seq, run: Run) -> Self {
        Destination {
            table: table.clone(),
            seq,
            start: table
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
    pub(super) work: NextStep,
    pub(super) len: Sectors,
    pub(super) result: Option<KcopydResult>,
}

pub(super) enum NextStep {
    Copy {
        start: Sector,
        to: [Option<Destination>; MAX_DESTINATIONS],
    },
    MergeTarget {
        merge: Arc<MergeTarget>,
        from: Sector,
        to: Sector,
    },
    Zero {
        table: Arc<SnapshotTarget>,
        start: Sector,
        bio: Bio<PerBioData>,
    },
}

impl CopyJob for ChunkCopy {
    fn source(&self) -> Option<(&Device, Sector)> {
        match &self.work {
            NextStep::Copy { start, to } => {
                let first = to.first()?.as_ref()?;
                Some((&first.table.origin, *start))
            }
            NextStep::MergeTarget { merge, from, .. } => Some((&merge.snapshot().cow, *from)),
            NextStep::Zero { .. } => None,
        }
    }

    fn sectors(&self) -> Sectors {
        self.len
    }

    fn destination(&self, number: usize) -> Option<(&Device, Sector)> {
        match &self.work {
            NextStep::Copy { to, .. } => {
                let to = to.get(number)?.as_ref()?;
                Some((&to.table.cow, to.start))
            }
            NextStep::MergeTarget { merge, to, .. } => {
                (number == 0).then_some((&merge.snapshot().origin, *to))
            }
            NextStep::Zero { table, start, .. } => (number == 0).then_some((&table.cow, *start)),
        }
    }

    fn done(mut this: PoolBox<Request<Self>>, result: KcopydResult) {
        let group = this.context.group.clone();
        match &this.context.work {
            NextStep::Copy { to, .. } if all_written(to, result) => {
                for to in to.iter().flatten() {
                    to.table.data_came(to.seq);
                }
                drop(this);
                if group.starved.load(Relaxed) {
                    group.wake();
                }
            }
            NextStep::MergeTarget { merge, .. } => {
                let merge = merge.clone();
                // Its memory first, for the next one.
                drop(this);
                if group.starved.load(Relaxed) {
                    group.wake();
                }
                merge.copy_done(result);
            }
            _ => {
                this.context.result = Some(result);
                group.inbox.lock().jobs.push(this);
                group.wake();
            }
        }
    }
}

fn all_written(to: &[Option<Destination>], result: KcopydResult) -> bool {
    let mut used = (0..MAX_DESTINATIONS).zip(to.iter().flatten());
    used.all(|(number, _)| result.is_written(number))
}

impl OriginGroup {
    /// A copy without destinations, from a sector of the origin; none if there is no memory, until
    /// another one has ended.
    pub(super) fn new_job(self: &Arc<Self>, start: Sector) -> Option<PoolBox<Request<ChunkCopy>>> {
        let job = ChunkCopy {
            group: self.clone(),
            work: NextStep::Copy { start, to: NOWHERE },
            len: Sectors(0),
            result: None,
        };
        self.seat(Request::new(job)).ok()
    }

    /// A copy from a snapshot to its origin; none if there is no memory: then the merge is called
    /// when there is.
    pub(in super::super) fn merge_job(
        self: &Arc<Self>,
        merge: &Arc<MergeTarget>,
        (from, to): (Sector, Sector),
        len: Sectors,
    ) -> Option<PoolBox<Request<ChunkCopy>>> {
        let job = ChunkCopy {
            group: self.clone(),
            work: NextStep::MergeTarget {
                merge: merge.clone(),
                from,
                to,
            },
            len,
            result: None,
        };
        self.seat(Request::new(job)).ok()
    }

    /// Takes memory for a job, or gives it back if there is none; then the end of another job wakes
    /// the worker.
    #[allow(clippy::result_large_err)] // The job itself comes back: a box would need the memory that there is none of.
    pub(super) fn seat(
        &self,
        job: Request<ChunkCopy>,
    ) -> Result<PoolBox<Request<ChunkCopy>>, Request<ChunkCopy>> {
        self.jobs.try_boxed(job).or_else(|job| {
            // Once more: the last of them may have ended just before it could know.
            self.starved.store(true, Relaxed);
            self.jobs.try_boxed(job)
        })
    }
}

/// Copies of one client of kcopyd, whose thread sends their I/O and may have to wait for a device
/// as well.
#[pin_data]
pub(in super::super) struct Copies {
    client: KcopydClient,
    #[pin]
    jobs: IrqLock<RequestList<ChunkCopy>>,
    #[pin]
    starter: Work<Copies, 1>,
}

impl_has_work! {
    impl HasWork<Copies, 1> for Copies { self.starter }
}

impl Copies {
    /// Sleeps.
    pub(in super::super) fn new(new: &TargetBuilder<'_>) -> Result<Arc<Self>> {
        let client = new.copy_client()?;
        let new = pin_init!(Copies {
            client,
            jobs <- new_irq_lock!(RequestList::default(), "dm_snap_copies"),
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
        job: PoolBox<Request<ChunkCopy>>,
        queue: &WorkQueue,
    ) {
        self.jobs.lock().push(job);
        queue.enqueue::<Copies, 1>(self.clone());
    }

    /// Waits until all copies that were started have ended, and let go of what they used. Sleeps.
    pub(in super::super) fn drain(self: &Arc<Self>) {
        flush::<Copies, 1>(self);
        self.client.drain();
    }
}

impl WorkItem<1> for Copies {
    type Pointer = Arc<Copies>;

    /// Sleeps until there is memory for the copies, which may be until others have ended. No lock
    /// is held then.
    fn run(this: Arc<Copies>) {
        let _noio = NoIo::enter();
        let jobs = this.jobs.lock().take();
        let mut jobs = jobs.reversed();
        while let Some(job) = jobs.pop() {
            this.client.copy(job);
        }
    }
}
