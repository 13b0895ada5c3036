// SPDX-License-Identifier: GPL-2.0

//! The constructor of a snapshot: table line, devices and store. C counterpart: `snapshot_ctr`.

use super::{
    group::{
        CopyQueue,
        Membership,
        Origins,
        Reservation, //
    },
    store::{
        CowStore,
        StoreState, //
    },
    submitter::BioSubmitter,
    SnapshotTarget, //
};
use crate::{
    dm::{
        arguments::Arguments,
        bio::BioQueue,
        device::{
            Access,
            Device, //
        },
        io::{
            Buffer,
            IoClient,
            Transfer, //
        },
        target::{
            CtrError,
            OrMessage,
            TargetBuilder, //
        }, //
    },
    logic::{
        args::ArgumentError,
        snapshot::{
            chunks::ChunkSize,
            handover::HandoverState,
            header::{
                ChunkSizeOverride,
                Header,
                HeaderError, //
            },
            options::{
                BlockSizes,
                Features,
                Options,
                StoreKind,
                NO_CHUNK_SIZE,
                NO_STORE, //
            }, //
        },
        units::{
            Sector,
            SECTOR_SHIFT, //
        }, //
    },
    sys::{
        irq_lock::new_irq_lock,
        log::{
            err,
            warning, //
        },
        string::bytes, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::Atomic,
        Arc, //
    },
    workqueue::new_work, //
};

const NO_MERGE: &CStr = c"Snapshot exception store does not support snapshot-merge.";
const NO_MEMORY: &CStr = c"Cannot allocate private snapshot structure";

impl SnapshotTarget {
    /// Makes a snapshot, or the snapshot inside of a merge. The caller drops the reservation when
    /// the target is complete. May sleep for I/O.
    ///
    /// The order of the checks decides which error a table line with several mistakes gets.
    pub(super) fn construct(
        builder: &mut TargetBuilder<'_>,
        origins: &Arc<Origins>,
        mut args: Arguments<'_>,
        is_merged: bool,
    ) -> Result<(Arc<Self>, Reservation), CtrError> {
        let (4.., Some(origin), Some(cow), Some(kind), Some(size)) = (
            args.len(),
            args.next(),
            args.next(),
            args.next(),
            args.next(),
        ) else {
            return Err(CtrError::new(c"requires 4 or more arguments", EINVAL));
        };
        let mut rest = args.map(bytes);
        let features = Features::parse(&mut rest).map_err(refused)?;
        if rest.next().is_some() {
            warning!("snapshots", "extra arguments are ignored");
        }

        let (origin, cow) = open_devices(builder, origin, cow, is_merged)?;
        let blocks = BlockSizes {
            cow: cow.logical_block_size(),
            origin: origin.logical_block_size(),
        };
        let options =
            Options::parse(bytes(kind), bytes(size), blocks, features).map_err(|reason| {
                err!("snapshots", "{}", reason);
                refused(NO_STORE)
            })?;
        if is_merged && !options.store.can_merge() {
            return Err(CtrError::new(NO_MERGE, EINVAL));
        }

        let membership = Membership::new(builder, origins, origin.number())
            .or_message(c"Snapshot origin struct allocation failed")?;
        let group = membership.group().clone();
        let (source, reservation) = origins.reserve_cow(&group, cow.number(), is_merged)?;
        let io = builder.io_client().or_message(NO_MEMORY)?;
        let begin = builder.begin();
        let (store, handover_state) = match source {
            Some(store) => {
                if is_merged && !store.is_persistent() {
                    return Err(CtrError::new(NO_MERGE, EINVAL));
                }
                check_begin(begin, store.chunk_size())?;
                (store, HandoverState::Destination)
            }
            None => {
                let store = open_store(&cow, &io, &options, blocks, begin)?;
                (store, HandoverState::New)
            }
        };

        let submitter = BioSubmitter::new(cow.shared()).or_message(NO_MEMORY)?;
        let copies = CopyQueue::new(builder).or_message(NO_MEMORY)?;
        ask_for_bios(builder, features, is_merged);
        let (handle, len) = (builder.handle(), builder.len());
        let this = Arc::pin_init(
            pin_init!(SnapshotTarget {
                group,
                store,
                io,
                origin,
                cow,
                handle,
                begin,
                len,
                options,
                is_merged,
                handover_state: Atomic::new(handover_state.to_bits()),
                submitter,
                copies,
                deferred <- new_irq_lock!(BioQueue::new(), "dm_snap_deferred"),
                full_chunk_writes <- new_irq_lock!(BioQueue::new(), "dm_snap_full_chunk_writes"),
                committer <- new_work!("dm_snap_committer"),
            }),
            GFP_KERNEL,
        )
        .or_message(NO_MEMORY)?;
        this.group.add_snapshot(&this).or_message(NO_MEMORY)?;
        membership.keep();
        Ok((this, reservation))
    }
}

/// Opens the origin and the COW device.
fn open_devices(
    builder: &TargetBuilder<'_>,
    origin: &CStr,
    cow: &CStr,
    is_merged: bool,
) -> Result<(Device, Device), CtrError> {
    let access = if is_merged {
        Access::ReadWrite
    } else {
        Access::Read
    };
    let origin = builder
        .open(origin, access)
        .or_message(c"Cannot get origin device")?;
    let cow = builder
        .open(cow, builder.access())
        .or_message(c"Cannot get COW device")?;
    if cow.number() == origin.number() {
        let text = c"COW device cannot be the same as origin device";
        return Err(CtrError::new(text, EINVAL));
    }
    Ok((origin, cow))
}

/// Asks device-mapper for flushes and discards: one bio for each device that gets them.
fn ask_for_bios(builder: &mut TargetBuilder<'_>, features: Features, is_merged: bool) {
    builder.pass_flushes(if is_merged { 2 } else { 1 });
    match (
        features.discard_zeroes_cow,
        features.discard_passdown_origin,
    ) {
        (true, true) => builder.split_discards(2),
        (true, false) => builder.split_discards(1),
        _ => {}
    }
}

/// Loads the store of a COW device, or makes a new one. May sleep for I/O.
fn open_store(
    cow: &Device,
    io: &IoClient,
    options: &Options,
    blocks: BlockSizes,
    begin: Sector,
) -> Result<Arc<CowStore>, CtrError> {
    let unreadable = c"Failed to read snapshot metadata";
    let Some(size) = options.first_chunk_size(blocks) else {
        return Err(refused(NO_CHUNK_SIZE));
    };
    let memory = c"Unable to allocate hash table space";
    if options.store == StoreKind::Transient {
        check_begin(begin, size)?;
        return CowStore::new(false, size, 0).or_message(memory);
    }
    let (header, found) = read_header(cow, io, options, size, blocks).or_message(unreadable)?;
    check_begin(begin, found)?;
    let store = CowStore::new(true, found, sectors(blocks.cow)).or_message(memory)?;
    match header {
        Header::Blank => store.format(cow, io).or_message(unreadable)?,
        Header::Store { valid: false, .. } => {
            warning!("snapshots", "Snapshot is marked invalid.");
            store.set_state(StoreState::Invalid);
        }
        Header::Store { .. } => store.load(cow).or_message(unreadable)?,
    }
    Ok(store)
}

/// Refuses a target that does not begin at a chunk boundary of the origin: device-mapper splits
/// bios at chunk boundaries of the target.
fn check_begin(begin: Sector, size: ChunkSize) -> Result<(), CtrError> {
    if size.offset(begin).is_zero() {
        return Ok(());
    }
    let text = c"Target does not begin at a multiple of the chunk size";
    Err(CtrError::new(text, EINVAL))
}

/// Reads the header of a COW device; returns it and the chunk size. May sleep for I/O.
///
/// The device is flushed first. Its volatile cache may hold records whose write was reported as
/// failed. Once they are loaded, origin writes rely on them: without the flush a power cut could
/// drop the records, and keep those writes.
///
/// # Errors
///
/// `EIO` if the device is too small or cannot be read; otherwise that of the header. C counterpart:
/// `read_header`.
pub(super) fn read_header(
    cow: &Device,
    io: &IoClient,
    options: &Options,
    size: ChunkSize,
    blocks: BlockSizes,
) -> Result<(Header, ChunkSize)> {
    if cow.sectors() < size.len() {
        return Err(EIO);
    }
    cow.flush()?;
    let mut buffer = Buffer::new(sectors(blocks.cow))?;
    io.transfer(Transfer::Read, cow, Sector(0), &mut buffer)?;
    if let Some(requested) = options.chunk_size {
        if let Some(other) = ChunkSizeOverride::find(&buffer, requested) {
            warning!("persistent snapshot", "{}", other);
        }
    }
    let header = Header::parse(&buffer, size, blocks).map_err(|invalid| {
        if matches!(invalid, HeaderError::ChunkSize { .. }) {
            err!("persistent snapshot", "{}", invalid);
        } else {
            warning!("persistent snapshot", "{}", invalid);
        }
        Error::from(invalid)
    })?;
    match header {
        Header::Store { size, .. } => Ok((header, size)),
        Header::Blank => Ok((header, size)),
    }
}

/// The size of a block in sectors; at least one.
fn sectors(bytes: u32) -> u32 {
    (bytes >> SECTOR_SHIFT).max(1)
}

/// The error of device-mapper for a refused argument.
fn refused(error: ArgumentError) -> CtrError {
    CtrError::new(error.message, error.error)
}
