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
        snapshot::{
            chunks::CowChunk,
            pending::{
                Seq,
                Stage, //
            }, //
        },
        units::Sector, //
    },
    sys::irq_lock::IrqGuard,
    targets::snapshot::{
        per_bio::{
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
    /// Processes deferred bios of a snapshot: writes that need an exception, and discards that zero
    /// chunks. Stops at the first that has to wait. Called with `members` held.
    pub(super) fn process_snapshot_writes(
        self: &Arc<Self>,
        snapshot: &Arc<SnapshotTarget>,
        out: &mut ReleasedBios,
    ) {
        let mut bios = snapshot.deferred.lock().take();
        while let Some(bio) = bios.pop() {
            if let Err(bio) = self.process_snapshot_write(snapshot, bio, out) {
                // The rest keeps its order, ahead of bios that were deferred meanwhile.
                let mut rest = BioQueue::new();
                rest.push(bio);
                rest.append(&mut bios);
                let mut deferred = snapshot.deferred.lock();
                rest.append(&mut deferred);
                *deferred = rest;
                return;
            }
        }
    }

    /// Processes one deferred bio. A write lies within one chunk. Gives the bio back if it has to
    /// wait until a copy or a commit has completed.
    fn process_snapshot_write(
        self: &Arc<Self>,
        snapshot: &Arc<SnapshotTarget>,
        mut bio: Bio<PerBioData>,
        out: &mut ReleasedBios,
    ) -> Result<(), Bio<PerBioData>> {
        let store = snapshot.store();
        match store.state() {
            StoreState::Valid if !store.is_overflowed() => {}
            // It fails once the header says so.
            StoreState::Invalidating => return Err(bio),
            _ => {
                bio.end(BlkStatus::IO_ERROR);
                return Ok(());
            }
        }
        if matches!(bio.per_bio().kind(), BioKind::ZeroedDiscard) {
            return self.start_zeroing(snapshot, bio);
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
            ChunkState::Pending(seq, _) => {
                park_snapshot_write(allocation, snapshot, seq, bio, at, out)
            }
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
                    Ok((seq, _)) => park_snapshot_write(allocation, snapshot, seq, bio, at, out),
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

    /// Starts to zero the chunks of a discard; the bio completes with the zeros. Gives the bio back
    /// if memory is short.
    fn start_zeroing(
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
                // The copy that was refused is the one made here.
                CopyKind::Preserve { .. } | CopyKind::Merge { .. } => Ok(()),
            },
        }
    }

    /// Starts the copies for pending exceptions that a write to a part of a chunk waits for. If
    /// memory is short, the rest follows when other copies have completed. Called with `members`
    /// held.
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
            let start = store.chunk_size().start(run.old);
            let start = start.unwrap_or(Sector::OUT_OF_RANGE);
            let Some(mut copy) = self.new_preserving_copy(start) else {
                return;
            };
            if let CopyKind::Preserve { to, .. } = &mut copy.context.kind {
                if let Some(slot) = to.first_mut() {
                    *slot = Some(CopyDestination::new(snapshot, seq, run));
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

/// Queues a write to a snapshot on a pending exception; releases it if the exception is in the
/// table already, and waits only for earlier reads of the origin.
fn park_snapshot_write(
    mut allocation: IrqGuard<'_, Allocation>,
    snapshot: &SnapshotTarget,
    seq: Seq,
    mut bio: Bio<PerBioData>,
    at: Sector,
    out: &mut ReleasedBios,
) {
    let chunk = snapshot.store().chunk_size().chunk(at);
    let Some(pending) = allocation.pending.get(seq) else {
        // Not reached: the exception was found under this lock.
        drop(allocation);
        return bio.end(BlkStatus::IO_ERROR);
    };
    let new = pending.cow_chunk(chunk);
    let new = new.map_or(CowChunk::OUT_OF_RANGE, |(new, _)| new);
    bio.set_sector(snapshot.cow_sector(new, at));
    if pending.is_completed() {
        return out.ready.push(bio);
    }
    pending.waiting.snapshot_bios.push(bio);
}
