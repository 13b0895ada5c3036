// SPDX-License-Identifier: GPL-2.0

//! Writes to the origin: each waits until all snapshots have a copy of what it overwrites.
//!
//! C counterparts: `__origin_write`, `origin_write_extent`.

use super::{
    chunk_copy::{
        Destination,
        NextStep, //
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
    Later,
    /// The COW device is full.
    Full,
}

impl OriginGroup {
    /// Looks at the writes to the origin that wait, and at those that came.
    pub(super) fn origin_writes(self: &Arc<Self>, members: &Members, out: &mut ReleasedBios) {
        let mut bios = self.inbox.lock().origin.take();
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
            let (start, len) = (origin.absolute(bio.sector()), bio.sectors());
            match self.origin_write(members, bio, start, len, out) {
                (Verdict::Clear, Some(mut bio)) => {
                    bio.set_sector(start);
                    origin.outlet.send(bio, &self.commits);
                }
                (Verdict::Later, Some(bio)) => self.inbox.lock().origin.push(bio),
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
        match self.guard_part(members, start, len, out) {
            Guarded::Clear => (Verdict::Clear, Some(bio)),
            Guarded::Later => (Verdict::Later, Some(bio)),
            Guarded::OnItsWay(table, seq) => {
                if let Some(pending) = table.store().allocation().pending.get(seq) {
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
    pub(in super::super) fn guard(
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
                self.guard_part(&members, start, len, &mut out),
                Guarded::Clear
            );
            number = number.saturating_add(1);
            if all {
                *first = number;
            }
        }
        drop(members);
        if out.has_failed || !out.retry.is_empty() {
            self.inbox.lock().origin.append(&mut out.retry);
            self.wake();
        }
        all
    }

    /// Finds out what of a part of the origin which snapshot needs, and starts to copy all that at
    /// once.
    fn guard_part<'a>(
        self: &Arc<Self>,
        members: &'a Members,
        start: Sector,
        len: Sectors,
        out: &mut ReleasedBios,
    ) -> Guarded<'a> {
        let mut last: Option<(&Arc<SnapshotTarget>, Seq)> = None;
        let mut later = false;
        for (number, table) in (0..members.tables.len()).zip(members.tables.iter()) {
            let store = table.store();
            let chunks = table.chunks(start, len);
            match store.state() {
                StoreState::Valid if table.is_guarded() => {}
                StoreState::Invalidating if table.is_guarded() => {
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
                        last = Some((table, seq));
                        len
                    }
                    // It is being destroyed, and begins nothing any more; what it has begun is for
                    // the table after it.
                    ChunkState::Hole(len) if !table.is_active() => len,
                    ChunkState::Hole(len) => {
                        let tables = members.tables.get(number..).unwrap_or_default();
                        match self.cover(tables, chunk, len) {
                            Covered::Chunks(len, seq) => {
                                last = Some((table, seq));
                                len
                            }
                            Covered::Changed => continue,
                            Covered::Later => {
                                later = true;
                                break;
                            }
                            Covered::Full => {
                                table.fail(ENOSPC);
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
            Some((table, seq)) => Guarded::OnItsWay(table, seq),
            None if later => Guarded::Later,
            None => Guarded::Clear,
        }
    }

    /// Gives out chunks for a hole in the first of these tables, and starts one copy to it and to
    /// all others that have the same hole, and chunks of the same size.
    fn cover(self: &Arc<Self>, tables: &[Arc<SnapshotTarget>], chunk: Chunk, len: u64) -> Covered {
        let Some((first, others)) = tables.split_first() else {
            return Covered::Later;
        };
        let size = first.store().chunk_size();
        let Some(start) = size.start(chunk) else {
            return Covered::Full;
        };
        let Some(mut job) = self.new_job(start) else {
            return Covered::Later;
        };
        let NextStep::Copy { to, .. } = &mut job.context.work else {
            return Covered::Later;
        };
        let most = len.min(size.chunks_in(COPY).max(1));
        let (seq, run) = match first.reserve(chunk, (1, most)) {
            Ok((seq, run)) => (seq, run),
            Err(ReserveError::Changed) => return Covered::Changed,
            Err(ReserveError::Busy) => return Covered::Later,
            Err(ReserveError::NoSpace) => return Covered::Full,
        };
        let mut places = to.iter_mut();
        let mut add = |table: &Arc<SnapshotTarget>, seq, run: Run| {
            if let Some(place) = places.next() {
                *place = Some(Destination::new(table, seq, run));
            }
            places.len() != 0
        };
        let mut room = add(first, seq, run);
        for table in others.iter() {
            let store = table.store();
            if !room
                || !table.is_active()
                || store.state() != StoreState::Valid
                || store.chunk_size() != size
            {
                continue;
            }
            if let Ok((seq, run)) = table.reserve(chunk, (run.len, run.len)) {
                room = add(table, seq, run);
            }
        }
        let is_shared = MAX_DESTINATIONS.saturating_sub(places.len()) > 1;
        job.context.len = first.copied(run);
        // So a copy waits for the devices of those alone that need it.
        let copies = if is_shared {
            &self.copies
        } else {
            &first.copies
        };
        copies.start(job, &self.commits);
        Covered::Chunks(run.len, seq)
    }
}
