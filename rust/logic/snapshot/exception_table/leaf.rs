// SPDX-License-Identifier: GPL-2.0

//! A leaf of the table of completed exceptions: a page of packed entries.

use super::InsertError;
use crate::env::KVVec;
use crate::logic::snapshot::{
    chunks::{
        Chunk,
        CowChunk,
        COW_CHUNKS, //
    },
    lists::partition_point,
    run::{
        Run,
        MAX_RUN_CHUNKS, //
    }, //
};

/// The number of entries in a full leaf.
pub(super) const LEAF_ENTRIES: usize = 340;

/// The maximum number of chunks from the start of the first entry to the end of the last.
const MAX_LEAF_SPAN: u64 = 1 << 32;
/// The minimum number of entries that [`Leaf::balance`] moves: fewer are not worth the effort.
const MIN_MOVED: usize = 16;

/// The maximum number of chunks of an entry.
const MAX_ENTRY_CHUNKS: u64 = 1 << 16;

const _: () = assert!(size_of::<Entry>() == 12);

impl Run {
    /// Returns both runs as one, if `other` continues this one and an entry can hold the sum.
    pub(super) fn joined(&self, other: &Self) -> Option<Self> {
        let len = self.len.wrapping_add(other.len);
        (self.is_continued_by(other) && len <= MAX_ENTRY_CHUNKS).then_some(Self { len, ..*self })
    }

    /// Returns whether the table accepts the run.
    pub(super) fn fits_table(&self) -> bool {
        let new_end = self.new.0.checked_add(self.len);
        (1..=MAX_RUN_CHUNKS).contains(&self.len)
            && self.old.0.checked_add(self.len).is_some()
            && new_end.is_some_and(|end| end <= COW_CHUNKS)
    }
}

/// A run of up to 2^16 chunks in 12 bytes.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// The first chunk of the origin, relative to the first of the leaf.
    key: u32,
    new_low: u32,
    new_high: u16,
    /// The number of chunks after the first.
    more: u16,
}

impl Entry {
    /// Packs a run, which must fit, for a leaf that starts at `first`.
    #[inline]
    fn new(run: &Run, first: u64) -> Self {
        // CAST: The leaf spans at most 2^32 chunks, the COW device at most 2^48, an entry at most
        // 2^16.
        Self {
            key: run.old.0.wrapping_sub(first) as u32,
            new_low: run.new.0 as u32,
            new_high: run.new.0.wrapping_shr(32) as u16,
            more: run.len.wrapping_sub(1) as u16,
        }
    }

    /// Unpacks the entry of a leaf that starts at `first`.
    #[inline]
    pub(super) fn run(&self, first: u64) -> Run {
        let high = u64::from(self.new_high).wrapping_shl(32);
        Run {
            old: Chunk(first.wrapping_add(self.key.into())),
            new: CowChunk(high | u64::from(self.new_low)),
            len: u64::from(self.more).wrapping_add(1),
        }
    }

    /// Converts the entry of a leaf that starts at `from` for a leaf that starts at `to`.
    #[inline]
    fn rebased(self, from: u64, to: u64) -> Self {
        // CAST: The sum fits 32 bits, so the low halves of its terms suffice.
        let key = self.key.wrapping_add(from.wrapping_sub(to) as u32);
        Self { key, ..self }
    }
}

/// A sorted vector of entries.
///
/// # Invariants
///
/// - A leaf in the table is not empty, and `first` is the first chunk of its first entry.
/// - From `first` to the end of the last entry there are at most [`MAX_LEAF_SPAN`] chunks.
#[derive(Default)]
pub(super) struct Leaf {
    pub(super) first: u64,
    pub(super) entries: KVVec<Entry>,
}

impl Leaf {
    /// Returns the run of an entry.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<Run> {
        self.entries.get(index).map(|entry| entry.run(self.first))
    }

    /// Returns the number of the first chunk after the last entry.
    pub(super) fn end(&self) -> u64 {
        let last = self.entries.last();
        last.map_or(self.first, |entry| entry.run(self.first).end())
    }

    /// Returns the number of entries that start at or before `chunk`.
    pub(super) fn until(&self, chunk: u64) -> usize {
        match chunk.checked_sub(self.first) {
            Some(key) => partition_point(&self.entries, |entry| u64::from(entry.key) <= key),
            None => 0,
        }
    }

    /// Returns whether the leaf, with `run` in it, spans at most [`MAX_LEAF_SPAN`] chunks.
    pub(super) fn spans(&self, run: &Run) -> bool {
        let (first, end) = (self.first.min(run.old.0), self.end().max(run.end()));
        end.wrapping_sub(first) <= MAX_LEAF_SPAN
    }

    /// Makes the keys relative to `first`.
    fn rebase(&mut self, first: u64) {
        for entry in self.entries.iter_mut() {
            *entry = entry.rebased(self.first, first);
        }
        self.first = first;
    }

    /// Replaces an entry.
    pub(super) fn set(&mut self, index: usize, run: &Run) {
        if index == 0 {
            self.rebase(run.old.0);
        }
        if let Some(entry) = self.entries.get_mut(index) {
            *entry = Entry::new(run, self.first);
        }
    }

    /// Adds an entry before entry `index`, if the leaf has room.
    pub(super) fn insert(&mut self, index: usize, run: &Run) -> Option<()> {
        if index == 0 {
            self.rebase(run.old.0);
        }
        let entry = Entry::new(run, self.first);
        self.entries.insert_within_capacity(index, entry).ok()
    }

    /// Adds a run that lies after all entries, or extends the last entry by it.
    ///
    /// Returns the number of entries added, or `None` if the leaf is empty or full, or cannot span
    /// the run: the table must find another place.
    ///
    /// # Errors
    ///
    /// Fails if the run does not lie after all entries.
    #[inline]
    pub(super) fn append(&mut self, run: &Run) -> Result<Option<u64>, InsertError> {
        let Some(last) = self.entries.last_mut() else {
            return Ok(None);
        };
        let last_run = last.run(self.first);
        if last_run.end() > run.old.0 {
            return Err(InsertError::Overlap);
        }
        if !run.fits_table() || run.end().wrapping_sub(self.first) > MAX_LEAF_SPAN {
            return Ok(None);
        }
        if let Some(joined) = last_run.joined(run) {
            *last = Entry::new(&joined, self.first);
            return Ok(Some(0));
        }
        let entry = Entry::new(run, self.first);
        Ok(self.entries.push_within_capacity(entry).ok().map(|()| 1))
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, index: usize) -> Option<()> {
        self.entries.remove(index).ok()?;
        match self.get(0) {
            Some(run) if index == 0 => self.rebase(run.old.0),
            _ => {}
        }
        Some(())
    }

    /// Adds entries of a leaf that starts at `first` after the own ones, if the leaf has room.
    fn push(&mut self, entries: &[Entry], first: u64) -> Option<()> {
        for entry in entries {
            let entry = entry.rebased(first, self.first);
            self.entries.push_within_capacity(entry).ok()?;
        }
        Some(())
    }

    /// Moves the upper half of the entries to a new leaf, in the empty vector `entries`.
    pub(super) fn split(&mut self, entries: KVVec<Entry>) -> Option<Self> {
        let first = self.get(LEAF_ENTRIES / 2)?.old.0;
        let mut upper = Self { first, entries };
        upper.push(self.entries.get(LEAF_ENTRIES / 2..)?, self.first)?;
        self.entries.truncate(LEAF_ENTRIES / 2);
        Some(upper)
    }

    /// Moves entries between neighbours so that both have the same number.
    ///
    /// Returns `None`, and moves nothing, if this is not worth the effort or if the receiver could
    /// not span the entries.
    pub(super) fn balance(left: &mut Self, right: &mut Self) -> Option<()> {
        let (lefts, rights) = (left.entries.len(), right.entries.len());
        let moved = lefts.abs_diff(rights) / 2;
        if moved < MIN_MOVED {
            return None;
        }
        if lefts > rights {
            let kept = lefts.checked_sub(moved)?;
            let run = left.get(kept)?;
            if !right.spans(&run) {
                return None;
            }
            right.rebase(run.old.0);
            right.push(left.entries.get(kept..)?, left.first)?;
            rotate(&mut right.entries, rights);
            left.entries.truncate(kept);
        } else {
            if !left.spans(&right.get(moved.checked_sub(1)?)?) {
                return None;
            }
            left.push(right.entries.get(..moved)?, right.first)?;
            rotate(&mut right.entries, moved);
            right.entries.truncate(rights.checked_sub(moved)?);
            right.rebase(right.get(0)?.old.0);
        }
        Some(())
    }
}

/// Exchanges the first `count` items with the others.
fn rotate<T>(items: &mut [T], count: usize) {
    // `rotate_left` panics if the count is too large.
    if let Some((front, back)) = items.split_at_mut_checked(count) {
        front.reverse();
        back.reverse();
        items.reverse();
    }
}
