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

mod disk;
mod group;
mod io;
mod merge;
mod origin;
mod sending;
mod store;

use crate::{
    dm::{
        arguments::Arguments,
        bio::{
            Bio,
            BioQueue,
            EndBio,
            Ended,
            MapBio,
            Mapped, //
        },
        device::{
            Access,
            Device,
            TargetHandle, //
        },
        io::{
            Buffer,
            IoClient,
            Transfer, //
        },
        limits::Limits,
        status::{
            StatusBuf,
            StatusKind, //
        },
        target::{
            CtrError,
            DeviceVisitor,
            OrMessage,
            Stop,
            Target,
            TargetBuilder, //
        }, //
    },
    logic::{
        args::ArgumentError,
        snapshot::{
            chunks::{
                Chunk,
                ChunkSize,
                Chunks,
                CowChunk, //
            },
            handover::{
                HandoverState,
                Source, //
            },
            header::{
                ChunkSizeOverride,
                Header,
                HeaderError, //
            },
            options::{
                BlockSizes,
                Features,
                Options,
                StoreKind,
                NO_CHUNK_SIZE,
                NO_STORE, //
            },
            pending::{
                Seq,
                Stage, //
            },
            run::Run,
            status::{
                Health,
                StatusLine,
                Usage, //
            }, //
        },
        units::{
            Sector,
            Sectors,
            SECTOR_SHIFT, //
        }, //
    },
    sys::{
        delay::delay_point,
        irq_lock::{
            new_irq_lock,
            IrqLock, //
        },
        log::{
            err,
            warning,
            CStrDisplay, //
        },
        noio::NoIo,
        queue::flush,
        string::bytes, //
    }, //
};
pub(crate) use group::Origins;
use group::{
    Calm,
    OriginGroup, //
};
use io::PerBioData;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc,
        ArcBorrow, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};
pub(crate) use merge::MergeTarget;
pub(crate) use origin::OriginTarget;
use sending::{
    Copies,
    Outlet, //
};
use store::{
    CowStore,
    ReleasedBios,
    ReserveError,
    StoreState, //
};

/// A target's place in its family, until it is kept: then the destructor gives it up.
struct Membership {
    group: Arc<OriginGroup>,
    kept: bool,
}

impl Membership {
    /// Sleeps.
    fn new(builder: &TargetBuilder<'_>, origins: &Arc<Origins>, origin: u32) -> Result<Self> {
        Ok(Membership {
            group: origins.group(builder, origin)?,
            kept: false,
        })
    }

    fn group(&self) -> &Arc<OriginGroup> {
        &self.group
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if !self.kept {
            self.group.leave();
        }
    }
}

/// A COW device, and perhaps the merge of an origin, that a constructor has in its hands: no other
/// one may.
struct Reservation {
    group: Arc<OriginGroup>,
    cow: u32,
    merge: bool,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.group.members.lock().unclaim(self.cow, self.merge);
    }
}

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
    outlet: Arc<Outlet>,
    /// For copies to the COW device alone, or from it.
    copies: Arc<Copies>,
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

const NO_MERGE: &CStr = c"Snapshot exception store does not support snapshot-merge.";
const PAIRING: &CStr = c"Snapshot cow pairing for exception table handover failed";

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
        let (this, _claim) = Self::make(builder, origins, args, false)?;
        Ok(this)
    }

    fn dtr(this: &Arc<Self>) {
        let group = &this.group;
        let members = group.members.lock();
        // The worker does not run now, and begins nothing for it any more.
        let was_live = this.changes_role(HandoverState::destroy);
        drop(members);
        if was_live {
            delay_point!(c"snapshot: leaving, not yet idle");
            group.wake();
            // What a former table has begun, the one that took over ends; that may be now.
            this.store
                .wait_idle(|| this.role() == HandoverState::HandedOver);
        }
        delay_point!(c"snapshot: idle, not yet off the roster");
        let mut members = group.members.lock();
        if this.role() == HandoverState::Destroying {
            if members.sharing(this.cow.number()).waiting.is_some() {
                err!("snapshots", "Cancelling snapshot handover.");
            }
            this.store.set_live_target(None);
        }
        members.remove(this);
        drop(members);
        group.forget(this);
        // Copies and worker call the committer, and that the worker: none of them is to have the
        // last reference.
        group.settle();
        this.outlet.settle();
        this.copies.drain();
        flush::<SnapshotTarget, { Committer::ID }>(this);
        group.settle();
        group.leave();
    }

    fn map<'a>(this: ArcBorrow<'_, Self>, bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
        io::map(this, bio)
    }

    fn end_io<'a>(this: ArcBorrow<'_, Self>, bio: EndBio<'a, PerBioData>) -> Ended<'a> {
        io::end_io(this, bio)
    }

    fn preresume(this: ArcBorrow<'_, Self>) -> Result {
        let members = this.group.members.lock();
        let sharing = members.sharing(this.cow.number());
        let source = sharing.live.map(|live| Source {
            state: live.role(),
            is_merge: live.is_merged,
            is_replaced: live.handle.mapped_device() == this.handle.mapped_device(),
        });
        let is_waited_for = sharing.waiting.is_some();
        let reload = this.changes_role(|role| role.preresume(source, is_waited_for));
        drop(members);
        match reload {
            Ok(true) => {
                let _noio = NoIo::enter();
                this.reload()
            }
            Ok(false) => Ok(()),
            Err(denied) => {
                err!("snapshots", "{}", denied.text());
                Err(EINVAL)
            }
        }
    }

    fn resume(this: ArcBorrow<'_, Self>) {
        if !this.role().is_waiting() {
            // It is live since `preresume`; or another one has taken over.
            return;
        }
        let this: Arc<Self> = this.into();
        this.take_over(&this.group.calm(&this));
        // What the former table has left to do.
        this.group.wake();
    }

    fn postsuspend(this: ArcBorrow<'_, Self>) {
        let _roster = this.group.members.lock();
        this.changes_role(HandoverState::postsuspend);
    }

    fn status(this: ArcBorrow<'_, Self>, kind: StatusKind, _: bool, out: &mut StatusBuf<'_>) {
        this.report::<Self>(kind, false, out);
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

/// Reads the store of a COW device, or makes one. Sleeps for I/O.
fn open_store(
    cow: &Device,
    io: &IoClient,
    options: &Options,
    blocks: BlockSizes,
    begin: Sector,
) -> Result<Arc<CowStore>, CtrError> {
    let unreadable = c"Failed to read snapshot metadata";
    let Some(size) = options.first_chunk_size(blocks) else {
        return Err(refused(NO_CHUNK_SIZE));
    };
    let memory = c"Unable to allocate hash table space";
    if options.store == StoreKind::Transient {
        check_begin(begin, size)?;
        return CowStore::new(false, size, 0).or_message(memory);
    }
    let (header, found) = read_header(cow, io, options, size, blocks).or_message(unreadable)?;
    check_begin(begin, found)?;
    let store = CowStore::new(true, found, sectors(blocks.cow)).or_message(memory)?;
    match header {
        Header::Blank => store.format(cow, io).or_message(unreadable)?,
        Header::Store { valid: false, .. } => {
            warning!("snapshots", "Snapshot is marked invalid.");
            store.set_state(StoreState::Invalid);
        }
        Header::Store { .. } => store.load(cow).or_message(unreadable)?,
    }
    Ok(store)
}

/// A target whose chunks are not those of the origin cannot be cut at their borders.
fn check_begin(begin: Sector, size: ChunkSize) -> Result<(), CtrError> {
    if size.offset(begin).is_zero() {
        return Ok(());
    }
    let text = c"Target does not begin at a multiple of the chunk size";
    Err(CtrError::new(text, EINVAL))
}

/// Reads the header of a COW device, with the size of its chunks. Sleeps for I/O.
///
/// The device is flushed first. Records that only its volatile cache has, since their write was
/// reported as failed, let writes to the origin pass; a power cut would then take the records back,
/// and leave those writes.
fn read_header(
    cow: &Device,
    io: &IoClient,
    options: &Options,
    size: ChunkSize,
    blocks: BlockSizes,
) -> Result<(Header, ChunkSize)> {
    if cow.sectors() < size.len() {
        return Err(EIO);
    }
    cow.flush()?;
    let mut buffer = Buffer::new(sectors(blocks.cow))?;
    io.transfer(Transfer::Read, cow, Sector(0), &mut buffer)?;
    if let Some(table) = options.chunk_size {
        if let Some(other) = ChunkSizeOverride::find(&buffer, table) {
            warning!("persistent snapshot", "{}", other);
        }
    }
    let header = Header::parse(&buffer, size, blocks).map_err(|invalid| {
        if matches!(invalid, HeaderError::ChunkSize { .. }) {
            err!("persistent snapshot", "{}", invalid);
        } else {
            warning!("persistent snapshot", "{}", invalid);
        }
        Error::from(invalid)
    })?;
    match header {
        Header::Store { size, .. } => Ok((header, size)),
        Header::Blank => Ok((header, size)),
    }
}

/// Bytes of a block as sectors.
fn sectors(bytes: u32) -> u32 {
    (bytes >> SECTOR_SHIFT).max(1)
}

fn refused(error: ArgumentError) -> CtrError {
    CtrError::new(error.message, error.error)
}

impl SnapshotTarget {
    /// Makes a table; what comes with it is dropped when it is complete. Sleeps.
    fn make(
        builder: &mut TargetBuilder<'_>,
        origins: &Arc<Origins>,
        mut args: Arguments<'_>,
        is_merged: bool,
    ) -> Result<(Arc<Self>, Reservation), CtrError> {
        let (4.., Some(origin), Some(cow), Some(kind), Some(size)) = (
            args.len(),
            args.next(),
            args.next(),
            args.next(),
            args.next(),
        ) else {
            return Err(CtrError::new(c"requires 4 or more arguments", EINVAL));
        };
        let mut rest = args.map(bytes);
        let features = Features::parse(&mut rest).map_err(refused)?;
        if rest.next().is_some() {
            warning!("snapshots", "extra arguments are ignored");
        }

        let origin = builder
            .open(
                origin,
                if is_merged {
                    Access::ReadWrite
                } else {
                    Access::Read
                },
            )
            .or_message(c"Cannot get origin device")?;
        let cow = builder
            .open(cow, builder.access())
            .or_message(c"Cannot get COW device")?;
        if cow.number() == origin.number() {
            let text = c"COW device cannot be the same as origin device";
            return Err(CtrError::new(text, EINVAL));
        }
        let blocks = BlockSizes {
            cow: cow.logical_block_size(),
            origin: origin.logical_block_size(),
        };
        let options = Options::parse(bytes(kind), bytes(size), blocks, features);
        let options = options.map_err(|reason| {
            err!("snapshots", "{}", reason);
            refused(NO_STORE)
        })?;

        if is_merged && !options.store.can_merge() {
            return Err(CtrError::new(NO_MERGE, EINVAL));
        }

        let memory = c"Cannot allocate private snapshot structure";
        let membership = Membership::new(builder, origins, origin.number())
            .or_message(c"Snapshot origin struct allocation failed")?;
        let group = membership.group().clone();
        let (source, claim) = origins.claim(&group, cow.number(), is_merged)?;
        let io = builder.io_client().or_message(memory)?;
        let begin = builder.begin();
        let (store, role) = match source {
            Some(store) => {
                if is_merged && !store.is_persistent() {
                    return Err(CtrError::new(NO_MERGE, EINVAL));
                }
                check_begin(begin, store.chunk_size())?;
                (store, HandoverState::Destination)
            }
            None => {
                let store = open_store(&cow, &io, &options, blocks, begin)?;
                (store, HandoverState::New)
            }
        };

        let outlet = Outlet::new(cow.shared()).or_message(memory)?;
        let copies = Copies::new(builder).or_message(memory)?;
        builder.pass_flushes(if is_merged { 2 } else { 1 });
        match (
            features.discard_zeroes_cow,
            features.discard_passdown_origin,
        ) {
            (true, true) => builder.split_discards(2),
            (true, false) => builder.split_discards(1),
            _ => {}
        }
        let (its, handle, len) = (group.clone(), builder.handle(), builder.len());
        let this = Arc::pin_init(
            pin_init!(SnapshotTarget {
                group: its,
                store,
                io,
                origin,
                cow,
                handle,
                begin,
                len,
                options,
                is_merged,
                role: Atomic::new(role.to_bits()),
                outlet,
                copies,
                deferred <- new_irq_lock!(BioQueue::new(), "dm_snap_deferred"),
                direct <- new_irq_lock!(BioQueue::new(), "dm_snap_direct"),
                committer <- new_work!("dm_snap_committer"),
            }),
            GFP_KERNEL,
        )
        .or_message(memory)?;
        group.enter(&this).or_message(memory)?;
        membership.keep();
        Ok((this, claim))
    }

    fn role(&self) -> HandoverState {
        HandoverState::from_bits(self.role.load(Acquire))
    }

    /// Changes the role. Under the roster.
    fn changes_role<R>(&self, change: impl FnOnce(&mut HandoverState) -> R) -> R {
        let mut role = self.role();
        let result = change(&mut role);
        self.role.store(role.to_bits(), Release);
        result
    }

    /// Becomes the live one of the tables with the store.
    fn take_over(self: &Arc<Self>, calm: &Calm<'_>) {
        let others =
            calm.members().tables.iter().filter(|other| {
                other.cow.number() == self.cow.number() && !Arc::ptr_eq(other, self)
            });
        self.group.switch(|| {
            for other in others {
                other.changes_role(HandoverState::hand_over);
            }
            self.changes_role(HandoverState::resume);
        });
        self.store.set_live_target(Some(self.clone()));
        // Who is being destroyed need not wait any more.
        self.store.wake_idle();
    }

    /// Whether origin writes care about the snapshot, and it may have new exceptions.
    fn is_active(&self) -> bool {
        self.role().is_live() && !self.is_merged
    }

    /// Whether origin writes wait for the exceptions that it has begun; or, if it is lost, until
    /// the header says so.
    fn is_guarded(&self) -> bool {
        self.is_committing() && !self.is_merged
    }

    /// Whether origin writes have to look at the snapshot at all.
    fn is_watched(&self) -> bool {
        match self.store.state() {
            StoreState::Valid | StoreState::Invalidating => self.is_guarded(),
            StoreState::Invalid => self.is_active(),
        }
    }

    fn store(&self) -> &CowStore {
        &self.store
    }

    fn features(&self) -> Features {
        self.options.features
    }

    /// What the table line says. The size of a chunk is that of the store, as long as it is ours.
    fn shown_options(&self) -> Options {
        let overflow = matches!(self.options.store, StoreKind::Persistent { overflow: true });
        let mut shown = self.options;
        shown.chunk_size = None;
        if !matches!(
            self.role(),
            HandoverState::Destination | HandoverState::HandedOver
        ) {
            shown.chunk_size = Some(self.store.chunk_size());
            shown.store = if self.store.is_persistent() {
                StoreKind::Persistent { overflow }
            } else {
                StoreKind::Transient
            };
        }
        shown
    }

    /// Where a sector of the target is on the origin: at the same place as on the mapped device.
    fn absolute(&self, sector: Sector) -> Sector {
        Sector(self.begin.0.saturating_add(sector.0))
    }

    /// Where a sector of the origin is on the COW device, if its chunk is there.
    fn place(&self, chunk: CowChunk, at: Sector) -> Sector {
        let size = self.store.chunk_size();
        let start = size.cow_start(chunk).unwrap_or_default();
        Sector(start.0.saturating_add(size.offset(at).0))
    }

    /// The sector behind the snapshot.
    fn end(&self) -> Sector {
        Sector(self.begin.0.saturating_add(self.len.0))
    }

    /// The chunks of the snapshot that a write to the origin touches.
    fn chunks(&self, start: Sector, len: Sectors) -> Chunks {
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
    fn clear(&self, start: Sector, len: Sectors) -> Sectors {
        let chunks = self.chunks(start, len);
        match self.store.state() {
            StoreState::Valid => {}
            StoreState::Invalidating if !chunks.is_empty() => return Sectors(0),
            StoreState::Invalidating | StoreState::Invalid => return len,
        }
        let clear = self.store.preserved(chunks.start, chunks.len());
        if clear >= chunks.len() {
            return len;
        }
        let first = Chunk(chunks.start.0.saturating_add(clear));
        let upto = self.store.chunk_size().start(first).unwrap_or_default();
        upto.since(start).unwrap_or_default()
    }

    /// Gives out chunks for a hole, so many at least and at most, but not for those behind the
    /// snapshot's end.
    fn reserve(&self, chunk: Chunk, (least, most): (u64, u64)) -> Result<(Seq, Run), ReserveError> {
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
    fn copied(&self, run: Run) -> Sectors {
        let size = self.store.chunk_size();
        let start = size.start(run.old).unwrap_or_default();
        let left = self.origin.sectors().0.saturating_sub(start.0);
        Sectors(run.len.saturating_mul(size.len().0).min(left))
    }

    /// Reads the store again. Nobody else has it. Sleeps for I/O.
    fn reload(&self) -> Result {
        if self.store.state() == StoreState::Invalid {
            // Known to be lost, even if the header could not say so.
            return Ok(());
        }
        if !self.store.is_persistent() {
            // It went with its last table.
            self.store.set_state(StoreState::Invalid);
            return Ok(());
        }
        let blocks = BlockSizes {
            cow: self.cow.logical_block_size(),
            origin: self.origin.logical_block_size(),
        };
        let size = self.store.chunk_size();
        let (header, found) = read_header(&self.cow, &self.io, &self.options, size, blocks)?;
        match header {
            _ if found != size => Err(EINVAL),
            Header::Blank => self.store.format(&self.cow, &self.io),
            Header::Store { valid: false, .. } => {
                self.store.set_state(StoreState::Invalid);
                Ok(())
            }
            Header::Store { .. } => self.store.load(&self.cow),
        }
    }

    /// Writes the status of a target of a type.
    fn report<T: Target>(&self, kind: StatusKind, merge_failed: bool, out: &mut StatusBuf<'_>) {
        let health = Health {
            // Not before the header says so too.
            valid: self.role() != HandoverState::HandedOver
                && self.store.state() != StoreState::Invalid,
            merge_failed,
            overflowed: self.store.is_overflowed(),
        };
        match kind {
            StatusKind::Info => {
                let usage = match self.role() {
                    // The store is not its own yet.
                    HandoverState::Destination => Usage {
                        total: self.cow.sectors(),
                        ..Usage::default()
                    },
                    _ => self.store.usage(&self.cow),
                };
                let info = if self.is_merged {
                    StatusLine::of_merge(health, usage)
                } else {
                    StatusLine::of_snapshot(health, usage)
                };
                out.emit(fmt!("{}", info));
            }
            StatusKind::Table => {
                let shown = self.shown_options();
                out.emit(fmt!("{} {} {}", self.origin, self.cow, shown));
            }
            StatusKind::Ima => {
                let [major, minor, patch] = T::VERSION;
                out.emit(fmt!(
                    "target_name={},target_version={}.{}.{},snap_origin_name={},snap_cow_name={}{}",
                    CStrDisplay(T::NAME),
                    major,
                    minor,
                    patch,
                    self.origin,
                    self.cow,
                    health
                ));
            }
        }
    }

    /// The snapshot is lost. The worker only.
    fn fail(self: &Arc<Self>, reason: Error) {
        if self.store.state() != StoreState::Valid {
            return;
        }
        let what = if reason == ENOSPC {
            "Unable to allocate exception."
        } else {
            "Error reading/writing."
        };
        err!("snapshots", "Invalidating snapshot: {}", what);
        if self.store.is_persistent() {
            self.store.set_state(StoreState::Invalidating);
            self.live().wake_committer();
        } else {
            self.store.set_state(StoreState::Invalid);
            self.live().handle.raise_event();
        }
    }

    /// The one of the tables with its store that is live; itself if there is none.
    fn live(self: &Arc<Self>) -> Arc<Self> {
        self.store.live_target().unwrap_or_else(|| self.clone())
    }

    /// There is no room for a write to the snapshot. The worker only.
    fn full(self: &Arc<Self>, bio: Bio<PerBioData>, out: &mut ReleasedBios) {
        if self.options.store == (StoreKind::Persistent { overflow: true }) {
            if !self.store.is_overflowed() {
                self.store.set_overflowed();
                err!(
                    "snapshots",
                    "Snapshot overflowed: Unable to allocate exception."
                );
                self.live().handle.raise_event();
            }
        } else {
            self.fail(ENOSPC);
            self.store.abandon_all(out);
        }
        self.store.fail_write(bio);
    }

    /// Whether it is the one of the tables with its store that writes records.
    fn is_committing(&self) -> bool {
        self.role().has_store()
    }

    /// Sees that records are written, if there are any to be. The worker only.
    fn commit(self: &Arc<Self>) {
        if !self.is_committing() || !self.store.allocation().pending.has_batch() {
            return;
        }
        if self.store.is_persistent() {
            self.wake_committer();
        } else {
            self.store.allocation().pending.commit_copied();
            self.group.wake();
        }
    }

    /// Takes note that the data of an exception has come. Any context.
    fn data_came(self: &Arc<Self>, seq: Seq) {
        let mut allocation = self.store.allocation();
        allocation.pending.set_copied(seq);
        let batch = allocation.pending.has_batch();
        drop(allocation);
        let valid = self.store.state() == StoreState::Valid;
        if valid && self.store.is_persistent() && self.is_committing() {
            // Nearly always: straight on.
            if batch {
                self.wake_committer();
            }
        } else {
            self.group.wake();
        }
    }

    fn wake_committer(self: &Arc<Self>) {
        self.group
            .commits()
            .enqueue::<SnapshotTarget, { Committer::ID }>(self.clone());
    }
}

/// Writes records, batch after batch, and the header when the snapshot is lost.
struct Committer;

impl Committer {
    const ID: u64 = 1;
}

impl WorkItem<1> for SnapshotTarget {
    type Pointer = Arc<SnapshotTarget>;

    fn run(this: Arc<SnapshotTarget>) {
        let _noio = NoIo::enter();
        let store = &this.store;
        while this.is_committing() && store.commit_batch(&this.cow, &this.io) {
            this.group.work_now();
        }
        if store.finish_invalidation(&this.cow, &this.io) {
            this.live().handle.raise_event();
            this.group.work_now();
        }
        if !this.is_committing() {
            // Another table has taken over meanwhile: its committer goes on.
            this.group.wake();
        }
    }
}
