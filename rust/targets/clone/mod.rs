// SPDX-License-Identifier: GPL-2.0

//! The `clone` target: a device that is a finished copy at once, while the data is still being
//! moved.
//!
//! | file | what |
//! | --- | --- |
//! | `mod.rs` | the hooks that are not I/O: table line, status, messages, suspend and resume |
//! | `io.rs` | the way of a bio, from `map` to `end_io` |
//! | `work.rs` | the workers that take deferred bios on |
//! | `copy.rs` | copies, for writes and in the background, piece by piece |
//! | `hydrate.rs` | the background sweep |
//! | `metadata.rs` | the map of hydrated regions, in core and on disk, and commits |
//!
//! Behaviour towards users: `Documentation/clone.md`. C counterpart:
//! `drivers/md/dm-clone-target.c`.

mod hydrate;
mod io;
mod metadata;
mod region_copy;
mod work;

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
            Access,
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
            OrMessage,
            Stop,
            Target,
            TargetBuilder, //
        }, //
    },
    logic::{
        args::{
            eq_ignore_case,
            parse_decimal_u32,
            parse_decimal_u64, //
        },
        clone::{
            geometry::{
                Geometry,
                RegionSize,
                TooManyRegions, //
            },
            hydration::Hydration, //
            options::{
                Options,
                HYDRATION_BATCH_SIZE,
                HYDRATION_THRESHOLD,
                MAX_FAILURES, //
            },
            region_copy::{
                ReadyCopies,
                MAX_SEGMENT, //
            },
            slots::SLOTS,
            status::{
                Mode,
                StatusLine,
                STATUS_ERROR, //
            },
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
        log::{
            err,
            info,
            warning,
            CStrDisplay, //
        },
        pool::Pool,
        queue::{
            cancel,
            cancel_delayed,
            enqueue_delayed,
            flush,
            HasQueue,
            QueueKind,
            WorkQueue, //
        },
        string::bytes,
        time::Millis,
        wait::{
            new_wait_queue,
            WaitQueue, //
        }, //
    },
    targets::shared_metadata::{
        MetadataRef,
        SharedMetadata, //
    }, //
};
use io::{
    DeferredLists, //
    PerBioData,
};
use kernel::{
    new_mutex,
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
    workqueue::{
        impl_has_delayed_work,
        impl_has_work,
        new_delayed_work,
        new_work,
        DelayedWork,
        Work, //
    }, //
};
use metadata::{
    log_operation_failed,
    CommitError,
    CommitOutcome,
    CommitStep,
    Metadata,
    Recovery, //
};
use region_copy::Segment;
use work::CommitRuns;

/// A metadata device above this size has blocks that the space map cannot use.
const METADATA_WARN: Sectors = Sectors(33_554_432);
/// What is usable of it.
const METADATA_USABLE: Sectors = Sectors(255 * 16_320 * 8);

/// Pieces of copies whose contexts can be allocated whatever the state of memory.
const SEGMENT_RESERVE: u16 = 64;
/// The most data that is on its way from the source to the destination.
const COPY_MEMORY: Sectors = Sectors(64 << 11);

/// Sectors of zeros that are written at a time where the destination cannot make zeros itself.
const ZEROS: u32 = 128;

/// So long suspending waits for copies to end as they should; then the source is taken for dead.
const SOURCE_GRACE: Millis = Millis::SECOND;

/// A periodic commit follows so long after the first change.
const COMMIT_DELAY: Millis = Millis::SECOND;

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

/// A clone: one line of a table.
///
/// Fields drop in order: what uses the devices goes before them.
#[pin_data]
pub(crate) struct CloneTarget {
    source_io: IoClient,
    destination_io: IoClient,
    pages: Arc<PagePool>,
    segment_pool: Arc<Pool<Request<Segment>>>,
    /// What the zeroer writes; empty without `zero_discards`.
    #[pin]
    zero_buffer: Mutex<Buffer>,
    /// For what waits for the destination at most. Each queue has a rescuer of its own: when no
    /// other thread can be made, it runs one item after the other, and one that waits for a device
    /// that does not answer holds up those of its queue.
    queue: WorkQueue,
    /// For the reader, which may wait for the source.
    read_queue: WorkQueue,
    /// For the committer, which waits for the metadata device too.
    commit_queue: WorkQueue,
    metadata: MetadataRef<Metadata>,
    metadata_device: Device,
    destination: Device,
    source: Device,
    handle: TargetHandle,
    /// The words of the table line behind the devices, as they were given.
    args: CString,

    hydration_enabled: Atomic<bool>,
    threshold: Atomic<u32>,
    batch: Atomic<u32>,
    discard_passdown: Atomic<bool>,
    hydrate_on_read: bool,
    zero_discards: bool,
    max_failures: Atomic<u32>,
    /// Copies of the background hydration that failed since it was enabled.
    failures: Atomic<u32>,
    /// Something is to be copied whether or not hydration is on. Changed under the lock of `deferred`.
    priority_pending: Atomic<bool>,
    /// Between suspend and resume: the sweep starts nothing.
    suspended: Atomic<bool>,
    /// The table has not been live yet.
    never_resumed: Atomic<bool>,
    /// Reads and writes in flight, while something is left to hydrate.
    ios_in_flight: Atomic<i32>,

    #[pin]
    deferred: IrqLock<DeferredLists>,
    /// Copies that can go on.
    #[pin]
    ready_copies: IrqLock<ReadyCopies>,
    #[pin]
    hydration: Mutex<Hydration>,
    /// Woken when no copy is in flight any more.
    idle: Pin<KBox<WaitQueue>>,
    /// Runs of the committer, for those who wait for one.
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
    impl HasDelayedWork<CloneTarget, { work_id::COMMIT_TIMER }> for CloneTarget { self.commit_timer }
    impl HasDelayedWork<CloneTarget, { work_id::HYDRATION_TIMER }> for CloneTarget { self.hydration_timer }
    impl HasDelayedWork<CloneTarget, { work_id::READ_RETRY_TIMER }> for CloneTarget { self.read_retry_timer }
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
        mut args: Arguments<'_>,
    ) -> Result<Arc<Self>, CtrError> {
        let few = CtrError::new(c"Invalid number of arguments", EINVAL);
        if args.len() < 4 {
            return Err(few);
        }
        let (Some(metadata), Some(destination), Some(source)) =
            (args.next(), args.next(), args.next())
        else {
            return Err(few);
        };
        let metadata_device = builder
            .open(metadata, Access::ReadWrite)
            .or_message(c"Error opening metadata device")?;
        if metadata_device.sectors() > METADATA_WARN {
            warning!(
                "clone",
                "Metadata device {} is larger than {} sectors: excess space will not be used.",
                metadata_device.disk_name(),
                METADATA_USABLE
            );
        }
        let destination = builder
            .open(destination, Access::ReadWrite)
            .or_message(c"Error opening destination device")?;
        let source = builder
            .open(source, Access::Read)
            .or_message(c"Error opening source device")?;

        let echo = CString::try_from_fmt(fmt!("{}", args))
            .or_message(c"Failed to allocate memory for table line")?;
        let mut args = args.map(bytes);
        let region_size = args
            .next()
            .ok_or(c"Invalid region size")
            .and_then(RegionSize::parse)
            .map_err(|text| CtrError::new(text, EINVAL))?;
        for device in [&source, &destination] {
            let block =
                Sectors(u64::from(device.logical_block_size()) >> kernel::block::SECTOR_SHIFT);
            if !region_size.is_multiple_of(block) {
                let text = c"Region size is not a multiple of device logical block size";
                return Err(CtrError::new(text, EINVAL));
            }
        }
        let geometry =
            Geometry::new(region_size, builder.len()).or_message(TooManyRegions::TEXT)?;
        let options =
            Options::parse(&mut args).map_err(|error| CtrError::new(error.message, error.error))?;

        // The C target takes both, and formats or fills the one over the data of the other.
        for (device, text) in [
            (
                &destination,
                c"Metadata device and destination device are the same",
            ),
            (&source, c"Metadata device and source device are the same"),
        ] {
            if device.number() == metadata_device.number() {
                return Err(CtrError::new(text, EBUSY));
            }
        }

        let handle = builder.handle();
        let metadata = all
            .get_or_open(
                &metadata_device,
                handle.mapped_device(),
                handle.table_id(),
                geometry,
            )
            .or_message(c"Failed to load metadata")?;
        let queue = |name| {
            builder
                .queue(name, QueueKind::PerCpu)
                .or_message(c"Failed to allocate workqueue")
        };
        let (read_queue, commit_queue) = (queue(c"dm-clone-read")?, queue(c"dm-clone-commit")?);
        let queue = queue(c"dm-clone")?;
        let (source_io, destination_io) = (builder.io_client()?, builder.io_client()?);
        let memory = c"Failed to create dm_clone_region_hydration memory pool";
        let zero_buffer = if options.zero_discards {
            Buffer::new(ZEROS).or_message(memory)?
        } else {
            Buffer::default()
        };
        let pages = PagePool::new(MAX_SEGMENT, COPY_MEMORY).or_message(memory)?;
        let segment_pool = Pool::new(SEGMENT_RESERVE).or_message(memory)?;
        let ready_copies = ReadyCopies::new(SLOTS).or_message(memory)?;
        let idle = KBox::pin_init(new_wait_queue!("dm_clone_idle"), GFP_KERNEL)
            .or_message(c"Failed to allocate clone structure")?;
        let commit_runs = CommitRuns::new().or_message(c"Failed to allocate clone structure")?;

        builder.want_flushes();
        builder.want_discards();
        builder.want_write_zeroes();
        Arc::pin_init(
            pin_init!(CloneTarget {
                source_io,
                destination_io,
                pages,
                segment_pool,
                zero_buffer <- new_mutex!(zero_buffer, "dm_clone_zero_buffer"),
                queue,
                read_queue,
                commit_queue,
                metadata,
                metadata_device,
                destination,
                source,
                handle,
                args: echo,
                hydration_enabled: Atomic::new(options.hydration),
                threshold: Atomic::new(options.threshold),
                batch: Atomic::new(options.batch),
                discard_passdown: Atomic::new(options.discard_passdown),
                hydrate_on_read: options.hydrate_on_read,
                zero_discards: options.zero_discards,
                max_failures: Atomic::new(options.max_failures),
                failures: Atomic::new(0),
                priority_pending: Atomic::new(false),
                suspended: Atomic::new(true),
                never_resumed: Atomic::new(true),
                ios_in_flight: Atomic::new(0),
                deferred <- new_irq_lock!(DeferredLists::default(), "dm_clone_deferred"),
                ready_copies <- new_irq_lock!(ready_copies, "dm_clone_ready_copies"),
                hydration <- new_mutex!(Hydration::new(), "dm_clone_hydration"),
                idle,
                commit_runs,
                worker <- new_work!("dm_clone_worker"),
                committer <- new_work!("dm_clone_committer"),
                copier <- new_work!("dm_clone_copier"),
                zeroer <- new_work!("dm_clone_zeroer"),
                source_reader <- new_work!("dm_clone_source_reader"),
                read_retry_timer <- new_delayed_work!("dm_clone_read_retry_timer"),
                commit_timer <- new_delayed_work!("dm_clone_commit_timer"),
                hydrator <- new_work!("dm_clone_hydrator"),
                hydration_timer <- new_delayed_work!("dm_clone_hydration_timer"),
            }),
            GFP_KERNEL,
        )
        .or_message(c"Failed to allocate clone structure")
    }

    fn dtr(this: &Arc<Self>) {
        let stop_reading = || {
            cancel::<CloneTarget, { work_id::SOURCE_READER }>(this);
            cancel_delayed::<CloneTarget, { work_id::READ_RETRY_TIMER }>(this);
            cancel::<CloneTarget, { work_id::SOURCE_READER }>(this);
        };
        // Suspended: no bio, no copy. What is left are reads for copies that have been given up,
        // and items that may be about to return; the reader perhaps after one more of those.
        stop_reading();
        this.source_io.drain();
        this.destination_io.drain();
        cancel::<CloneTarget, { work_id::COPIER }>(this);
        // The copier may have woken the reader once more, for nothing.
        stop_reading();
        let ended = this.deferred.lock().segments.take();
        drop(ended);
        // Who starts others goes first, and again after the timers, which start some of them.
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
        // Copies of the sweep. Bios are drained already, and with them the copies that they waited
        // for.
        let idle = || this.metadata.state().lock().slots.inflight.is_empty();
        this.idle.wait_timeout(SOURCE_GRACE, idle);
        this.as_arc_borrow().give_up_copies();
        this.idle.wait_until(idle);
        // Not the reader: it may wait for the source.
        flush::<CloneTarget, { work_id::COPIER }>(&this);
        flush::<CloneTarget, { work_id::WORKER }>(&this);
        flush::<CloneTarget, { work_id::ZEROER }>(&this);
        flush::<CloneTarget, { work_id::COMMITTER }>(&this);
        cancel_delayed::<CloneTarget, { work_id::COMMIT_TIMER }>(&this);
        // A failure has been logged and shows in the mode; suspending goes on.
        let _ = this.commit();
    }

    fn preresume(this: ArcBorrow<'_, Self>) -> Result {
        // A new table is a new start for metadata that could not be written, as loading one is with
        // the C target.
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
            StatusKind::Info => this.info(noflush, out),
            StatusKind::Table => this.table(out),
            StatusKind::Ima => {}
        }
    }

    fn message(this: ArcBorrow<'_, Self>, args: Arguments<'_>, out: &mut StatusBuf<'_>) -> Result {
        this.execute(args, out)
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
            // The largest multiple of a region that a bio can name.
            let sectors = region >> kernel::block::SECTOR_SHIFT;
            let max = (u32::MAX >> kernel::block::SECTOR_SHIFT) & !sectors.wrapping_sub(1);
            limits.set_discard(max, region);
        }
    }
}

/// A region in bytes: at most 1 GiB.
fn region_bytes(geometry: &Geometry) -> u32 {
    let sectors = geometry.region_size().sectors().get();
    u32::try_from(sectors << kernel::block::SECTOR_SHIFT).unwrap_or(u32::MAX)
}

impl CloneTarget {
    fn is_suspended(&self) -> bool {
        self.suspended.load(Relaxed)
    }

    /// Commits, and tells the world what changed by it. Sleeps for I/O.
    fn commit(&self) -> Result<CommitOutcome> {
        let result = self
            .metadata
            .commit(&self.handle, || self.destination.flush());
        match &result {
            Ok(CommitOutcome::Complete) => self.handle.raise_event(),
            Err(CommitError {
                degraded: Some(mode),
                ..
            }) => self.report_mode(*mode),
            _ => {}
        }
        result.map_err(|failure| failure.error)
    }

    /// Tells the world if the mode has changed because of a flush that failed, and that no commit
    /// asked for. Sleeps.
    fn report_flush_failure(&self) {
        if self.metadata.take_flush_failure() {
            log_operation_failed(&self.handle, CommitStep::Flush, EIO);
            self.report_mode(Mode::ReadOnly);
        }
    }

    /// Tells the world of a new mode. Sleeps.
    fn report_mode(&self, mode: Mode) {
        info!(
            "clone",
            "{}: Switching to {} mode",
            self.handle,
            mode.description()
        );
        self.handle.raise_event();
    }

    /// Switches pass-down of discards off for good if the destination cannot do what it takes.
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

    /// The status line, from memory. Waits for a commit before it if it is to, and for no other
    /// I/O.
    fn info(self: ArcBorrow<'_, Self>, noflush: bool, out: &mut StatusBuf<'_>) {
        // Neither while suspended, nor for a table that is not live: it might name another
        // destination.
        let live = !self.is_suspended() && !self.handle.is_suspended();
        if !noflush && live {
            // If it fails, the mode below shows it. If the reader is killed, nobody reads what is
            // below.
            let _ = self.committed();
        }
        let usage = self.metadata.usage();
        let mode = self.metadata.mode();
        let (metadata_used, metadata_total) = match usage {
            Some(usage) => (usage.used, usage.total),
            None if mode == Mode::Fail => (0, 0),
            None => return out.emit(fmt!("{}", STATUS_ERROR)),
        };
        let geometry = self.metadata.geometry();
        let (hydrated, hydrating) = self.metadata.progress();
        let info = StatusLine {
            metadata_used,
            metadata_total,
            region_size: geometry.region_size().sectors(),
            hydrated,
            regions: geometry.regions(),
            hydrating,
            hydration: self.hydration_enabled.load(Relaxed),
            discard_passdown: self.discard_passdown.load(Relaxed),
            threshold: self.threshold.load(Relaxed),
            batch: self.batch.load(Relaxed),
            hydrate_on_read: self.hydrate_on_read,
            zero_discards: self.zero_discards,
            max_failures: self.max_failures.load(Relaxed),
            mode,
        };
        out.emit(fmt!("{}", info))
    }

    fn table(&self, out: &mut StatusBuf<'_>) {
        let args = CStrDisplay(&self.args);
        out.emit(fmt!(
            "{} {} {} {}",
            self.metadata_device,
            self.destination,
            self.source,
            args
        ))
    }

    fn execute(
        self: ArcBorrow<'_, Self>,
        mut args: Arguments<'_>,
        out: &mut StatusBuf<'_>,
    ) -> Result {
        let count = args.len();
        let word = args.next().ok_or(EINVAL)?;
        let is = |name: &str| eq_ignore_case(bytes(word), name.as_bytes());
        if is("enable_hydration") {
            self.failures.store(0, Relaxed);
            self.hydration_enabled.store(true, Relaxed);
            self.hydration.lock().reset_backoff();
            self.wake_hydration();
            return Ok(());
        }
        if is("disable_hydration") {
            self.hydration_enabled.store(false, Relaxed);
            return Ok(());
        }
        match count {
            1 if is("statistics") => {
                out.emit(fmt!("{}", self.metadata.statistics()));
                return Ok(());
            }
            1 if is(Mode::ReadWrite.as_str()) => return self.recover(),
            2 => {}
            3 if is("hydrate_range") => return self.hydrate_range(args),
            _ => return Err(EINVAL),
        }
        let value = args
            .next()
            .and_then(|value| parse_decimal_u32(bytes(value)));
        if is(HYDRATION_THRESHOLD) {
            self.threshold.store(value.ok_or(EINVAL)?, Relaxed);
            self.wake_hydration();
        } else if is(HYDRATION_BATCH_SIZE) {
            self.batch.store(value.ok_or(EINVAL)?, Relaxed);
        } else if is(MAX_FAILURES) {
            self.max_failures.store(value.ok_or(EINVAL)?, Relaxed);
        } else {
            err!(
                "clone",
                "{}: Unsupported message `{}'",
                self.handle,
                CStrDisplay(word)
            );
            return Err(EINVAL);
        }
        Ok(())
    }

    /// Copies the regions of a range before all others: first sector and length, from the start of
    /// the target.
    fn hydrate_range(self: ArcBorrow<'_, Self>, args: Arguments<'_>) -> Result {
        let mut numbers = args.map(|word| parse_decimal_u64(bytes(word)).ok_or(EINVAL));
        let mut number = || numbers.next().unwrap_or(Err(EINVAL));
        let (start, len) = (Sector(number()?), Sectors(number()?));
        let geometry = self.metadata.geometry();
        let end = start.checked_add(len).ok_or(EINVAL)?;
        if len == Sectors(0) || end.get() > geometry.len().get() {
            return Err(EINVAL);
        }
        self.prioritize(geometry.touched(start, len));
        Ok(())
    }

    /// Tries to get out of read-only or fail mode. Sleeps for I/O.
    fn recover(self: ArcBorrow<'_, Self>) -> Result {
        match self.metadata.recover(&self.handle)? {
            Recovery::NotNeeded => {}
            Recovery::No => return Err(EIO),
            Recovery::Yes => {
                self.report_mode(Mode::ReadWrite);
                // Resuming looks at what is to be committed by itself; until then nothing is to be
                // written.
                if !self.is_suspended() {
                    self.wake_committer();
                }
                self.wake_hydration();
            }
        }
        Ok(())
    }
}
