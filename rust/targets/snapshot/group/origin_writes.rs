// SPDX-License-Identifier: GPL-2.0

//! Writes to the origin: each waits until all snapshots have a copy of what it overwrites.
//!
//! C counterparts: `__origin_write`, `origin_write_extent`.

use super::{
    chunk_copy::{
        CopyDestination,
        CopyKind, //
    },
    members::Members,
    OriginGroup, //
};
use crate::{
    dm::{
        bio::{
            Bio,
            BlkStatus, //
        },
        kcopyd::MAX_DESTINATIONS, //
    },
    logic::{
        snapshot::{
            chunks::Chunk,
            pending::Seq, //
            run::Run,
        },
        units::{
            Sector,
            Sectors, //
        }, //
    },
    targets::snapshot::{
        per_bio::PerBioData,
        store::{
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

/// Maximum size of one copy for an origin write, unless a single chunk is larger.
const MAX_COPY: Sectors = Sectors(2048);

/// How far an extent of the origin is preserved in all snapshots.
enum Preservation<'a> {
    /// No snapshot needs the extent any more: it may be overwritten.
    Complete,
    /// This pending exception, and perhaps others, must be completed first. Then the extent has to
    /// be checked again.
    Pending(&'a Arc<SnapshotTarget>, Seq),
    /// There is no particular exception to wait for: memory or room for pending exceptions is
    /// short, or an invalid snapshot waits for its header. The worker runs again when that has
    /// changed.
    Retry,
}

impl OriginGroup {
    /// Sends origin writes that no snapshot needs to wait for, and starts the copies for the
    /// others. Called with `members` held.
    ///
    /// C counterpart: `do_origin`.
    pub(super) fn process_origin_writes(
        self: &Arc<Self>,
        members: &Members,
        out: &mut ReleasedBios,
    ) {
        let mut bios = self.deferred.lock().origin_writes.take();
        bios.append(&mut out.retry);
        for origin in members.origins.iter() {
            bios.append(&mut origin.deferred.lock());
        }
        while let Some(mut bio) = bios.pop() {
            let id = bio.per_bio().origin_id();
            let Some(origin) = members.origins.iter().find(|origin| origin.id() == id) else {
                // Not reached: device-mapper keeps a table as long as it has bios.
                bio.end(BlkStatus::IO_ERROR);
                continue;
            };
            let (start, len) = (origin.origin_sector(bio.sector()), bio.sectors());
            match self.preserve_extent(members, start, len, out) {
                Preservation::Complete => {
                    bio.set_sector(start);
                    origin.submitter.submit(bio, &self.io_queue);
                }
                Preservation::Pending(snapshot, seq) => {
                    if let Err(bio) = park_origin_write(snapshot, seq, bio) {
                        // The snapshot became invalid just now, and abandoned the exception.
                        self.wake();
                        self.deferred.lock().origin_writes.push(bio);
                    }
                }
                Preservation::Retry => self.deferred.lock().origin_writes.push(bio),
            }
            // A snapshot that became invalid just now has released origin writes.
            bios.append(&mut out.retry);
        }
    }

    /// Makes sure that no other snapshot needs the extents that a merge is about to overwrite.
    ///
    /// `extent` returns them by number, from zero on. Those below `first` are known to be
    /// preserved; `first` advances past each further one that is. Returns false if some are not yet
    /// preserved: the worker wakes the merge when a copy or a commit has completed.
    ///
    /// May sleep, but not for I/O. C counterpart: `origin_write_extent`.
    pub(in super::super) fn preserve_for_merge(
        self: &Arc<Self>,
        extent: impl Fn(usize) -> Option<(Sector, Sectors)>,
        first: &mut usize,
    ) -> bool {
        let members = self.members.lock();
        let mut out = ReleasedBios::default();
        let mut all = true;
        let mut number = *first;
        while let Some((start, len)) = extent(number) {
            all &= matches!(
                self.preserve_extent(&members, start, len, &mut out),
                Preservation::Complete
            );
            number = number.saturating_add(1);
            if all {
                *first = number;
            }
        }
        drop(members);
        if out.has_failed || !out.retry.is_empty() {
            self.deferred.lock().origin_writes.append(&mut out.retry);
            self.wake();
        }
        all
    }

    /// Finds out which snapshots need parts of an extent of the origin, and starts all copies that
    /// are missing at once. Called with `members` held.
    ///
    /// C counterpart: `__origin_write`.
    fn preserve_extent<'a>(
        self: &Arc<Self>,
        members: &'a Members,
        start: Sector,
        len: Sectors,
        out: &mut ReleasedBios,
    ) -> Preservation<'a> {
        let mut last: Option<(&Arc<SnapshotTarget>, Seq)> = None;
        let mut retry = false;
        for (number, snapshot) in (0..members.snapshots.len()).zip(members.snapshots.iter()) {
            let store = snapshot.store();
            let chunks = snapshot.chunk_range(start, len);
            match store.state() {
                StoreState::Valid if snapshot.is_preserving() => {}
                StoreState::Invalidating if snapshot.is_preserving() => {
                    // The write must not reach the origin before the header says `invalid`.
                    retry |= !chunks.is_empty();
                    continue;
                }
                _ => continue,
            }
            let mut chunk = chunks.start;
            while chunk < chunks.end {
                let left = chunks.end.0.saturating_sub(chunk.0);
                let state = store.lookup(&mut store.allocation(), chunk, left);
                let checked = match state {
                    ChunkState::Completed(_, len) => len,
                    ChunkState::Pending(seq, len) => {
                        last = Some((snapshot, seq));
                        len
                    }
                    // A snapshot that is being destroyed starts nothing any more; the pending
                    // exceptions that it leaves are completed by the table that takes over.
                    ChunkState::Hole(len) if !snapshot.is_active() => len,
                    ChunkState::Hole(len) => {
                        let rest = members.snapshots.get(number..).unwrap_or_default();
                        match self.reserve_and_copy(rest, chunk, len) {
                            Ok((seq, run)) => {
                                last = Some((snapshot, seq));
                                run.len
                            }
                            // A bio of the snapshot was faster: look the chunk up again.
                            Err(ReserveError::Changed) => continue,
                            Err(ReserveError::Busy) => {
                                retry = true;
                                break;
                            }
                            Err(ReserveError::NoSpace) => {
                                snapshot.invalidate(ENOSPC);
                                store.abandon_all(out);
                                retry |= store.state() == StoreState::Invalidating;
                                break;
                            }
                        }
                    }
                };
                chunk = Chunk(chunk.0.saturating_add(checked.max(1)));
            }
        }
        match last {
            Some((snapshot, seq)) => Preservation::Pending(snapshot, seq),
            None if retry => Preservation::Retry,
            None => Preservation::Complete,
        }
    }

    /// Reserves COW chunks for a hole of the first snapshot, and starts one copy to it and to all
    /// other snapshots that have the same hole and the same chunk size.
    ///
    /// `Busy` also means that memory for the copy is short.
    fn reserve_and_copy(
        self: &Arc<Self>,
        snapshots: &[Arc<SnapshotTarget>],
        chunk: Chunk,
        len: u64,
    ) -> Result<(Seq, Run), ReserveError> {
        let (first, others) = snapshots.split_first().ok_or(ReserveError::Busy)?;
        let size = first.store().chunk_size();
        let start = size.start(chunk).ok_or(ReserveError::NoSpace)?;
        // Memory first: once chunks are reserved, the copy must be started.
        let mut copy = self.new_preserving_copy(start).ok_or(ReserveError::Busy)?;
        let CopyKind::Preserve { to, .. } = &mut copy.context.kind else {
            return Err(ReserveError::Busy);
        };
        let most = len.min(size.chunks_in(MAX_COPY).max(1));
        let (seq, run) = first.reserve_chunks(chunk, (1, most))?;
        let mut slots = to.iter_mut();
        let mut add = |snapshot: &Arc<SnapshotTarget>, seq, run: Run| {
            if let Some(slot) = slots.next() {
                *slot = Some(CopyDestination::new(snapshot, seq, run));
            }
            slots.len() != 0
        };
        let mut has_slot = add(first, seq, run);
        for snapshot in others.iter() {
            let store = snapshot.store();
            if !has_slot
                || !snapshot.is_active()
                || store.state() != StoreState::Valid
                || store.chunk_size() != size
            {
                continue;
            }
            if let Ok((seq, run)) = snapshot.reserve_chunks(chunk, (run.len, run.len)) {
                has_slot = add(snapshot, seq, run);
            }
        }
        let is_shared = MAX_DESTINATIONS.saturating_sub(slots.len()) > 1;
        copy.context.len = first.copy_len(run);
        // A copy to one snapshot waits in that snapshot's queue: a slow COW device delays only its
        // own snapshot.
        let queue = if is_shared {
            &self.shared_copies
        } else {
            &first.copies
        };
        queue.start(copy, &self.io_queue);
        Ok((seq, run))
    }
}

/// Queues an origin write on a pending exception; gives it back if there is no such exception.
fn park_origin_write(
    snapshot: &SnapshotTarget,
    seq: Seq,
    bio: Bio<PerBioData>,
) -> Result<(), Bio<PerBioData>> {
    match snapshot.store().allocation().pending.get(seq) {
        Some(pending) => {
            pending.waiting.origin_bios.push(bio);
            Ok(())
        }
        None => Err(bio),
    }
}
