// SPDX-License-Identifier: GPL-2.0

//! The `snapshot`, `snapshot-origin` and `snapshot-merge` targets.
//!
//! | file | subject |
//! | --- | --- |
//! | `mod.rs` | the target `snapshot`; numbers of work items |
//! | `table_line.rs`, `status.rs` | its constructor; its status lines |
//! | `io.rs`, `per_bio.rs` | its I/O path, from `map` to `end_io`; per-bio data |
//! | `handover.rs` | suspend, resume and destruction; exception handover |
//! | `commit.rs` | its committer, and how it becomes invalid |
//! | `origin.rs` | the target `snapshot-origin` |
//! | `merge/` | the target `snapshot-merge` |
//! | `group/` | all targets on one origin, and the worker that copies for them |
//! | `submitter.rs` | bios that the worker sends |
//! | `store/` | what the tables of one COW device share: exceptions, free space, state |
//!
//! # Locks
//!
//! In their order: a lock may be taken while those above it are held, unless the last column says
//! otherwise.
//!
//! | lock | type | protects | notes |
//! | --- | --- | --- | --- |
//! | `Origins::groups` | mutex | the list of groups | taken alone |
//! | `MergeTarget::merger` | mutex | state of the merge's work item | held during I/O |
//! | `OriginGroup::members` | mutex | targets, handover states | its holder is the worker |
//! | `OriginGroup::map_snapshots` | rw semaphore | snapshots that `map` of an origin checks | |
//! | `OriginGroup::preserved` | RCU | what they have all preserved | replaced under the two above |
//! | `CowStore::disk` | mutex | persistent store | held during I/O; not with the two above |
//! | `CowStore::allocation` | irq spinlock | pending exceptions, free space | |
//! | `Stripe` | irq spinlock | a part of the exception table, its tracked bios | |
//! | `MergeTarget::progress` | irq spinlock | state and batch of a merge | |
//! | lists of bios and copies, `CowStore::live_target` | irq spinlocks | themselves | innermost |
//!
//! Nothing is allocated under a spinlock or `map_snapshots`. Under a mutex memory is allocated in a
//! no-I/O scope, because reclaim may write to a device that waits for that mutex
//! (except in a store that is not shared yet).
//!
//! Behaviour towards users: `Documentation/snapshot.md`. C counterpart: `drivers/md/dm-snap.c`.

mod commit;
mod group;
mod handover;
mod io;
mod merge;
mod origin;
mod per_bio;
mod status;
mod store;
mod submitter;
mod table_line;

use crate::{
    dm::{
        arguments::Arguments,
        bio::{
            BioQueue,
            EndBio,
            Ended,
            MapBio,
            Mapped, //
        },
        device::{
            Device,
            TargetHandle, //
        },
        io::IoClient,
        limits::Limits,
        status::{
            StatusBuf,
            StatusKind, //
        },
        target::{
            CtrError,
            DeviceVisitor,
            Stop,
            Target,
            TargetBuilder, //
        }, //
    },
    logic::{
        snapshot::{
            chunks::{
                Chunk,
                Chunks,
                CowChunk, //
            },
            options::{
                Features,
                Options, //
            },
            pending::{
                Seq,
                Stage, //
            }, //
            run::Run,
        },
        units::{
            Sector,
            Sectors, //
        }, //
    },
    sys::irq_lock::IrqLock, //
};
pub(crate) use group::Origins;
use group::{
    CopyQueue,
    OriginGroup, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::Atomic,
        Arc,
        ArcBorrow, //
    },
    workqueue::{
        impl_has_work,
        Work, //
    }, //
};
pub(crate) use merge::MergeTarget;
pub(crate) use origin::OriginTarget;
use per_bio::PerBioData;
use store::{
    CowStore,
    ReserveError,
    StoreState, //
};
use submitter::BioSubmitter;

/// Numbers of the work items.
mod work_id {
    pub(super) const WORKER: u64 = 1;
    pub(super) const WORKER_RETRY: u64 = 2;
    pub(super) const BIO_SUBMITTER: u64 = 3;
    pub(super) const COPY_STARTER: u64 = 4;
    pub(super) const COMMITTER: u64 = 5;
    pub(super) const MERGER: u64 = 6;
}

/// A snapshot of an origin. C counterpart: `struct dm_snapshot`.
///
/// Fields drop in order: what uses the devices, then the devices.
#[pin_data]
pub(crate) struct SnapshotTarget {
    group: Arc<OriginGroup>,
    store: Arc<CowStore>,
    io: IoClient,
    origin: Device,
    cow: Device,
    handle: TargetHandle,
    begin: Sector,
    len: Sectors,
    options: Options,
    /// It belongs to a merge: it gets no new exceptions.
    is_merged: bool,
    /// The state of the handover; see [`SnapshotTarget::handover_state`].
    handover_state: Atomic<u32>,
    /// Bios that the worker sends to the COW device.
    submitter: Arc<BioSubmitter>,
    /// Copies to this COW device alone, or from it.
    copies: Arc<CopyQueue>,
    /// Bios that `map` has left to the worker: writes, and discards that zero chunks.
    #[pin]
    deferred: IrqLock<BioQueue<PerBioData>>,
    /// Full chunk writes that have completed: they are the data of a pending exception.
    #[pin]
    full_chunk_writes: IrqLock<BioQueue<PerBioData>>,
    #[pin]
    committer: Work<SnapshotTarget, { work_id::COMMITTER }>,
}

impl_has_work! {
    impl HasWork<SnapshotTarget, { work_id::COMMITTER }> for SnapshotTarget { self.committer }
}

#[vtable]
impl Target for SnapshotTarget {
    const NAME: &'static CStr = c"snapshot";
    const VERSION: [u32; 3] = [1, 16, 0];
    const C_MODULE: &'static str = "dm_snapshot";
    const NOWAIT: bool = false;
    type PerBio = PerBioData;
    type Shared = Arc<Origins>;

    fn ctr(
        builder: &mut TargetBuilder<'_>,
        origins: &Arc<Origins>,
        args: Arguments<'_>,
    ) -> Result<Arc<Self>, CtrError> {
        let (this, _reservation) = Self::construct(builder, origins, args, false)?;
        Ok(this)
    }

    fn dtr(this: &Arc<Self>) {
        handover::dtr(this);
    }

    fn map<'a>(this: ArcBorrow<'_, Self>, bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
        io::map(this, bio)
    }

    fn end_io<'a>(this: ArcBorrow<'_, Self>, bio: EndBio<'a, PerBioData>) -> Ended<'a> {
        io::end_io(this, bio)
    }

    fn preresume(this: ArcBorrow<'_, Self>) -> Result {
        handover::preresume(this)
    }

    fn resume(this: ArcBorrow<'_, Self>) {
        handover::resume(this);
    }

    fn postsuspend(this: ArcBorrow<'_, Self>) {
        handover::postsuspend(this);
    }

    fn status(this: ArcBorrow<'_, Self>, kind: StatusKind, _: bool, out: &mut StatusBuf<'_>) {
        this.emit_status::<Self>(kind, false, out);
    }

    fn iterate_devices(
        this: ArcBorrow<'_, Self>,
        visitor: &mut DeviceVisitor<'_>,
    ) -> Result<(), Stop> {
        visitor.visit(&this.origin, Sector(0), this.len)?;
        visitor.visit(&this.cow, Sector(0), this.cow.sectors())
    }

    fn io_hints(this: ArcBorrow<'_, Self>, limits: &mut Limits<'_>) {
        if this.options.features.discard_zeroes_cow {
            let size = this.store.chunk_size();
            limits.set_discard(size.sectors(), size.bytes());
        }
    }
}

impl SnapshotTarget {
    /// Whether origin writes must preserve data for the snapshot, which gets new exceptions for
    /// that. Any context.
    fn is_active(&self) -> bool {
        self.handover_state().is_live() && !self.is_merged
    }

    /// Whether origin writes wait for pending exceptions of the snapshot or, if it has become
    /// invalid, until its header says so. Any context.
    fn is_preserving(&self) -> bool {
        self.is_committer() && !self.is_merged
    }

    /// Whether an origin write has to check the snapshot at all. Any context.
    fn has_to_be_checked(&self) -> bool {
        match self.store.state() {
            StoreState::Valid | StoreState::Invalidating => self.is_preserving(),
            StoreState::Invalid => self.is_active(),
        }
    }

    fn store(&self) -> &CowStore {
        &self.store
    }

    fn features(&self) -> Features {
        self.options.features
    }

    /// The sector of the origin for a sector of a bio, which is relative to the target. Any
    /// context.
    fn origin_sector(&self, sector: Sector) -> Sector {
        Sector(self.begin.0.saturating_add(sector.0))
    }

    /// The sector of the COW device for a sector of the origin whose chunk is at `chunk`. Any
    /// context. C counterpart: `remap_exception`.
    fn cow_sector(&self, chunk: CowChunk, at: Sector) -> Sector {
        let size = self.store.chunk_size();
        let start = size.cow_start(chunk).unwrap_or(Sector::OUT_OF_RANGE);
        Sector(start.0.saturating_add(size.offset(at).0))
    }

    /// The first sector of the origin after the snapshot.
    fn end(&self) -> Sector {
        Sector(self.begin.0.saturating_add(self.len.0))
    }

    /// The chunks of the snapshot that an origin write touches. Any context.
    fn chunk_range(&self, start: Sector, len: Sectors) -> Chunks {
        let size = self.store.chunk_size();
        let end = Sector(start.0.saturating_add(len.0)).min(self.end());
        if start >= end {
            return Chunks::default();
        }
        Chunks {
            start: size.chunk(start),
            end: Chunk(
                size.chunk(Sector(end.0.saturating_sub(1)))
                    .0
                    .saturating_add(1),
            ),
        }
    }

    /// Length of the leading part of an origin write that is preserved in this snapshot. If that is
    /// all of it, also counts what follows, up to a length of `most`, as far as it is found with
    /// the write. Any context.
    fn preserved_len(&self, start: Sector, len: Sectors, most: Sectors) -> Sectors {
        let needed = self.chunk_range(start, len);
        match self.store.state() {
            StoreState::Valid => {}
            StoreState::Invalidating if !needed.is_empty() => return Sectors(0),
            StoreState::Invalidating | StoreState::Invalid => return most,
        }
        let chunks = self.chunk_range(start, most);
        let counts = (needed.len(), chunks.len());
        let preserved = self.store.preserved(chunks.start, counts);
        if preserved >= chunks.len() {
            return most;
        }
        let first_needed = Chunk(chunks.start.0.saturating_add(preserved));
        let end = self.store.chunk_size().start(first_needed);
        end.unwrap_or_default().since(start).unwrap_or_default()
    }

    /// Reserves COW chunks for a hole: from `least` to `most`, but none after the end of the
    /// snapshot. Any context. C counterpart: `__find_pending_exception`.
    ///
    /// # Errors
    ///
    /// See [`ReserveError`].
    fn reserve_chunks(
        &self,
        chunk: Chunk,
        (least, most): (u64, u64),
    ) -> Result<(Seq, Run), ReserveError> {
        let size = self.store.chunk_size();
        let last = size.chunk(Sector(self.end().0.saturating_sub(1))).0;
        let left = last.saturating_add(1).saturating_sub(chunk.0);
        if left == 0 {
            return Err(ReserveError::Changed);
        }
        let mut allocation = self.store.allocation();
        let wanted = (least, most.min(left));
        self.store
            .reserve(&mut allocation, &self.cow, chunk, Stage::Copying, wanted)
    }

    /// Length of the copy for a run of chunks: the last chunk of the origin may be short. Any
    /// context.
    fn copy_len(&self, run: Run) -> Sectors {
        let size = self.store.chunk_size();
        let start = size.start(run.old).unwrap_or(Sector::OUT_OF_RANGE);
        let left = self.origin.sectors().0.saturating_sub(start.0);
        Sectors(run.len.saturating_mul(size.len().0).min(left))
    }
}
