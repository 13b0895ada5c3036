// SPDX-License-Identifier: GPL-2.0

//! A leaf of the table of completed exceptions: a page of packed runs.

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

/// The number of chunks from the first of a leaf to the end of its last entry, at most.
const MAX_LEAF_SPAN: u64 = 1 << 32;
/// The number of entries that are worth being moved to a neighbour leaf.
const MIN_MOVED: usize = 16;

/// The number of chunks an entry can stand for.
const MAX_ENTRY_CHUNKS: u64 = 1 << 16;

const _: () = assert!(size_of::<Entry>() == 12);

impl Run {
    /// Returns both as one run, if `other` continues this one and one entry can hold them.
    pub(super) fn joined(&self, other: &Self) -> Option<Self> {
        let len = self.len.wrapping_add(other.len);
        (self.continues_in(other) && len <= MAX_ENTRY_CHUNKS).then_some(Self { len, ..*self })
    }

    /// Tells whether the table can hold the run, given in one call.
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
    /// The first chunk of the origin, counted from the first of the leaf.
    key: u32,
    new_low: u32,
    new_high: u16,
    /// The number of chunks behind the first.
    more: u16,
}

impl Entry {
    /// Packs a run, of a length and with chunks that fit, for a leaf that starts at `first`.
    #[inline]
    fn new(run: &Run, first: u64) -> Self {
        // CAST: A leaf spans less than 2^32 chunks, the COW device 2^48, an entry 2^16 at most.
        Self {
            key: run.old.0.wrapping_sub(first) as u32,
            new_low: run.new.0 as u32,
            new_high: run.new.0.wrapping_shr(32) as u16,
            more: run.len.wrapping_sub(1) as u16,
        }
    }

    /// Unpacks the run of an entry of a leaf that starts at `first`.
    #[inline]
    pub(super) fn run(&self, first: u64) -> Run {
        let high = u64::from(self.new_high).wrapping_shl(32);
        Run {
            old: Chunk(first.wrapping_add(self.key.into())),
            new: CowChunk(high | u64::from(self.new_low)),
            len: u64::from(self.more).wrapping_add(1),
        }
    }

    /// Returns the entry of a leaf that starts at `from` for one that starts at `to`.
    #[inline]
    fn rebased(self, from: u64, to: u64) -> Self {
        // CAST: The low half is enough, as the sum fits.
        let key = self.key.wrapping_add(from.wrapping_sub(to) as u32);
        Self { key, ..self }
    }
}

/// A sorted vector of entries.
///
/// # Invariants
///
/// - In the table it is not empty, and `first` is where the first entry starts.
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

    /// Returns the chunk behind the last entry.
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

    /// Tells whether the leaf, with `run` in it, spans no more chunks than keys can count.
    pub(super) fn spans(&self, run: &Run) -> bool {
        let (first, end) = (self.first.min(run.old.0), self.end().max(run.end()));
        end.wrapping_sub(first) <= MAX_LEAF_SPAN
    }

    /// Lets the keys count from `first`.
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

    /// Adds an entry, if there is room.
    pub(super) fn insert(&mut self, index: usize, run: &Run) -> Option<()> {
        if index == 0 {
            self.rebase(run.old.0);
        }
        let entry = Entry::new(run, self.first);
        self.entries.insert_within_capacity(index, entry).ok()
    }

    /// Adds a run that lies behind all entries, to the last one if it continues that, and tells how
    /// many entries there are more; `None` if the table has to look at it.
    #[inline]
    pub(super) fn append(&mut self, run: &Run) -> Result<Option<u64>, InsertError> {
        let Some(last) = self.entries.last_mut() else {
            return Ok(None);
        };
        let held = last.run(self.first);
        if held.end() > run.old.0 {
            return Err(InsertError::Overlap);
        }
        if !run.fits_table() || run.end().wrapping_sub(self.first) > MAX_LEAF_SPAN {
            return Ok(None);
        }
        if let Some(joined) = held.joined(run) {
            *last = Entry::new(&joined, self.first);
            return Ok(Some(0));
        }
        let entry = Entry::new(run, self.first);
        Ok(self.entries.push_within_capacity(entry).ok().map(|()| 1))
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, index: usize) -> Option<()> {
        self.entries.remove(index).ok()?;
        match self.get(0) {
            Some(run) if index == 0 => self.rebase(run.old.0),
            _ => {}
        }
        Some(())
    }

    /// Adds entries of a leaf that starts at `first` behind the own ones, if there is room.
    fn push(&mut self, entries: &[Entry], first: u64) -> Option<()> {
        for entry in entries {
            let entry = entry.rebased(first, self.first);
            self.entries.push_within_capacity(entry).ok()?;
        }
        Some(())
    }

    /// Makes a leaf of the upper half of the entries, in an empty vector.
    pub(super) fn split(&mut self, entries: KVVec<Entry>) -> Option<Self> {
        let first = self.get(LEAF_ENTRIES / 2)?.old.0;
        let mut upper = Self { first, entries };
        upper.push(self.entries.get(LEAF_ENTRIES / 2..)?, self.first)?;
        self.entries.truncate(LEAF_ENTRIES / 2);
        Some(upper)
    }

    /// Moves entries between neighbours so that both have the same number, if that is worth it.
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

/// Swaps the first `count` items with the others.
fn rotate<T>(items: &mut [T], count: usize) {
    // Not `rotate_left`, which panics for a count too large.
    if let Some((front, back)) = items.split_at_mut_checked(count) {
        front.reverse();
        back.reverse();
        items.reverse();
    }
}
