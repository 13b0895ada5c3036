// SPDX-License-Identifier: GPL-2.0

//! What the tables of one COW device share: which chunks it has, which are on their way, and its
//! state.
//!
//! A table that is loaded over a live one gets the store of that one, and takes over at resume; so
//! nothing is read twice, and nothing is handed over.

use super::{
    disk::{
        PersistentStore,
        Tail, //
    },
    io::PerBioData,
    SnapshotTarget, //
};
use crate::{
    dm::{
        bio::{
            Bio,
            BioQueue,
            BlkStatus, //
        },
        device::Device,
        io::IoClient, //
    },
    logic::{
        count::Count,
        snapshot::{
            chunks::{
                Chunk,
                ChunkSize,
                CowChunk, //
            },
            exception_table::{
                ExceptionTable,
                InsertError,
                Lookup,
                SpareNodes, //
            },
            layout::{
                Layout,
                PersistentAllocator,
                TransientAllocator, //
            },
            merge::CommitResult,
            merge_batch::BatchLookup,
            pending::{
                PendingException,
                PendingExceptions,
                Seq,
                Stage, //
            },
            run::{
                Run,
                MAX_RUN_CHUNKS, //
            },
            status::Usage,
            stripes::{
                self,
                Duplicates,
                StripesLoader,
                STRIPES, //
            },
            tracked_reads::{
                Generation,
                TrackedReads, //
            }, //
        },
        units::Sectors, //
    },
    sys::{
        delay::delay_point,
        irq_lock::{
            new_irq_lock,
            IrqGuard,
            IrqLock, //
        },
        log::{
            err,
            warning, //
        },
        noio::NoIo,
        params,
        wait::{
            new_wait_queue,
            WaitQueue, //
        }, //
    }, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        Mutex, //
    }, //
};

/// Exceptions that a snapshot may have on their way; each may be many chunks long.
const ROOM: usize = 512;

/// The chunks of so many bytes (two to this power) that follow each other are in one part.
const STRIPE: u32 = 25;

/// What waits for an exception.
#[derive(Default)]
pub(super) struct WaitingBios {
    /// Writes to the snapshot, with their place on the COW device.
    pub(super) snapshot_bios: BioQueue<PerBioData>,
    /// The write that is the data of the exception. It has ended, and is told so when the record is
    /// durable.
    pub(super) full_bio: Option<Bio<PerBioData>>,
    /// Writes to the origin.
    pub(super) origin_bios: BioQueue<PerBioData>,
}

/// A part of the table.
pub(super) struct Stripe {
    extents: ExceptionTable,
    readers: TrackedReads,
    /// Exceptions in the table whose readers of before are not all through. Then origin writes look
    /// twice.
    draining: Count,
}

/// Which space is free.
pub(super) enum FreeSpace {
    Persistent(PersistentAllocator),
    Transient(TransientAllocator),
}

impl FreeSpace {
    fn allocate(&mut self, most: u64, cow: Sectors) -> Option<(CowChunk, u64)> {
        match self {
            FreeSpace::Persistent(it) => it.allocate(most, cow),
            FreeSpace::Transient(it) => it.allocate(most, cow),
        }
    }

    /// How much [`allocate`](Self::allocate) would give.
    fn offer(&self, most: u64, cow: Sectors) -> u64 {
        let found = match self {
            FreeSpace::Persistent(it) => it.clone().allocate(most, cow),
            FreeSpace::Transient(it) => it.clone().allocate(most, cow),
        };
        found.map_or(0, |(_, len)| len)
    }

    fn used(&self) -> Sectors {
        match self {
            FreeSpace::Persistent(it) => it.used(),
            FreeSpace::Transient(it) => it.used(),
        }
    }
}

/// Exceptions on their way, and space for more.
pub(super) struct Allocation {
    pub(super) pending: PendingExceptions<WaitingBios>,
    pub(super) space: FreeSpace,
}

/// Whether a store can be used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreState {
    Valid,
    /// It is lost, but its header does not say so yet: origin writes that it needed wait.
    Invalidating,
    Invalid,
}

/// What there is of a chunk, and for how many from it on.
pub(super) enum ChunkState {
    /// On the COW device, and nobody reads it from the origin any more.
    Completed(CowChunk, u64),
    /// On its way.
    Pending(Seq, u64),
    /// On the origin only.
    Hole(u64),
}

/// Where a write to a merge goes.
pub(super) enum Place {
    /// To the COW device, so many chunks; it is counted.
    Open(CowChunk, u64, PerBioData),
    /// It waits: the chunk is being merged.
    Closed,
    /// To the origin, so many chunks.
    Merged(u64),
}

/// Why chunks cannot be reserved.
pub(super) enum ReserveError {
    /// There is no hole of that length any more.
    Changed,
    /// Too many exceptions are pending. The caller waits until some are complete.
    Busy,
    /// The COW device has no room for that many chunks.
    NoSpace,
}

/// How many chunks a snapshot may have on their way before others wait.
fn threshold() -> u64 {
    u64::from(params::snapshot_threshold()).max(1)
}

/// See above.
#[pin_data]
pub(super) struct CowStore {
    persistent: bool,
    size: ChunkSize,
    stripe: u32,
    stripes: KVVec<Pin<KBox<IrqLock<Stripe>>>>,
    state: Atomic<u32>,
    overflowed: Atomic<bool>,
    /// A batch could not be written.
    lost: Atomic<bool>,
    /// The area of the next record; in a merge, of the last one once it has been looked at. For the
    /// status line.
    area: Atomic<u64>,
    #[pin]
    allocation: IrqLock<Allocation>,
    /// Writes that have failed, and are told so when the header says why, if the store is lost.
    #[pin]
    failed: IrqLock<BioQueue<PerBioData>>,
    #[pin]
    disk: Mutex<PersistentStore>,
    /// For those who wait until nothing is on its way.
    #[pin]
    idle: WaitQueue,
    /// The live table.
    #[pin]
    live_target: IrqLock<Option<Arc<SnapshotTarget>>>,
}

impl CowStore {
    /// A store in which nothing is yet. Sleeps.
    pub(super) fn new(persistent: bool, size: ChunkSize, block: u32) -> Result<Arc<Self>> {
        let mut stripes = KVVec::with_capacity(STRIPES, GFP_KERNEL)?;
        for _ in 0..STRIPES {
            let stripe = Stripe {
                extents: ExceptionTable::new(),
                readers: TrackedReads::default(),
                draining: Count::default(),
            };
            let stripe = KBox::pin_init(new_irq_lock!(stripe, "dm_snap_stripe"), GFP_KERNEL)?;
            stripes.push_within_capacity(stripe)?;
        }
        let layout = Layout::new(size);
        let space = if persistent {
            FreeSpace::Persistent(PersistentAllocator::new(layout, CowChunk(0), 0))
        } else {
            FreeSpace::Transient(TransientAllocator::new(size))
        };
        let allocation = Allocation {
            pending: PendingExceptions::new(ROOM, GFP_KERNEL)?,
            space,
        };
        let disk = PersistentStore::new(layout, if persistent { block } else { 0 }, ROOM)?;
        Arc::pin_init(
            pin_init!(CowStore {
                persistent,
                size,
                // Not longer than a run can be.
                stripe: STRIPE
                    .saturating_sub(size.bytes().trailing_zeros())
                    .clamp(6, MAX_RUN_CHUNKS.trailing_zeros()),
                stripes,
                state: Atomic::new(0),
                overflowed: Atomic::new(false),
                lost: Atomic::new(false),
                area: Atomic::new(0),
                allocation <- new_irq_lock!(allocation, "dm_snap_allocation"),
                failed <- new_irq_lock!(BioQueue::new(), "dm_snap_failed"),
                disk <- new_mutex!(disk, "dm_snap_disk"),
                idle <- new_wait_queue!("dm_snap_idle"),
                live_target <- new_irq_lock!(None, "dm_snap_owner"),
            }),
            GFP_KERNEL,
        )
    }

    pub(super) fn chunk_size(&self) -> ChunkSize {
        self.size
    }

    pub(super) fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// Any context.
    pub(super) fn state(&self) -> StoreState {
        match self.state.load(Acquire) {
            0 => StoreState::Valid,
            1 => StoreState::Invalidating,
            _ => StoreState::Invalid,
        }
    }

    pub(super) fn set_state(&self, state: StoreState) {
        let state = match state {
            StoreState::Valid => 0,
            StoreState::Invalidating => 1,
            StoreState::Invalid => 2,
        };
        self.state.store(state, Release);
    }

    pub(super) fn is_overflowed(&self) -> bool {
        self.overflowed.load(Relaxed)
    }

    pub(super) fn set_overflowed(&self) {
        self.overflowed.store(true, Relaxed);
    }

    /// The numbers of the status line. Any context.
    pub(super) fn usage(&self, cow: &Device) -> Usage {
        let allocated = self.allocation.lock().space.used();
        let layout = Layout::new(self.size);
        let metadata = if self.persistent {
            layout.metadata(self.area.load(Relaxed))
        } else {
            Sectors(0)
        };
        Usage {
            allocated,
            total: cow.sectors(),
            metadata,
        }
    }

    /// Notes in which area a record is.
    fn note_area(&self, record: u64) {
        let (area, _) = Layout::new(self.size).slot(record);
        self.area.store(area, Relaxed);
    }

    /// Exceptions on their way. Any context.
    pub(super) fn allocation(&self) -> IrqGuard<'_, Allocation> {
        self.allocation.lock()
    }

    /// Where a chunk is in the table: its part, and how many chunks from it on are in the same one.
    pub(super) fn stripe(&self, chunk: Chunk) -> (usize, u64) {
        stripes::stripe_of(chunk, self.stripe)
    }

    fn with<R>(&self, stripe: usize, body: impl FnOnce(&mut Stripe) -> R) -> Option<R> {
        Some(body(&mut self.stripes.get(stripe)?.lock()))
    }

    /// Finds a chunk, for a bio of the snapshot. A reader who finds a hole is counted: it goes to
    /// the origin. Any context.
    pub(super) fn find(
        &self,
        chunk: Chunk,
        most: u64,
        count: bool,
    ) -> (Lookup, Option<PerBioData>) {
        let (index, left) = self.stripe(chunk);
        let found = self.with(index, |stripe| {
            let found = stripe.extents.find(chunk, most.min(left));
            let per_bio = match found {
                Lookup::Hole(_) if count => {
                    Some(PerBioData::tracked(index, stripe.readers.track()))
                }
                _ => None,
            };
            (found, per_bio)
        });
        found.unwrap_or((Lookup::Hole(1), None))
    }

    /// Counts a reader of the origin, whatever the chunk is. Any context.
    pub(super) fn enter(&self, chunk: Chunk) -> Option<PerBioData> {
        let (index, _) = self.stripe(chunk);
        self.with(index, |stripe| {
            PerBioData::tracked(index, stripe.readers.track())
        })
    }

    /// A reader of the origin has ended. Tells whether somebody may have waited for that. Any
    /// context.
    pub(super) fn leave(&self, stripe: usize, generation: Generation) -> bool {
        self.with(stripe, |stripe| {
            stripe.readers.stop_tracking(generation) && !stripe.draining.is_zero()
        })
        .unwrap_or(false)
    }

    /// How many chunks from one on a write to the origin need not care about, up to `most`; of many
    /// short runs only the first are looked up. Any context.
    pub(super) fn preserved(&self, chunk: Chunk, most: u64) -> u64 {
        stripes::count_leading(chunk, most, self.stripe, |index, chunk, wanted| {
            let found = self.with(index, |stripe| match stripe.extents.find(chunk, wanted) {
                Lookup::Mapped(_, len) if stripe.draining.is_zero() => len,
                _ => 0,
            });
            found.unwrap_or(0)
        })
    }

    /// What there is of a chunk. Under the ledger's lock.
    pub(super) fn lookup(
        &self,
        allocation: &mut Allocation,
        chunk: Chunk,
        most: u64,
    ) -> ChunkState {
        if let Some(pending) = allocation.pending.find(chunk) {
            if let Some((_, left)) = pending.cow_chunk(chunk) {
                return ChunkState::Pending(pending.seq, left.min(most));
            }
        }
        let most = allocation.pending.gap(chunk, most);
        match self.find(chunk, most, false).0 {
            Lookup::Mapped(new, len) => ChunkState::Completed(new, len),
            Lookup::Hole(len) => ChunkState::Hole(len),
        }
    }

    /// Gives out chunks for a hole, so many at least and at most. Under the ledger's lock.
    pub(super) fn reserve(
        &self,
        allocation: &mut Allocation,
        cow: &Device,
        old: Chunk,
        stage: Stage,
        (least, most): (u64, u64),
    ) -> Result<(Seq, Run), ReserveError> {
        if allocation.pending.chunks() >= threshold() || !allocation.pending.has_room() {
            return Err(ReserveError::Busy);
        }
        let most = match self.lookup(allocation, old, most) {
            ChunkState::Hole(len) if len >= least => len,
            _ => return Err(ReserveError::Changed),
        };
        let offered = allocation.space.offer(most, cow.sectors());
        if offered < least {
            return Err(ReserveError::NoSpace);
        }
        let Some((new, len)) = allocation.space.allocate(most, cow.sectors()) else {
            return Err(ReserveError::NoSpace);
        };
        let run = Run { old, new, len };
        match allocation.pending.add(run, stage, WaitingBios::default()) {
            Ok(seq) => Ok((seq, run)),
            // There was room just now.
            Err(_) => Err(ReserveError::Busy),
        }
    }

    /// Takes a durable exception into the table. `Err` if memory is short: then try again. Process
    /// context. If there is none to be had once, it is not asked for again; many exceptions need
    /// none.
    fn complete(
        &self,
        run: Run,
        spares: &mut SpareNodes,
        has_memory: &mut bool,
    ) -> Result<Stage, InsertError> {
        let (index, _) = self.stripe(run.old);
        let wants = self.with(index, |stripe| stripe.extents.spare_root_capacity());
        let wants = wants.unwrap_or(0);
        if *has_memory && !spares.is_sufficient(wants) {
            *has_memory = spares.refill(wants, GFP_KERNEL).is_ok();
        }
        self.with(index, |stripe| {
            stripe.extents.insert(run, spares)?;
            let barrier = stripe.readers.barrier();
            if stripe.readers.has_passed(barrier) {
                return Ok(Stage::Committed);
            }
            stripe.draining.increment();
            Ok(Stage::Draining(barrier))
        })
        .unwrap_or(Err(InsertError::OutOfRange))
    }

    /// Whether the readers of before a barrier are through; then nobody needs to look twice for
    /// this exception any more.
    pub(super) fn has_drained(&self, stripe: usize, barrier: u64) -> bool {
        let passed = self.with(stripe, |stripe| {
            let passed = stripe.readers.has_passed(barrier);
            if passed {
                stripe.draining.decrement();
            }
            passed
        });
        passed.unwrap_or(true)
    }

    /// Takes what is durable on: into the table, and out of the book. What waited goes to `ready`
    /// (writes to the snapshot), `ended` (those that were the data) and `again` (writes to the
    /// origin). False if memory is short: then try again after a while; exceptions that need none
    /// have been taken on. The family's worker only.
    pub(super) fn complete_committed(
        &self,
        spares: &mut SpareNodes,
        out: &mut ReleasedBios,
    ) -> bool {
        let (mut has_memory, mut is_done) = (true, true);
        let mut from = self.allocation.lock().pending.first_seq();
        loop {
            let mut allocation = self.allocation.lock();
            let wanted = |stage: &Stage| matches!(stage, Stage::Committed | Stage::Draining(_));
            let Some(seq) = allocation.pending.find_by_stage(from, wanted) else {
                break;
            };
            from = seq.next();
            let Some(pending) = allocation.pending.get(seq) else {
                continue;
            };
            let (run, stage) = (pending.run, pending.stage);
            let stage = if let Stage::Draining(barrier) = stage {
                if !self.has_drained(self.stripe(run.old).0, barrier) {
                    continue;
                }
                Stage::Committed
            } else {
                drop(allocation);
                let stage = match self.complete(run, spares, &mut has_memory) {
                    Ok(stage) => stage,
                    Err(InsertError::NoMemory) => {
                        is_done = false;
                        continue;
                    }
                    Err(_) => {
                        // It cannot be: chunks are given out once. Then the snapshot is lost.
                        self.lost.store(true, Release);
                        return false;
                    }
                };
                allocation = self.allocation.lock();
                if let Some(pending) = allocation.pending.get(seq) {
                    pending.stage = stage;
                    out.ready.append(&mut pending.waiting.snapshot_bios);
                    if let Some(bio) = pending.waiting.full_bio.take() {
                        out.completed.push(bio);
                    }
                }
                stage
            };
            if stage == Stage::Committed {
                if let Some(mut pending) = allocation.pending.remove(seq) {
                    out.ready.append(&mut pending.waiting.snapshot_bios);
                    out.retry.append(&mut pending.waiting.origin_bios);
                }
                if allocation.pending.is_empty() {
                    drop(allocation);
                    self.idle.wake_all();
                }
            }
        }
        is_done
    }

    /// Takes an exception out that will never be, and what waited for it.
    pub(super) fn abandon(&self, seq: Seq) -> Option<PendingException<WaitingBios>> {
        let mut allocation = self.allocation.lock();
        let pending = allocation.pending.remove(seq)?;
        let empty = allocation.pending.is_empty();
        drop(allocation);
        if empty {
            self.idle.wake_all();
        }
        if let Stage::Draining(_) = pending.stage {
            self.unbar(self.stripe(pending.run.old).0);
        }
        Some(pending)
    }

    /// Lets go of what waited for an exception that will never be.
    pub(super) fn fail_waiting(&self, mut waiting: WaitingBios, out: &mut ReleasedBios) {
        out.has_failed |= !waiting.snapshot_bios.is_empty() || waiting.full_bio.is_some();
        let mut failed = self.failed.lock();
        failed.append(&mut waiting.snapshot_bios);
        if let Some(bio) = waiting.full_bio.take() {
            failed.push(bio);
        }
        drop(failed);
        out.retry.append(&mut waiting.origin_bios);
    }

    /// Fails a write, by [`end_failed_writes`](Self::end_failed_writes). Any context.
    pub(super) fn fail_write(&self, bio: Bio<PerBioData>) {
        self.failed.lock().push(bio);
    }

    /// Ends writes that have failed; but if the store is lost, not before its header says so. The
    /// worker only.
    pub(super) fn end_failed_writes(&self) {
        if self.state() == StoreState::Invalidating {
            return;
        }
        let mut failed = self.failed.lock().take();
        while let Some(mut bio) = failed.pop() {
            bio.set_per_bio(PerBioData::NONE);
            bio.end(BlkStatus::IO_ERROR);
        }
    }

    /// Takes everything out that no copy or commit has in its hands, and what waits for the rest.
    /// The store is lost.
    pub(super) fn abandon_all(&self, out: &mut ReleasedBios) {
        let mut from = self.allocation.lock().pending.first_seq();
        loop {
            let mut allocation = self.allocation.lock();
            let Some(seq) = allocation.pending.find_by_stage(from, |_| true) else {
                break;
            };
            from = seq.next();
            let Some(pending) = allocation.pending.get(seq) else {
                continue;
            };
            let waiting = core::mem::take(&mut pending.waiting);
            let busy = matches!(pending.stage, Stage::Copying | Stage::Committing);
            drop(allocation);
            self.fail_waiting(waiting, out);
            if !busy {
                self.abandon(seq);
            }
        }
    }

    /// Writes the records of what has its data, durably. False if there is nothing to be written,
    /// or the store cannot be used any more. The committer only. Sleeps for I/O.
    pub(super) fn commit_batch(&self, cow: &Device, io: &IoClient) -> bool {
        let mut disk = self.disk.lock();
        if self.state() != StoreState::Valid || self.has_commit_failed() {
            return false;
        }
        if !self.allocation.lock().pending.begin_batch(disk.batch()) {
            return false;
        }
        let result = disk.commit(cow, io);
        let mut allocation = self.allocation.lock();
        match result {
            Ok(()) => {
                self.note_area(disk.records());
                allocation.pending.batch_committed();
            }
            Err(_) => {
                allocation.pending.batch_failed();
                self.lost.store(true, Release);
            }
        }
        true
    }

    /// Says on disk that the store is lost, if it is and that is not said yet; tells whether it
    /// did. A committer only: that of a former table may come together with that of the one that
    /// took over. Sleeps for I/O.
    pub(super) fn finish_invalidation(&self, cow: &Device, io: &IoClient) -> bool {
        if self.state() != StoreState::Invalidating {
            return false;
        }
        delay_point!(c"snapshot: lost, header not yet written");
        let mut disk = self.disk.lock();
        if self.state() != StoreState::Invalidating {
            return false;
        }
        if disk.invalidate(cow, io).is_err() {
            warning!("persistent snapshot", "write header failed");
        }
        self.set_state(StoreState::Invalid);
        drop(disk);
        self.wake_idle();
        true
    }

    /// Whether a batch could not be written.
    pub(super) fn has_commit_failed(&self) -> bool {
        self.lost.load(Acquire)
    }

    /// Takes out what a lost batch had in its hands. The store is not valid any more.
    pub(super) fn abandon_batch(&self, out: &mut ReleasedBios) {
        self.lost.store(false, Relaxed);
        loop {
            let mut allocation = self.allocation.lock();
            let first = allocation.pending.first_seq();
            let lost = |stage: &Stage| *stage == Stage::Committing;
            let Some(seq) = allocation.pending.find_by_stage(first, lost) else {
                return;
            };
            drop(allocation);
            if let Some(pending) = self.abandon(seq) {
                self.fail_waiting(pending.waiting, out);
            }
        }
    }

    /// Finds a chunk for a write to a merge, which is counted if it goes to the COW device; unless
    /// it is one that `closed` tells of, or up to such a one: `closed` tells how many chunks there
    /// are like the first. Any context.
    pub(super) fn find_open(
        &self,
        chunk: Chunk,
        most: u64,
        closed: impl FnOnce(Chunk, u64) -> BatchLookup,
    ) -> Place {
        let (index, left) = self.stripe(chunk);
        let found = self.with(index, |stripe| {
            match stripe.extents.find(chunk, most.min(left)) {
                Lookup::Hole(len) => Place::Merged(len),
                Lookup::Mapped(new, len) => match closed(chunk, len) {
                    BatchLookup::Inside(_) => Place::Closed,
                    BatchLookup::Outside(len) => {
                        let per_bio = PerBioData::tracked(index, stripe.readers.track());
                        Place::Open(new, len, per_bio)
                    }
                },
            }
        });
        found.unwrap_or(Place::Closed)
    }

    /// Makes a barrier for the writes to a merge in a part of the table:
    /// [`has_drained`](Self::has_drained) tells when those of before have ended. Nothing if they
    /// have.
    pub(super) fn bar(&self, stripe: usize) -> Option<u64> {
        self.with(stripe, |stripe| {
            let barrier = stripe.readers.barrier();
            if stripe.readers.has_passed(barrier) {
                return None;
            }
            stripe.draining.increment();
            Some(barrier)
        })
        .flatten()
    }

    /// Gives up a barrier that has not been passed.
    pub(super) fn unbar(&self, stripe: usize) {
        self.with(stripe, |stripe| {
            stripe.draining.decrement();
        });
    }

    /// Takes chunks out that are on the origin now. False if memory is short: then try again.
    /// Process context.
    pub(super) fn remove(&self, mut run: Run, spares: &mut SpareNodes) -> bool {
        while run.len != 0 {
            let (index, left) = self.stripe(run.old);
            let piece = Run {
                len: run.len.min(left),
                ..run
            };
            // What is not there has been taken out before.
            let wants = self.with(index, |stripe| {
                match stripe.extents.remove_splitting(piece, spares) {
                    Ok(false) => Some(stripe.extents.spare_root_capacity()),
                    _ => None,
                }
            });
            match wants.flatten() {
                Some(wants) if spares.refill(wants, GFP_KERNEL).is_err() => return false,
                // Now there is memory for it.
                Some(_) => {}
                None => run = run.without_first(piece.len),
            }
        }
        true
    }

    /// Takes memory for a merge; tells how many records it takes off at most at a time. Sleeps.
    pub(super) fn prepare_merge(&self) -> Result<usize> {
        // Records of a live table may wait for the lock.
        let _noio = NoIo::enter();
        self.disk.lock().prepare_merge()
    }

    /// Reads the last records, at most so many, as runs that are in the table. Sleeps for I/O.
    pub(super) fn tail(
        &self,
        (cow, origin): (&Device, &Device),
        io: &IoClient,
        most: u64,
        runs: &mut KVVec<Run>,
    ) -> Result<Tail> {
        let mut disk = self.disk.lock();
        self.note_area(disk.records().saturating_sub(1));
        let is_loose = disk.is_loose();
        disk.tail(cow, io, most, |record| {
            let run = Run {
                old: record.old,
                new: record.new,
                len: 1,
            };
            let starts = self.size.start(record.old);
            match self.find(record.old, 1, false).0 {
                Lookup::Mapped(new, _) if new == record.new => {
                    Ok(runs.push_within_capacity(run).map_err(|_| ENOMEM)?)
                }
                // No earlier one has its chunk, and the origin does: it was loaded.
                _ if !is_loose && starts.is_some_and(|start| start.0 < origin.sectors().0) => {
                    err!(
                        "snapshots",
                        "Corruption detected: exception for block {} is on disk but not in memory",
                        record.old
                    );
                    Err(EIO)
                }
                _ => Ok(()),
            }
        })
    }

    /// Clears the records of a tail, durably. The live table only: it gives no chunks out. Sleeps
    /// for I/O.
    pub(super) fn shorten(&self, merge: &Arc<SnapshotTarget>, tail: &Tail) -> CommitResult {
        let mut disk = self.disk.lock();
        if !merge.role().is_live() {
            return CommitResult::Kept;
        }
        let result = disk.shorten(&merge.cow, &merge.io, tail);
        let records = disk.records();
        self.note_area(records);
        if result == CommitResult::Cleared {
            if let FreeSpace::Persistent(space) = &mut self.allocation.lock().space {
                space.shrink_to(records);
            }
        }
        result
    }

    /// Writes records back that are in doubt, durably. Sleeps for I/O.
    pub(super) fn restore(&self, cow: &Device, io: &IoClient) -> Result {
        self.disk.lock().restore(cow, io)
    }

    /// Makes an empty store on disk. Sleeps for I/O.
    pub(super) fn format(&self, cow: &Device, io: &IoClient) -> Result {
        self.disk.lock().format(cow, io)?;
        let empty = StripesLoader::new(self.stripe, Duplicates::Reject)?.finish()?;
        let space = PersistentAllocator::new(Layout::new(self.size), CowChunk(0), 0);
        self.renew(empty, space, 0);
        Ok(())
    }

    /// Waits until nothing is on its way, and the header says what there is to be said; or until
    /// that is somebody else's matter: then [`wake_idle`](Self::wake_idle) is called. Sleeps.
    pub(super) fn wait_idle(&self, is_released: impl Fn() -> bool) {
        let is_idle = || {
            self.state() != StoreState::Invalidating && self.allocation.lock().pending.is_empty()
        };
        self.idle.wait_until(|| is_released() || is_idle());
    }

    /// Lets those look who wait.
    pub(super) fn wake_idle(&self) {
        self.idle.wake_all();
    }

    /// The live table, if there is one. Any context.
    pub(super) fn live_target(&self) -> Option<Arc<SnapshotTarget>> {
        self.live_target.lock().clone()
    }

    /// Says which table is live.
    pub(super) fn set_live_target(&self, live_target: Option<Arc<SnapshotTarget>>) {
        let before = core::mem::replace(&mut *self.live_target.lock(), live_target);
        drop(before);
    }

    /// Reads the store from disk, in place of what is in memory. Nothing is on its way. Sleeps for
    /// I/O.
    pub(super) fn load(&self, cow: &Device) -> Result {
        let mut disk = self.disk.lock();
        let read = |parts: &mut StripesLoader| -> Result<_> {
            let loaded = disk.load(cow, |run| parts.add(run))?;
            Ok((parts.finish()?, loaded))
        };
        let mut parts = StripesLoader::new(self.stripe, Duplicates::Reject)?;
        let mut found = read(&mut parts);
        if parts.has_duplicates() {
            parts = StripesLoader::new(self.stripe, Duplicates::KeepFirst)?;
            found = read(&mut parts);
        }
        let (tables, loaded) = found?;
        let space = disk.install(loaded, parts.skipped() != 0);
        let records = disk.records();
        drop(disk);
        if parts.skipped() != 0 {
            warning!(
                "persistent snapshot",
                "{} exceptions were ignored: others have their chunks of the origin",
                parts.skipped()
            );
        }
        self.renew(tables, space, records);
        Ok(())
    }

    /// Puts what is on disk in the place of what is in memory.
    fn renew(&self, tables: KVVec<ExceptionTable>, space: PersistentAllocator, records: u64) {
        for (stripe, table) in self.stripes.iter().zip(tables) {
            // The old one is freed outside of the lock.
            let old = core::mem::replace(&mut stripe.lock().extents, table);
            drop(old);
        }
        self.note_area(records);
        self.allocation.lock().space = FreeSpace::Persistent(space);
        self.overflowed.store(false, Relaxed);
        self.set_state(StoreState::Valid);
    }
}

/// Bios that may go on.
#[derive(Default)]
pub(super) struct ReleasedBios {
    /// Writes to the snapshot that may go to the COW device.
    pub(super) ready: BioQueue<PerBioData>,
    /// Writes that have ended well.
    pub(super) completed: BioQueue<PerBioData>,
    /// Writes to the origin, to be looked at again.
    pub(super) retry: BioQueue<PerBioData>,
    /// There are writes for [`CowStore::end_failed_writes`].
    pub(super) has_failed: bool,
}
