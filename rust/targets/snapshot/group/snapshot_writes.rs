// SPDX-License-Identifier: GPL-2.0

//! Writes to a snapshot that need an exception, and discards that zero chunks of its COW device.
//!
//! C counterparts: the second half of `snapshot_map`, `zero_exception`.

use super::{
    chunk_copy::{
        ChunkCopy,
        CopyDestination,
        CopyKind, //
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
        snapshot: &Arc<SnapshotTarget>,
        bio: Bio<PerBioData>,
    ) -> Result<(), Bio<PerBioData>> {
        let copy = ChunkCopy {
            group: self.clone(),
            len: bio.sectors(),
            kind: CopyKind::Zero {
                snapshot: snapshot.clone(),
                start: bio.sector(),
                bio,
            },
            result: None,
        };
        match self.try_alloc_copy(Request::new(copy)) {
            Ok(copy) => {
                snapshot.copies.start(copy, &self.io_queue);
                Ok(())
            }
            Err(request) => match request.context.kind {
                CopyKind::Zero { bio, .. } => Err(bio),
                // Not what was made above.
                CopyKind::Preserve { .. } | CopyKind::Merge { .. } => Ok(()),
            },
        }
    }

    /// Looks at the writes to a snapshot that need an exception, and at discards that become zeros.
    pub(super) fn process_snapshot_writes(self: &Arc<Self>, snapshot: &Arc<SnapshotTarget>, out: &mut ReleasedBios) {
        let mut bios = snapshot.deferred.lock().take();
        while let Some(bio) = bios.pop() {
            if let Err(bio) = self.process_snapshot_write(snapshot, bio, out) {
                // In their order, before those that came meanwhile.
                let mut later = BioQueue::new();
                later.push(bio);
                later.append(&mut bios);
                let mut deferred = snapshot.deferred.lock();
                later.append(&mut deferred);
                *deferred = later;
                return;
            }
        }
    }

    /// A write within one chunk, or of one. Gives it back if it has to wait until something has
    /// ended.
    fn process_snapshot_write(
        self: &Arc<Self>,
        snapshot: &Arc<SnapshotTarget>,
        mut bio: Bio<PerBioData>,
        out: &mut ReleasedBios,
    ) -> Result<(), Bio<PerBioData>> {
        let store = snapshot.store();
        match store.state() {
            StoreState::Valid if !store.is_overflowed() => {}
            StoreState::Invalidating => return Err(bio),
            _ => {
                bio.end(BlkStatus::IO_ERROR);
                return Ok(());
            }
        }
        if matches!(bio.per_bio().kind(), BioKind::ZeroedDiscard) {
            return self.zero(snapshot, bio);
        }
        let at = snapshot.origin_sector(bio.sector());
        let size = store.chunk_size();
        let chunk = size.chunk(at);
        let mut allocation = store.allocation();
        match store.lookup(&mut allocation, chunk, 1) {
            ChunkState::Completed(new, _) => {
                drop(allocation);
                bio.set_sector(snapshot.cow_sector(new, at));
                out.ready.push(bio);
            }
            ChunkState::Pending(seq, _) => wait_for_exception(allocation, snapshot, seq, bio, at, out),
            ChunkState::Hole(_) => {
                let is_whole = bio.sectors() == size.len();
                let stage = if is_whole {
                    Stage::Copying
                } else {
                    Stage::Queued
                };
                match store.reserve(&mut allocation, &snapshot.cow, chunk, stage, (1, 1)) {
                    Ok((seq, run)) if is_whole => {
                        drop(allocation);
                        bio.set_per_bio(PerBioData::full_chunk_write(seq));
                        bio.set_sector(snapshot.cow_sector(run.new, at));
                        out.ready.push(bio);
                    }
                    Ok((seq, _)) => wait_for_exception(allocation, snapshot, seq, bio, at, out),
                    Err(ReserveError::NoSpace) => {
                        drop(allocation);
                        snapshot.handle_no_space(bio, out);
                    }
                    Err(ReserveError::Changed | ReserveError::Busy) => return Err(bio),
                }
            }
        }
        Ok(())
    }

    /// Starts the copies for writes to parts of chunks, as far as there is memory; the others
    /// follow when some have ended.
    pub(super) fn start_waiting_copies(self: &Arc<Self>, snapshot: &Arc<SnapshotTarget>) {
        let store = snapshot.store();
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
            let Some(mut copy) = self.new_preserving_copy(store.chunk_size().start(run.old).unwrap_or_default())
            else {
                return;
            };
            if let CopyKind::Preserve { to, .. } = &mut copy.context.kind {
                if let Some(place) = to.first_mut() {
                    *place = Some(CopyDestination::new(snapshot, seq, run));
                }
            }
            copy.context.len = snapshot.copy_len(run);
            if let Some(pending) = store.allocation().pending.get(seq) {
                pending.stage = Stage::Copying;
            }
            snapshot.copies.start(copy, &self.io_queue);
        }
    }
}

/// Lets a write to a snapshot wait for an exception, unless that is there.
fn wait_for_exception(
    mut allocation: IrqGuard<'_, Allocation>,
    snapshot: &SnapshotTarget,
    seq: Seq,
    mut bio: Bio<PerBioData>,
    at: Sector,
    out: &mut ReleasedBios,
) {
    let chunk = snapshot.store().chunk_size().chunk(at);
    let Some(pending) = allocation.pending.get(seq) else {
        // It was there just now, under the same lock.
        drop(allocation);
        return bio.end(BlkStatus::IO_ERROR);
    };
    let (new, _) = pending.cow_chunk(chunk).unwrap_or_default();
    bio.set_sector(snapshot.cow_sector(new, at));
    if pending.is_completed() {
        return out.ready.push(bio);
    }
    pending.waiting.snapshot_bios.push(bio);
}
