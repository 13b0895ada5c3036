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
        io::PerBioData,
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

/// At most so much is copied at once, unless a chunk is larger.
const COPY: Sectors = Sectors(2048);

/// What became of a write to the origin.
enum Verdict {
    /// No snapshot needs what it overwrites.
    Clear,
    /// It waits for an exception.
    Waits,
    /// It has to be looked at again, when a copy or a header has ended.
    Later,
}

/// What snapshots need of a part of the origin.
enum Guarded<'a> {
    /// Nothing.
    Clear,
    /// This exception, at least.
    OnItsWay(&'a Arc<SnapshotTarget>, Seq),
    /// It has to be looked at again, when a copy or a header has ended.
    Later,
}

/// What became of the chunks of a hole.
enum Covered {
    /// So many are on their way now; the last one of them has this name.
    Chunks(u64, Seq),
    /// Some are there, or on their way, by now.
    Changed,
    /// Not now.
    Retry,
    /// The COW device is full.
    Full,
}

impl OriginGroup {
    /// Looks at the writes to the origin that wait, and at those that came.
    pub(super) fn process_origin_writes(self: &Arc<Self>, members: &Members, out: &mut ReleasedBios) {
        let mut bios = self.deferred.lock().origin_writes.take();
        bios.append(&mut out.retry);
        for origin in members.origins.iter() {
            bios.append(&mut origin.deferred.lock());
        }
        while let Some(bio) = bios.pop() {
            let id = bio.per_bio().origin_id();
            let origin = members.origins.iter().find(|it| it.id() == id);
            let Some(origin) = origin else {
                // A table stays as long as it has bios.
                bio.end(BlkStatus::IO_ERROR);
                continue;
            };
            let (start, len) = (origin.origin_sector(bio.sector()), bio.sectors());
            match self.origin_write(members, bio, start, len, out) {
                (Verdict::Clear, Some(mut bio)) => {
                    bio.set_sector(start);
                    origin.submitter.submit(bio, &self.io_queue);
                }
                (Verdict::Later, Some(bio)) => self.deferred.lock().origin_writes.push(bio),
                _ => {}
            }
            // What was released by a snapshot that became invalid just now.
            bios.append(&mut out.retry);
        }
    }

    /// Finds out what of a write to the origin which snapshot needs, and starts to copy all that at
    /// once.
    fn origin_write(
        self: &Arc<Self>,
        members: &Members,
        bio: Bio<PerBioData>,
        start: Sector,
        len: Sectors,
        out: &mut ReleasedBios,
    ) -> (Verdict, Option<Bio<PerBioData>>) {
        match self.preserve_extent(members, start, len, out) {
            Guarded::Clear => (Verdict::Clear, Some(bio)),
            Guarded::Later => (Verdict::Later, Some(bio)),
            Guarded::OnItsWay(snapshot, seq) => {
                if let Some(pending) = snapshot.store().allocation().pending.get(seq) {
                    pending.waiting.origin_bios.push(bio);
                    return (Verdict::Waits, None);
                }
                // Given up just now, with its snapshot.
                self.wake();
                (Verdict::Later, Some(bio))
            }
        }
    }

    /// Sees that no snapshot needs parts of the origin, numbered from zero: all but the `first` are
    /// known to be clear, which goes on as far as that is so. False if some have to wait; the
    /// worker calls the merge when something has ended. Sleeps, but not for I/O.
    pub(in super::super) fn preserve_for_merge(
        self: &Arc<Self>,
        part: impl Fn(usize) -> Option<(Sector, Sectors)>,
        first: &mut usize,
    ) -> bool {
        let members = self.members.lock();
        let mut out = ReleasedBios::default();
        let mut all = true;
        let mut number = *first;
        while let Some((start, len)) = part(number) {
            all &= matches!(
                self.preserve_extent(&members, start, len, &mut out),
                Guarded::Clear
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

    /// Finds out what of a part of the origin which snapshot needs, and starts to copy all that at
    /// once.
    fn preserve_extent<'a>(
        self: &Arc<Self>,
        members: &'a Members,
        start: Sector,
        len: Sectors,
        out: &mut ReleasedBios,
    ) -> Guarded<'a> {
        let mut last: Option<(&Arc<SnapshotTarget>, Seq)> = None;
        let mut later = false;
        for (number, snapshot) in (0..members.snapshots.len()).zip(members.snapshots.iter()) {
            let store = snapshot.store();
            let chunks = snapshot.chunk_range(start, len);
            match store.state() {
                StoreState::Valid if snapshot.is_preserving() => {}
                StoreState::Invalidating if snapshot.is_preserving() => {
                    later |= !chunks.is_empty();
                    continue;
                }
                _ => continue,
            }
            let mut chunk = chunks.start;
            while chunk < chunks.end {
                let most = chunks.end.0.saturating_sub(chunk.0);
                let look = store.lookup(&mut store.allocation(), chunk, most);
                let passed = match look {
                    ChunkState::Completed(_, len) => len,
                    ChunkState::Pending(seq, len) => {
                        last = Some((snapshot, seq));
                        len
                    }
                    // It is being destroyed, and begins nothing any more; what it has begun is for
                    // the table after it.
                    ChunkState::Hole(len) if !snapshot.is_active() => len,
                    ChunkState::Hole(len) => {
                        let snapshots = members.snapshots.get(number..).unwrap_or_default();
                        match self.reserve_and_copy(snapshots, chunk, len) {
                            Covered::Chunks(len, seq) => {
                                last = Some((snapshot, seq));
                                len
                            }
                            Covered::Changed => continue,
                            Covered::Retry => {
                                later = true;
                                break;
                            }
                            Covered::Full => {
                                snapshot.invalidate(ENOSPC);
                                store.abandon_all(out);
                                later |= store.state() == StoreState::Invalidating;
                                break;
                            }
                        }
                    }
                };
                chunk = Chunk(chunk.0.saturating_add(passed.max(1)));
            }
        }
        match last {
            Some((snapshot, seq)) => Guarded::OnItsWay(snapshot, seq),
            None if later => Guarded::Later,
            None => Guarded::Clear,
        }
    }

    /// Gives out chunks for a hole in the first of these tables, and starts one copy to it and to
    /// all others that have the same hole, and chunks of the same size.
    fn reserve_and_copy(self: &Arc<Self>, snapshots: &[Arc<SnapshotTarget>], chunk: Chunk, len: u64) -> Covered {
        let Some((first, others)) = snapshots.split_first() else {
            return Covered::Retry;
        };
        let size = first.store().chunk_size();
        let Some(start) = size.start(chunk) else {
            return Covered::Full;
        };
        let Some(mut copy) = self.new_preserving_copy(start) else {
            return Covered::Retry;
        };
        let CopyKind::Preserve { to, .. } = &mut copy.context.kind else {
            return Covered::Retry;
        };
        let most = len.min(size.chunks_in(COPY).max(1));
        let (seq, run) = match first.reserve_chunks(chunk, (1, most)) {
            Ok((seq, run)) => (seq, run),
            Err(ReserveError::Changed) => return Covered::Changed,
            Err(ReserveError::Busy) => return Covered::Retry,
            Err(ReserveError::NoSpace) => return Covered::Full,
        };
        let mut places = to.iter_mut();
        let mut add = |snapshot: &Arc<SnapshotTarget>, seq, run: Run| {
            if let Some(place) = places.next() {
                *place = Some(CopyDestination::new(snapshot, seq, run));
            }
            places.len() != 0
        };
        let mut room = add(first, seq, run);
        for snapshot in others.iter() {
            let store = snapshot.store();
            if !room
                || !snapshot.is_active()
                || store.state() != StoreState::Valid
                || store.chunk_size() != size
            {
                continue;
            }
            if let Ok((seq, run)) = snapshot.reserve_chunks(chunk, (run.len, run.len)) {
                room = add(snapshot, seq, run);
            }
        }
        let is_shared = MAX_DESTINATIONS.saturating_sub(places.len()) > 1;
        copy.context.len = first.copy_len(run);
        // So a copy waits for the devices of those alone that need it.
        let copies = if is_shared {
            &self.shared_copies
        } else {
            &first.copies
        };
        copies.start(copy, &self.io_queue);
        Covered::Chunks(run.len, seq)
    }
}
