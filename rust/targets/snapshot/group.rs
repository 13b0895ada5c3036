// SPDX-License-Identifier: GPL-2.0

//! All that has to do with one origin: its snapshots, its `snapshot-origin` targets, and the worker
//! that copies.
//!
//! ```text
//!  write to the origin ──┐                ┌─▶ kcopyd ─▶ copied ─┐
//!  write to a snapshot ──┴─▶ worker: book ┤                     ├─▶ committer: record ─▶ worker: table ─▶ bios go on
//!                                         └─▶ direct write ─────┘
//! ```
//!
//! Whoever has the roster is the worker: the work item, or a committer whose batch has become
//! durable. The worker alone takes exceptions out of the books, so what it found there stays until
//! it is done. It does no I/O and waits for none: bios and copies that it decides on are sent by
//! others (`sending.rs`).

use super::{
    io::{
        BioKind,
        PerBioData, //
    },
    merge::{
        MergePause,
        MergeTarget, //
    },
    origin::OriginTarget,
    sending::Copies,
    store::{
        Allocation,
        ChunkState,
        CowStore,
        ReleasedBios,
        ReserveError,
        StoreState, //
    },
    Reservation,
    SnapshotTarget,
    PAIRING, //
};
use crate::{
    dm::{
        bio::{
            Bio,
            BioQueue,
            BlkStatus, //
        },
        device::Device,
        io::{
            Request,
            RequestList, //
        },
        kcopyd::{
            CopyJob,
            DestinationResult,
            KcopydResult,
            MAX_DESTINATIONS, //
        },
        target::{
            CtrError,
            OrMessage,
            TargetBuilder, //
        }, //
    },
    logic::{
        count::Count,
        snapshot::{
            chunks::Chunk,
            exception_table::SpareNodes,
            lists,
            pending::{
                Seq,
                Stage, //
            },
            run::Run, //
        },
        units::{
            Sector,
            Sectors, //
        }, //
    },
    sys::{
        delay::delay_point,
        irq_lock::{
            new_irq_lock,
            IrqGuard,
            IrqLock, //
        },
        noio::NoIo,
        pool::{
            Pool,
            PoolBox, //
        },
        queue::{
            cancel_delayed,
            enqueue_delayed,
            flush,
            HasQueue,
            QueueKind,
            WorkQueue, //
        },
        rw_sem::{
            new_rw_sem,
            RwSem, //
        }, //
    }, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex,
        MutexGuard, //
    },
    time::Delta,
    workqueue::{
        impl_has_delayed_work,
        impl_has_work,
        new_delayed_work,
        new_work,
        DelayedWork,
        Work,
        WorkItem, //
    }, //
};

/// At most so much is copied at once, unless a chunk is larger.
const COPY: Sectors = Sectors(2048);

/// Copies that can always be started.
const COPIES: u16 = 16;

/// After so long the worker looks for memory again.
const AGAIN: Delta = Delta::from_millis(20);

/// What all snapshots share.
#[pin_data]
pub(crate) struct Origins {
    /// No other lock is taken under this one: whoever waits for a family holds up nobody else.
    #[pin]
    groups: Mutex<KVVec<Group>>,
}

/// A family, and how many targets it has, those under construction included.
struct Group {
    group: Arc<OriginGroup>,
    users: Count,
}

impl Origins {
    /// An empty world. Sleeps.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let new = pin_init!(Origins {
            groups <- new_mutex!(KVVec::new(), "dm_snap_groups"),
        });
        Arc::pin_init(new, GFP_KERNEL)
    }

    /// The family of an origin, for another of its targets. Sleeps.
    pub(super) fn group(
        self: &Arc<Self>,
        new: &TargetBuilder<'_>,
        number: u32,
    ) -> Result<Arc<OriginGroup>> {
        // Who waits for the list may be about to resume a device that this memory would be written
        // to.
        let _noio = NoIo::enter();
        let mut groups = self.groups.lock();
        let known = groups.iter_mut().find(|it| it.group.number == number);
        if let Some(entry) = known {
            new.share(&entry.group.queue)?;
            new.share(&entry.group.commits)?;
            entry.group.copies.share(new)?;
            entry.users.increment();
            return Ok(entry.group.clone());
        }
        let group = OriginGroup::new(new, self, number)?;
        let entry = Group {
            group: group.clone(),
            users: Count::one(),
        };
        lists::push(&mut groups, entry, GFP_KERNEL)?;
        Ok(group)
    }

    /// All families but one. Sleeps.
    fn others(&self, number: u32) -> Result<KVVec<Arc<OriginGroup>>> {
        let groups = self.groups.lock();
        let mut others = KVVec::with_capacity(groups.len(), GFP_KERNEL)?;
        for entry in groups.iter().filter(|it| it.group.number != number) {
            others.push_within_capacity(entry.group.clone())?;
        }
        Ok(others)
    }

    /// Claims a COW device for a constructor: no other one may make a table with it meanwhile, nor
    /// another merge of the same origin. Gives the store of the live table that has it, if there is
    /// one. Sleeps.
    pub(super) fn claim(
        &self,
        group: &Arc<OriginGroup>,
        cow: u32,
        merge: bool,
    ) -> Result<(Option<Arc<CowStore>>, Reservation), CtrError> {
        let memory = c"Snapshot origin struct allocation failed";
        let _noio = NoIo::enter();
        let mut members = group.members.lock();
        let sharing = members.sharing(cow);
        let claimed = members.claims.contains(&cow);
        if sharing.all > 1 || sharing.waiting.is_some() || claimed {
            return Err(CtrError::new(PAIRING, EINVAL));
        }
        let store = sharing.live.map(|live| live.store.clone());
        if merge && !matches!(members.merging, Merging::None) {
            return Err(CtrError::new(c"A snapshot is already merging.", EINVAL));
        }
        lists::push(&mut members.claims, cow, GFP_KERNEL).or_message(memory)?;
        if merge {
            members.merging = Merging::Claimed;
        }
        drop(members);
        let claim = Reservation {
            group: group.clone(),
            cow,
            merge,
        };
        // Not before others can see the claim: of two that look at the same time at least one sees
        // the other.
        let others = self.others(group.number).or_message(memory)?;
        if others.iter().any(|other| other.members.lock().has(cow)) {
            let text = c"COW device is in use by another snapshot";
            return Err(CtrError::new(text, EBUSY));
        }
        Ok((store, claim))
    }

    /// A target of a family is going. Sleeps.
    fn leave(&self, group: &Arc<OriginGroup>) {
        let mut groups = self.groups.lock();
        let number = group.number;
        let known = groups.iter_mut().find(|it| it.group.number == number);
        let is_unused = known.is_some_and(|entry| entry.users.decrement());
        let entry = if is_unused {
            lists::remove_first(&mut groups, |it| it.group.number == number)
        } else {
            None
        };
        drop(groups);
        drop(entry);
    }
}

/// The tables with the same COW device.
#[derive(Default)]
pub(super) struct StoreTables<'a> {
    pub(super) live: Option<&'a Arc<SnapshotTarget>>,
    /// Not live yet.
    pub(super) waiting: Option<&'a Arc<SnapshotTarget>>,
    /// How many there are.
    pub(super) all: usize,
}

/// The merge of an origin: there is at most one.
#[derive(Default)]
pub(super) enum Merging {
    #[default]
    None,
    /// A constructor has it in its hands.
    Claimed,
    There(Arc<MergeTarget>),
}

/// Who belongs to a family.
#[derive(Default)]
pub(super) struct Members {
    /// The snapshots of all tables.
    pub(super) tables: KVVec<Arc<SnapshotTarget>>,
    pub(super) origins: KVVec<Arc<OriginTarget>>,
    pub(super) merging: Merging,
    /// COW devices that constructors have in their hands.
    claims: KVVec<u32>,
    /// The number of the last origin.
    last_id: u32,
    /// Memory for the tables of exceptions.
    spares: SpareNodes,
}

impl Members {
    /// The tables with a COW device.
    pub(super) fn sharing(&self, cow: u32) -> StoreTables<'_> {
        let mut sharing = StoreTables::default();
        for table in self.tables.iter().filter(|it| it.cow.number() == cow) {
            sharing.all = sharing.all.saturating_add(1);
            match table.role() {
                role if role.has_store() => sharing.live = Some(table),
                role if role.is_waiting() => sharing.waiting = Some(table),
                _ => {}
            }
        }
        sharing
    }

    /// Whether any table has a COW device, or will.
    fn has(&self, cow: u32) -> bool {
        self.sharing(cow).all != 0 || self.claims.contains(&cow)
    }

    /// A name for an origin.
    pub(super) fn new_id(&mut self) -> u32 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }

    /// Ends the claim of a constructor.
    pub(super) fn unclaim(&mut self, cow: u32, merge: bool) {
        lists::remove_first(&mut self.claims, |other| *other == cow);
        if merge && matches!(self.merging, Merging::Claimed) {
            self.merging = Merging::None;
        }
    }

    /// Takes a table off.
    pub(super) fn remove(&mut self, table: &Arc<SnapshotTarget>) {
        lists::remove_first(&mut self.tables, |other| Arc::ptr_eq(other, table));
    }
}

/// The roster, at a moment when a table may go live. For a snapshot that origin writes care about
/// no merge of the origin is in a batch: that would be overwritten, and the snapshot has no copies
/// of it.
pub(super) struct Calm<'a> {
    members: MutexGuard<'a, Members>,
    _pause: Option<MergePause>,
}

impl Calm<'_> {
    pub(super) fn members(&self) -> &Members {
        &self.members
    }
}

/// What came for the worker.
#[derive(Default)]
struct DeferredWork {
    /// Copies that have ended.
    jobs: RequestList<ChunkCopy>,
    /// Writes to the origin that wait for room, or for a header that says that a snapshot is
    /// invalid.
    origin: BioQueue<PerBioData>,
}

/// See above.
#[pin_data]
pub(crate) struct OriginGroup {
    number: u32,
    origins: Arc<Origins>,
    /// Of its own, as snapshots may lie upon each other: what is below must not wait for what is
    /// above.
    queue: WorkQueue,
    commits: WorkQueue,
    /// Copies to several snapshots. Others are their table's.
    copies: Arc<Copies>,
    jobs: Arc<Pool<Request<ChunkCopy>>>,
    /// Somebody waits for memory for a job.
    starved: Atomic<bool>,
    #[pin]
    pub(super) members: Mutex<Members>,
    /// The snapshots of all tables once more, for `map`. A table that becomes active, or ceases to
    /// be, does so under this lock.
    #[pin]
    active: RwSem<KVVec<Arc<SnapshotTarget>>>,
    #[pin]
    inbox: IrqLock<DeferredWork>,
    #[pin]
    worker: Work<OriginGroup, 1>,
    #[pin]
    retry: DelayedWork<OriginGroup, { RetryWork::ID }>,
}

impl_has_work! {
    impl HasWork<OriginGroup, 1> for OriginGroup { self.worker }
}

impl_has_delayed_work! {
    impl HasDelayedWork<OriginGroup, { RetryWork::ID }> for OriginGroup { self.retry }
}

impl HasQueue for OriginGroup {
    fn queue(&self) -> &WorkQueue {
        &self.queue
    }
}

impl OriginGroup {
    fn new(new: &TargetBuilder<'_>, origins: &Arc<Origins>, number: u32) -> Result<Arc<Self>> {
        let queue = new.queue(c"dm-snap", QueueKind::PerCpu)?;
        let commits = new.queue(c"dm-snap-commit", QueueKind::PerCpu)?;
        let copies = Copies::new(new)?;
        let jobs = Pool::new(COPIES)?;
        Arc::pin_init(
            pin_init!(OriginGroup {
                number,
                origins: origins.clone(),
                queue,
                commits,
                copies,
                jobs,
                starved: Atomic::new(false),
                members <- new_mutex!(Members::default(), "dm_snap_members"),
                active <- new_rw_sem!(KVVec::new(), "dm_snap_active"),
                inbox <- new_irq_lock!(DeferredWork::default(), "dm_snap_deferred"),
                worker <- new_work!("dm_snap_worker"),
                retry <- new_delayed_work!("dm_snap_retry"),
            }),
            GFP_KERNEL,
        )
    }

    /// Takes a new table in. Sleeps.
    pub(super) fn enter(&self, table: &Arc<SnapshotTarget>) -> Result {
        let _noio = NoIo::enter();
        let mut members = self.members.lock();
        lists::push(&mut members.tables, table.clone(), GFP_KERNEL)?;
        let added = self.add(table, members.tables.len());
        if added.is_err() {
            members.remove(table);
        }
        added
    }

    /// A target is going. Sleeps.
    pub(super) fn leave(self: &Arc<Self>) {
        self.origins.leave(self);
    }

    /// The queue for the work items of its targets, which wait for I/O.
    pub(super) fn commits(&self) -> &WorkQueue {
        &self.commits
    }

    /// Lets the worker look. Any context.
    pub(super) fn wake(self: &Arc<Self>) {
        self.queue.enqueue::<OriginGroup, 1>(self.clone());
    }

    /// Lets the worker look after a while, when there may be memory again. Any context.
    pub(super) fn wake_later(self: &Arc<Self>) {
        enqueue_delayed::<OriginGroup, { RetryWork::ID }>(self.clone(), AGAIN);
    }

    /// Puts a table on the list for `map`, which then has so many. Sleeps.
    fn add(&self, table: &Arc<SnapshotTarget>, tables: usize) -> Result {
        let mut before = KVVec::with_capacity(tables.saturating_mul(2), GFP_KERNEL)?;
        let mut active = self.active.write();
        if active.len() == active.capacity() {
            for table in active.iter() {
                before.push_within_capacity(table.clone())?;
            }
            core::mem::swap(&mut *active, &mut before);
        }
        active.push_within_capacity(table.clone())?;
        // What is left of the one list is dropped outside of the lock.
        drop(active);
        drop(before);
        Ok(())
    }

    /// Takes a table off that list. Sleeps.
    pub(super) fn forget(&self, table: &Arc<SnapshotTarget>) {
        let taken = lists::remove_first(&mut self.active.write(), |it| Arc::ptr_eq(it, table));
        drop(taken);
    }

    /// Changes roles: for a write to the origin, all at once.
    pub(super) fn switch(&self, change: impl FnOnce()) {
        let _active = self.active.write();
        change();
    }

    /// Takes the roster at a moment when a table may go live: if origin writes will care about it,
    /// no merge of the origin is in a batch then, and none begins before the roster is let go.
    /// Sleeps, as long as a batch takes.
    pub(super) fn calm(&self, table: &SnapshotTarget) -> Calm<'_> {
        let mut pause: Option<MergePause> = None;
        loop {
            delay_point!(c"snapshot: merge paused, not yet live");
            let members = self.members.lock();
            let merge = match &members.merging {
                Merging::There(merge) if !table.is_merged => Some(merge.clone()),
                _ => None,
            };
            let is_paused = |merge| pause.as_ref().is_some_and(|pause| pause.is_of(merge));
            if merge.as_ref().is_none_or(is_paused) {
                return Calm {
                    members,
                    _pause: pause,
                };
            }
            drop(members);
            // It came meanwhile.
            pause = merge.map(MergeTarget::pause);
        }
    }

    /// How much of a write to the origin, from its start on, no snapshot cares about. Process
    /// context; sleeps while the list is being changed.
    pub(super) fn clear(&self, start: Sector, len: Sectors) -> Sectors {
        let active = self.active.read();
        let tables = active.iter().filter(|table| table.is_watched());
        tables.fold(len, |len, table| table.clear(start, len))
    }

    /// Waits until copies and worker have let go of the family, if it has no snapshots any more.
    /// Sleeps.
    ///
    /// Nothing of it is to be on its way when its last target leaves: another family may be made
    /// for the origin.
    pub(super) fn settle(self: &Arc<Self>) {
        let is_last = self.members.lock().tables.is_empty();
        if is_last {
            self.copies.drain();
            // Without tables the worker does not ask for it again.
            flush::<OriginGroup, 1>(self);
            cancel_delayed::<OriginGroup, { RetryWork::ID }>(self);
            // A table that came meanwhile may have asked for it.
            self.wake();
        }
        flush::<OriginGroup, 1>(self);
    }
}

/// Where a copy goes to.
struct Destination {
    table: Arc<SnapshotTarget>,
    seq: Seq,
    start: Sector,
}

/// No destinations.
const NOWHERE: [Option<Destination>; MAX_DESTINATIONS] = [const { None }; MAX_DESTINATIONS];

impl Destination {
    fn new(table: &Arc<SnapshotTarget>, seq: Seq, run: Run) -> Self {
        Destination {
            table: table.clone(),
            seq,
            start: table
                .store()
                .chunk_size()
                .cow_start(run.new)
                .unwrap_or_default(),
        }
    }
}

/// A copy from the origin to the COW devices of one or more snapshots, or back; or zeros for a
/// discard.
pub(super) struct ChunkCopy {
    group: Arc<OriginGroup>,
    work: NextStep,
    len: Sectors,
    result: Option<KcopydResult>,
}

enum NextStep {
    Copy {
        start: Sector,
        to: [Option<Destination>; MAX_DESTINATIONS],
    },
    MergeTarget {
        merge: Arc<MergeTarget>,
        from: Sector,
        to: Sector,
    },
    Zero {
        table: Arc<SnapshotTarget>,
        start: Sector,
        bio: Bio<PerBioData>,
    },
}

impl CopyJob for ChunkCopy {
    fn source(&self) -> Option<(&Device, Sector)> {
        match &self.work {
            NextStep::Copy { start, to } => {
                let first = to.first()?.as_ref()?;
                Some((&first.table.origin, *start))
            }
            NextStep::MergeTarget { merge, from, .. } => Some((&merge.snapshot().cow, *from)),
            NextStep::Zero { .. } => None,
        }
    }

    fn sectors(&self) -> Sectors {
        self.len
    }

    fn destination(&self, number: usize) -> Option<(&Device, Sector)> {
        match &self.work {
            NextStep::Copy { to, .. } => {
                let to = to.get(number)?.as_ref()?;
                Some((&to.table.cow, to.start))
            }
            NextStep::MergeTarget { merge, to, .. } => {
                (number == 0).then_some((&merge.snapshot().origin, *to))
            }
            NextStep::Zero { table, start, .. } => (number == 0).then_some((&table.cow, *start)),
        }
    }

    fn done(mut this: PoolBox<Request<Self>>, result: KcopydResult) {
        let group = this.context.group.clone();
        match &this.context.work {
            NextStep::Copy { to, .. } if all_written(to, result) => {
                for to in to.iter().flatten() {
                    to.table.data_came(to.seq);
                }
                drop(this);
                if group.starved.load(Relaxed) {
                    group.wake();
                }
            }
            NextStep::MergeTarget { merge, .. } => {
                let merge = merge.clone();
                // Its memory first, for the next one.
                drop(this);
                if group.starved.load(Relaxed) {
                    group.wake();
                }
                merge.copy_done(result);
            }
            _ => {
                this.context.result = Some(result);
                group.inbox.lock().jobs.push(this);
                group.wake();
            }
        }
    }
}

fn all_written(to: &[Option<Destination>], result: KcopydResult) -> bool {
    let mut used = (0..MAX_DESTINATIONS).zip(to.iter().flatten());
    used.all(|(number, _)| result.is_written(number))
}

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

impl WorkItem<1> for OriginGroup {
    type Pointer = Arc<OriginGroup>;

    fn run(this: Arc<OriginGroup>) {
        let _noio = NoIo::enter();
        this.work_now();
    }
}

/// Runs the worker after a while.
struct RetryWork;

impl RetryWork {
    const ID: u64 = 2;
}

impl WorkItem<2> for OriginGroup {
    type Pointer = Arc<OriginGroup>;

    fn run(this: Arc<OriginGroup>) {
        this.wake();
    }
}

impl OriginGroup {
    /// Does the worker's work in this thread. It must not start I/O when it allocates. Sleeps, but
    /// not for I/O.
    pub(super) fn work_now(self: &Arc<Self>) {
        self.work(&mut self.members.lock());
    }

    /// Takes everything on that has come. What happens meanwhile is for the next time: the work
    /// item is queued again then.
    fn work(self: &Arc<Self>, members: &mut Members) {
        let mut out = ReleasedBios::default();
        self.starved.store(false, Relaxed);
        let mut jobs = self.inbox.lock().jobs.take();
        while let Some(job) = jobs.pop() {
            self.job_ended(job, &mut out);
        }
        for table in members.tables.iter() {
            table.process_full_chunk_writes(&mut out);
            let store = table.store();
            if store.has_commit_failed() {
                table.fail(EIO);
                store.abandon_batch(&mut out);
            }
            if store.state() != StoreState::Valid {
                store.abandon_all(&mut out);
            } else if !store.complete_committed(&mut members.spares, &mut out) {
                self.wake_later();
            }
            table.outlet.send_all(&mut out.ready, &self.commits);
        }
        while let Some(mut bio) = out.completed.pop() {
            bio.set_per_bio(PerBioData::NONE);
            bio.end(BlkStatus::OK);
        }
        for table in members.tables.iter() {
            self.own_writes(table, &mut out);
            table.outlet.send_all(&mut out.ready, &self.commits);
            self.start_copies(table);
        }
        self.origin_writes(members, &mut out);
        for table in members.tables.iter() {
            // Two tables may share a store: what the second one has released may be the first
            // one's.
            table.outlet.send_all(&mut out.ready, &self.commits);
            table.store().end_failed_writes();
            table.commit();
        }
        if let Merging::There(merge) = &members.merging {
            merge.wake();
        }
    }

    /// Takes note of a copy that has ended. If one of several destinations failed, the others get
    /// another copy.
    fn job_ended(self: &Arc<Self>, mut job: PoolBox<Request<ChunkCopy>>, out: &mut ReleasedBios) {
        let result = job.context.result.take();
        let at = |number| result.map_or(DestinationResult::Failed, |result| result.at(number));
        if let NextStep::Copy { to, .. } = &mut job.context.work {
            let ended = core::mem::replace(to, NOWHERE);
            let mut again = to.iter_mut();
            for (number, to) in (0..MAX_DESTINATIONS).zip(ended.into_iter().flatten()) {
                let arrival = at(number);
                if arrival == DestinationResult::Unknown
                    && to.table.store().state() == StoreState::Valid
                {
                    if let Some(place) = again.next() {
                        *place = Some(to);
                        continue;
                    }
                }
                let is_written = arrival == DestinationResult::Written;
                to.table.data_done(to.seq, is_written, out);
            }
            if again.len() != MAX_DESTINATIONS {
                // What it reads is still there: writes to the origin wait for these exceptions.
                self.copies.start(job, &self.commits);
            }
            return;
        }
        if let NextStep::Zero { mut bio, .. } = job.into_inner().context.work {
            bio.set_per_bio(PerBioData::NONE);
            bio.end(if at(0) == DestinationResult::Written {
                BlkStatus::OK
            } else {
                BlkStatus::IO_ERROR
            });
        }
        // A merge was told in `done`.
    }

    /// Starts to write zeros for a discard; the bio ends with them. Gives it back if there is no
    /// memory just now.
    fn zero(
        self: &Arc<Self>,
        table: &Arc<SnapshotTarget>,
        bio: Bio<PerBioData>,
    ) -> Result<(), Bio<PerBioData>> {
        let job = ChunkCopy {
            group: self.clone(),
            len: bio.sectors(),
            work: NextStep::Zero {
                table: table.clone(),
                start: bio.sector(),
                bio,
            },
            result: None,
        };
        match self.seat(Request::new(job)) {
            Ok(job) => {
                table.copies.start(job, &self.commits);
                Ok(())
            }
            Err(request) => match request.context.work {
                NextStep::Zero { bio, .. } => Err(bio),
                // Not what was made above.
                NextStep::Copy { .. } | NextStep::MergeTarget { .. } => Ok(()),
            },
        }
    }

    /// Looks at the writes to a snapshot that need an exception, and at discards that become zeros.
    fn own_writes(self: &Arc<Self>, table: &Arc<SnapshotTarget>, out: &mut ReleasedBios) {
        let mut bios = table.deferred.lock().take();
        while let Some(bio) = bios.pop() {
            if let Err(bio) = self.own_write(table, bio, out) {
                // In their order, before those that came meanwhile.
                let mut later = BioQueue::new();
                later.push(bio);
                later.append(&mut bios);
                let mut deferred = table.deferred.lock();
                later.append(&mut deferred);
                *deferred = later;
                return;
            }
        }
    }

    /// A write within one chunk, or of one. Gives it back if it has to wait until something has
    /// ended.
    fn own_write(
        self: &Arc<Self>,
        table: &Arc<SnapshotTarget>,
        mut bio: Bio<PerBioData>,
        out: &mut ReleasedBios,
    ) -> Result<(), Bio<PerBioData>> {
        let store = table.store();
        match store.state() {
            StoreState::Valid if !store.is_overflowed() => {}
            StoreState::Invalidating => return Err(bio),
            _ => {
                bio.end(BlkStatus::IO_ERROR);
                return Ok(());
            }
        }
        if matches!(bio.per_bio().kind(), BioKind::ZeroedDiscard) {
            return self.zero(table, bio);
        }
        let at = table.absolute(bio.sector());
        let size = store.chunk_size();
        let chunk = size.chunk(at);
        let mut allocation = store.allocation();
        match store.lookup(&mut allocation, chunk, 1) {
            ChunkState::Completed(new, _) => {
                drop(allocation);
                bio.set_sector(table.place(new, at));
                out.ready.push(bio);
            }
            ChunkState::Pending(seq, _) => park_own(allocation, table, seq, bio, at, out),
            ChunkState::Hole(_) => {
                let is_whole = bio.sectors() == size.len();
                let stage = if is_whole {
                    Stage::Copying
                } else {
                    Stage::Queued
                };
                match store.reserve(&mut allocation, &table.cow, chunk, stage, (1, 1)) {
                    Ok((seq, run)) if is_whole => {
                        drop(allocation);
                        bio.set_per_bio(PerBioData::full_chunk_write(seq));
                        bio.set_sector(table.place(run.new, at));
                        out.ready.push(bio);
                    }
                    Ok((seq, _)) => park_own(allocation, table, seq, bio, at, out),
                    Err(ReserveError::NoSpace) => {
                        drop(allocation);
                        table.full(bio, out);
                    }
                    Err(ReserveError::Changed | ReserveError::Busy) => return Err(bio),
                }
            }
        }
        Ok(())
    }

    /// Starts the copies for writes to parts of chunks, as far as there is memory; the others
    /// follow when some have ended.
    fn start_copies(self: &Arc<Self>, table: &Arc<SnapshotTarget>) {
        let store = table.store();
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
            let Some(mut job) = self.new_job(store.chunk_size().start(run.old).unwrap_or_default())
            else {
                return;
            };
            if let NextStep::Copy { to, .. } = &mut job.context.work {
                if let Some(place) = to.first_mut() {
                    *place = Some(Destination::new(table, seq, run));
                }
            }
            job.context.len = table.copied(run);
            if let Some(pending) = store.allocation().pending.get(seq) {
                pending.stage = Stage::Copying;
            }
            table.copies.start(job, &self.commits);
        }
    }

    /// A copy without destinations, from a sector of the origin; none if there is no memory, until
    /// another one has ended.
    fn new_job(self: &Arc<Self>, start: Sector) -> Option<PoolBox<Request<ChunkCopy>>> {
        let job = ChunkCopy {
            group: self.clone(),
            work: NextStep::Copy { start, to: NOWHERE },
            len: Sectors(0),
            result: None,
        };
        self.seat(Request::new(job)).ok()
    }

    /// A copy from a snapshot to its origin; none if there is no memory: then the merge is called
    /// when there is.
    pub(super) fn merge_job(
        self: &Arc<Self>,
        merge: &Arc<MergeTarget>,
        (from, to): (Sector, Sector),
        len: Sectors,
    ) -> Option<PoolBox<Request<ChunkCopy>>> {
        let job = ChunkCopy {
            group: self.clone(),
            work: NextStep::MergeTarget {
                merge: merge.clone(),
                from,
                to,
            },
            len,
            result: None,
        };
        self.seat(Request::new(job)).ok()
    }

    /// Takes memory for a job, or gives it back if there is none; then the end of another job wakes
    /// the worker.
    #[allow(clippy::result_large_err)] // The job itself comes back: a box would need the memory that there is none of.
    fn seat(
        &self,
        job: Request<ChunkCopy>,
    ) -> Result<PoolBox<Request<ChunkCopy>>, Request<ChunkCopy>> {
        self.jobs.try_boxed(job).or_else(|job| {
            // Once more: the last of them may have ended just before it could know.
            self.starved.store(true, Relaxed);
            self.jobs.try_boxed(job)
        })
    }

    /// Looks at the writes to the origin that wait, and at those that came.
    fn origin_writes(self: &Arc<Self>, members: &Members, out: &mut ReleasedBios) {
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
    pub(super) fn guard(
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

/// Lets a write to a snapshot wait for an exception, unless that is there.
fn park_own(
    mut allocation: IrqGuard<'_, Allocation>,
    table: &SnapshotTarget,
    seq: Seq,
    mut bio: Bio<PerBioData>,
    at: Sector,
    out: &mut ReleasedBios,
) {
    let chunk = table.store().chunk_size().chunk(at);
    let Some(pending) = allocation.pending.get(seq) else {
        // It was there just now, under the same lock.
        drop(allocation);
        return bio.end(BlkStatus::IO_ERROR);
    };
    let (new, _) = pending.cow_chunk(chunk).unwrap_or_default();
    bio.set_sector(table.place(new, at));
    if pending.is_completed() {
        return out.ready.push(bio);
    }
    pending.waiting.snapshot_bios.push(bio);
}
