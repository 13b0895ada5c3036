// SPDX-License-Identifier: GPL-2.0

//! Pending exceptions: chunks that were allocated and are not yet in the exception table.
//!
//! C counterparts: `struct dm_snap_pending_exception` and the hash table `pending` of
//! `struct dm_snapshot`.
//!
//! ```text
//!  add ─▶ Queued ─▶ Copying ─▶ Copied ─▶ Committing ─▶ Committed ─▶ Draining ─▶ remove
//! ```
//!
//! Copies end in any order, but records are written in the order of allocation. So after a crash no
//! allocated chunk is without a record while a later one has one. The next batch to commit
//! therefore consists of the copied exceptions up to the first one that is not copied yet.
//!
//! A batch costs a flush, so it waits for the copies that are in flight, and can join it soon, as
//! C's does: writers that wait for the same commit start their next copies together, and share the
//! next flush too. It does not wait any longer once it is large.
//!
//! A Draining exception is in the exception table already. It only waits for tracked reads of the
//! origin that began before that.

use crate::env::{
    AllocError,
    Flags,
    KVVec, //
};
use crate::logic::{
    count::subtract,
    snapshot::{
        chunks::{
            Chunk,
            CowChunk, //
        },
        lists::partition_point,
        run::Run, //
    }, //
};

/// The stage of a pending exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its data must be copied, and no copy has started.
    Queued,
    /// Its data is being copied, or written by a bio that covers the whole chunk.
    Copying,
    /// Its data is on the COW device.
    Copied,
    /// Its record is being written.
    Committing,
    /// Its record is durable.
    Committed,
    /// It is in the exception table, and waits for the reads tracked before this barrier.
    Draining(u64),
}

/// The number of exceptions from which on a batch does not wait for copies in flight.
pub(crate) const LARGE_BATCH: u64 = 256;

/// The sequence number of a pending exception, in the order of allocation.
///
/// C counterpart: `exception_sequence`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seq(u64);

impl Seq {
    /// Converts the sequence number to a plain number.
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    /// Converts a number from [`to_bits`](Self::to_bits) back.
    pub(crate) fn from_bits(bits: u64) -> Self {
        Seq(bits)
    }

    /// Returns the next sequence number.
    pub(crate) fn next(self) -> Self {
        Seq(self.0.wrapping_add(1))
    }
}

/// A pending exception, and the bios that wait for it.
#[derive(Debug)]
pub(crate) struct PendingException<W> {
    /// Its sequence number.
    pub(crate) seq: Seq,
    /// The chunks of the origin, and those of the COW device that will store them.
    pub(crate) run: Run,
    /// Its stage.
    pub(crate) stage: Stage,
    /// The bios that wait for it.
    pub(crate) waiting: W,
}

impl<W> PendingException<W> {
    /// Returns whether it is in the exception table, and only waits for tracked reads.
    pub(crate) fn is_completed(&self) -> bool {
        matches!(self.stage, Stage::Draining(_))
    }

    /// Returns the chunk of the COW device that will store `chunk`, and the number of chunks from
    /// there on, or `None` if the exception does not have the chunk.
    pub(crate) fn cow_chunk(&self, chunk: Chunk) -> Option<(CowChunk, u64)> {
        let offset = chunk.0.checked_sub(self.run.old.0)?;
        let left = self.run.len.checked_sub(offset).filter(|left| *left != 0)?;
        Some((CowChunk(self.run.new.0.checked_add(offset)?), left))
    }
}

/// The pending exceptions of a snapshot.
///
/// The owner protects them with a lock. Only [`Self::new`] allocates. Any context.
///
/// # Invariants
///
/// - Each exception is in the slot of `ring` that is its sequence number modulo the number of
///   slots. All sequence numbers are at least `head` and less than `tail`.
/// - `index` contains the first chunk and the sequence number of each exception, sorted by chunk.
///   No two exceptions have a chunk in common.
pub(crate) struct PendingExceptions<W> {
    ring: KVVec<Option<PendingException<W>>>,
    index: KVVec<(Chunk, Seq)>,
    head: u64,
    /// The first exception that is in no batch yet.
    next: u64,
    tail: u64,
    /// The sum of the lengths of all exceptions.
    chunks: u64,
    /// The end of the batch that is being committed.
    batch: Option<u64>,
    /// All exceptions from `next` up to here are copied.
    copied_end: u64,
}

impl<W> PendingExceptions<W> {
    /// Makes an empty set with `room` slots.
    ///
    /// May sleep if `flags` allow that.
    ///
    /// # Errors
    ///
    /// Fails if memory is short.
    pub(crate) fn new(room: usize, flags: Flags) -> Result<Self, AllocError> {
        let mut ring = KVVec::with_capacity(room, flags)?;
        for _ in 0..room {
            ring.push_within_capacity(None).map_err(|_| AllocError)?;
        }
        Ok(PendingExceptions {
            ring,
            index: KVVec::with_capacity(room, flags)?,
            head: 0,
            next: 0,
            tail: 0,
            chunks: 0,
            batch: None,
            copied_end: 0,
        })
    }

    /// Returns whether no exception is pending.
    pub(crate) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Returns the number of chunks of all pending exceptions.
    pub(crate) fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Returns whether there is room for another exception.
    pub(crate) fn has_room(&self) -> bool {
        // CAST: `u64` holds every length.
        self.tail.wrapping_sub(self.head) < self.ring.len() as u64
    }

    fn slot(&self, seq: Seq) -> Option<usize> {
        // CAST: `u64` holds every length, and the remainder is less than a length.
        seq.0
            .checked_rem(self.ring.len() as u64)
            .map(|slot| slot as usize)
    }

    /// Returns the exception with a sequence number.
    pub(crate) fn get(&mut self, seq: Seq) -> Option<&mut PendingException<W>> {
        let slot = self.slot(seq)?;
        let pending = self.ring.get_mut(slot)?.as_mut()?;
        (pending.seq == seq).then_some(pending)
    }

    /// Returns the exception that has `chunk`.
    pub(crate) fn find(&mut self, chunk: Chunk) -> Option<&mut PendingException<W>> {
        let after = partition_point(&self.index, |(first, _)| *first <= chunk);
        let (_, seq) = *self.index.get(after.checked_sub(1)?)?;
        self.get(seq)
            .filter(|pending| pending.cow_chunk(chunk).is_some())
    }

    /// Returns the number of chunks from `chunk`, which is not pending, to the next pending chunk.
    ///
    /// Returns at most `max`.
    pub(crate) fn gap(&self, chunk: Chunk, max: u64) -> u64 {
        let after = partition_point(&self.index, |(first, _)| *first <= chunk);
        match self.index.get(after) {
            Some((first, _)) => first.0.saturating_sub(chunk.0).min(max),
            None => max,
        }
    }

    /// Adds an exception, none of whose chunks may be pending.
    ///
    /// # Errors
    ///
    /// Returns `waiting` if there is no room.
    pub(crate) fn add(&mut self, run: Run, stage: Stage, waiting: W) -> Result<Seq, W> {
        let seq = Seq(self.tail);
        let Some(slot) = self.slot(seq).filter(|_| self.has_room()) else {
            return Err(waiting);
        };
        let position = partition_point(&self.index, |(first, _)| *first < run.old);
        let Some(entry) = self.ring.get_mut(slot) else {
            return Err(waiting);
        };
        // INVARIANT: Keeps the order. `index` has as much room as `ring`.
        if self
            .index
            .insert_within_capacity(position, (run.old, seq))
            .is_err()
        {
            return Err(waiting);
        }
        *entry = Some(PendingException {
            seq,
            run,
            stage,
            waiting,
        });
        self.tail = self.tail.wrapping_add(1);
        self.chunks = self.chunks.saturating_add(run.len);
        Ok(seq)
    }

    /// Records that the data of an exception is on the COW device.
    pub(crate) fn set_copied(&mut self, seq: Seq) {
        if let Some(pending) = self
            .get(seq)
            .filter(|pending| pending.stage == Stage::Copying)
        {
            pending.stage = Stage::Copied;
        }
    }

    /// Returns whether [`Self::begin_batch`] would begin a batch.
    pub(crate) fn has_batch(&mut self) -> bool {
        self.batch_end().is_some()
    }

    /// Returns the end of the next batch: the copied exceptions up to the first one that is not
    /// copied yet. `None` if there are none, if the batch has to wait for more of them, or if
    /// another one is being committed.
    fn batch_end(&mut self) -> Option<u64> {
        if self.batch.is_some() {
            return None;
        }
        self.next = self.next.max(self.head);
        let mut end = self.copied_end.max(self.next);
        let stage = loop {
            match self.get(Seq(end)).map(|pending| pending.stage) {
                Some(Stage::Copied) => end = end.wrapping_add(1),
                stage => break stage,
            }
        };
        self.copied_end = end;
        if end == self.next {
            return None;
        }
        // A copy that has not started may wait for memory, or for this batch.
        let has_to_wait =
            stage == Some(Stage::Copying) && end.wrapping_sub(self.next) < LARGE_BATCH;
        (!has_to_wait).then_some(end)
    }

    /// Begins a batch, if [`Self::has_batch`].
    ///
    /// Stores its runs in `runs`, within its capacity, and returns whether there are any.
    pub(crate) fn begin_batch(&mut self, runs: &mut KVVec<Run>) -> bool {
        runs.clear();
        let Some(end) = self.batch_end() else {
            return false;
        };
        while self.next != end {
            let Some(pending) = self.get(Seq(self.next)) else {
                break;
            };
            if runs.push_within_capacity(pending.run).is_err() {
                break;
            }
            pending.stage = Stage::Committing;
            self.next = self.next.wrapping_add(1);
        }
        self.batch = Some(self.next);
        true
    }

    /// Marks the copied exceptions, up to the first one that is not copied yet, as committed.
    ///
    /// Serves a transient store, which has no records.
    pub(crate) fn commit_copied(&mut self) {
        self.next = self.next.max(self.head);
        while let Some(pending) = self.get(Seq(self.next)) {
            if pending.stage != Stage::Copied {
                break;
            }
            pending.stage = Stage::Committed;
            self.next = self.next.wrapping_add(1);
        }
    }

    /// Records that the records of the batch are durable.
    pub(crate) fn batch_committed(&mut self) {
        let Some(end) = self.batch.take() else {
            return;
        };
        for seq in self.head..end {
            if let Some(pending) = self.get(Seq(seq)) {
                if pending.stage == Stage::Committing {
                    pending.stage = Stage::Committed;
                }
            }
        }
    }

    /// Records that the records of the batch could not be written. They never will be.
    pub(crate) fn batch_failed(&mut self) {
        self.batch = None;
    }

    /// Returns the first exception from `from` on whose stage `is_wanted` accepts.
    pub(crate) fn find_by_stage(
        &mut self,
        from: Seq,
        is_wanted: impl Fn(&Stage) -> bool,
    ) -> Option<Seq> {
        (from.0.max(self.head)..self.tail).map(Seq).find(|seq| {
            self.get(*seq)
                .is_some_and(|pending| is_wanted(&pending.stage))
        })
    }

    /// Returns a sequence number that no pending exception is below.
    pub(crate) fn first_seq(&self) -> Seq {
        Seq(self.head)
    }

    /// Removes an exception.
    pub(crate) fn remove(&mut self, seq: Seq) -> Option<PendingException<W>> {
        self.get(seq)?;
        let slot = self.slot(seq)?;
        let pending = self.ring.get_mut(slot)?.take()?;
        let position = partition_point(&self.index, |(first, _)| *first < pending.run.old);
        // By the invariant, `index` contains it at this position.
        let _ = self.index.remove(position);
        self.chunks = subtract(self.chunks, pending.run.len);
        while self.head != self.tail && self.get(Seq(self.head)).is_none() {
            self.head = self.head.wrapping_add(1);
        }
        Some(pending)
    }
}
