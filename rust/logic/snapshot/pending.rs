// SPDX-License-Identifier: GPL-2.0

//! Exceptions on their way: chunks that were given out and are not yet in the table.
//!
//! ```text
//!  add ─▶ Waiting ─▶ Copying ─▶ Copied ─▶ Committing ─▶ Committed ─▶ Draining ─▶ remove
//! ```
//!
//! Data comes in any order, records are written in the order in which the chunks were given out: a
//! crash then never leaves a chunk behind that no record names, with records after it. So a batch
//! is what has its data, up to the first that has not. From when an exception is in the table
//! (draining) only those wait for it who read the origin before that.

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

/// How far an exception is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Somebody has to copy its data.
    Queued,
    /// Its data is on its way.
    Copying,
    /// Its data is there.
    Copied,
    /// Its record is being written.
    Committing,
    /// Its record is durable.
    Committed,
    /// It is in the table; readers of the origin before the barrier are waited for.
    Draining(u64),
}

/// The name of an exception on its way. Names rise in the order in which chunks are given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seq(u64);

impl Seq {
    /// As a number.
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    /// From [`to_bits`](Self::to_bits).
    pub(crate) fn from_bits(bits: u64) -> Self {
        Seq(bits)
    }

    /// The name behind this one.
    pub(crate) fn next(self) -> Self {
        Seq(self.0.wrapping_add(1))
    }
}

/// An exception on its way, and what waits for it.
#[derive(Debug)]
pub(crate) struct PendingException<W> {
    /// Its name.
    pub(crate) seq: Seq,
    /// From where to where.
    pub(crate) run: Run,
    /// How far it is.
    pub(crate) stage: Stage,
    /// What waits.
    pub(crate) waiting: W,
}

impl<W> PendingException<W> {
    /// Whether it is in the table: only readers of before are waited for.
    pub(crate) fn is_completed(&self) -> bool {
        matches!(self.stage, Stage::Draining(_))
    }

    /// Where on the COW device a chunk will be, and how many follow it there, itself included.
    pub(crate) fn cow_chunk(&self, chunk: Chunk) -> Option<(CowChunk, u64)> {
        let offset = chunk.0.checked_sub(self.run.old.0)?;
        let left = self.run.len.checked_sub(offset).filter(|left| *left != 0)?;
        Some((CowChunk(self.run.new.0.checked_add(offset)?), left))
    }
}

/// All exceptions of a snapshot that are on their way. Never allocates after it is made, never
/// sleeps; its user locks it.
///
/// # Invariants
///
/// - `ring` has what is there at its name modulo the length; all names are at least `head` and
///   below `tail`.
/// - `index` has the first chunk and the name of each, sorted by chunk; no two have a chunk in
///   common.
pub(crate) struct PendingExceptions<W> {
    ring: KVVec<Option<PendingException<W>>>,
    index: KVVec<(Chunk, Seq)>,
    head: u64,
    /// The first that is in no batch yet.
    next: u64,
    tail: u64,
    chunks: u64,
    /// Behind the batch that is being committed.
    batch: Option<u64>,
}

impl<W> PendingExceptions<W> {
    /// Makes a book with room for so many.
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
        })
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// How many chunks are on their way.
    pub(crate) fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Whether there is room for another one.
    pub(crate) fn has_room(&self) -> bool {
        // CAST: A number of slots.
        self.tail.wrapping_sub(self.head) < self.ring.len() as u64
    }

    fn slot(&self, seq: Seq) -> Option<usize> {
        // CAST: A number of slots, and less.
        seq.0
            .checked_rem(self.ring.len() as u64)
            .map(|slot| slot as usize)
    }

    /// The exception of a name.
    pub(crate) fn get(&mut self, seq: Seq) -> Option<&mut PendingException<W>> {
        let slot = self.slot(seq)?;
        let pending = self.ring.get_mut(slot)?.as_mut()?;
        (pending.seq == seq).then_some(pending)
    }

    /// The exception that a chunk is in.
    pub(crate) fn find(&mut self, chunk: Chunk) -> Option<&mut PendingException<W>> {
        let behind = partition_point(&self.index, |(first, _)| *first <= chunk);
        let (_, seq) = *self.index.get(behind.checked_sub(1)?)?;
        self.get(seq).filter(|it| it.cow_chunk(chunk).is_some())
    }

    /// How many chunks there are from one that is in no exception up to the next that is, `most` if
    /// it is not nearer.
    pub(crate) fn gap(&self, chunk: Chunk, most: u64) -> u64 {
        let behind = partition_point(&self.index, |(first, _)| *first <= chunk);
        match self.index.get(behind) {
            Some((first, _)) => first.0.saturating_sub(chunk.0).min(most),
            None => most,
        }
    }

    /// Adds an exception, of chunks that are in none. Without room it is given back.
    pub(crate) fn add(&mut self, run: Run, stage: Stage, waiting: W) -> Result<Seq, W> {
        let seq = Seq(self.tail);
        let Some(slot) = self.slot(seq).filter(|_| self.has_room()) else {
            return Err(waiting);
        };
        let place = partition_point(&self.index, |(first, _)| *first < run.old);
        let Some(entry) = self.ring.get_mut(slot) else {
            return Err(waiting);
        };
        // INVARIANT: Sorted in. There is as much room as in the ring.
        if self
            .index
            .insert_within_capacity(place, (run.old, seq))
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

    /// Takes note that the data is there.
    pub(crate) fn set_copied(&mut self, seq: Seq) {
        if let Some(pending) = self.get(seq).filter(|it| it.stage == Stage::Copying) {
            pending.stage = Stage::Copied;
        }
    }

    /// Whether there is something for a batch, and none being committed.
    pub(crate) fn has_batch(&mut self) -> bool {
        let next = Seq(self.next.max(self.head));
        self.batch.is_none() && self.get(next).is_some_and(|it| it.stage == Stage::Copied)
    }

    /// Makes a batch of what has its data, up to the first that has not, and writes it into `runs`,
    /// as far as there is room. False if there is nothing, or a batch is being committed.
    pub(crate) fn begin_batch(&mut self, runs: &mut KVVec<Run>) -> bool {
        runs.clear();
        if self.batch.is_some() {
            return false;
        }
        self.next = self.next.max(self.head);
        loop {
            let next = Seq(self.next);
            let Some(pending) = self.get(next).filter(|it| it.stage == Stage::Copied) else {
                break;
            };
            if runs.push_within_capacity(pending.run).is_err() {
                break;
            }
            pending.stage = Stage::Committing;
            self.next = self.next.wrapping_add(1);
        }
        if runs.is_empty() {
            return false;
        }
        self.batch = Some(self.next);
        true
    }

    /// Takes what has its data, up to the first that has not, for durable: for a store that keeps
    /// no records.
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

    /// Takes note that the batch is durable.
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

    /// Takes note that the batch could not be written: it will never be.
    pub(crate) fn batch_failed(&mut self) {
        self.batch = None;
    }

    /// The first from `from` on that `choose` wants.
    pub(crate) fn find_by_stage(
        &mut self,
        from: Seq,
        choose: impl Fn(&Stage) -> bool,
    ) -> Option<Seq> {
        (from.0.max(self.head)..self.tail)
            .map(Seq)
            .find(|seq| self.get(*seq).is_some_and(|it| choose(&it.stage)))
    }

    /// The lowest name.
    pub(crate) fn first_seq(&self) -> Seq {
        Seq(self.head)
    }

    /// Takes an exception out.
    pub(crate) fn remove(&mut self, seq: Seq) -> Option<PendingException<W>> {
        self.get(seq)?;
        let slot = self.slot(seq)?;
        let pending = self.ring.get_mut(slot)?.take()?;
        let place = partition_point(&self.index, |(first, _)| *first < pending.run.old);
        // It is there, by the invariant.
        let _ = self.index.remove(place);
        self.chunks = subtract(self.chunks, pending.run.len);
        while self.head != self.tail && self.get(Seq(self.head)).is_none() {
            self.head = self.head.wrapping_add(1);
        }
        Some(pending)
    }
}
