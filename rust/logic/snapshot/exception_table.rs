// SPDX-License-Identifier: GPL-2.0

//! The table of completed exceptions: which chunk of the origin lies where on the COW device.
//!
//! Runs of consecutive chunks are entries of 12 bytes, sorted by chunk of the origin, three levels
//! deep:
//!
//! ```text
//! root    [branch, branch, ...]     grows by a larger vector
//! branch  [leaf, leaf, ...]         at most 128
//! leaf    [entry, entry, ...]       at most 340; keys count from the first chunk of the leaf
//! ```
//!
//! The table lives under a spinlock of its owner. So [`ExceptionTable::insert`] takes its memory from
//! [`SpareNodes`], which are filled outside of the lock. A full leaf first hands entries to a neighbour
//! in its branch, and is divided only if these are full too. What comes behind its last entry or in
//! front of its first goes to a new leaf then, and the full one stays as it is, so that ascending
//! and descending runs fill leaves to the last place.

mod insert;
mod leaf;
mod spares;

use crate::env::KVVec;
use crate::logic::snapshot::{
    chunks::{
        Chunk,
        CowChunk, //
    },
    lists::partition_point,
    run::Run, //
};

pub(crate) use spares::SpareNodes;

use leaf::{
    Entry,
    Leaf,
    LEAF_ENTRIES, //
};

/// The number of leaves in a full branch.
const BRANCH_LEAVES: usize = 128;

// Up to a page these vectors never come from vmalloc, so they can be freed under a spinlock.
const _: () =
    assert!(LEAF_ENTRIES * size_of::<Entry>() <= 4096 && BRANCH_LEAVES * size_of::<Leaf>() <= 4096);

/// What [`ExceptionTable::find`] tells about a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Where the chunk lies, and how many chunks from this one on lie one behind the other there.
    Mapped(CowChunk, u64),
    /// How many chunks from this one on are not mapped.
    Hole(u64),
}

/// Why a run was not inserted. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InsertError {
    /// One of the chunks is mapped already.
    Overlap,
    /// The spares do not suffice, or an allocation failed.
    NoMemory,
    /// The run is empty or longer than [`MAX_RUN_CHUNKS`], or ends behind the largest chunk numbers:
    /// 2^64 - 2 of the origin, 2^48 - 1 of the COW device.
    OutOfRange,
}

/// A run to be removed is not mapped like that, or both its ends are within one entry. Nothing has
/// changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotMapped;

/// A sorted vector of leaves.
///
/// # Invariants
///
/// In the table it is not empty, and `first` is where the first leaf starts.
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

/// Where an entry is in the table; `entry` may be one behind the last of the leaf.
#[derive(Clone, Copy)]
struct Position {
    branch: usize,
    leaf: usize,
    entry: usize,
}

impl Position {
    /// Returns the place behind this one, perhaps behind the end of the leaf.
    fn next(self) -> Self {
        let entry = self.entry.wrapping_add(1);
        Self { entry, ..self }
    }

    /// Returns where the next leaf starts, in this branch and in the next.
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

/// The completed exceptions of a part of a snapshot.
///
/// Lives under a lock of its owner. Only [`Self::append`] allocates. What the other functions free
/// can be freed under a spinlock, but the table itself is dropped where the caller may sleep.
///
/// # Invariants
///
/// - Branches, leaves and entries are sorted, and the runs do not overlap.
/// - `leaves` and `entries` are the numbers of these, `chunks` is the sum of the lengths.
pub(crate) struct ExceptionTable {
    root: KVVec<Branch>,
    leaves: usize,
    entries: u64,
    chunks: u64,
}

impl ExceptionTable {
    /// Makes an empty table. May be called in any context.
    pub(crate) const fn new() -> Self {
        Self {
            root: KVVec::new(),
            leaves: 0,
            entries: 0,
            chunks: 0,
        }
    }

    /// Returns the number of chunks that are mapped.
    #[inline]
    pub(crate) fn count(&self) -> u64 {
        self.chunks
    }

    /// Returns the number of entries that hold them.
    #[inline]
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Returns the memory of the table in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let root = self.root.capacity().saturating_mul(size_of::<Branch>());
        let branches = self
            .root
            .len()
            .saturating_mul(BRANCH_LEAVES * size_of::<Leaf>());
        let leaves = self
            .leaves
            .saturating_mul(LEAF_ENTRIES * size_of::<Entry>());
        root.saturating_add(branches).saturating_add(leaves)
    }

    /// Looks up `chunk`, and for how many chunks from there on it is so: one, or up to `most`.
    ///
    /// Called under the lock. Takes time for each entry that continues the one before.
    pub(crate) fn find(&self, chunk: Chunk, most: u64) -> Lookup {
        let most = most.max(1);
        let at = self.locate(chunk.0);
        let held = self.before(at).filter(|(_, run)| run.end() > chunk.0);
        let Some((_, mut last)) = held else {
            let next = self.at_or_after(at);
            return Lookup::Hole(
                next.map_or(most, |(_, run)| run.old.0.wrapping_sub(chunk.0).min(most)),
            );
        };
        let from = last.without_first(chunk.0.wrapping_sub(last.old.0));
        let mut len = from.len;
        let mut next = at;
        while len < most {
            match self.at_or_after(next) {
                Some((position, run)) if last.continues_in(&run) => {
                    len = len.wrapping_add(run.len);
                    (last, next) = (run, position.next());
                }
                _ => break,
            }
        }
        Lookup::Mapped(from.new, len.min(most))
    }

    /// Unmaps the chunks of `run`, which must be mapped just so.
    ///
    /// Called under the lock. The run may go over several entries, but must not lie within one
    /// without touching either end, as this would need a new entry; [`NotMapped`] then.
    pub(crate) fn remove(&mut self, run: Run) -> Result<(), NotMapped> {
        if self.find(run.old, run.len) != Lookup::Mapped(run.new, run.len) {
            return Err(NotMapped);
        }
        let mut rest = run;
        while rest.len != 0 {
            let held = self.before(self.locate(rest.old.0));
            let (position, entry) = held.ok_or(NotMapped)?;
            let kept = rest.old.0.wrapping_sub(entry.old.0);
            let len = entry.len.wrapping_sub(kept).min(rest.len);
            let above = entry.without_first(kept.wrapping_add(len));
            let done = match (kept, above.len) {
                (0, 0) => self.delete(position),
                (0, _) => self.set(position, &above),
                (_, 0) => self.set(position, &Run { len: kept, ..entry }),
                // Only the first entry can be hit like this, and then it is the only one.
                _ => None,
            };
            done.ok_or(NotMapped)?;
            self.chunks = self.chunks.saturating_sub(len);
            rest = rest.without_first(len);
        }
        Ok(())
    }

    /// Like [`Self::remove`], but the run may lie anywhere: what is behind it in its entry becomes
    /// an entry of its own, with memory from `spares`. Tells whether that sufficed; otherwise
    /// nothing has changed.
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
        self.chunks = self.chunks.saturating_sub(run.len);
        Ok(true)
    }

    /// Iterates over the entries, in ascending order of the chunks of the origin.
    ///
    /// Called under the lock. Runs that continue each other are listed as they are held.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Run> + '_ {
        let leaves = self.root.iter().flat_map(|branch| branch.leaves.iter());
        leaves.flat_map(|leaf| leaf.entries.iter().map(|entry| entry.run(leaf.first)))
    }

    /// Returns the place behind the last entry that starts at or before `chunk`. Its leaf exists
    /// unless the table is empty; it is at the start of a leaf only if all entries start behind
    /// `chunk`.
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

    /// Returns a leaf.
    #[inline]
    fn leaf(&self, position: Position) -> Option<&Leaf> {
        self.root.get(position.branch)?.leaves.get(position.leaf)
    }

    /// Returns the entry at a place.
    #[inline]
    fn at(&self, position: Position) -> Option<(Position, Run)> {
        Some((position, self.leaf(position)?.get(position.entry)?))
    }

    /// Returns the entry in front of a place from [`Self::locate`].
    #[inline]
    fn before(&self, position: Position) -> Option<(Position, Run)> {
        let entry = position.entry.checked_sub(1)?;
        self.at(Position { entry, ..position })
    }

    /// Returns the entry at a place or, behind the end of a leaf, the first of the next leaf.
    fn at_or_after(&self, position: Position) -> Option<(Position, Run)> {
        let [same, next] = position.next_leaves();
        self.at(position)
            .or_else(|| self.at(same))
            .or_else(|| self.at(next))
    }

    /// Replaces an entry by a run that its leaf spans.
    fn set(&mut self, position: Position, run: &Run) -> Option<()> {
        let branch = self.root.get_mut(position.branch)?;
        branch
            .leaves
            .get_mut(position.leaf)?
            .set(position.entry, run);
        branch.update_first();
        Some(())
    }

    /// Takes an entry out, with the leaf and the branch that would be empty.
    fn delete(&mut self, position: Position) -> Option<()> {
        let branch = self.root.get_mut(position.branch)?;
        let leaf = branch.leaves.get_mut(position.leaf)?;
        leaf.remove(position.entry)?;
        self.entries = self.entries.saturating_sub(1);
        if leaf.entries.is_empty() {
            branch.leaves.remove(position.leaf).ok()?;
            self.leaves = self.leaves.saturating_sub(1);
        }
        branch.update_first();
        if branch.leaves.is_empty() {
            self.root.remove(position.branch).ok()?;
        }
        Some(())
    }
}
