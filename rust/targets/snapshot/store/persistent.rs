// SPDX-License-Identifier: GPL-2.0

//! The persistent store on the COW device: it adds records, and marks the store invalid.
//!
//! The order of writes keeps the store consistent whenever power fails:
//!
//! - Data is durable before its record: each write of records flushes the device first.
//! - The next area is zeroed before the last record of an area is written.
//! - The header is written after the first area was zeroed.
//!
//! Header and records have their own buffers, so that writing needs no memory.
//!
//! C counterpart: `struct pstore` in `drivers/md/dm-snap-persistent.c`.

mod load;
mod merge;

use crate::{
    dm::{
        device::Device,
        io::{
            Buffer,
            IoClient,
            Transfer, //
        }, //
    },
    logic::{
        snapshot::{
            chunks::{
                Chunk,
                CowChunk, //
            },
            header::Header,
            layout::Layout,
            record::{
                Record,
                RECORD_SIZE, //
            },
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

/// The maximum size of the window in sectors.
const WINDOW: u32 = 128;

/// The number of records in a sector.
// CAST: `RECORD_SIZE` is 16.
const PER_SECTOR: u64 = 512 / RECORD_SIZE as u64;

/// A persistent store on a COW device. One window of its records is held in memory.
///
/// The store of a transient snapshot has one too, which writes nothing.
pub(super) struct PersistentStore {
    layout: Layout,
    /// The size of a block of the COW device in sectors, zero if the store is transient.
    block_sectors: u32,
    /// The number of durable records.
    records: u64,
    /// The part of an area that has the next record, or, in a merge, the last records.
    window: Buffer,
    /// The number of the first record of `window`, if it is as on disk.
    window_start: Option<u64>,
    header: Buffer,
    /// Zeros, as large as the window.
    zeros: Buffer,
    /// The area of the last record has data after it, which must not become records.
    has_stale_records: bool,
    /// The exceptions that [`commit_batch`](Self::commit_batch) writes.
    batch: KVVec<Run>,
    /// The numbers of records that are ignored because an earlier record has their chunk of the COW
    /// device, in ascending order.
    ignored: KVVec<u64>,
    /// Some records are ignored because an earlier record has their chunk of the origin.
    has_repeated_origins: bool,
    /// For a merge: a copy of the window in which records are zeroed.
    zeroed: Option<Buffer>,
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
        let window = if block == 0 {
            0
        } else {
            window_sectors(layout)
        };
        Ok(PersistentStore {
            layout,
            block_sectors: block,
            records: 0,
            window: Buffer::new(window)?,
            window_start: None,
            header: Buffer::new(block)?,
            zeros: Buffer::new(window)?,
            has_stale_records: false,
            batch: KVVec::with_capacity(batch, GFP_KERNEL)?,
            ignored: KVVec::new(),
            has_repeated_origins: false,
            zeroed: None,
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

    /// Writes the records of the batch, durably. May sleep.
    ///
    /// C counterpart: `persistent_commit_exception()`.
    ///
    /// # Errors
    ///
    /// Those of the I/O. Then it is unknown which records are on disk.
    pub(super) fn commit_batch(&mut self, cow: &Device, io: &IoClient) -> Result {
        if self.block_sectors == 0 {
            return Ok(());
        }
        self.zero_stale(cow, io)?;
        self.window_start = None;
        let mut next = self.records;
        let mut first = next;
        let runs = core::mem::take(&mut self.batch);
        let result: Result = runs.iter().try_for_each(|run| {
            for offset in 0..run.len {
                let record = Record {
                    old: Chunk(run.old.0.wrapping_add(offset)),
                    new: CowChunk(run.new.0.wrapping_add(offset)),
                };
                let slot = next % self.per_window();
                record.put(&mut self.window, slot).ok_or(EINVAL)?;
                next = next.wrapping_add(1);
                if next % self.per_window() == 0 {
                    self.write_records(cow, io, first, next)?;
                    self.window.fill(0);
                    first = next;
                }
            }
            Ok(())
        });
        self.batch = runs;
        result?;
        if first != next {
            self.write_records(cow, io, first, next)?;
        }
        self.records = next;
        self.window_start = Some(self.window_of(next));
        Ok(())
    }

    /// Writes the records from `first` up to `end`, and zeroes the next area first if `end` fills
    /// one.
    fn write_records(&mut self, cow: &Device, io: &IoClient, first: u64, end: u64) -> Result {
        let (area, slot) = self.layout.slot(end);
        if slot == 0 {
            // The list of records has to end somewhere: in the next area.
            let start = self.area_start(area)?;
            self.write_zeros(cow, io, start, self.layout.size().len())?;
        }
        self.write_window(cow, io, (first, end))
    }

    /// Writes the blocks of the window that have the records `slots`, after a flush of the device.
    fn write_window(&mut self, cow: &Device, io: &IoClient, slots: (u64, u64)) -> Result {
        let mut window = core::mem::take(&mut self.window);
        let result = self.write_buffer(cow, io, &mut window, slots);
        self.window = window;
        result
    }

    /// Does the same as [`write_window`](Self::write_window) with another buffer.
    fn write_buffer(
        &self,
        cow: &Device,
        io: &IoClient,
        window: &mut Buffer,
        (first, end): (u64, u64),
    ) -> Result {
        let base = self.window_of(first);
        let sector = |record: u64| record.saturating_sub(base) / PER_SECTOR;
        let (from, _) = self.block_around(sector(first));
        let (_, to) = self.block_around(sector(end.saturating_sub(1)));
        let start = self
            .record_sector(base)
            .and_then(|it| it.checked_add(Sectors(from)));
        let part = u32::try_from(from)?..u32::try_from(to)?;
        let start = start.ok_or(EINVAL)?;
        io.transfer_part(Transfer::WriteFlushFua, cow, start, window, part)
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

    /// Writes zeros from the store's own buffer: writes to the origin and to the snapshot wait for
    /// this, so it must not allocate memory.
    fn write_zeros(&mut self, cow: &Device, io: &IoClient, start: Sector, len: Sectors) -> Result {
        let (mut at, mut left) = (start, len.0);
        while left != 0 {
            let most = window_sectors(self.layout);
            let piece = u32::try_from(left).map_or(most, |left| left.min(most));
            io.transfer_part(Transfer::Write, cow, at, &mut self.zeros, 0..piece)?;
            at = at.checked_add(Sectors(piece.into())).ok_or(EINVAL)?;
            left = left.wrapping_sub(piece.into());
        }
        Ok(())
    }

    /// Zeroes what follows the last record in its area. This is durable before the next record,
    /// which would make it part of the list.
    fn zero_stale(&mut self, cow: &Device, io: &IoClient) -> Result {
        if !self.has_stale_records {
            return Ok(());
        }
        let (area, slot) = self.layout.slot(self.records);
        let size = self.layout.size();
        // The block of the next record is written with it.
        let (_, from) = self.block_around(slot / PER_SECTOR);
        let start = self.area_start(area)?;
        if let Some(len) = size.len().0.checked_sub(from) {
            let start = start.checked_add(Sectors(from)).ok_or(EINVAL)?;
            self.write_zeros(cow, io, start, Sectors(len))?;
        }
        self.has_stale_records = false;
        Ok(())
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
        self.window_start = None;
        self.window.fill(0);
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
