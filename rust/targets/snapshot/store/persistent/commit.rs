// SPDX-License-Identifier: GPL-2.0

//! Writes batches of records, and zeroes the areas that follow them.
//!
//! A batch is made durable by one flush, of its data and of the areas that it fills, and by one
//! write with FUA for each of its areas, all in flight at once. `logic/snapshot/record_batch.rs`
//! says why no power failure in between does harm.
//!
//! C counterpart: `persistent_commit_exception()`.

use super::{
    window_sectors,
    PersistentStore,
    PER_SECTOR,
    WINDOW, //
};
use crate::{
    dm::{
        device::Device,
        io::{
            Buffer,
            IoClient,
            PartWrite,
            Transfer, //
        }, //
    },
    logic::{
        snapshot::{
            chunks::{
                Chunk,
                CowChunk, //
            },
            record::Record,
            record_batch::AreaWrites,
            run::Run, //
        },
        units::{
            Sector,
            Sectors, //
        }, //
    }, //
};
use core::num::NonZeroU64;
use kernel::prelude::*;

impl PersistentStore {
    /// Writes the records of the batch, durably. May sleep.
    ///
    /// # Errors
    ///
    /// Those of the I/O. Then it is unknown which records are on disk.
    pub(crate) fn commit_batch(&mut self, cow: &Device, io: &IoClient) -> Result {
        if self.block_sectors == 0 {
            return Ok(());
        }
        self.window_start = None;
        if self.zeroed_window.is_none() {
            self.window = Buffer::default();
        }
        self.zero_stale(cow, io)?;
        let runs = core::mem::take(&mut self.batch);
        let result = self.write_batch(cow, io, &runs);
        self.batch = runs;
        result
    }

    /// Writes the records of some runs.
    fn write_batch(&mut self, cow: &Device, io: &IoClient, runs: &[Run]) -> Result {
        let added = runs
            .iter()
            .fold(0u64, |sum, run| sum.saturating_add(run.len));
        let end = self.records.saturating_add(added);
        self.last_batch = added;
        let (first, after) = self.zeroed.needed(self.layout, end);
        self.zero_areas(cow, io, first, after)?;
        let mut records = runs.iter().flat_map(records_of);
        let mut what = Transfer::WriteFlushFua;
        // More than once only for a batch that is larger than the buffer.
        while self.records < end {
            let written = self.prepare_blocks(end, &mut records)?;
            if what == Transfer::WriteFlushFua && self.parts.len() > 1 {
                cow.flush()?;
                what = Transfer::WriteFua;
            }
            self.parallel
                .write(io, what, cow, &mut self.blocks, &self.parts)?;
            what = Transfer::WriteFua;
            self.records = written;
        }
        Ok(())
    }

    /// Fills the buffer with the blocks of the next records before `end`, as many as it has room
    /// for, and lists their writes. Returns the number of records after these writes.
    fn prepare_blocks(
        &mut self,
        end: u64,
        records: &mut impl Iterator<Item = Record>,
    ) -> Result<u64> {
        let block = self.per_block();
        let room = u64::from(WINDOW.max(self.block_sectors)).saturating_mul(PER_SECTOR);
        self.blocks.fill(0);
        // The slots before the first record, which the first write includes.
        self.blocks.copy_from(&self.tail);
        self.parts.clear();
        let (mut slot, mut written) = (0u64, self.records);
        for write in AreaWrites::new(self.layout, block, self.records, end, room) {
            let first = slot.saturating_add(write.slots_before(self.layout));
            for at in first..first.saturating_add(write.records) {
                let record = records.next().ok_or(EINVAL)?;
                record.put(&mut self.blocks, at).ok_or(EINVAL)?;
            }
            let part = sectors_of(slot)?..sectors_of(slot.saturating_add(write.slots))?;
            let start = Sectors(write.start / PER_SECTOR);
            let start = self.area_start(write.area)?.checked_add(start);
            let start = start.ok_or(EINVAL)?;
            self.parts.push_within_capacity(PartWrite { start, part })?;
            slot = slot.saturating_add(write.slots);
            written = written.saturating_add(write.records);
        }
        self.tail.fill(0);
        if written % block != 0 {
            // The last block has room for the next record.
            let last = sectors_of(slot.saturating_sub(block.get()))?;
            let last = self
                .blocks
                .part(last..last.saturating_add(self.block_sectors))?;
            self.tail.copy_from(last);
        }
        Ok(written)
    }

    /// Returns the number of records in a block.
    pub(super) fn per_block(&self) -> NonZeroU64 {
        let records = u64::from(self.block_sectors).checked_mul(PER_SECTOR);
        records.and_then(NonZeroU64::new).unwrap_or(NonZeroU64::MIN)
    }

    /// Zeroes the areas that a batch like the last one would fill, so that it need not wait for
    /// that. An error has no consequence: they are zeroed when they are needed. May sleep.
    pub(crate) fn zero_ahead(&mut self, cow: &Device, io: &IoClient) {
        if self.block_sectors == 0 {
            return;
        }
        let (first, end) =
            self.zeroed
                .ahead(self.layout, self.records, self.last_batch, cow.sectors());
        let _ = self.zero_areas(cow, io, first, end);
    }

    /// Zeroes the areas from `first` up to `end`, all at once. They are durable after the next
    /// flush.
    fn zero_areas(&mut self, cow: &Device, io: &IoClient, first: u64, end: u64) -> Result {
        self.parts.clear();
        for area in first..end {
            let start = self.area_start(area)?;
            self.add_zeros(cow, io, start, self.layout.size().len())?;
        }
        self.write_zeros(cow, io)?;
        self.zeroed.set_zeroed(end);
        Ok(())
    }

    /// Zeroes what follows the last record in its area. This is durable before the next record,
    /// which would make it part of the list.
    fn zero_stale(&mut self, cow: &Device, io: &IoClient) -> Result {
        if !self.has_stale_records {
            return Ok(());
        }
        let (area, slot) = self.layout.slot(self.records);
        // The block of the next record is written with it.
        let (_, from) = self.block_around(slot / PER_SECTOR);
        let start = self.area_start(area)?;
        if let Some(len) = self.layout.size().len().0.checked_sub(from) {
            let start = start.checked_add(Sectors(from)).ok_or(EINVAL)?;
            self.parts.clear();
            self.add_zeros(cow, io, start, Sectors(len))?;
            self.write_zeros(cow, io)?;
        }
        self.has_stale_records = false;
        Ok(())
    }

    /// Adds a range to the writes of zeros. If there is no room for more writes, performs those
    /// that were added before.
    fn add_zeros(&mut self, cow: &Device, io: &IoClient, start: Sector, len: Sectors) -> Result {
        let (mut at, mut left) = (start, len.0);
        while left != 0 {
            let most = window_sectors(self.layout);
            let piece = u32::try_from(left).map_or(most, |left| left.min(most));
            if self.parts.len() == self.parts.capacity() {
                self.write_zeros(cow, io)?;
            }
            self.parts.push_within_capacity(PartWrite {
                start: at,
                part: 0..piece,
            })?;
            at = at.checked_add(Sectors(piece.into())).ok_or(EINVAL)?;
            left = left.wrapping_sub(piece.into());
        }
        Ok(())
    }

    /// Performs the writes of zeros. They come from the store's own buffer: writes to the origin
    /// and to the snapshot wait for them, so they must not allocate memory.
    fn write_zeros(&mut self, cow: &Device, io: &IoClient) -> Result {
        let result = self
            .parallel
            .write(io, Transfer::Write, cow, &mut self.zeros, &self.parts);
        self.parts.clear();
        result
    }
}

/// Returns the records of a run.
fn records_of(run: &Run) -> impl Iterator<Item = Record> {
    let run = *run;
    (0..run.len).map(move |offset| Record {
        old: Chunk(run.old.0.wrapping_add(offset)),
        new: CowChunk(run.new.0.wrapping_add(offset)),
    })
}

/// Returns the sector of the buffer that a slot is in, or starts.
fn sectors_of(slot: u64) -> Result<u32> {
    Ok(u32::try_from(slot / PER_SECTOR)?)
}
