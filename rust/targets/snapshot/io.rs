// SPDX-License-Identifier: GPL-2.0

//! The I/O path of a bio of a snapshot, from `map` to `end_io`.
//!
//! ```text
//!  flush                              ────────────────────▶ COW device
//!  chunks with a completed exception  ────────────────────▶ COW device
//!  read of other chunks               ── tracked ─────────▶ origin ─▶ end_io: not tracked
//!  write, exception is pending        ── waits for it ────▶ COW device
//!  write of whole chunks              ── reserve ─────────▶ COW device ─▶ end_io ─▶ worker: commit
//!  write of a part of a chunk         ── reserve ─▶ worker: copy, commit ─▶ COW device
//!  discard of whole chunks            ── worker: zeros ───▶ COW device
//! ```
//!
//! A bio is split only where its chunks need different treatment.
//!
//! C counterparts: `snapshot_map()` and `snapshot_end_io()`.

use super::{
    per_bio::{
        BioKind,
        PerBioData, //
    },
    store::{
        ChunkState,
        ReleasedBios,
        StoreState, //
    },
    SnapshotTarget, //
};
use crate::{
    dm::bio::{
        BlkStatus,
        EndBio,
        Ended,
        MapBio,
        Mapped,
        Op, //
    },
    logic::{
        snapshot::{
            chunks::{
                Chunk,
                CowChunk, //
            },
            exception_table::Lookup,
            handover::HandoverState,
            pending::{
                Seq,
                Stage, //
            }, //
        },
        units::{
            Sector,
            Sectors, //
        }, //
    }, //
};
use kernel::sync::{
    Arc,
    ArcBorrow, //
};

/// Which part of the snapshot a bio covers.
pub(super) struct Span {
    /// The first sector, counted on the origin.
    pub(super) at: Sector,
    /// The first chunk.
    pub(super) chunk: Chunk,
    /// The number of chunks, partly covered ones included.
    pub(super) chunks: u64,
}

impl SnapshotTarget {
    /// Returns which part of the snapshot `bio` covers. Any context.
    pub(super) fn span<'a>(&self, bio: &MapBio<'a, PerBioData>) -> Span {
        let at = self.origin_sector(bio.sector());
        let size = self.store().chunk_size();
        let chunk = size.chunk(at);
        let last = at.0.saturating_add(bio.sectors().0.saturating_sub(1));
        let chunks = size.chunk(Sector(last)).0.saturating_sub(chunk.0);
        Span {
            at,
            chunk,
            chunks: chunks.saturating_add(1),
        }
    }

    /// Returns how many sectors of a bio lie in its first `chunks` chunks. Any context.
    pub(super) fn leading_sectors(&self, span: &Span, chunks: u64) -> Sectors {
        let size = self.store().chunk_size();
        let len = size.len().0.saturating_mul(chunks);
        Sectors(len.saturating_sub(size.offset(span.at).0))
    }
}

/// Maps a bio of the snapshot.
pub(super) fn map<'a>(
    this: ArcBorrow<'_, SnapshotTarget>,
    mut bio: MapBio<'a, PerBioData>,
) -> Mapped<'a> {
    bio.set_per_bio(PerBioData::NONE);
    if bio.is_flush() {
        return bio.remap(&this.cow);
    }
    let store = this.store();
    match store.state() {
        StoreState::Valid if this.handover_state() != HandoverState::HandedOver => {}
        // The worker fails the bio after the header on disk says that the snapshot is invalid.
        StoreState::Invalidating => return defer(this, bio),
        _ => return bio.kill(),
    }
    match bio.op() {
        Op::Read => read(this, bio),
        _ if store.is_overflowed() => bio.kill(),
        Op::Discard => discard(this, bio),
        _ => write(this, bio),
    }
}

/// Maps a read: to the COW device, or to the origin, where it is tracked.
fn read<'a>(this: ArcBorrow<'_, SnapshotTarget>, mut bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
    let span = this.span(&bio);
    match this.store().find_for_read(span.chunk, span.chunks) {
        (Lookup::Mapped(new, len), _) => remap_to_cow(this, bio, &span, new, len),
        (Lookup::Hole(len), per_bio) => {
            bio.set_per_bio(per_bio);
            bio.accept_partial(this.leading_sectors(&span, len));
            bio.set_sector(span.at);
            bio.remap(&this.origin)
        }
    }
}

/// Maps a write. Chunks with a completed exception take one lock of the exception table only.
fn write<'a>(this: ArcBorrow<'_, SnapshotTarget>, bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
    let span = this.span(&bio);
    match this.store().find(span.chunk, span.chunks) {
        Lookup::Mapped(new, len) => remap_to_cow(this, bio, &span, new, len),
        Lookup::Hole(_) => write_hole(this, bio, span),
    }
}

/// Maps the first `chunks` chunks of a bio to the COW device, where they start at `new`.
fn remap_to_cow<'a>(
    this: ArcBorrow<'_, SnapshotTarget>,
    mut bio: MapBio<'a, PerBioData>,
    span: &Span,
    new: CowChunk,
    chunks: u64,
) -> Mapped<'a> {
    bio.accept_partial(this.leading_sectors(span, chunks));
    bio.set_sector(this.cow_sector(new, span.at));
    bio.remap(&this.cow)
}

/// Maps a write whose first chunk had no completed exception when [`write`] looked.
///
/// A write of whole chunks goes to the COW device at once and is itself the data of its exception.
/// Any other write waits until the worker has copied its chunk.
fn write_hole<'a>(
    this: ArcBorrow<'_, SnapshotTarget>,
    mut bio: MapBio<'a, PerBioData>,
    span: Span,
) -> Mapped<'a> {
    let store = this.store();
    let size = store.chunk_size();
    let whole_chunks = if size.offset(span.at).is_zero() {
        size.chunks_in(bio.sectors())
    } else {
        0
    };
    let mut allocation = store.allocation();
    match store.lookup(&mut allocation, span.chunk, span.chunks) {
        ChunkState::Completed(new, len) => {
            drop(allocation);
            return remap_to_cow(this, bio, &span, new, len);
        }
        ChunkState::Pending(seq, len) => {
            if let Some(pending) = allocation.pending.get(seq) {
                let new = pending.cow_chunk(span.chunk);
                let new = new.map_or(CowChunk::OUT_OF_RANGE, |(new, _)| new);
                bio.accept_partial(this.leading_sectors(&span, len));
                bio.set_sector(this.cow_sector(new, span.at));
                if pending.is_completed() {
                    drop(allocation);
                    return bio.remap(&this.cow);
                }
                let (bio, mapped) = bio.take();
                pending.waiting.snapshot_bios.push(bio);
                drop(allocation);
                return mapped;
            }
        }
        ChunkState::Hole(len) => {
            let (stage, most) = if whole_chunks != 0 {
                (Stage::Copying, whole_chunks.min(len))
            } else {
                (Stage::Queued, 1)
            };
            let reserved = store.reserve(&mut allocation, &this.cow, span.chunk, stage, (1, most));
            if let Ok((seq, run)) = reserved {
                bio.accept_partial(this.leading_sectors(&span, run.len));
                bio.set_sector(this.cow_sector(run.new, span.at));
                if whole_chunks != 0 {
                    drop(allocation);
                    bio.set_per_bio(PerBioData::full_chunk_write(seq));
                    return bio.remap(&this.cow);
                }
                let (bio, mapped) = bio.take();
                if let Some(pending) = allocation.pending.get(seq) {
                    pending.waiting.snapshot_bios.push(bio);
                }
                drop(allocation);
                this.group.wake();
                return mapped;
            }
        }
    }
    drop(allocation);
    bio.accept_partial(this.leading_sectors(&span, 1));
    defer(this, bio)
}

/// Hands a bio to the worker.
fn defer<'a>(this: ArcBorrow<'_, SnapshotTarget>, bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
    let (bio, mapped) = bio.take();
    this.deferred.lock().push(bio);
    this.group.wake();
    mapped
}

/// Maps a discard. Whole chunks on the COW device are zeroed; a discard of others does nothing.
fn discard<'a>(this: ArcBorrow<'_, SnapshotTarget>, mut bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
    let store = this.store();
    let span = this.span(&bio);
    if bio.target_bio_nr() != 0 {
        // The second of the two bios, for `discard_passdown_origin`: it bypasses the exceptions, as
        // in C.
        if let Some(per_bio) = store.track(span.chunk) {
            bio.set_per_bio(per_bio);
        }
        bio.set_sector(span.at);
        return bio.remap(&this.origin);
    }
    if this.features().discard_passdown_origin && span.chunks != 1 {
        // A bio that is sent to two devices cannot be split here. device-mapper splits discards at
        // chunk borders; should one span several chunks nonetheless, it need not do anything.
        return bio.end(BlkStatus::OK);
    }
    match store.find(span.chunk, span.chunks) {
        Lookup::Hole(len) => {
            bio.accept_partial(this.leading_sectors(&span, len));
            bio.end(BlkStatus::OK)
        }
        Lookup::Mapped(new, len) => {
            let size = store.chunk_size();
            let whole_chunks = if size.offset(span.at).is_zero() {
                size.chunks_in(bio.sectors()).min(len)
            } else {
                0
            };
            bio.accept_partial(this.leading_sectors(&span, whole_chunks.max(1)));
            bio.set_sector(this.cow_sector(new, span.at));
            if whole_chunks == 0 {
                return bio.remap(&this.cow);
            }
            bio.set_per_bio(PerBioData::ZEROED_DISCARD);
            defer(this, bio)
        }
    }
}

/// Ends a bio that `map` has sent to a device.
pub(super) fn end_io<'a>(
    this: ArcBorrow<'_, SnapshotTarget>,
    mut bio: EndBio<'a, PerBioData>,
) -> Ended<'a> {
    match bio.per_bio().kind() {
        BioKind::Tracked(stripe, generation) => {
            if this.store().untrack(stripe, generation) {
                this.group.wake();
            }
            bio.done()
        }
        BioKind::FullChunkWrite(..) => {
            let failed = !bio.status().is_ok();
            let per_bio = bio.per_bio().with_failure(failed);
            bio.set_per_bio(per_bio);
            let (bio, ended) = bio.take();
            this.full_chunk_writes.lock().push(bio);
            this.group.wake();
            ended
        }
        BioKind::None | BioKind::ZeroedDiscard | BioKind::OriginWrite => bio.done(),
    }
}

impl SnapshotTarget {
    /// Processes the writes of whole chunks that [`end_io`] has queued. Called with `members` held.
    pub(super) fn process_full_chunk_writes(self: &Arc<Self>, out: &mut ReleasedBios) {
        let mut bios = self.full_chunk_writes.lock().take();
        while let Some(bio) = bios.pop() {
            let BioKind::FullChunkWrite(seq, failed) = bio.per_bio().kind() else {
                self.store().fail_write(bio);
                continue;
            };
            let mut allocation = self.store().allocation();
            match allocation.pending.get(seq) {
                Some(pending) => {
                    pending.waiting.full_bio = Some(bio);
                    drop(allocation);
                    self.data_done(seq, !failed, out);
                }
                None => {
                    drop(allocation);
                    self.store().fail_write(bio);
                }
            }
        }
    }

    /// Records whether the data of a pending exception was written. Called with `members` held.
    pub(super) fn data_done(self: &Arc<Self>, seq: Seq, ok: bool, out: &mut ReleasedBios) {
        let store = self.store();
        if !ok {
            self.invalidate(kernel::error::code::EIO);
        }
        if store.state() == StoreState::Valid {
            store.allocation().pending.set_copied(seq);
        } else if let Some(pending) = store.abandon(seq) {
            store.fail_waiting(pending.waiting, out);
        }
    }
}
