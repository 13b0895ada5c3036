// SPDX-License-Identifier: GPL-2.0

//! The `snapshot`, `snapshot-origin` and `snapshot-merge` targets: what an origin was when the
//! snapshot was taken.
//!
//! | file | what |
//! | --- | --- |
//! | `mod.rs` | the hooks of `snapshot` that are not I/O: table line, status, who takes over from whom |
//! | `origin.rs` | the target `snapshot-origin` |
//! | `merge.rs` | the target `snapshot-merge` |
//! | `io.rs` | the way of a bio of a snapshot, from `map` to `end_io` |
//! | `group.rs` | all targets of one origin, and the worker that copies for them |
//! | `sending.rs` | how bios and copies that the worker has decided on are sent |
//! | `store.rs` | what the tables of one COW device share: its exceptions, and its state |
//! | `disk.rs` | the persistent store on the COW device |
//!
//! Locks: `members` (who belongs to an origin; the worker has it while it runs) > `active` >
//! `allocation` (exceptions on their way) > `stripe` (the table of exceptions). `disk` is the
//! committer's, and is held during I/O; only `allocation` is taken under it. Lists of bios have locks
//! of their own, and so has the list of families.
//!
//! Behaviour towards users: `Documentation/snapshot.md`. C counterpart: `drivers/md/dm-snap.c`.

mod commit;
mod disk;
mod group;
mod handover;
mod io;
mod merge;
mod origin;
mod submitter;
mod status;
mod store;
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
use commit::Committer;
pub(crate) use group::Origins;
use group::{
    CopyQueue,
    OriginGroup, //
};
use io::PerBioData;
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
use submitter::BioSubmitter;
use store::{
    CowStore,
    ReserveError,
    StoreState, //
};

/// A snapshot: one line of a table.
///
/// Fields drop in order: what uses the devices goes before them.
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
    /// It is merged into its origin: it has no new exceptions.
    is_merged: bool,
    role: Atomic<u32>,
    /// For bios that the worker sends to the COW device.
    submitter: Arc<BioSubmitter>,
    /// For copies to the COW device alone, or from it.
    copies: Arc<CopyQueue>,
    /// Writes, and discards, that the worker has to look at.
    #[pin]
    deferred: IrqLock<BioQueue<PerBioData>>,
    /// Writes that are the data of an exception, and have ended.
    #[pin]
    direct: IrqLock<BioQueue<PerBioData>>,
    #[pin]
    committer: Work<SnapshotTarget, { Committer::ID }>,
}

impl_has_work! {
    impl HasWork<SnapshotTarget, { Committer::ID }> for SnapshotTarget { self.committer }
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
        let (this, _claim) = Self::construct(builder, origins, args, false)?;
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
    /// Whether origin writes care about the snapshot, and it may have new exceptions.
    fn is_active(&self) -> bool {
        self.role().is_live() && !self.is_merged
    }

    /// Whether origin writes wait for the exceptions that it has begun; or, if it is lost, until
    /// the header says so.
    fn is_preserving(&self) -> bool {
        self.is_committer() && !self.is_merged
    }

    /// Whether origin writes have to look at the snapshot at all.
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

    /// Where a sector of the target is on the origin: at the same place as on the mapped device.
    fn origin_sector(&self, sector: Sector) -> Sector {
        Sector(self.begin.0.saturating_add(sector.0))
    }

    /// Where a sector of the origin is on the COW device, if its chunk is there.
    fn cow_sector(&self, chunk: CowChunk, at: Sector) -> Sector {
        let size = self.store.chunk_size();
        let start = size.cow_start(chunk).unwrap_or_default();
        Sector(start.0.saturating_add(size.offset(at).0))
    }

    /// The sector behind the snapshot.
    fn end(&self) -> Sector {
        Sector(self.begin.0.saturating_add(self.len.0))
    }

    /// The chunks of the snapshot that a write to the origin touches.
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

    /// How much of a write to the origin, from its start on, does not concern the snapshot. Any
    /// context.
    fn preserved_len(&self, start: Sector, len: Sectors) -> Sectors {
        let chunks = self.chunk_range(start, len);
        match self.store.state() {
            StoreState::Valid => {}
            StoreState::Invalidating if !chunks.is_empty() => return Sectors(0),
            StoreState::Invalidating | StoreState::Invalid => return len,
        }
        let preserved = self.store.preserved(chunks.start, chunks.len());
        if preserved >= chunks.len() {
            return len;
        }
        let first = Chunk(chunks.start.0.saturating_add(preserved));
        let upto = self.store.chunk_size().start(first).unwrap_or_default();
        upto.since(start).unwrap_or_default()
    }

    /// Gives out chunks for a hole, so many at least and at most, but not for those behind the
    /// snapshot's end.
    fn reserve_chunks(&self, chunk: Chunk, (least, most): (u64, u64)) -> Result<(Seq, Run), ReserveError> {
        let size = self.store.chunk_size();
        let behind = size.chunk(Sector(self.end().0.saturating_sub(1))).0;
        let left = behind.saturating_add(1).saturating_sub(chunk.0);
        if left == 0 {
            return Err(ReserveError::Changed);
        }
        let mut allocation = self.store.allocation();
        let wanted = (least, most.min(left));
        self.store
            .reserve(&mut allocation, &self.cow, chunk, Stage::Copying, wanted)
    }

    /// How much is to be copied for a run: the last chunk of the origin may be short.
    fn copy_len(&self, run: Run) -> Sectors {
        let size = self.store.chunk_size();
        let start = size.start(run.old).unwrap_or_default();
        let left = self.origin.sectors().0.saturating_sub(start.0);
        Sectors(run.len.saturating_mul(size.len().0).min(left))
    }
}
