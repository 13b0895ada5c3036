// SPDX-License-Identifier: GPL-2.0

//! The `era` target: a device that records in which era each of its blocks was last written.
//!
//! | file | subject |
//! | --- | --- |
//! | `mod.rs` | table line, status, messages, suspend and resume |
//! | `io.rs` | the I/O path, from `map` to `end_io` |
//! | `rollover.rs` | the rollover from one era to the next |
//! | `digester.rs` | when archived eras are digested |
//! | `metadata.rs` | the metadata that all tables of a device share, and its recovery |
//! | `disk/` | the metadata on disk, and the steps that change it |
//!
//! Locks, outermost first:
//!
//! | lock | protects | held while |
//! | --- | --- | --- |
//! | `RolloverGuard` (waiters can be killed) | old epoch, `origin_flush` | a message is processed |
//! | `Metadata::state` (mutex) | the metadata, `writeset_era`, `live` | a step runs |
//! | `deferred_bios` (spinlock, interrupts off) | the list | a bio is added or all are taken |
//! | `Metadata::stats` (spinlock) | what the status line shows | it is copied |
//!
//! Reads and writes to marked blocks take no lock: `io.rs`.
//!
//! Behaviour towards users: `Documentation/era.md`. C counterpart: `drivers/md/dm-era-target.c`.

mod digester;
mod disk;
mod io;
mod metadata;
mod rollover;

use crate::{
    dm::{
        arguments::Arguments,
        bio::{
            BioQueue,
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
        limits::Limits,
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
            parse_strict_u32, //
        },
        era::{
            geometry::{
                BlockSize,
                Geometry, //
            },
            status::ERROR, //
            writeset::InCoreWriteset,
        },
        units::Sector, //
    },
    sys::{
        epochs::Epochs,
        irq_lock::{
            new_irq_lock,
            IrqLock, //
        },
        log::{
            err,
            info,
            CStrDisplay, //
        },
        noio::NoIo,
        queue::{
            cancel,
            flush,
            QueueKind,
            WorkQueue, //
        },
        string::bytes,
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
use disk::OpenMetadata;
use io::PerBioData;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work, //
    }, //
};
use metadata::{
    Metadata,
    MetadataState,
    OnError, //
};
use rollover::OriginFlush;

/// An era target: one line of a table. C counterpart: `struct era`.
///
/// Fields are dropped in declaration order, so the users of the devices come before the devices.
#[pin_data]
pub(crate) struct EraTarget {
    queue: WorkQueue,
    metadata: MetadataRef<Metadata>,
    metadata_device: Device,
    origin: Device,
    handle: TargetHandle,
    geometry: Geometry,

    /// Counts the writes in flight, by the epoch whose in-core writeset admitted them.
    epochs: Epochs,
    /// The in-core writeset of each epoch. C counterpart: `writesets` of `struct era_metadata`.
    writesets: (InCoreWriteset, InCoreWriteset),
    /// The era of the current epoch's writeset. Changed with `Metadata::state` locked.
    writeset_era: Atomic<u32>,
    /// Writes of the old epoch may be in flight, or its writeset is not clear. Changed with the
    /// rollover lock held.
    needs_drain: Atomic<bool>,
    /// The target was resumed and not suspended since. Changed with `Metadata::state` locked; read
    /// by [`is_live`](Self::is_live).
    live: Atomic<bool>,
    /// The rollover lock: 1 if held. `rollover_wait` has its waiters and those for a flush.
    rollover_busy: Atomic<u32>,
    rollover_wait: Pin<KBox<WaitQueue>>,
    origin_flush: OriginFlush,

    /// The digestion has paused for deferred writes, whose work item resumes it.
    digestion_paused: Atomic<bool>,

    /// Writes to blocks that are not marked yet.
    #[pin]
    deferred_bios: IrqLock<BioQueue<PerBioData>>,
    #[pin]
    deferred_work: Work<EraTarget, { work_id::PROCESS_DEFERRED }>,
    #[pin]
    digest_work: Work<EraTarget, { work_id::DIGEST }>,
    #[pin]
    flush_work: Work<EraTarget, { work_id::FLUSH_ORIGIN }>,
}

/// Numbers of the work items, by which they are enqueued and cancelled.
mod work_id {
    /// Marks the blocks of deferred writes and submits them: `io.rs`.
    pub(super) const PROCESS_DEFERRED: u64 = 1;
    /// Digests archived eras: `digester.rs`.
    pub(super) const DIGEST: u64 = 2;
    /// Flushes the origin for a message: `rollover.rs`.
    pub(super) const FLUSH_ORIGIN: u64 = 3;
}

impl_has_work! {
    impl HasWork<EraTarget, { work_id::PROCESS_DEFERRED }> for EraTarget { self.deferred_work }
    impl HasWork<EraTarget, { work_id::DIGEST }> for EraTarget { self.digest_work }
    impl HasWork<EraTarget, { work_id::FLUSH_ORIGIN }> for EraTarget { self.flush_work }
}

#[vtable]
impl Target for EraTarget {
    const NAME: &'static CStr = c"era";
    const VERSION: [u32; 3] = [1, 0, 0];
    const C_MODULE: &'static str = "dm_era";
    const NOWAIT: bool = true;
    type PerBio = PerBioData;
    type Shared = Arc<SharedMetadata<Metadata>>;

    fn ctr(
        builder: &mut TargetBuilder<'_>,
        all: &Arc<SharedMetadata<Metadata>>,
        mut args: Arguments<'_>,
    ) -> Result<Arc<Self>, CtrError> {
        let count = || CtrError::new(c"Invalid argument count", EINVAL);
        if args.len() != 3 {
            return Err(count());
        }
        let mut word = || args.next().ok_or_else(count);
        let metadata_device = builder
            .open(word()?, Access::ReadWrite)
            .or_message(c"Error opening metadata device")?;
        let origin = builder
            .open(word()?, Access::ReadWrite)
            .or_message(c"Error opening data device")?;
        let size = parse_strict_u32(bytes(word()?))
            .ok_or(EINVAL)
            .or_message(BlockSize::UNREADABLE)?;
        let size = BlockSize::from_sectors(size)
            .ok_or(EINVAL)
            .or_message(BlockSize::INVALID)?;
        let geometry = Geometry::new(size, builder.len())
            .ok_or(EINVAL)
            .or_message(Geometry::TOO_MANY)?;
        if metadata_device.number() == origin.number() {
            let text = c"Metadata device and data device are the same";
            return Err(CtrError::new(text, EBUSY));
        }

        let handle = builder.handle();
        let (device, table) = (handle.mapped_device(), handle.table_id());
        let metadata = all
            .get_or_open(&metadata_device, device, table, size)
            .or_message(c"Error reading metadata")?;
        let queue = builder
            .queue(c"dm-era", QueueKind::Unbound)
            .or_message(c"could not create workqueue for metadata object")?;
        let memory = c"Error allocating era structure";
        let epochs = Epochs::new().or_message(memory)?;
        let writesets = (
            InCoreWriteset::new(geometry.blocks()).or_message(memory)?,
            InCoreWriteset::new(geometry.blocks()).or_message(memory)?,
        );
        let rollover_wait =
            KBox::pin_init(new_wait_queue!("dm_era_rollover"), GFP_KERNEL).or_message(memory)?;

        builder.want_flushes();
        builder.pass_discards();
        builder.want_write_zeroes();
        Arc::pin_init(
            pin_init!(EraTarget {
                queue,
                metadata,
                metadata_device,
                origin,
                handle,
                geometry,
                epochs,
                writesets,
                writeset_era: Atomic::new(0),
                needs_drain: Atomic::new(false),
                live: Atomic::new(false),
                rollover_busy: Atomic::new(0),
                rollover_wait,
                origin_flush: OriginFlush::new(),
                digestion_paused: Atomic::new(false),
                deferred_bios <- new_irq_lock!(BioQueue::new(), "dm_era_deferred"),
                deferred_work <- new_work!("dm_era_deferred_work"),
                digest_work <- new_work!("dm_era_digest_work"),
                flush_work <- new_work!("dm_era_flush_work"),
            }),
            GFP_KERNEL,
        )
        .or_message(memory)
    }

    fn dtr(this: &Arc<Self>) {
        // No bio is in flight. The digester may still run, if the table went live and its resume
        // failed; `cancel` waits for it.
        cancel::<EraTarget, { work_id::PROCESS_DEFERRED }>(this);
        cancel::<EraTarget, { work_id::DIGEST }>(this);
        cancel::<EraTarget, { work_id::FLUSH_ORIGIN }>(this);
    }

    fn map<'a>(this: ArcBorrow<'_, Self>, bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
        io::map(this, bio)
    }

    fn end_io<'a>(this: ArcBorrow<'_, Self>, bio: EndBio<'a, PerBioData>) -> Ended<'a> {
        io::end_io(this, bio)
    }

    fn postsuspend(this: ArcBorrow<'_, Self>) {
        let this: Arc<Self> = this.into();
        flush::<EraTarget, { work_id::PROCESS_DEFERRED }>(&this);
        let _noio = NoIo::enter();
        {
            let mut state = this.metadata.lock();
            if this.is_live(&state) {
                this.live.store(false, Relaxed);
                let archived = this.run_step(&mut state, OnError::KeepWorking, |md| {
                    md.archive_era()?;
                    md.commit()
                });
                if archived.is_err() {
                    err!("era", "era_postsuspend: couldn't archive current era");
                }
            }
        }
        cancel::<EraTarget, { work_id::DIGEST }>(&this);
        this.clear_writesets();
    }

    fn preresume(this: ArcBorrow<'_, Self>) -> Result {
        let _noio = NoIo::enter();
        let mut state = this.metadata.lock();
        if this.is_live(&state) {
            return Ok(());
        }
        let result = this.go_live(&mut state);
        this.metadata.finish_resume(&mut state, &result);
        if result.is_ok() {
            this.writeset_era.store(state.era().0, Relaxed);
            this.live.store(true, Relaxed);
            state.set_live(this.handle.table_id());
        }
        result
    }

    fn resume(this: ArcBorrow<'_, Self>) {
        let this: Arc<Self> = this.into();
        this.wake_digester();
    }

    fn status(this: ArcBorrow<'_, Self>, kind: StatusKind, _: bool, out: &mut StatusBuf<'_>) {
        match kind {
            StatusKind::Info => match this.metadata.stats() {
                Some(stats) => out.emit(fmt!("{}", stats)),
                None => out.emit(fmt!("{}", ERROR)),
            },
            StatusKind::Table => out.emit(fmt!(
                "{} {} {}",
                this.metadata_device,
                this.origin,
                this.geometry.size()
            )),
            StatusKind::Ima => {}
        }
    }

    fn message(
        this: ArcBorrow<'_, Self>,
        mut args: Arguments<'_>,
        _: &mut StatusBuf<'_>,
    ) -> Result {
        let (count, word) = (args.len(), args.next());
        let (1, Some(word)) = (count, word) else {
            err!("era", "incorrect number of message arguments");
            return Err(EINVAL);
        };
        let this: Arc<Self> = this.into();
        let is = |name: &str| eq_ignore_case(bytes(word), name.as_bytes());
        if is("checkpoint") {
            this.checkpoint()
        } else if is("take_metadata_snap") {
            this.take_metadata_snap()
        } else if is("drop_metadata_snap") {
            this.drop_metadata_snap()
        } else {
            err!("era", "unsupported message '{}'", CStrDisplay(word));
            Err(EINVAL)
        }
    }

    fn iterate_devices(
        this: ArcBorrow<'_, Self>,
        visitor: &mut DeviceVisitor<'_>,
    ) -> Result<(), Stop> {
        visitor.visit(&this.origin, Sector(0), this.geometry.len())
    }

    fn io_hints(this: ArcBorrow<'_, Self>, limits: &mut Limits<'_>) {
        // The hint has 32 bits: give none for a larger block.
        let Some(block) = this.geometry.size().bytes() else {
            return;
        };
        let io_opt = limits.io_opt();
        if io_opt < block || io_opt.checked_rem(block) != Some(0) {
            limits.set_io_sizes(0, block);
        }
    }
}

impl EraTarget {
    /// Whether this table is the live one.
    ///
    /// The flag alone does not tell: if another target of the table cannot be resumed, this target
    /// stays resumed, and its table is replaced without a suspend.
    fn is_live(&self, state: &MetadataState) -> bool {
        self.live.load(Relaxed) && state.live() == Some(self.handle.table_id())
    }

    /// Prepares the metadata for a resume: opens or formats it, adapts it to changed sizes, and
    /// begins an era. May sleep.
    fn go_live(&self, state: &mut MetadataState) -> Result {
        let blocks = self.geometry.blocks();
        // A resize needs metadata that has just been opened.
        if state.open().is_some_and(|md| md.blocks() != blocks) {
            state.close();
        }
        let device = self.metadata.device();
        if self
            .metadata
            .open_or_format(state)?
            .extend_metadata(device)
            .is_err()
        {
            // The added space stays unused.
            state.close();
        }
        let step = |what| {
            move |error: Error| {
                err!("era", "era_preresume: {} failed", what);
                error
            }
        };
        let md = self.metadata.open_or_format(state)?;
        md.resize(blocks).map_err(step("metadata_resize"))?;
        md.begin_era_on_resume()
            .and_then(|()| md.commit())
            .map_err(step("metadata_era_rollover"))
    }

    /// Runs a step of the metadata as [`Metadata::run_step`] does, and raises a dm event if the
    /// metadata fails or works again. May sleep.
    fn run_step<R>(
        self: &Arc<Self>,
        state: &mut MetadataState,
        on_error: OnError,
        step: impl FnMut(&mut OpenMetadata) -> Result<R>,
    ) -> Result<R> {
        let before = state.is_failed();
        let metadata_opened = |era| self.metadata_opened(era);
        let result = self
            .metadata
            .run_step(state, on_error, metadata_opened, step);
        if state.is_failed() != before {
            let what = if before {
                "works again"
            } else {
                "failed: writes to blocks that are not marked yet will fail"
            };
            info!("era", "{}: the metadata {}", self.handle, what);
            self.handle.raise_event();
        }
        result
    }
}
