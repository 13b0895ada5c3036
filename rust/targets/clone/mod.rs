// SPDX-License-Identifier: GPL-2.0

//! The `clone` target: presents a copy of a source device at once, and moves the data in the
//! background.
//!
//! | file | subject |
//! | --- | --- |
//! | `ctr.rs` | the constructor: table line, devices, memory |
//! | `mod.rs` | the target and its life: suspend, resume, destruction, limits |
//! | `status.rs`, `message.rs` | status and messages |
//! | `io.rs` | the I/O path of a bio, from `map` to `end_io` |
//! | `per_bio.rs` | what a bio carries from `map` to `end_io` |
//! | `deferred.rs` | bios that wait, and the worker that submits them |
//! | `discard.rs` | discards, and the zeroer |
//! | `region_copy.rs` | copies of regions, segment by segment |
//! | `hydrate.rs` | the background hydration |
//! | `complete.rs` | the end of an overwrite or copy |
//! | `commit.rs` | the committer |
//! | `metadata.rs`, `disk.rs` | the hydrated regions, in core and on disk |
//!
//! # Locks
//!
//! | lock | kind | protects |
//! | --- | --- | --- |
//! | `Metadata::disk` | mutex | the metadata on disk; held for all of a commit |
//! | `CloneTarget::hydration` | mutex | decisions of the background hydration |
//! | `CloneTarget::zero_buffer` | mutex | zeros to write; held for I/O to the destination |
//! | `Metadata::state` | irq spinlock | `RegionState`: every change of a region |
//! | `CloneTarget::deferred` | irq spinlock | deferred bios, segments done, priority ranges |
//! | `CloneTarget::ready_copies` | irq spinlock | the queue of copies with a segment to read |
//!
//! Order: `disk` > `state`; `hydration` > `state`; `hydration` > `deferred`; `state` >
//! `ready_copies`. `state` and `deferred` are never held together. Nothing sleeps or allocates
//! under a spinlock. A thread that makes room or changes a state does so under the lock, and wakes
//! the waiters after it.
//!
//! The map of hydrated regions is read without a lock. Slots belong to the [`Metadata`], which all
//! tables on one metadata device share; ready copies belong to one table, so that a table that is
//! being replaced does not start the copies of its successor.
//!
//! Behaviour towards users: `Documentation/clone.md`. C counterpart:
//! `drivers/md/dm-clone-target.c`.

mod commit;
mod complete;
mod ctr;
mod deferred;
mod discard;
mod disk;
mod hydrate;
mod io;
mod message;
mod metadata;
mod per_bio;
mod region_copy;
mod status;

use crate::{
    dm::{
        arguments::Arguments,
        bio::{
            EndBio,
            Ended,
            MapBio,
            Mapped, //
        },
        device::{
            Device,
            TargetHandle, //
        },
        io::{
            Buffer,
            IoClient,
            Request, //
        },
        limits::Limits,
        pages::PagePool,
        status::{
            StatusBuf,
            StatusKind, //
        },
        target::{
            CtrError,
            DeviceVisitor,
            Stop,
            Target,
            TargetBuilder, //
        }, //
    },
    logic::{
        clone::{
            geometry::Geometry,
            hydration::Hydration,
            region_copy::ReadyCopies, //
        },
        units::{
            Sector,
            Sectors, //
        }, //
    },
    sys::{
        irq_lock::IrqLock,
        log::warning,
        pool::Pool,
        queue::{
            cancel,
            cancel_delayed,
            enqueue_delayed,
            flush,
            HasQueue,
            WorkQueue, //
        },
        wait::WaitQueue, //
    },
    targets::shared_metadata::{
        MetadataRef,
        SharedMetadata, //
    }, //
};
use commit::CommitRuns;
use deferred::DeferredLists;
use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow,
        Mutex, //
    },
    time::Delta,
    workqueue::{
        impl_has_delayed_work,
        impl_has_work,
        DelayedWork,
        Work, //
    }, //
};
use metadata::Metadata;
use per_bio::PerBioData;
use region_copy::Segment;

/// How long suspending waits for copies to complete. After that the source counts as dead, and
/// copies that are still being read are given up.
const SOURCE_GRACE: Delta = Delta::from_secs(1);

/// Delay between the first change and the periodic commit. C counterpart: `COMMIT_PERIOD`.
const COMMIT_DELAY: Delta = Delta::from_secs(1);

/// Numbers that tell the work items of a target apart.
mod work_id {
    pub(super) const WORKER: u64 = 1;
    pub(super) const COMMITTER: u64 = 2;
    pub(super) const COMMIT_TIMER: u64 = 3;
    pub(super) const HYDRATOR: u64 = 4;
    pub(super) const HYDRATION_TIMER: u64 = 5;
    pub(super) const COPIER: u64 = 6;
    pub(super) const ZEROER: u64 = 7;
    pub(super) const SOURCE_READER: u64 = 8;
    pub(super) const READ_RETRY_TIMER: u64 = 9;
}

/// A clone: one line of a table. C counterpart: `struct clone`.
///
/// Fields drop in order: the users of a device before the device.
#[pin_data]
pub(crate) struct CloneTarget {
    /// For reads from the source.
    source_io: IoClient,
    /// For writes to the destination.
    destination_io: IoClient,
    /// The data of segments in flight.
    pages: Arc<PagePool>,
    /// The contexts of segments in flight.
    segment_pool: Arc<Pool<Request<Segment>>>,
    /// Zeros for the zeroer to write; empty without `zero_discards`.
    #[pin]
    zero_buffer: Mutex<Buffer>,
    /// Runs work that waits for the destination at most.
    ///
    /// Each of the three queues has a rescuer of its own. When no other thread can be created, the
    /// rescuer runs one item after the other, and an item that waits for a dead device holds up the
    /// other items of its queue only.
    queue: WorkQueue,
    /// Runs the source reader, which may wait for the source.
    read_queue: WorkQueue,
    /// Runs the committer, which also waits for the metadata device.
    commit_queue: WorkQueue,
    metadata: MetadataRef<Metadata>,
    metadata_device: Device,
    destination: Device,
    source: Device,
    handle: TargetHandle,
    /// The arguments of the table line after the devices, as they were given.
    args: CString,

    /// Whether background hydration is on. C counterpart: `DM_CLONE_HYDRATION_ENABLED`.
    hydration_enabled: Atomic<bool>,
    threshold: Atomic<u32>,
    batch: Atomic<u32>,
    discard_passdown: Atomic<bool>,
    hydrate_on_read: bool,
    zero_discards: bool,
    max_failures: Atomic<u32>,
    /// Failed copies of the background hydration since it was enabled.
    failures: Atomic<u32>,
    /// Whether priority ranges remain to be copied, whether or not hydration is on. Changed under
    /// the lock of `deferred`.
    priority_pending: Atomic<bool>,
    /// Whether the target is between suspend and resume: the background hydration starts nothing.
    suspended: Atomic<bool>,
    /// Whether the table has never been live.
    never_resumed: Atomic<bool>,
    /// Reads and writes in flight, counted until all regions are hydrated. C counterpart:
    /// `ios_in_flight`.
    ios_in_flight: Atomic<i32>,

    #[pin]
    deferred: IrqLock<DeferredLists>,
    /// Copies with a segment to read.
    #[pin]
    ready_copies: IrqLock<ReadyCopies>,
    /// The state of the background hydration.
    #[pin]
    hydration: Mutex<Hydration>,
    /// Woken when no region is in flight any more. C counterpart: `hydration_stopped`.
    idle: Pin<KBox<WaitQueue>>,
    /// Runs of the committer, for threads that wait for a commit.
    commit_runs: CommitRuns,

    #[pin]
    worker: Work<CloneTarget, { work_id::WORKER }>,
    #[pin]
    committer: Work<CloneTarget, { work_id::COMMITTER }>,
    #[pin]
    copier: Work<CloneTarget, { work_id::COPIER }>,
    #[pin]
    zeroer: Work<CloneTarget, { work_id::ZEROER }>,
    #[pin]
    source_reader: Work<CloneTarget, { work_id::SOURCE_READER }>,
    #[pin]
    read_retry_timer: DelayedWork<CloneTarget, { work_id::READ_RETRY_TIMER }>,
    #[pin]
    commit_timer: DelayedWork<CloneTarget, { work_id::COMMIT_TIMER }>,
    #[pin]
    hydrator: Work<CloneTarget, { work_id::HYDRATOR }>,
    #[pin]
    hydration_timer: DelayedWork<CloneTarget, { work_id::HYDRATION_TIMER }>,
}

impl_has_work! {
    impl HasWork<CloneTarget, { work_id::WORKER }> for CloneTarget { self.worker }
    impl HasWork<CloneTarget, { work_id::COMMITTER }> for CloneTarget { self.committer }
    impl HasWork<CloneTarget, { work_id::HYDRATOR }> for CloneTarget { self.hydrator }
    impl HasWork<CloneTarget, { work_id::COPIER }> for CloneTarget { self.copier }
    impl HasWork<CloneTarget, { work_id::ZEROER }> for CloneTarget { self.zeroer }
    impl HasWork<CloneTarget, { work_id::SOURCE_READER }> for CloneTarget { self.source_reader }
}

impl_has_delayed_work! {
    impl HasDelayedWork<CloneTarget, { work_id::COMMIT_TIMER }>
        for CloneTarget { self.commit_timer }
    impl HasDelayedWork<CloneTarget, { work_id::HYDRATION_TIMER }>
        for CloneTarget { self.hydration_timer }
    impl HasDelayedWork<CloneTarget, { work_id::READ_RETRY_TIMER }>
        for CloneTarget { self.read_retry_timer }
}

impl HasQueue for CloneTarget {
    fn queue(&self) -> &WorkQueue {
        &self.queue
    }
}

#[vtable]
impl Target for CloneTarget {
    const NAME: &'static CStr = c"clone";
    const VERSION: [u32; 3] = [1, 0, 0];
    const C_MODULE: &'static str = "dm_clone";
    const NOWAIT: bool = true;
    type PerBio = PerBioData;
    type Shared = Arc<SharedMetadata<Metadata>>;

    fn ctr(
        builder: &mut TargetBuilder<'_>,
        all: &Arc<SharedMetadata<Metadata>>,
        args: Arguments<'_>,
    ) -> Result<Arc<Self>, CtrError> {
        ctr::ctr(builder, all, args)
    }

    fn dtr(this: &Arc<Self>) {
        let stop_reading = || {
            cancel::<CloneTarget, { work_id::SOURCE_READER }>(this);
            cancel_delayed::<CloneTarget, { work_id::READ_RETRY_TIMER }>(this);
            cancel::<CloneTarget, { work_id::SOURCE_READER }>(this);
        };
        // The target is suspended: it has no bio and no copy. Reads for copies that were given up
        // may be outstanding, work items may still be running, and the source reader may be about
        // to submit one more read.
        stop_reading();
        this.source_io.drain();
        this.destination_io.drain();
        cancel::<CloneTarget, { work_id::COPIER }>(this);
        // The copier may have queued the source reader once more.
        stop_reading();
        let ended = this.deferred.lock().segments.take();
        drop(ended);
        // Items that queue others are cancelled first, and again after the timers, which queue some
        // of them.
        cancel::<CloneTarget, { work_id::WORKER }>(this);
        cancel::<CloneTarget, { work_id::ZEROER }>(this);
        for _ in 0..2 {
            cancel::<CloneTarget, { work_id::HYDRATOR }>(this);
            cancel::<CloneTarget, { work_id::COMMITTER }>(this);
            cancel_delayed::<CloneTarget, { work_id::HYDRATION_TIMER }>(this);
            cancel_delayed::<CloneTarget, { work_id::COMMIT_TIMER }>(this);
        }
    }

    fn map<'a>(this: ArcBorrow<'_, Self>, bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
        io::map(this, bio)
    }

    fn end_io<'a>(this: ArcBorrow<'_, Self>, bio: EndBio<'a, PerBioData>) -> Ended<'a> {
        io::end_io(this, bio)
    }

    fn presuspend(this: ArcBorrow<'_, Self>) {
        this.suspended.store(true, Relaxed);
        if this.handle.is_noflush_suspending() {
            this.give_up_copies();
        }
    }

    fn presuspend_undo(this: ArcBorrow<'_, Self>) {
        Self::resume(this)
    }

    fn postsuspend(this: ArcBorrow<'_, Self>) {
        let this: Arc<Self> = this.into();
        cancel_delayed::<CloneTarget, { work_id::HYDRATION_TIMER }>(&this);
        cancel::<CloneTarget, { work_id::HYDRATOR }>(&this);
        // Background copies only: bios are drained already, and with them the copies that they
        // waited for.
        let idle = || this.metadata.state().lock().slots.inflight.is_empty();
        this.idle.wait_timeout(SOURCE_GRACE, idle);
        this.as_arc_borrow().give_up_copies();
        this.idle.wait_until(idle);
        // In the order in which they queue each other. Not the source reader: it may wait for the
        // source.
        flush::<CloneTarget, { work_id::COPIER }>(&this);
        flush::<CloneTarget, { work_id::WORKER }>(&this);
        flush::<CloneTarget, { work_id::ZEROER }>(&this);
        flush::<CloneTarget, { work_id::COMMITTER }>(&this);
        cancel_delayed::<CloneTarget, { work_id::COMMIT_TIMER }>(&this);
        // A failure has been logged and shows in the mode. Suspending cannot fail.
        let _ = this.commit();
    }

    fn preresume(this: ArcBorrow<'_, Self>) -> Result {
        // A new table retries metadata that could not be written, as loading a table does with the
        // C target.
        if this.never_resumed.load(Relaxed) {
            this.metadata.recover(&this.handle)?;
        }
        Ok(())
    }

    fn resume(this: ArcBorrow<'_, Self>) {
        this.never_resumed.store(false, Relaxed);
        this.suspended.store(false, Relaxed);
        this.hydration.lock().reset_backoff();
        if this.metadata.is_dirty() {
            enqueue_delayed::<CloneTarget, { work_id::COMMIT_TIMER }>(this.into(), COMMIT_DELAY);
        }
        this.wake_hydration();
    }

    fn status(this: ArcBorrow<'_, Self>, kind: StatusKind, noflush: bool, out: &mut StatusBuf<'_>) {
        match kind {
            StatusKind::Info => this.emit_status(noflush, out),
            StatusKind::Table => this.emit_table(out),
            StatusKind::Ima => {}
        }
    }

    fn message(this: ArcBorrow<'_, Self>, args: Arguments<'_>, out: &mut StatusBuf<'_>) -> Result {
        this.handle_message(args, out)
    }

    fn iterate_devices(
        this: ArcBorrow<'_, Self>,
        visitor: &mut DeviceVisitor<'_>,
    ) -> Result<(), Stop> {
        let len = this.metadata.geometry().len();
        visitor.visit(&this.source, Sector(0), len)?;
        visitor.visit(&this.destination, Sector(0), len)
    }

    fn io_hints(this: ArcBorrow<'_, Self>, limits: &mut Limits<'_>) {
        let region = region_bytes(this.metadata.geometry());
        let io_opt = limits.io_opt();
        if io_opt < region || io_opt & region.wrapping_sub(1) != 0 {
            limits.set_io_sizes(region, region);
        }
        this.disable_impossible_passdown();
        if this.discard_passdown.load(Relaxed) {
            limits.copy_discard(&this.destination.limits());
        } else {
            // The largest multiple of the region size that fits a bio.
            let sectors = region >> kernel::block::SECTOR_SHIFT;
            let max = (u32::MAX >> kernel::block::SECTOR_SHIFT) & !sectors.wrapping_sub(1);
            limits.set_discard(max, region);
        }
    }
}

/// Returns the size of a region in bytes, at most 1 GiB.
fn region_bytes(geometry: &Geometry) -> u32 {
    let sectors = geometry.region_size().sectors().get();
    u32::try_from(sectors << kernel::block::SECTOR_SHIFT).unwrap_or(u32::MAX)
}

impl CloneTarget {
    fn is_suspended(&self) -> bool {
        self.suspended.load(Relaxed)
    }

    /// Disables discard passdown for good if the destination cannot discard whole regions.
    ///
    /// C counterpart: `disable_passdown_if_not_supported()`.
    fn disable_impossible_passdown(&self) {
        if !self.discard_passdown.load(Relaxed) {
            return;
        }
        let max = self.destination.max_discard();
        let reason = if max == Sectors(0) {
            "discard unsupported"
        } else if max < self.metadata.geometry().region_size().sectors() {
            "max discard sectors smaller than a region"
        } else {
            return;
        };
        warning!(
            "clone",
            "Destination device ({}) {}: Disabling discard passdown.",
            self.destination.disk_name(),
            reason
        );
        self.discard_passdown.store(false, Relaxed);
    }
}
