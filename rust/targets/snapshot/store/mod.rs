// SPDX-License-Identifier: GPL-2.0

//! The store of a COW device: its exceptions, the free space, and whether it is valid.
//!
//! All tables with the same COW device share one store. A table that is loaded over a live one
//! takes over at resume; exceptions are neither read again nor handed over.
//!
//! | file | subject |
//! | --- | --- |
//! | `stripe.rs` | the exception table: completed exceptions, and tracked bios |
//! | `allocation.rs` | pending exceptions and free chunks |
//! | `completion.rs` | how pending exceptions are completed or abandoned |
//! | `persistent.rs` | the store on disk |
//! | `merge.rs` | the records that a merge takes off |
//!
//! C counterparts: `struct dm_exception_store`, and the exception tables of `struct dm_snapshot`.

mod allocation;
mod completion;
mod merge;
mod persistent;
mod stripe;

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
pub(crate) use allocation::{
    Allocation,
    ChunkState,
    ReserveError, //
};
use allocation::{
    FreeSpace,
    MAX_PENDING, //
};
pub(crate) use completion::ReleasedBios;
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
use persistent::PersistentStore;
pub(crate) use persistent::RecordRange;
use stripe::{
    Stripe,
    STRIPE_SHIFT, //
};

/// Whether a store is usable.
///
/// C counterpart: `valid` of `struct dm_snapshot`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreState {
    /// It is usable.
    Valid,
    /// It is unusable, but its header does not say so yet. Writes to the origin wait until it does.
    Invalidating,
    /// It is unusable, and its header says so unless that could not be written.
    Invalid,
}

/// The store of a COW device.
#[pin_data]
pub(super) struct CowStore {
    persistent: bool,
    chunk_size: ChunkSize,
    /// Consecutive chunks in one stripe, as a power of two.
    stripe_shift: u32,
    /// The exception table.
    stripes: KVVec<Pin<KBox<IrqLock<Stripe>>>>,
    /// The [`StoreState`].
    state: Atomic<u32>,
    /// The COW device is full: writes to the snapshot fail.
    overflowed: Atomic<bool>,
    /// A batch could not be committed: the worker has to invalidate the snapshot.
    commit_failed: Atomic<bool>,
    /// The area that the status line counts as the last one in use: that of the next record, or, in
    /// a merge, of the last record.
    current_area: Atomic<u64>,
    #[pin]
    allocation: IrqLock<Allocation>,
    /// Writes that [`end_failed_writes`](Self::end_failed_writes) ends.
    #[pin]
    failed_writes: IrqLock<BioQueue<PerBioData>>,
    #[pin]
    disk: Mutex<PersistentStore>,
    /// For [`wait_idle`](Self::wait_idle).
    #[pin]
    idle_wait: WaitQueue,
    /// The target of the live table.
    #[pin]
    live_target: IrqLock<Option<Arc<SnapshotTarget>>>,
}

impl CowStore {
    /// Makes an empty store, for a COW device with blocks of `block` sectors. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
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
            free: space,
        };
        let disk = PersistentStore::new(layout, if persistent { block } else { 0 }, MAX_PENDING)?;
        Arc::pin_init(
            pin_init!(CowStore {
                persistent,
                chunk_size: size,
                // A stripe must not be longer than a run of the exception table.
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
                live_target <- new_irq_lock!(None, "dm_snap_live_target"),
            }),
            GFP_KERNEL,
        )
    }

    /// Returns the size of a chunk. Any context.
    pub(super) fn chunk_size(&self) -> ChunkSize {
        self.chunk_size
    }

    /// Returns whether the store is persistent. Any context.
    pub(super) fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// Returns whether the store is usable. Any context.
    pub(super) fn state(&self) -> StoreState {
        match self.state.load(Acquire) {
            0 => StoreState::Valid,
            1 => StoreState::Invalidating,
            _ => StoreState::Invalid,
        }
    }

    /// Sets whether the store is usable. Any context.
    pub(super) fn set_state(&self, state: StoreState) {
        let state = match state {
            StoreState::Valid => 0,
            StoreState::Invalidating => 1,
            StoreState::Invalid => 2,
        };
        self.state.store(state, Release);
    }

    /// Returns whether the COW device was full for a write to the snapshot. Any context.
    pub(super) fn is_overflowed(&self) -> bool {
        self.overflowed.load(Relaxed)
    }

    /// Records that the COW device is full. Any context.
    pub(super) fn set_overflowed(&self) {
        self.overflowed.store(true, Relaxed);
    }

    /// Returns the numbers of the status line. Any context.
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

    /// Makes the area of a record the last one that the status line counts.
    fn set_current_area(&self, record: u64) {
        let (area, _) = Layout::new(self.chunk_size).slot(record);
        self.current_area.store(area, Relaxed);
    }

    /// Locks the pending exceptions and the free space. Any context.
    pub(super) fn allocation(&self) -> IrqGuard<'_, Allocation> {
        self.allocation.lock()
    }

    /// Writes the records of exceptions whose data is on the COW device, durably. Returns false if
    /// there are none, or the store is no longer valid. Called by the committer. May sleep.
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

    /// Zeroes areas that the next batches will need. Called by the committer, when those who wait
    /// for the last batch have been released. May sleep.
    pub(super) fn zero_ahead(&self, cow: &Device, io: &IoClient) {
        let mut disk = self.disk.lock();
        if self.state() == StoreState::Valid && !self.has_commit_failed() {
            disk.zero_ahead(cow, io);
        }
    }

    /// Writes the header of a store that is being invalidated, and returns whether it did.
    ///
    /// Called by a committer. The committers of two tables may call it at the same time, if one
    /// table has just taken over from the other. May sleep.
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

    /// Returns whether a batch could not be committed. Any context.
    pub(super) fn has_commit_failed(&self) -> bool {
        self.commit_failed.load(Acquire)
    }

    /// Makes an empty store on disk. May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` if the COW device is too small, else those of the I/O.
    pub(super) fn format(&self, cow: &Device, io: &IoClient) -> Result {
        self.disk.lock().format(cow, io)?;
        let empty = StripesLoader::new(self.stripe_shift, Duplicates::Reject)?.finish()?;
        let space = PersistentAllocator::new(Layout::new(self.chunk_size), CowChunk(0), 0);
        self.replace_contents(empty, space, 0);
        Ok(())
    }

    /// Waits until no exception is pending and no header has to be written, or until `is_released`
    /// returns true, which [`wake_idle`](Self::wake_idle) makes it call again. May sleep.
    pub(super) fn wait_idle(&self, is_released: impl Fn() -> bool) {
        let is_idle = || {
            self.state() != StoreState::Invalidating && self.allocation.lock().pending.is_empty()
        };
        self.idle_wait.wait_until(|| is_released() || is_idle());
    }

    /// Wakes the callers of [`wait_idle`](Self::wait_idle). Any context.
    pub(super) fn wake_idle(&self) {
        self.idle_wait.wake_all();
    }

    /// Returns the target of the live table. Any context.
    pub(super) fn live_target(&self) -> Option<Arc<SnapshotTarget>> {
        self.live_target.lock().clone()
    }

    /// Sets the target of the live table. May sleep.
    pub(super) fn set_live_target(&self, live_target: Option<Arc<SnapshotTarget>>) {
        let before = core::mem::replace(&mut *self.live_target.lock(), live_target);
        drop(before);
    }

    /// Reads the store from disk and replaces what is in memory. Called while no exception is
    /// pending. May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the store is damaged, else those of the I/O. What is in memory does not change.
    pub(super) fn load(&self, cow: &Device) -> Result {
        let mut disk = self.disk.lock();
        let read = |loader: &mut StripesLoader| -> Result<_> {
            let loaded = disk.load(cow, |run| loader.add(run))?;
            Ok((loader.finish()?, loaded))
        };
        let mut loader = StripesLoader::new(self.stripe_shift, Duplicates::Reject)?;
        let mut found = read(&mut loader);
        if loader.has_duplicates() {
            loader = StripesLoader::new(self.stripe_shift, Duplicates::KeepFirst)?;
            found = read(&mut loader);
        }
        let (tables, loaded) = found?;
        let space = disk.install(loaded, loader.skipped() != 0);
        let records = disk.records();
        drop(disk);
        if loader.skipped() != 0 {
            warning!(
                "persistent snapshot",
                "ignored {} exceptions whose chunk of the origin belongs to an earlier one",
                loader.skipped()
            );
        }
        self.replace_contents(tables, space, records);
        Ok(())
    }

    /// Replaces what is in memory by what is on disk.
    fn replace_contents(
        &self,
        tables: KVVec<ExceptionTable>,
        space: PersistentAllocator,
        records: u64,
    ) {
        self.replace_tables(tables);
        self.set_current_area(records);
        self.allocation.lock().free = FreeSpace::Persistent(space);
        self.overflowed.store(false, Relaxed);
        self.set_state(StoreState::Valid);
    }
}
