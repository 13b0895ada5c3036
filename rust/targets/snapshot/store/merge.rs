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
        chunks::{
            Chunk,
            CowChunk, //
        },
        exception_table::{
            Lookup,
            SpareNodes, //
        },
        merge::CommitResult,
        merge_batch::BatchLookup,
        run::Run, //
    },
    sys::{
        log::err,
        noio::NoIo, //
    },
    targets::snapshot::{
        per_bio::PerBioData,
        SnapshotTarget, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Where a write to a merge goes.
pub(crate) enum Place {
    /// To the COW device, so many chunks; it is counted.
    Open(CowChunk, u64, PerBioData),
    /// It waits: the chunk is being merged.
    Closed,
    /// To the origin, so many chunks.
    Merged(u64),
}

impl CowStore {
    /// Finds a chunk for a write to a merge, which is counted if it goes to the COW device; unless
    /// it is one that `closed` tells of, or up to such a one: `closed` tells how many chunks there
    /// are like the first. Any context.
    pub(crate) fn find_for_merge_write(
        &self,
        chunk: Chunk,
        most: u64,
        closed: impl FnOnce(Chunk, u64) -> BatchLookup,
    ) -> Place {
        let (index, left) = self.stripe_of(chunk);
        let found = self.with_stripe(index, |stripe| {
            match stripe.table.find(chunk, most.min(left)) {
                Lookup::Hole(len) => Place::Merged(len),
                Lookup::Mapped(new, len) => match closed(chunk, len) {
                    BatchLookup::Inside(_) => Place::Closed,
                    BatchLookup::Outside(len) => {
                        let per_bio = PerBioData::tracked(index, stripe.tracked.track());
                        Place::Open(new, len, per_bio)
                    }
                },
            }
        });
        found.unwrap_or(Place::Closed)
    }

    /// Takes chunks out that are on the origin now. False if memory is short: then try again.
    /// Process context.
    pub(crate) fn remove_merged(&self, mut run: Run, spares: &mut SpareNodes) -> bool {
        while run.len != 0 {
            let (index, left) = self.stripe_of(run.old);
            let piece = Run {
                len: run.len.min(left),
                ..run
            };
            // What is not there has been taken out before.
            let wants = self.with_stripe(index, |stripe| match stripe.table.remove_splitting(piece, spares) {
                Ok(false) => Some(stripe.table.spare_root_capacity()),
                _ => None,
            });
            match wants.flatten() {
                Some(wants) if spares.refill(wants, GFP_KERNEL).is_err() => return false,
                // Now there is memory for it.
                Some(_) => {}
                None => run = run.without_first(piece.len),
            }
        }
        true
    }

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
            match self.find(record.old, 1, false).0 {
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
        let result = disk.zero_records(&merge.cow, &merge.io, tail);
        let records = disk.records();
        self.set_current_area(records);
        if result == CommitResult::Cleared {
            if let FreeSpace::Persistent(space) = &mut self.allocation.lock().free {
                space.shrink_to(records);
            }
        }
        result
    }

    /// Writes records back that are in doubt, durably. Sleeps for I/O.
    pub(crate) fn restore_records(&self, cow: &Device, io: &IoClient) -> Result {
        self.disk.lock().restore_records(cow, io)
    }
}
