// SPDX-License-Identifier: GPL-2.0

//! The records that a merge takes off a store, batch by batch, the last ones first.
//!
//! C counterparts: `persistent_prepare_merge()` and `persistent_commit_merge()`.

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
    /// Allocates the buffers of a merge, and returns the maximum number of records of a batch. May
    /// sleep.
    pub(crate) fn alloc_merge_buffers(&self) -> Result<usize> {
        // A committer of the live table may wait for the lock: the allocation must not start I/O.
        let _noio = NoIo::enter();
        self.disk.lock().alloc_merge_buffers()
    }

    /// Reads up to `most` of the last records, and adds their exceptions to `runs`. May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` if a record does not match the exception table.
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
                // The record was loaded, since its chunk is on the origin and no earlier record
                // maps it; so the exception table must have it.
                _ if !has_repeated_origins
                    && starts.is_some_and(|start| start.0 < origin.sectors().0) =>
                {
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

    /// Zeroes the records of a batch, durably. Does so for the live table only, which reserves no
    /// chunks while it merges. May sleep.
    pub(crate) fn commit_merge_batch(
        &self,
        merge: &Arc<SnapshotTarget>,
        records: &RecordRange,
    ) -> CommitResult {
        let mut disk = self.disk.lock();
        if !merge.handover_state().is_live() {
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

    /// Writes records back that are in doubt, durably. May sleep.
    ///
    /// # Errors
    ///
    /// Those of the I/O. The records stay in doubt.
    pub(crate) fn restore_records(&self, cow: &Device, io: &IoClient) -> Result {
        self.disk.lock().restore_records(cow, io)
    }
}
