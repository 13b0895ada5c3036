// SPDX-License-Identifier: GPL-2.0

//! Writes to a snapshot that need an exception, and discards that zero chunks of its COW device.
//!
//! C counterparts: the second half of `snapshot_map`, `zero_exception`.

use super::{
    chunk_copy::{
        ChunkCopy,
        Destination,
        NextStep, //
    },
    OriginGroup, //
};
use crate::{
    dm::{
        bio::{
            Bio,
            BioQueue,
            BlkStatus, //
        },
        io::Request, //
    },
    logic::{
        snapshot::pending::{
            Seq,
            Stage, //
        },
        units::Sector, //
    },
    sys::irq_lock::IrqGuard,
    targets::snapshot::{
        io::{
            BioKind,
            PerBioData, //
        },
        store::{
            Allocation,
            ChunkState,
            ReleasedBios,
            ReserveError,
            StoreState, //
        },
        SnapshotTarget, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

impl OriginGroup {
    /// Starts to write zeros for a discard; the bio ends with them. Gives it back if there is no
    /// memory just now.
    fn zero(
        self: &Arc<Self>,
        table: &Arc<SnapshotTarget>,
        bio: Bio<PerBioData>,
    ) -> Result<(), Bio<PerBioData>> {
        let job = ChunkCopy {
            group: self.clone(),
            len: bio.sectors(),
            work: NextStep::Zero {
                table: table.clone(),
                start: bio.sector(),
                bio,
            },
            result: None,
        };
        match self.seat(Request::new(job)) {
            Ok(job) => {
                table.copies.start(job, &self.commits);
                Ok(())
            }
            Err(request) => match request.context.work {
                NextStep::Zero { bio, .. } => Err(bio),
                // Not what was made above.
                NextStep::Copy { .. } | NextStep::MergeTarget { .. } => Ok(()),
            },
        }
    }

    /// Looks at the writes to a snapshot that need an exception, and at discards that become zeros.
    pub(super) fn own_writes(self: &Arc<Self>, table: &Arc<SnapshotTarget>, out: &mut ReleasedBios) {
        let mut bios = table.deferred.lock().take();
        while let Some(bio) = bios.pop() {
            if let Err(bio) = self.own_write(table, bio, out) {
                // In their order, before those that came meanwhile.
                let mut later = BioQueue::new();
                later.push(bio);
                later.append(&mut bios);
                let mut deferred = table.deferred.lock();
                later.append(&mut deferred);
                *deferred = later;
                return;
            }
        }
    }

    /// A write within one chunk, or of one. Gives it back if it has to wait until something has
    /// ended.
    fn own_write(
        self: &Arc<Self>,
        table: &Arc<SnapshotTarget>,
        mut bio: Bio<PerBioData>,
        out: &mut ReleasedBios,
    ) -> Result<(), Bio<PerBioData>> {
        let store = table.store();
        match store.state() {
            StoreState::Valid if !store.is_overflowed() => {}
            StoreState::Invalidating => return Err(bio),
            _ => {
                bio.end(BlkStatus::IO_ERROR);
                return Ok(());
            }
        }
        if matches!(bio.per_bio().kind(), BioKind::ZeroedDiscard) {
            return self.zero(table, bio);
        }
        let at = table.absolute(bio.sector());
        let size = store.chunk_size();
        let chunk = size.chunk(at);
        let mut allocation = store.allocation();
        match store.lookup(&mut allocation, chunk, 1) {
            ChunkState::Completed(new, _) => {
                drop(allocation);
                bio.set_sector(table.place(new, at));
                out.ready.push(bio);
            }
            ChunkState::Pending(seq, _) => park_own(allocation, table, seq, bio, at, out),
            ChunkState::Hole(_) => {
                let is_whole = bio.sectors() == size.len();
                let stage = if is_whole {
                    Stage::Copying
                } else {
                    Stage::Queued
                };
                match store.reserve(&mut allocation, &table.cow, chunk, stage, (1, 1)) {
                    Ok((seq, run)) if is_whole => {
                        drop(allocation);
                        bio.set_per_bio(PerBioData::full_chunk_write(seq));
                        bio.set_sector(table.place(run.new, at));
                        out.ready.push(bio);
                    }
                    Ok((seq, _)) => park_own(allocation, table, seq, bio, at, out),
                    Err(ReserveError::NoSpace) => {
                        drop(allocation);
                        table.full(bio, out);
                    }
                    Err(ReserveError::Changed | ReserveError::Busy) => return Err(bio),
                }
            }
        }
        Ok(())
    }

    /// Starts the copies for writes to parts of chunks, as far as there is memory; the others
    /// follow when some have ended.
    pub(super) fn start_copies(self: &Arc<Self>, table: &Arc<SnapshotTarget>) {
        let store = table.store();
        loop {
            let waiting = {
                let mut allocation = store.allocation();
                let first = allocation.pending.first_seq();
                let seq = allocation
                    .pending
                    .find_by_stage(first, |stage| *stage == Stage::Queued);
                seq.and_then(|seq| allocation.pending.get(seq).map(|it| (seq, it.run)))
            };
            let Some((seq, run)) = waiting else {
                return;
            };
            let Some(mut job) = self.new_job(store.chunk_size().start(run.old).unwrap_or_default())
            else {
                return;
            };
            if let NextStep::Copy { to, .. } = &mut job.context.work {
                if let Some(place) = to.first_mut() {
                    *place = Some(Destination::new(table, seq, run));
                }
            }
            job.context.len = table.copied(run);
            if let Some(pending) = store.allocation().pending.get(seq) {
                pending.stage = Stage::Copying;
            }
            table.copies.start(job, &self.commits);
        }
    }
}

/// Lets a write to a snapshot wait for an exception, unless that is there.
fn park_own(
    mut allocation: IrqGuard<'_, Allocation>,
    table: &SnapshotTarget,
    seq: Seq,
    mut bio: Bio<PerBioData>,
    at: Sector,
    out: &mut ReleasedBios,
) {
    let chunk = table.store().chunk_size().chunk(at);
    let Some(pending) = allocation.pending.get(seq) else {
        // It was there just now, under the same lock.
        drop(allocation);
        return bio.end(BlkStatus::IO_ERROR);
    };
    let (new, _) = pending.cow_chunk(chunk).unwrap_or_default();
    bio.set_sector(table.place(new, at));
    if pending.is_completed() {
        return out.ready.push(bio);
    }
    pending.waiting.snapshot_bios.push(bio);
}
