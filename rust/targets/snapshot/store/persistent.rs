// SPDX-License-Identifier: GPL-2.0

//! The persistent store on the COW device: it adds records, and marks the store invalid.
//!
//! The order of writes keeps the store consistent whenever power fails:
//!
//! - Data is durable before its record: the device is flushed before each batch of records.
//! - The areas of a batch, and the next one, are zeroed before that flush.
//! - The header is written after the first area was zeroed.
//!
//! Header and records have their own buffers, so that writing needs no memory.
//!
//! C counterpart: `struct pstore` in `drivers/md/dm-snap-persistent.c`.

mod commit;
mod load;
mod merge;

use crate::{
    dm::{
        device::Device,
        io::{
            Buffer,
            IoClient,
            ParallelWrites,
            PartWrite,
            Transfer, //
        }, //
    },
    logic::{
        snapshot::{
            header::Header,
            layout::Layout,
            record::RECORD_SIZE,
            record_batch::ZeroedAreas,
            run::Run, //
        },
        units::{
            Sector,
            Sectors, //
        }, //
    },
    sys::log::warning, //
};
use core::num::NonZeroU64;
use kernel::prelude::*;
pub(crate) use merge::RecordRange;

/// The maximum size of a window, and the size of the buffer for a batch, in sectors.
const WINDOW: u32 = 128;

/// The number of records in a sector.
// CAST: `RECORD_SIZE` is 16.
const PER_SECTOR: u64 = 512 / RECORD_SIZE as u64;

/// A persistent store on a COW device.
///
/// The store of a transient snapshot has one too, which writes nothing.
pub(super) struct PersistentStore {
    layout: Layout,
    /// The size of a block of the COW device in sectors, zero if the store is transient.
    block_sectors: u32,
    /// The number of durable records.
    records: u64,
    /// The block that has the next record, as on disk.
    tail: Buffer,
    /// The blocks of a batch.
    blocks: Buffer,
    header: Buffer,
    /// Zeros, as large as a window.
    zeros: Buffer,
    parallel: ParallelWrites,
    /// The writes that `parallel` performs.
    parts: KVVec<PartWrite>,
    zeroed: ZeroedAreas,
    /// The number of records of the last batch.
    last_batch: u64,
    /// The area of the last record has data after it, which must not become records.
    has_stale_records: bool,
    /// The exceptions that [`commit_batch`](Self::commit_batch) writes.
    batch: KVVec<Run>,
    /// The numbers of records that are ignored because an earlier record has their chunk of the COW
    /// device, in ascending order.
    ignored: KVVec<u64>,
    /// Some records are ignored because an earlier record has their chunk of the origin.
    has_repeated_origins: bool,
    /// For a merge: the part of an area that has the last records. Empty once records were
    /// committed.
    window: Buffer,
    /// The number of the first record of `window`, if it is as on disk.
    window_start: Option<u64>,
    /// A copy of the window in which records are zeroed.
    zeroed_window: Option<Buffer>,
    /// The first record, and the one after the last, of those that a merge could neither zero nor
    /// write back. `window` has them as they were.
    in_doubt: Option<(u64, u64)>,
}

/// Returns the size of the window in sectors.
fn window_sectors(layout: Layout) -> u32 {
    layout.size().sectors().min(WINDOW)
}

impl PersistentStore {
    /// Makes a store for a device with blocks of `block` sectors, zero for a transient store. A
    /// batch has up to `batch` exceptions. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new(layout: Layout, block: u32, batch: usize) -> Result<Self> {
        let (blocks, window, parts) = if block == 0 {
            (0, 0, 0)
        } else {
            // A part has at least a sector.
            (WINDOW.max(block), window_sectors(layout), WINDOW)
        };
        Ok(PersistentStore {
            layout,
            block_sectors: block,
            records: 0,
            tail: Buffer::new(block)?,
            blocks: Buffer::new(blocks)?,
            header: Buffer::new(block)?,
            zeros: Buffer::new(window)?,
            parallel: ParallelWrites::new()?,
            parts: KVVec::with_capacity(usize::try_from(parts)?, GFP_KERNEL)?,
            zeroed: ZeroedAreas::new(layout, 0),
            last_batch: 0,
            has_stale_records: false,
            batch: KVVec::with_capacity(batch, GFP_KERNEL)?,
            ignored: KVVec::new(),
            has_repeated_origins: false,
            window: Buffer::default(),
            window_start: None,
            zeroed_window: None,
            in_doubt: None,
        })
    }

    /// Returns the list of exceptions for the next batch, to be filled.
    pub(super) fn batch(&mut self) -> &mut KVVec<Run> {
        &mut self.batch
    }

    /// Returns the number of durable records.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Returns the number of records in a window.
    fn per_window(&self) -> NonZeroU64 {
        let records = u64::from(window_sectors(self.layout)).checked_mul(PER_SECTOR);
        records.and_then(NonZeroU64::new).unwrap_or(NonZeroU64::MIN)
    }

    /// Returns the first record of the window that a record is in.
    fn window_of(&self, record: u64) -> u64 {
        record.wrapping_sub(record % self.per_window())
    }

    /// Returns the first sector of the block that a sector is in, and the one after the last.
    fn block_around(&self, sector: u64) -> (u64, u64) {
        let block = NonZeroU64::new(self.block_sectors.into()).unwrap_or(NonZeroU64::MIN);
        let first = sector.wrapping_sub(sector % block);
        (first, first.wrapping_add(block.get()))
    }

    /// Returns the sector that a record is in.
    fn record_sector(&self, record: u64) -> Option<Sector> {
        let (area, slot) = self.layout.slot(record);
        let start = self
            .layout
            .size()
            .cow_start(self.layout.area_location(area))?;
        start.checked_add(Sectors(slot / PER_SECTOR))
    }

    /// Returns whether records are ignored because an earlier record has their chunk of the origin.
    pub(super) fn has_repeated_origins(&self) -> bool {
        self.has_repeated_origins
    }

    /// Returns the first sector of an area.
    fn area_start(&self, number: u64) -> Result<Sector> {
        let start = self
            .layout
            .size()
            .cow_start(self.layout.area_location(number));
        start.ok_or(EINVAL)
    }

    /// Marks the store invalid on disk, durably. May sleep.
    ///
    /// C counterpart: `persistent_drop_snapshot()`.
    ///
    /// # Errors
    ///
    /// Those of the I/O.
    pub(super) fn invalidate(&mut self, cow: &Device, io: &IoClient) -> Result {
        self.write_header(cow, io, false)
    }

    /// Writes the header, durably.
    fn write_header(&mut self, cow: &Device, io: &IoClient, valid: bool) -> Result {
        if self.block_sectors == 0 {
            return Ok(());
        }
        let size = self.layout.size();
        let header = Header::Store { valid, size };
        header.encode(&mut self.header).ok_or(EINVAL)?;
        io.transfer(Transfer::WriteFlushFua, cow, Sector(0), &mut self.header)
    }

    /// Makes an empty store on disk. May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` if the COW device is too small, else those of the I/O.
    pub(super) fn format(&mut self, cow: &Device, io: &IoClient) -> Result {
        let size = self.layout.size().len();
        if cow.sectors() < size {
            return Err(EIO);
        }
        self.records = 0;
        self.tail.fill(0);
        self.zeroed = ZeroedAreas::new(self.layout, 0);
        self.window_start = None;
        self.ignored.clear();
        self.has_stale_records = false;
        self.has_repeated_origins = false;
        self.in_doubt = None;
        // The header makes the first area part of the store, and its flush orders it after the
        // zeros.
        let area = cow
            .zero(Sector(0), size)
            .and_then(|()| cow.zero(self.area_start(0)?, size));
        if let Err(error) = area {
            warning!("persistent snapshot", "zero_disk_area(0) failed");
            return Err(error);
        }
        self.write_header(cow, io, true).inspect_err(|_| {
            warning!("persistent snapshot", "write_header failed");
        })
    }
}
