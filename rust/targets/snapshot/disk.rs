// SPDX-License-Identifier: GPL-2.0

//! The persistent store on the COW device: reading it, adding records, marking it invalid.
//!
//! Order is what keeps it whole. A record follows its data, since it is written with a flush before it. An area is cleared
//! before the one before it is full. A header says that there is a store when the first area is clear. Header and records
//! have their own buffers.

use crate::{
    dm::{
        device::Device,
        io::{
            Buffer,
            IoClient,
            Transfer, //
        },
        reader::Reader, //
    },
    logic::{
        snapshot::{
            area::{
                Failure,
                Fed,
                Loader,
                Record,
                RECORD, //
            },
            chunks::{
                Chunk,
                CowChunk, //
            },
            extents::Run,
            header::Header,
            layout::{
                Allocator,
                Layout, //
            }, //
        },
        units::{
            Sector,
            Sectors, //
        }, //
    },
    sys::log::{
        err,
        warning, //
    }, //
};
use core::num::NonZeroU64;
use kernel::prelude::*;

/// As much of an area is held in memory, in sectors.
const WINDOW: u32 = 128;

/// Records of a sector.
// CAST: A small number.
const PER_SECTOR: u64 = 512 / RECORD as u64;

/// See above. Used by one at a time.
pub(super) struct Disk {
    layout: Layout,
    /// Sectors of a block of the device; zero if the store is transient.
    block: u32,
    /// Durable records.
    records: u64,
    /// The part of an area where the next record goes.
    window: Buffer,
    header: Buffer,
    /// On disk there is something behind the last record of its area, which must not come to life.
    stale: bool,
    /// The batch.
    runs: KVVec<Run>,
}

impl Disk {
    /// A store of which nothing is known yet, on a device with such blocks (in sectors). Sleeps.
    pub(super) fn new(layout: Layout, block: u32, batch: usize) -> Result<Self> {
        let window = layout.size().sectors().min(WINDOW);
        Ok(Disk {
            layout,
            block,
            records: 0,
            window: Buffer::new(if block == 0 { 0 } else { window })?,
            header: Buffer::new(block)?,
            stale: false,
            runs: KVVec::with_capacity(batch, GFP_KERNEL)?,
        })
    }

    /// The batch to be committed, for its maker.
    pub(super) fn batch(&mut self) -> &mut KVVec<Run> {
        &mut self.runs
    }

    /// Durable records.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Records of a window.
    fn per_window(&self) -> NonZeroU64 {
        // CAST: usize has at most 64 bits.
        NonZeroU64::new((self.window.len() / RECORD) as u64).unwrap_or(NonZeroU64::MIN)
    }

    /// The block that a sector is in, as sectors: its first one, and the one behind it.
    fn block(&self, sector: u64) -> (u64, u64) {
        let block = NonZeroU64::new(self.block.into()).unwrap_or(NonZeroU64::MIN);
        let first = sector.saturating_sub(sector % block);
        (first, first.saturating_add(block.get()))
    }

    /// The sector of a record.
    fn sector(&self, record: u64) -> Option<Sector> {
        let (area, slot) = self.layout.slot(record);
        let start = self.layout.size().cow_start(self.layout.area(area))?;
        start.checked_add(Sectors(slot / PER_SECTOR))
    }

    /// Writes the batch, durably. Sleeps for I/O.
    pub(super) fn commit(&mut self, cow: &Device, io: &IoClient) -> Result {
        if self.block == 0 {
            return Ok(());
        }
        self.clear_stale(cow)?;
        let mut next = self.records;
        let mut first = next;
        let runs = core::mem::take(&mut self.runs);
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
                    self.write(cow, io, first, next)?;
                    self.window.fill(0);
                    first = next;
                }
            }
            Ok(())
        });
        self.runs = runs;
        result?;
        if first != next {
            self.write(cow, io, first, next)?;
        }
        self.records = next;
        Ok(())
    }

    /// Writes the blocks of the window that have these records, behind all that was written before.
    fn write(&mut self, cow: &Device, io: &IoClient, first: u64, end: u64) -> Result {
        let (area, slot) = self.layout.slot(end);
        if slot == 0 {
            // The area is full: the list ends in the next one.
            self.zero_area(area, cow)?;
        }
        let base = first.saturating_sub(first % self.per_window());
        let sector = |record: u64| record.saturating_sub(base) / PER_SECTOR;
        let (from, _) = self.block(sector(first));
        let (_, to) = self.block(sector(end.saturating_sub(1)));
        let start = self
            .sector(base)
            .and_then(|it| it.checked_add(Sectors(from)));
        let part = u32::try_from(from)?..u32::try_from(to)?;
        io.transfer_part(
            Transfer::WriteFlushFua,
            cow,
            start.ok_or(EINVAL)?,
            &mut self.window,
            part,
        )
    }

    fn zero_area(&self, area: u64, cow: &Device) -> Result {
        let size = self.layout.size();
        let start = size.cow_start(self.layout.area(area)).ok_or(EINVAL)?;
        cow.zero(start, size.len())
    }

    /// Clears what lies behind the last record of its area. The next record, which would let a reader go on to it, is written
    /// with a flush before it.
    fn clear_stale(&mut self, cow: &Device) -> Result {
        if !self.stale {
            return Ok(());
        }
        let (area, slot) = self.layout.slot(self.records);
        let size = self.layout.size();
        // The block of the record itself is written anyway.
        let (_, from) = self.block(slot / PER_SECTOR);
        let start = size.cow_start(self.layout.area(area)).ok_or(EINVAL)?;
        if let Some(len) = size.len().0.checked_sub(from).filter(|len| *len != 0) {
            cow.zero(
                start.checked_add(Sectors(from)).ok_or(EINVAL)?,
                Sectors(len),
            )?;
        }
        self.stale = false;
        Ok(())
    }

    /// Says on disk that the store is lost, durably. Sleeps for I/O.
    pub(super) fn invalidate(&mut self, cow: &Device, io: &IoClient) -> Result {
        self.write_header(cow, io, false)
    }

    fn write_header(&mut self, cow: &Device, io: &IoClient, valid: bool) -> Result {
        if self.block == 0 {
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
        self.stale = false;
        self.window.fill(0);
        // Until the header is written nobody reads the first area; and it comes after that, by its flush.
        let area = cow
            .zero(Sector(0), size)
            .and_then(|()| self.zero_area(0, cow));
        if let Err(error) = area {
            warning!("persistent snapshot", "zero_disk_area(0) failed");
            return Err(error);
        }
        self.write_header(cow, io, true).inspect_err(|_| {
            warning!("persistent snapshot", "write_header failed");
        })
    }

    /// Reads all records, and passes on what they map, in their order. Gives what is free. Sleeps for I/O.
    pub(super) fn load(
        &mut self,
        cow: &Device,
        mut sink: impl FnMut(Run) -> Result,
    ) -> Result<Allocator> {
        let (layout, end) = (self.layout, cow.sectors());
        let piece = layout.size().sectors().min(WINDOW);
        let pieces = layout.size().sectors().checked_div(piece);
        let pieces = NonZeroU64::new(pieces.unwrap_or(0).into()).ok_or(EINVAL)?;
        // The pieces of all areas, one behind the other.
        let place = |number: u64| -> Option<Sector> {
            let (area, offset) = (number / pieces, number % pieces);
            let start = layout.size().cow_start(layout.area(area))?;
            let start = start.checked_add(Sectors(offset.checked_mul(piece.into())?))?;
            layout.holds(area, end).then_some(start)
        };
        let mut reader = Reader::new(cow, piece, place)?;
        let mut loader = Loader::new(layout, end);
        let mut number = 0u64;
        let mut stale = loop {
            let Some(bytes) = reader.next()? else {
                err!(
                    "persistent snapshot",
                    "the area behind exception {} is not on the COW device",
                    loader.records()
                );
                return Err(EIO);
            };
            number = number.saturating_add(1);
            match loader.feed(bytes, &mut sink) {
                Ok(Fed::More) => {}
                Ok(Fed::End { stale }) => {
                    for (to, from) in self.window.iter_mut().zip(bytes) {
                        *to = *from;
                    }
                    break stale;
                }
                Err(failure) => {
                    if let Failure::Bad(bad) = &failure {
                        err!("persistent snapshot", "{}", bad);
                    }
                    return Err(failure.into());
                }
            }
        };
        // The rest of the area.
        while number % pieces != 0 {
            let bytes = reader.next()?.ok_or(EIO)?;
            stale |= bytes.iter().any(|byte| *byte != 0);
            number = number.saturating_add(1);
        }
        if loader.repeated() != 0 {
            warning!(
                "persistent snapshot",
                "{} exceptions were ignored: their chunks are those of earlier ones",
                loader.repeated()
            );
        }
        self.stale = stale;
        self.records = loader.records();
        let used = usize::try_from(self.records % self.per_window())?;
        if let Some(behind) = used
            .checked_mul(RECORD)
            .and_then(|at| self.window.get_mut(at..))
        {
            behind.fill(0);
        }
        Ok(Allocator::new(layout, loader.next(), self.records))
    }
}
