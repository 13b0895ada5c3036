// SPDX-License-Identifier: GPL-2.0

//! What the tables of one COW device share: which chunks it has, which are on their way, and its
//! state.
//!
//! A table that is loaded over a live one gets the store of that one, and takes over at resume; so
//! nothing is read twice, and nothing is handed over.

mod allocation;
mod completion;
mod merge;
mod persistent;
mod stripe;

use allocation::{
    FreeSpace,
    MAX_PENDING, //
};
use persistent::PersistentStore;
use stripe::{
    Stripe,
    STRIPE_SHIFT, //
};
use super::{
    per_bio::PerBioData,
    SnapshotTarget, //
};
use crate::{
    dm::{
        bio::BioQueue,
        device::Device,
        io::IoClient, //
    },
    logic::{
        snapshot::{
            chunks::{
                ChunkSize,
                CowChunk, //
            },
            exception_table::ExceptionTable,
            layout::{
                Layout,
                PersistentAllocator,
                TransientAllocator, //
            },
            pending::PendingExceptions,
            run::MAX_RUN_CHUNKS,
            status::Usage,
            stripes::{
                Duplicates,
                StripesLoader,
                STRIPES, //
            }, //
        },
        units::Sectors, //
    },
    sys::{
        delay::delay_point,
        irq_lock::{
            new_irq_lock,
            IrqGuard,
            IrqLock, //
        },
        log::warning,
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
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        Mutex, //
    }, //
};
pub(crate) use allocation::{
    Allocation,
    ChunkState,
    ReserveError, //
};
pub(crate) use completion::ReleasedBios;
pub(crate) use persistent::RecordRange;

/// Whether a store can be used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreState {
    Valid,
    /// It is lost, but its header does not say so yet: origin writes that it needed wait.
    Invalidating,
    Invalid,
}

/// See above.
#[pin_data]
pub(super) struct CowStore {
    persistent: bool,
    chunk_size: ChunkSize,
    stripe_shift: u32,
    stripes: KVVec<Pin<KBox<IrqLock<Stripe>>>>,
    state: Atomic<u32>,
    overflowed: Atomic<bool>,
    /// A batch could not be written.
    commit_failed: Atomic<bool>,
    /// The area of the next record; in a merge, of the last one once it has been looked at. For the
    /// status line.
    current_area: Atomic<u64>,
    #[pin]
    allocation: IrqLock<Allocation>,
    /// Writes that have failed, and are told so when the header says why, if the store is lost.
    #[pin]
    failed_writes: IrqLock<BioQueue<PerBioData>>,
    #[pin]
    disk: Mutex<PersistentStore>,
    /// For those who wait until nothing is on its way.
    #[pin]
    idle_wait: WaitQueue,
    /// The live table.
    #[pin]
    live_target: IrqLock<Option<Arc<SnapshotTarget>>>,
}

impl CowStore {
    /// A store in which nothing is yet. Sleeps.
    pub(super) fn new(persistent: bool, size: ChunkSize, block: u32) -> Result<Arc<Self>> {
        let mut stripes = KVVec::with_capacity(STRIPES, GFP_KERNEL)?;
        for _ in 0..STRIPES {
            let stripe = new_irq_lock!(Stripe::new(), "dm_snap_stripe");
            let stripe = KBox::pin_init(stripe, GFP_KERNEL)?;
            stripes.push_within_capacity(stripe)?;
        }
        let layout = Layout::new(size);
        let space = if persistent {
            FreeSpace::Persistent(PersistentAllocator::new(layout, CowChunk(0), 0))
        } else {
            FreeSpace::Transient(TransientAllocator::new(size))
        };
        let allocation = Allocation {
            pending: PendingExceptions::new(MAX_PENDING, GFP_KERNEL)?,
            free:space,
        };
        let disk = PersistentStore::new(layout, if persistent { block } else { 0 }, MAX_PENDING)?;
        Arc::pin_init(
            pin_init!(CowStore {
                persistent,
                chunk_size:size,
                // Not longer than a run can be.
                stripe_shift: STRIPE_SHIFT
                    .saturating_sub(size.bytes().trailing_zeros())
                    .clamp(6, MAX_RUN_CHUNKS.trailing_zeros()),
                stripes,
                state: Atomic::new(0),
                overflowed: Atomic::new(false),
                commit_failed: Atomic::new(false),
                current_area: Atomic::new(0),
                allocation <- new_irq_lock!(allocation, "dm_snap_allocation"),
                failed_writes <- new_irq_lock!(BioQueue::new(), "dm_snap_failed"),
                disk <- new_mutex!(disk, "dm_snap_disk"),
                idle_wait <- new_wait_queue!("dm_snap_idle"),
                live_target <- new_irq_lock!(None, "dm_snap_owner"),
            }),
            GFP_KERNEL,
        )
    }

    pub(super) fn chunk_size(&self) -> ChunkSize {
        self.chunk_size
    }

    pub(super) fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// Any context.
    pub(super) fn state(&self) -> StoreState {
        match self.state.load(Acquire) {
            0 => StoreState::Valid,
            1 => StoreState::Invalidating,
            _ => StoreState::Invalid,
        }
    }

    pub(super) fn set_state(&self, state: StoreState) {
        let state = match state {
            StoreState::Valid => 0,
            StoreState::Invalidating => 1,
            StoreState::Invalid => 2,
        };
        self.state.store(state, Release);
    }

    pub(super) fn is_overflowed(&self) -> bool {
        self.overflowed.load(Relaxed)
    }

    pub(super) fn set_overflowed(&self) {
        self.overflowed.store(true, Relaxed);
    }

    /// The numbers of the status line. Any context.
    pub(super) fn usage(&self, cow: &Device) -> Usage {
        let allocated = self.allocation.lock().free.used();
        let layout = Layout::new(self.chunk_size);
        let metadata = if self.persistent {
            layout.metadata(self.current_area.load(Relaxed))
        } else {
            Sectors(0)
        };
        Usage {
            allocated,
            total: cow.sectors(),
            metadata,
        }
    }

    /// Notes in which area a record is.
    fn set_current_area(&self, record: u64) {
        let (area, _) = Layout::new(self.chunk_size).slot(record);
        self.current_area.store(area, Relaxed);
    }

    /// Exceptions on their way. Any context.
    pub(super) fn allocation(&self) -> IrqGuard<'_, Allocation> {
        self.allocation.lock()
    }

    /// Writes the records of what has its data, durably. False if there is nothing to be written,
    /// or the store cannot be used any more. The committer only. Sleeps for I/O.
    pub(super) fn commit_batch(&self, cow: &Device, io: &IoClient) -> bool {
        let mut disk = self.disk.lock();
        if self.state() != StoreState::Valid || self.has_commit_failed() {
            return false;
        }
        if !self.allocation.lock().pending.begin_batch(disk.batch()) {
            return false;
        }
        let result = disk.commit_batch(cow, io);
        let mut allocation = self.allocation.lock();
        match result {
            Ok(()) => {
                self.set_current_area(disk.records());
                allocation.pending.batch_committed();
            }
            Err(_) => {
                allocation.pending.batch_failed();
                self.commit_failed.store(true, Release);
            }
        }
        true
    }

    /// Says on disk that the store is lost, if it is and that is not said yet; tells whether it
    /// did. A committer only: that of a former table may come together with that of the one that
    /// took over. Sleeps for I/O.
    pub(super) fn finish_invalidation(&self, cow: &Device, io: &IoClient) -> bool {
        if self.state() != StoreState::Invalidating {
            return false;
        }
        delay_point!(c"snapshot: lost, header not yet written");
        let mut disk = self.disk.lock();
        if self.state() != StoreState::Invalidating {
            return false;
        }
        if disk.invalidate(cow, io).is_err() {
            warning!("persistent snapshot", "write header failed");
        }
        self.set_state(StoreState::Invalid);
        drop(disk);
        self.wake_idle();
        true
    }

    /// Whether a batch could not be written.
    pub(super) fn has_commit_failed(&self) -> bool {
        self.commit_failed.load(Acquire)
    }

    /// Makes an empty store on disk. Sleeps for I/O.
    pub(super) fn format(&self, cow: &Device, io: &IoClient) -> Result {
        self.disk.lock().format(cow, io)?;
        let empty = StripesLoader::new(self.stripe_shift, Duplicates::Reject)?.finish()?;
        let space = PersistentAllocator::new(Layout::new(self.chunk_size), CowChunk(0), 0);
        self.replace_contents(empty, space, 0);
        Ok(())
    }

    /// Waits until nothing is on its way, and the header says what there is to be said; or until
    /// that is somebody else's matter: then [`wake_idle`](Self::wake_idle) is called. Sleeps.
    pub(super) fn wait_idle(&self, is_released: impl Fn() -> bool) {
        let is_idle = || {
            self.state() != StoreState::Invalidating && self.allocation.lock().pending.is_empty()
        };
        self.idle_wait.wait_until(|| is_released() || is_idle());
    }

    /// Lets those look who wait.
    pub(super) fn wake_idle(&self) {
        self.idle_wait.wake_all();
    }

    /// The live table, if there is one. Any context.
    pub(super) fn live_target(&self) -> Option<Arc<SnapshotTarget>> {
        self.live_target.lock().clone()
    }

    /// Says which table is live.
    pub(super) fn set_live_target(&self, live_target: Option<Arc<SnapshotTarget>>) {
        let before = core::mem::replace(&mut *self.live_target.lock(), live_target);
        drop(before);
    }

    /// Reads the store from disk, in place of what is in memory. Nothing is on its way. Sleeps for
    /// I/O.
    pub(super) fn load(&self, cow: &Device) -> Result {
        let mut disk = self.disk.lock();
        let read = |parts: &mut StripesLoader| -> Result<_> {
            let loaded = disk.load(cow, |run| parts.add(run))?;
            Ok((parts.finish()?, loaded))
        };
        let mut parts = StripesLoader::new(self.stripe_shift, Duplicates::Reject)?;
        let mut found = read(&mut parts);
        if parts.has_duplicates() {
            parts = StripesLoader::new(self.stripe_shift, Duplicates::KeepFirst)?;
            found = read(&mut parts);
        }
        let (tables, loaded) = found?;
        let space = disk.install(loaded, parts.skipped() != 0);
        let records = disk.records();
        drop(disk);
        if parts.skipped() != 0 {
            warning!(
                "persistent snapshot",
                "{} exceptions were ignored: others have their chunks of the origin",
                parts.skipped()
            );
        }
        self.replace_contents(tables, space, records);
        Ok(())
    }

    /// Puts what is on disk in the place of what is in memory.
    fn replace_contents(&self, tables: KVVec<ExceptionTable>, space: PersistentAllocator, records: u64) {
        self.replace_tables(tables);
        self.set_current_area(records);
        self.allocation.lock().free = FreeSpace::Persistent(space);
        self.overflowed.store(false, Relaxed);
        self.set_state(StoreState::Valid);
    }
}
