// SPDX-License-Identifier: GPL-2.0

//! The records at the end of a persistent store, which a merge takes off.

use super::{
    window_sectors,
    PersistentStore, //
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
    logic::snapshot::{
        lists,
        merge::CommitResult,
        record::Record, //
    }, //
};
use kernel::prelude::*;

/// The last records, as a merge takes them off.
pub(crate) struct RecordRange {
    /// The numbers of the first and behind the last.
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl PersistentStore {
    /// Takes memory for [`tail`](Self::tail) and [`shorten`](Self::shorten); as much as that many
    /// records can be passed on at a time. Sleeps.
    pub(crate) fn alloc_merge_buffer(&mut self) -> Result<usize> {
        self.zeroed = Some(Buffer::new(window_sectors(self.layout))?);
        Ok(usize::try_from(self.per_window().get())?)
    }

    /// Reads a window, unless it is there.
    fn read_window(&mut self, cow: &Device, io: &IoClient, base: u64) -> Result {
        if self.window_start != Some(base) {
            self.window_start = None;
            let start = self.record_sector(base).ok_or(EINVAL)?;
            io.transfer(Transfer::Read, cow, start, &mut self.window)?;
            self.window_start = Some(base);
        }
        Ok(())
    }

    /// Reads the last records, at most so many, and passes on those that count, in their order.
    /// Sleeps for I/O.
    pub(crate) fn last_records(
        &mut self,
        cow: &Device,
        io: &IoClient,
        most: u64,
        mut visit: impl FnMut(Record) -> Result,
    ) -> Result<RecordRange> {
        let to = self.records;
        let Some(last) = to.checked_sub(1) else {
            return Ok(RecordRange { from: 0, to });
        };
        let base = self.window_of(last);
        let from = base.max(to.saturating_sub(most));
        self.read_window(cow, io, base)?;
        for number in from..to {
            let record = Record::get(&self.window, number.saturating_sub(base)).ok_or(EINVAL)?;
            let place = lists::partition_point(&self.ignored, |ignored| *ignored < number);
            if self.ignored.get(place) != Some(&number) {
                visit(record)?;
            }
        }
        Ok(RecordRange { from, to })
    }

    /// Clears the records of a tail, durably. If that fails it tries to leave them as they were.
    /// Sleeps for I/O.
    pub(crate) fn zero_records(&mut self, cow: &Device, io: &IoClient, records: &RecordRange) -> CommitResult {
        // What was read again meanwhile may be shorter.
        let to = records.to.min(self.records);
        let Some(last) = to.checked_sub(1).filter(|last| *last >= records.from) else {
            return CommitResult::Cleared;
        };
        let base = self.window_of(last);
        // If it is in doubt the window has what was there before.
        if self.in_doubt.is_none() && self.read_window(cow, io, base).is_err() {
            return CommitResult::Kept;
        }
        let Some(mut zeroed) = self.zeroed.take() else {
            return CommitResult::Kept;
        };
        zeroed.copy_from(&self.window);
        for slot in records.from.saturating_sub(base)..self.per_window().get() {
            // All of them are in the window.
            let _ = Record::default().put(&mut zeroed, slot);
        }
        let result = self.write_buffer(cow, io, &mut zeroed, (records.from, to));
        if result.is_ok() {
            self.records = records.from;
            self.window.copy_from(&zeroed);
            self.window_start = Some(base);
            self.in_doubt = None;
        } else {
            self.in_doubt = Some((records.from, to));
        }
        self.zeroed = Some(zeroed);
        match result {
            Ok(()) => CommitResult::Cleared,
            Err(_) if self.restore_records(cow, io).is_ok() => CommitResult::Kept,
            Err(_) => CommitResult::InDoubt,
        }
    }

    /// Writes records back that are in doubt, durably. Sleeps for I/O.
    pub(crate) fn restore_records(&mut self, cow: &Device, io: &IoClient) -> Result {
        let Some(records) = self.in_doubt else {
            return Ok(());
        };
        let result = self.write_window(cow, io, records);
        if result.is_ok() {
            self.in_doubt = None;
            // The next batch begins with what is on disk.
            self.window_start = None;
        }
        result
    }
}
