// SPDX-License-Identifier: GPL-2.0

//! The constructor of a clone: table line, devices, memory.

use super::{
    commit::CommitRuns,
    deferred::DeferredLists,
    metadata::Metadata,
    CloneTarget, //
};
use crate::{
    dm::{
        arguments::Arguments,
        device::{
            Access,
            Device, //
        },
        io::Buffer,
        pages::PagePool,
        target::{
            CtrError,
            OrMessage,
            TargetBuilder, //
        }, //
    },
    logic::{
        clone::{
            geometry::{
                Geometry,
                RegionSize,
                TooManyRegions, //
            },
            hydration::Hydration,
            options::Options,
            region_copy::{
                ReadyCopies,
                MAX_SEGMENT, //
            },
            slots::SLOTS, //
        },
        units::Sectors, //
    },
    sys::{
        irq_lock::new_irq_lock,
        log::warning,
        pool::Pool,
        queue::QueueKind,
        string::bytes,
        wait::new_wait_queue, //
    },
    targets::shared_metadata::SharedMetadata, //
};
use kernel::{
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        atomic::Atomic,
        Arc, //
    },
    workqueue::{
        new_delayed_work,
        new_work, //
    }, //
};

/// The space map cannot use all blocks of a metadata device above this size.
const METADATA_WARN: Sectors = Sectors(33_554_432);

/// The part of such a device that the space map can use.
const METADATA_USABLE: Sectors = Sectors(255 * 16_320 * 8);

/// Segments whose contexts can be allocated even without free memory.
const SEGMENT_RESERVE: u16 = 64;

/// Maximum amount of data in flight between the source and the destination.
const COPY_MEMORY: Sectors = Sectors(64 << 11);

/// Sectors of zeros per write, for a destination that cannot zero sectors itself.
const ZEROS: u32 = 128;

/// The devices of a table line.
struct Devices {
    metadata: Device,
    destination: Device,
    source: Device,
}

impl Devices {
    /// Opens the devices that the first arguments name. May sleep.
    fn open(builder: &mut TargetBuilder<'_>, args: &mut Arguments<'_>) -> Result<Self, CtrError> {
        let few = CtrError::new(c"Invalid number of arguments", EINVAL);
        if args.len() < 4 {
            return Err(few);
        }
        let (Some(metadata), Some(destination), Some(source)) =
            (args.next(), args.next(), args.next())
        else {
            return Err(few);
        };
        let metadata = builder
            .open(metadata, Access::ReadWrite)
            .or_message(c"Error opening metadata device")?;
        if metadata.sectors() > METADATA_WARN {
            warning!(
                "clone",
                "Metadata device {} is larger than {} sectors: excess space will not be used.",
                metadata.disk_name(),
                METADATA_USABLE
            );
        }
        let destination = builder
            .open(destination, Access::ReadWrite)
            .or_message(c"Error opening destination device")?;
        let source = builder
            .open(source, Access::Read)
            .or_message(c"Error opening source device")?;
        Ok(Devices {
            metadata,
            destination,
            source,
        })
    }

    /// Checks that regions consist of whole logical blocks.
    fn check_region_size(&self, region_size: RegionSize) -> Result<(), CtrError> {
        for device in [&self.source, &self.destination] {
            let block =
                Sectors(u64::from(device.logical_block_size()) >> kernel::block::SECTOR_SHIFT);
            if !region_size.is_multiple_of(block) {
                let text = c"Region size is not a multiple of device logical block size";
                return Err(CtrError::new(text, EINVAL));
            }
        }
        Ok(())
    }

    /// Checks that the metadata device is not one of the other devices.
    ///
    /// The C target accepts such a line, and formats or fills one device over the data of the
    /// other.
    fn check_metadata_device(&self) -> Result<(), CtrError> {
        for (device, text) in [
            (
                &self.destination,
                c"Metadata device and destination device are the same",
            ),
            (
                &self.source,
                c"Metadata device and source device are the same",
            ),
        ] {
            if device.number() == self.metadata.number() {
                return Err(CtrError::new(text, EBUSY));
            }
        }
        Ok(())
    }
}

/// Builds a target from its table line. May sleep.
///
/// C counterpart: `clone_ctr()`.
pub(super) fn ctr(
    builder: &mut TargetBuilder<'_>,
    all: &Arc<SharedMetadata<Metadata>>,
    mut args: Arguments<'_>,
) -> Result<Arc<CloneTarget>, CtrError> {
    let devices = Devices::open(builder, &mut args)?;
    let echo = CString::try_from_fmt(fmt!("{}", args))
        .or_message(c"Failed to allocate memory for table line")?;
    let mut args = args.map(bytes);
    let region_size = args
        .next()
        .ok_or(c"Invalid region size")
        .and_then(RegionSize::parse)
        .map_err(|text| CtrError::new(text, EINVAL))?;
    devices.check_region_size(region_size)?;
    let geometry = Geometry::new(region_size, builder.len()).or_message(TooManyRegions::TEXT)?;
    let options =
        Options::parse(&mut args).map_err(|error| CtrError::new(error.message, error.error))?;
    devices.check_metadata_device()?;
    let Devices {
        metadata: metadata_device,
        destination,
        source,
    } = devices;

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
