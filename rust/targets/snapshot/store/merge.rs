// SPDX-License-Identifier: GPL-2.0

//! What a merge does with a store.

use super::{
    allocation::FreeSpace,
    persistent::RecordRange,
    CowStore, //
};
use crate::{
    dm::{
        device::Device,
        io::IoClient, //
    },
    logic::snapshot::{
        exception_table::Lookup,
        merge::CommitResult,
        run::Run, //
    },
    sys::{
        log::err,
        noio::NoIo, //
    },
    targets::snapshot::SnapshotTarget, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

impl CowStore {
    /// Takes memory for a merge; tells how many records it takes off at most at a time. Sleeps.
    pub(crate) fn alloc_merge_buffer(&self) -> Result<usize> {
        // Records of a live table may wait for the lock.
        let _noio = NoIo::enter();
        self.disk.lock().alloc_merge_buffer()
    }

    /// Reads the last records, at most so many, as runs that are in the table. Sleeps for I/O.
    pub(crate) fn prepare_merge_batch(
        &self,
        (cow, origin): (&Device, &Device),
        io: &IoClient,
        most: u64,
        runs: &mut KVVec<Run>,
    ) -> Result<RecordRange> {
        let mut disk = self.disk.lock();
        self.set_current_area(disk.records().saturating_sub(1));
        let has_repeated_origins = disk.has_repeated_origins();
        disk.last_records(cow, io, most, |record| {
            let run = Run {
                old: record.old,
                new: record.new,
                len: 1,
            };
            let starts = self.chunk_size.start(record.old);
            match self.find(record.old, 1) {
                Lookup::Mapped(new, _) if new == record.new => {
                    Ok(runs.push_within_capacity(run).map_err(|_| ENOMEM)?)
                }
                // No earlier one has its chunk, and the origin does: it was loaded.
                _ if !has_repeated_origins && starts.is_some_and(|start| start.0 < origin.sectors().0) => {
                    err!(
                        "snapshots",
                        "Corruption detected: exception for block {} is on disk but not in memory",
                        record.old
                    );
                    Err(EIO)
                }
                _ => Ok(()),
            }
        })
    }

    /// Clears the records of a tail, durably. The live table only: it gives no chunks out. Sleeps
    /// for I/O.
    pub(crate) fn commit_merge_batch(&self, merge: &Arc<SnapshotTarget>, records: &RecordRange) -> CommitResult {
        let mut disk = self.disk.lock();
        if !merge.role().is_live() {
            return CommitResult::Kept;
        }
        let result = disk.zero_records(&merge.cow, &merge.io, records);
        let left = disk.records();
        self.set_current_area(left);
        if result == CommitResult::Cleared {
            if let FreeSpace::Persistent(space) = &mut self.allocation.lock().free {
                space.shrink_to(left);
            }
        }
        result
    }

    /// Writes records back that are in doubt, durably. Sleeps for I/O.
    pub(crate) fn restore_records(&self, cow: &Device, io: &IoClient) -> Result {
        self.disk.lock().restore_records(cow, io)
    }
}
