// SPDX-License-Identifier: GPL-2.0

//! Reads and zeroes the last records of a persistent store, for a merge.

use super::{
    window_sectors,
    PersistentStore,
    PER_SECTOR, //
};
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
            lists,
            merge::CommitResult,
            record::Record, //
        },
        units::Sectors, //
    }, //
};
use kernel::prelude::*;

/// Consecutive records.
pub(crate) struct RecordRange {
    /// The number of the first record.
    pub(crate) first: u64,
    /// The number after that of the last record.
    pub(crate) end: u64,
}

impl PersistentStore {
    /// Allocates the buffers of a merge, and returns the maximum number of records of a batch. May
    /// sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn alloc_merge_buffers(&mut self) -> Result<usize> {
        let zeroed_window = Buffer::new(window_sectors(self.layout))?;
        if self.window.is_empty() {
            self.window = Buffer::new(window_sectors(self.layout))?;
        }
        self.zeroed_window = Some(zeroed_window);
        Ok(usize::try_from(self.per_window().get())?)
    }

    /// Reads the window that starts with a record, unless it is in memory.
    fn read_window(&mut self, cow: &Device, io: &IoClient, start: u64) -> Result {
        if self.window_start != Some(start) {
            self.window_start = None;
            let sector = self.record_sector(start).ok_or(EINVAL)?;
            io.transfer(Transfer::Read, cow, sector, &mut self.window)?;
            self.window_start = Some(start);
        }
        Ok(())
    }

    /// Reads up to `most` of the last records, all from one window, and calls `visit` with those
    /// that are not ignored, in their order. May sleep.
    ///
    /// # Errors
    ///
    /// Those of the I/O, or of `visit`.
    pub(crate) fn last_records(
        &mut self,
        cow: &Device,
        io: &IoClient,
        most: u64,
        mut visit: impl FnMut(Record) -> Result,
    ) -> Result<RecordRange> {
        let end = self.records;
        let Some(last) = end.checked_sub(1) else {
            return Ok(RecordRange { first: 0, end });
        };
        let base = self.window_of(last);
        let first = base.max(end.saturating_sub(most));
        self.read_window(cow, io, base)?;
        for number in first..end {
            let record = Record::get(&self.window, number.saturating_sub(base)).ok_or(EINVAL)?;
            let place = lists::partition_point(&self.ignored, |ignored| *ignored < number);
            if self.ignored.get(place) != Some(&number) {
                visit(record)?;
            }
        }
        Ok(RecordRange { first, end })
    }

    /// Zeroes the given last records, durably. If that fails it tries to write them back. May
    /// sleep.
    pub(crate) fn zero_records(
        &mut self,
        cow: &Device,
        io: &IoClient,
        records: &RecordRange,
    ) -> CommitResult {
        // The store may have been loaded again meanwhile, with fewer records.
        let end = records.end.min(self.records);
        let Some(last) = end.checked_sub(1).filter(|last| *last >= records.first) else {
            return CommitResult::Cleared;
        };
        let base = self.window_of(last);
        // Records in doubt must not be read from disk: the window has them as they were.
        if self.in_doubt.is_none() && self.read_window(cow, io, base).is_err() {
            return CommitResult::Kept;
        }
        let Some(mut zeroed) = self.zeroed_window.take() else {
            return CommitResult::Kept;
        };
        zeroed.copy_from(&self.window);
        for slot in records.first.saturating_sub(base)..self.per_window().get() {
            // Does not fail: the slot is in the window.
            let _ = Record::default().put(&mut zeroed, slot);
        }
        let result = self.write_buffer(cow, io, &mut zeroed, (records.first, end));
        if result.is_ok() {
            self.records = records.first;
            self.window.copy_from(&zeroed);
            self.window_start = Some(base);
            self.in_doubt = None;
        } else {
            self.in_doubt = Some((records.first, end));
        }
        self.zeroed_window = Some(zeroed);
        match result {
            Ok(()) => CommitResult::Cleared,
            Err(_) if self.restore_records(cow, io).is_ok() => CommitResult::Kept,
            Err(_) => CommitResult::InDoubt,
        }
    }

    /// Writes records back that are in doubt, durably. May sleep.
    ///
    /// # Errors
    ///
    /// Those of the I/O. The records stay in doubt.
    pub(crate) fn restore_records(&mut self, cow: &Device, io: &IoClient) -> Result {
        let Some(records) = self.in_doubt else {
            return Ok(());
        };
        let result = self.write_window(cow, io, records);
        if result.is_ok() {
            self.in_doubt = None;
            // The next batch reads its window again.
            self.window_start = None;
        }
        result
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
}
