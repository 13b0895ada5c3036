// SPDX-License-Identifier: GPL-2.0

//! The persistent store on the COW device: reading it, adding records, marking it invalid.
//!
//! Order is what keeps it whole. A record follows its data, since it is written with a flush before
//! it. An area is cleared before the one before it is full. A header says that there is a store
//! when the first area is clear. Header and records have their own buffers.

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

/// As much of an area is held in memory, in sectors.
const WINDOW: u32 = 128;

/// Records of a sector.
// CAST: A small number.
const PER_SECTOR: u64 = 512 / RECORD_SIZE as u64;

/// See above. Used by one at a time.
pub(super) struct PersistentStore {
    layout: Layout,
    /// Sectors of a block of the device; zero if the store is transient.
    block_sectors: u32,
    /// Durable records.
    records: u64,
    /// A part of an area: that where the next record goes, or, in a merge, that of the last ones.
    window: Buffer,
    /// Its first record, if it is as on disk.
    window_start: Option<u64>,
    header: Buffer,
    /// A window of zeros.
    zeros: Buffer,
    /// On disk there is something behind the last record of its area, which must not come to life.
    has_stale_records: bool,
    /// The batch.
    batch: KVVec<Run>,
    /// The numbers of the records that do not count, as earlier ones have their chunks of the COW
    /// device; rising.
    ignored: KVVec<u64>,
    /// There are records that do not count, as earlier ones have their chunks of the origin.
    has_repeated_origins: bool,
    /// For a merge: the window without the records that are cleared.
    zeroed: Option<Buffer>,
    /// Records of the window, their first and behind their last, that could neither be cleared nor
    /// be written back.
    in_doubt: Option<(u64, u64)>,
}

/// Sectors of a window.
fn window_sectors(layout: Layout) -> u32 {
    layout.size().sectors().min(WINDOW)
}

impl PersistentStore {
    /// A store of which nothing is known yet, on a device with such blocks (in sectors). Sleeps.
    pub(super) fn new(layout: Layout, block: u32, batch: usize) -> Result<Self> {
        let window = if block == 0 { 0 } else { window_sectors(layout) };
        Ok(PersistentStore {
            layout,
            block_sectors:block,
            records: 0,
            window: Buffer::new(window)?,
            window_start: None,
            header: Buffer::new(block)?,
            zeros: Buffer::new(window)?,
            stale: false,
            batch: KVVec::with_capacity(batch, GFP_KERNEL)?,
            ignored: KVVec::new(),
            has_repeated_origins: false,
            zeroed: None,
            in_doubt: None,
        })
    }

    /// The batch to be committed, for its maker.
    pub(super) fn batch(&mut self) -> &mut KVVec<Run> {
        &mut self.batch
    }

    /// Durable records.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Records of a window.
    fn per_window(&self) -> NonZeroU64 {
        let records = u64::from(window_sectors(self.layout)).checked_mul(PER_SECTOR);
        records.and_then(NonZeroU64::new).unwrap_or(NonZeroU64::MIN)
    }

    /// The first record of the window that a record is in.
    fn window_of(&self, record: u64) -> u64 {
        record.saturating_sub(record % self.per_window())
    }

    /// The block that a sector is in, as sectors: its first one, and the one behind it.
    fn block_around(&self, sector: u64) -> (u64, u64) {
        let block = NonZeroU64::new(self.block_sectors.into()).unwrap_or(NonZeroU64::MIN);
        let first = sector.saturating_sub(sector % block);
        (first, first.saturating_add(block.get()))
    }

    /// The sector of a record.
    fn record_sector(&self, record: u64) -> Option<Sector> {
        let (area, slot) = self.layout.slot(record);
        let start = self.layout.size().cow_start(self.layout.area_location(area))?;
        start.checked_add(Sectors(slot / PER_SECTOR))
    }

    /// Writes the batch, durably. Sleeps for I/O.
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

    /// Writes the blocks of the window that have these records, behind all that was written before.
    fn write_records(&mut self, cow: &Device, io: &IoClient, first: u64, end: u64) -> Result {
        let (area, slot) = self.layout.slot(end);
        if slot == 0 {
            // The area is full: the list ends in the next one.
            let start = self.area_start(area)?;
            self.write_zeros(cow, io, start, self.layout.size().len())?;
        }
        self.write_window(cow, io, (first, end))
    }

    /// Writes the blocks of the window that have these records, behind all that was written before.
    fn write_window(&mut self, cow: &Device, io: &IoClient, slots: (u64, u64)) -> Result {
        let mut window = core::mem::take(&mut self.window);
        let result = self.write_buffer(cow, io, &mut window, slots);
        self.window = window;
        result
    }

    /// The same from another window.
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

    /// Whether there are records that do not count, as earlier ones have their chunks of the
    /// origin.
    pub(super) fn has_repeated_origins(&self) -> bool {
        self.has_repeated_origins
    }

    fn area_start(&self, number: u64) -> Result<Sector> {
        let start = self.layout.size().cow_start(self.layout.area_location(number));
        start.ok_or(EINVAL)
    }

    /// Writes zeros, with memory of our own: writes to origin and snapshot wait for it. Sleeps for
    /// I/O.
    fn write_zeros(&mut self, cow: &Device, io: &IoClient, start: Sector, len: Sectors) -> Result {
        let (mut at, mut left) = (start, len.0);
        while left != 0 {
            let most = window_sectors(self.layout);
            let piece = u32::try_from(left).map_or(most, |left| left.min(most));
            io.transfer_part(Transfer::Write, cow, at, &mut self.zeros, 0..piece)?;
            at = at.checked_add(Sectors(piece.into())).ok_or(EINVAL)?;
            left = left.saturating_sub(piece.into());
        }
        Ok(())
    }

    /// Clears what lies behind the last record of its area. The next record, which would let a
    /// reader go on to it, is written with a flush before it.
    fn zero_stale(&mut self, cow: &Device, io: &IoClient) -> Result {
        if !self.has_stale_records {
            return Ok(());
        }
        let (area, slot) = self.layout.slot(self.records);
        let size = self.layout.size();
        // The block of the record itself is written anyway.
        let (_, from) = self.block_around(slot / PER_SECTOR);
        let start = self.area_start(area)?;
        if let Some(len) = size.len().0.checked_sub(from) {
            let start = start.checked_add(Sectors(from)).ok_or(EINVAL)?;
            self.write_zeros(cow, io, start, Sectors(len))?;
        }
        self.has_stale_records = false;
        Ok(())
    }

    /// Says on disk that the store is lost, durably. Sleeps for I/O.
    pub(super) fn invalidate(&mut self, cow: &Device, io: &IoClient) -> Result {
        self.write_header(cow, io, false)
    }

    fn write_header(&mut self, cow: &Device, io: &IoClient, valid: bool) -> Result {
        if self.block_sectors == 0 {
            return Ok(());
        }
        let size = self.layout.size();
        let header = Header::Store { valid, size };
        header.encode(&mut self.header).ok_or(EINVAL)?;
        io.transfer(Transfer::WriteFlushFua, cow, Sector(0), &mut self.header)
    }

    /// Makes an empty store. Sleeps for I/O.
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
        // Until the header is written nobody reads the first area; and it comes after that, by its
        // flush.
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
