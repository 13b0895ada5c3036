// SPDX-License-Identifier: GPL-2.0

//! The table of completed exceptions, which maps chunks of the origin to chunks of the COW device.
//!
//! C counterpart: `struct dm_exception_table complete` of `struct dm_snapshot`, a hash table.
//!
//! Each entry of 12 bytes is a run of consecutive chunks. The entries are sorted by their chunks of
//! the origin, in a tree of three levels:
//!
//! ```text
//! root    [branch, branch, ...]     replaced by a larger vector when it is full
//! branch  [leaf, leaf, ...]         at most 128
//! leaf    [entry, entry, ...]       at most 340; keys are relative to the first chunk of the leaf
//! ```
//!
//! The owner protects the table with a spinlock, under which nothing can be allocated. So
//! [`ExceptionTable::insert`] takes its memory from [`SpareNodes`], which are refilled outside the
//! lock.
//!
//! An entry that belongs into a full leaf first makes the leaf hand entries to a neighbour in its
//! branch. If the neighbours are full too, the leaf is split; but an entry after its last or before
//! its first gets a leaf of its own, and the full leaf stays as it is. Ascending and descending
//! runs therefore fill leaves completely.

mod insert;
mod leaf;
mod spares;

use crate::env::KVVec;
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

pub(crate) use spares::SpareNodes;

use leaf::{
    Entry,
    Leaf,
    LEAF_ENTRIES, //
};

/// The number of leaves in a full branch.
const BRANCH_LEAVES: usize = 128;

// Vectors of up to a page never come from vmalloc, so they can be freed under a spinlock.
const _: () =
    assert!(LEAF_ENTRIES * size_of::<Entry>() <= 4096 && BRANCH_LEAVES * size_of::<Leaf>() <= 4096);

/// Result of [`ExceptionTable::find`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// The chunk is stored here, and this number of chunks, itself included, are consecutive on
    /// both devices.
    Mapped(CowChunk, u64),
    /// This number of chunks, the first included, are not mapped.
    Hole(u64),
}

/// Why a run was not inserted. The table is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InsertError {
    /// One of the chunks is mapped already.
    Overlap,
    /// The spare nodes do not suffice, or an allocation failed.
    NoMemory,
    /// The run is empty, longer than [`MAX_RUN_CHUNKS`](super::run::MAX_RUN_CHUNKS), or goes beyond
    /// the last chunk that can be mapped: 2^64 - 2 of the origin, 2^48 - 1 of the COW device.
    OutOfRange,
}

/// A run that was to be removed is not mapped like this. The table is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotMapped;

/// A sorted vector of leaves.
///
/// # Invariants
///
/// A branch in the table is not empty, and `first` is the first chunk of its first leaf.
#[derive(Default)]
struct Branch {
    first: u64,
    leaves: KVVec<Leaf>,
}

impl Branch {
    /// Restores the invariant of `first`.
    fn update_first(&mut self) {
        if let Some(leaf) = self.leaves.first() {
            self.first = leaf.first;
        }
    }
}

/// The position of an entry in the table. `entry` may be one after the last entry of the leaf.
#[derive(Clone, Copy)]
struct Position {
    branch: usize,
    leaf: usize,
    entry: usize,
}

impl Position {
    /// Returns the next position in the leaf, which may be after its last entry.
    fn next(self) -> Self {
        let entry = self.entry.wrapping_add(1);
        Self { entry, ..self }
    }

    /// Returns the two positions at which the next leaf can start: in this branch, and in the next.
    fn next_leaves(self) -> [Self; 2] {
        let leaf = self.leaf.wrapping_add(1);
        let branch = self.branch.wrapping_add(1);
        [
            Self {
                leaf,
                entry: 0,
                ..self
            },
            Self {
                branch,
                leaf: 0,
                entry: 0,
            },
        ]
    }
}

/// The completed exceptions of one stripe of a snapshot.
///
/// Only [`Self::append`] allocates. All other functions may be called under a spinlock, which also
/// allows them to free. The table itself must be dropped where the caller may sleep.
///
/// # Invariants
///
/// - Branches, leaves and entries are sorted, and the runs do not overlap.
/// - `leaves` and `entries` are the numbers of leaves and entries, `chunks` is the sum of the
///   lengths of all entries.
pub(crate) struct ExceptionTable {
    root: KVVec<Branch>,
    leaves: u64,
    entries: u64,
    chunks: u64,
}

impl ExceptionTable {
    /// Makes an empty table. Any context.
    pub(crate) const fn new() -> Self {
        Self {
            root: KVVec::new(),
            leaves: 0,
            entries: 0,
            chunks: 0,
        }
    }

    /// Returns the number of mapped chunks.
    #[cfg(test)]
    #[inline]
    pub(crate) fn count(&self) -> u64 {
        self.chunks
    }

    /// Returns the number of entries.
    #[cfg(test)]
    #[inline]
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Returns the memory that the table takes, in bytes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let root = self.root.capacity().wrapping_mul(size_of::<Branch>());
        let branches = self
            .root
            .len()
            .wrapping_mul(BRANCH_LEAVES * size_of::<Leaf>());
        // CAST: All leaves are in memory.
        let leaves = (self.leaves as usize).wrapping_mul(LEAF_ENTRIES * size_of::<Entry>());
        root.wrapping_add(branches).wrapping_add(leaves)
    }

    /// Looks up `chunk`, and counts the chunks from there on for which the answer is the same.
    ///
    /// Counts at least one chunk, and otherwise up to `max`. Takes time for each entry that
    /// continues the previous one.
    pub(crate) fn find(&self, chunk: Chunk, max: u64) -> Lookup {
        let max = max.max(1);
        let after = self.locate(chunk.0);
        let holder = self.before(after).filter(|(_, run)| run.end() > chunk.0);
        let Some((_, mut last)) = holder else {
            let next = self.at_or_after(after);
            return Lookup::Hole(
                next.map_or(max, |(_, run)| run.old.0.wrapping_sub(chunk.0).min(max)),
            );
        };
        let found = last.without_first(chunk.0.wrapping_sub(last.old.0));
        let mut len = found.len;
        let mut next = after;
        while len < max {
            match self.at_or_after(next) {
                Some((position, run)) if last.is_continued_by(&run) => {
                    len = len.wrapping_add(run.len);
                    (last, next) = (run, position.next());
                }
                _ => break,
            }
        }
        Lookup::Mapped(found.new, len.min(max))
    }

    /// Unmaps the chunks of `run`, which may extend over several entries.
    ///
    /// # Errors
    ///
    /// Fails if the chunks are not mapped exactly like this, or if the run lies inside one entry
    /// and touches neither of its ends: this would need memory for a new entry.
    pub(crate) fn remove(&mut self, run: Run) -> Result<(), NotMapped> {
        if self.find(run.old, run.len) != Lookup::Mapped(run.new, run.len) {
            return Err(NotMapped);
        }
        let mut rest = run;
        while rest.len != 0 {
            let holder = self.before(self.locate(rest.old.0));
            let (position, entry) = holder.ok_or(NotMapped)?;
            let kept = rest.old.0.wrapping_sub(entry.old.0);
            let len = entry.len.wrapping_sub(kept).min(rest.len);
            let above = entry.without_first(kept.wrapping_add(len));
            let done = match (kept, above.len) {
                (0, 0) => self.delete(position),
                (0, _) => self.set(position, &above),
                (_, 0) => self.set(position, &Run { len: kept, ..entry }),
                // Only the first entry can be cut in the middle, and then it is the only one.
                _ => None,
            };
            done.ok_or(NotMapped)?;
            self.chunks = subtract(self.chunks, len);
            rest = rest.without_first(len);
        }
        Ok(())
    }

    /// Like [`Self::remove`], but splits an entry that has chunks on both sides of the run.
    ///
    /// Takes the memory for the new entry from `spares`. Returns false, and leaves the table
    /// unchanged, if that does not suffice.
    ///
    /// # Errors
    ///
    /// Fails if the chunks are not mapped exactly like this.
    pub(crate) fn remove_splitting(
        &mut self,
        run: Run,
        spares: &mut SpareNodes,
    ) -> Result<bool, NotMapped> {
        if self.remove(run).is_ok() {
            return Ok(true);
        }
        if self.find(run.old, run.len) != Lookup::Mapped(run.new, run.len) {
            return Err(NotMapped);
        }
        let (position, entry) = self.before(self.locate(run.old.0)).ok_or(NotMapped)?;
        let kept = run.old.0.wrapping_sub(entry.old.0);
        let above = entry.without_first(kept.wrapping_add(run.len));
        self.set(position, &Run { len: kept, ..entry })
            .ok_or(NotMapped)?;
        if self.add(self.locate(above.old.0), &above, spares).is_none() {
            self.set(position, &entry).ok_or(NotMapped)?;
            return Ok(false);
        }
        self.chunks = subtract(self.chunks, run.len);
        Ok(true)
    }

    /// Iterates over the entries, in ascending order of their chunks of the origin.
    ///
    /// Does not join entries that continue each other.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        let leaves = self.root.iter().flat_map(|branch| branch.leaves.iter());
        leaves.flat_map(|leaf| leaf.entries.iter().map(|entry| entry.run(leaf.first)))
    }

    /// Returns the position after the last entry that starts at or before `chunk`.
    ///
    /// Its leaf exists unless the table is empty. It is the start of a leaf only if all entries
    /// start after `chunk`.
    fn locate(&self, chunk: u64) -> Position {
        let branch = partition_point(&self.root, |branch| branch.first <= chunk).saturating_sub(1);
        let leaves: &[Leaf] = match self.root.get(branch) {
            Some(found) => &found.leaves,
            None => &[],
        };
        let leaf = partition_point(leaves, |leaf| leaf.first <= chunk).saturating_sub(1);
        let entry = leaves.get(leaf).map_or(0, |found| found.until(chunk));
        Position {
            branch,
            leaf,
            entry,
        }
    }

    #[inline]
    fn leaf(&self, position: Position) -> Option<&Leaf> {
        self.root.get(position.branch)?.leaves.get(position.leaf)
    }

    /// Returns the entry at a position.
    #[inline]
    fn at(&self, position: Position) -> Option<(Position, Run)> {
        Some((position, self.leaf(position)?.get(position.entry)?))
    }

    /// Returns the entry before a position that [`Self::locate`] returned.
    #[inline]
    fn before(&self, position: Position) -> Option<(Position, Run)> {
        let entry = position.entry.checked_sub(1)?;
        self.at(Position { entry, ..position })
    }

    /// Returns the entry at a position or, after the end of a leaf, the first of the next leaf.
    fn at_or_after(&self, position: Position) -> Option<(Position, Run)> {
        let [same, next] = position.next_leaves();
        self.at(position)
            .or_else(|| self.at(same))
            .or_else(|| self.at(next))
    }

    /// Replaces an entry by a run that fits into the span of its leaf.
    fn set(&mut self, position: Position, run: &Run) -> Option<()> {
        let branch = self.root.get_mut(position.branch)?;
        branch
            .leaves
            .get_mut(position.leaf)?
            .set(position.entry, run);
        branch.update_first();
        Some(())
    }

    /// Removes an entry, and the leaf and the branch that become empty.
    fn delete(&mut self, position: Position) -> Option<()> {
        let branch = self.root.get_mut(position.branch)?;
        let leaf = branch.leaves.get_mut(position.leaf)?;
        leaf.remove(position.entry)?;
        self.entries = subtract(self.entries, 1);
        if leaf.entries.is_empty() {
            branch.leaves.remove(position.leaf).ok()?;
            self.leaves = subtract(self.leaves, 1);
        }
        branch.update_first();
        if branch.leaves.is_empty() {
            self.root.remove(position.branch).ok()?;
        }
        Some(())
    }
}
