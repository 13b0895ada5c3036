// SPDX-License-Identifier: GPL-2.0

//! Insertion into the table of completed exceptions.
//!
//! C counterpart: `dm_insert_exception()`.

use super::{
    leaf::{
        Leaf,
        LEAF_ENTRIES, //
    },
    spares::SpareNodes,
    Branch,
    ExceptionTable,
    InsertError,
    Position,
    BRANCH_LEAVES, //
};
use crate::{
    env::{
        AllocError,
        Flags,
        KVVec, //
    },
    logic::snapshot::run::Run, //
};

/// The capacity of the first root.
const FIRST_ROOT: usize = 4;

/// The place at which a new entry belongs.
enum InsertPoint {
    /// In an existing leaf, before the entry at this position.
    InLeaf(Position),
    /// In a new leaf, before leaf `index` of a branch.
    NewLeaf { branch: usize, index: usize },
}

impl ExceptionTable {
    /// Returns the capacity of the root that the next insertion may need, or zero if it needs none.
    pub(crate) fn spare_root_capacity(&self) -> usize {
        let capacity = self.root.capacity();
        if self.root.len() < capacity {
            return 0;
        }
        capacity.saturating_mul(2).max(FIRST_ROOT)
    }

    /// Maps the chunks of `run`, with memory from `spares`.
    ///
    /// A root that was replaced is left in `spares`.
    ///
    /// # Errors
    ///
    /// [`InsertError`] lists the causes. [`InsertError::NoMemory`] is impossible if
    /// [`SpareNodes::is_sufficient`] under the lock that is still held.
    pub(crate) fn insert(&mut self, run: Run, spares: &mut SpareNodes) -> Result<(), InsertError> {
        if !run.fits_table() {
            return Err(InsertError::OutOfRange);
        }
        let at = self.locate(run.old.0);
        let (before, after) = (self.before(at), self.at_or_after(at));
        if before.is_some_and(|(_, before)| before.end() > run.old.0)
            || after.is_some_and(|(_, after)| after.old.0 < run.end())
        {
            return Err(InsertError::Overlap);
        }
        if self.join(&run, before, after).is_none() {
            self.add(at, &run, spares).ok_or(InsertError::NoMemory)?;
        }
        self.chunks = self.chunks.saturating_add(run.len);
        Ok(())
    }

    /// Maps the chunks of `run`, which must lie after all others, and fills leaves completely.
    ///
    /// Serves loading, without locks. May sleep if `flags` allow that.
    ///
    /// # Errors
    ///
    /// [`InsertError`] lists the causes. A run that does not lie after all others is an overlap.
    pub(crate) fn append(&mut self, run: Run, flags: Flags) -> Result<(), InsertError> {
        let last = self.root.last_mut();
        if let Some(leaf) = last.and_then(|branch| branch.leaves.last_mut()) {
            // Fast path: nearly always the last leaf takes the run, and nothing is searched.
            if let Some(added) = leaf.append(&run)? {
                self.entries = self.entries.wrapping_add(added);
                self.chunks = self.chunks.saturating_add(run.len);
                return Ok(());
            }
        }
        let mut spares = SpareNodes::new();
        match self.insert(run, &mut spares) {
            Err(InsertError::NoMemory) => {}
            done => return done,
        }
        self.allocate_for_append(&mut spares, flags)
            .map_err(|_: AllocError| InsertError::NoMemory)?;
        self.insert(run, &mut spares)
    }

    /// Joins `run` with the entry before it, the entry after it, or both.
    ///
    /// Returns `None` if they are not consecutive on both devices, or an entry cannot hold the sum.
    fn join(
        &mut self,
        run: &Run,
        before: Option<(Position, Run)>,
        after: Option<(Position, Run)>,
    ) -> Option<()> {
        let spans = |position, run: &Run| self.leaf(position).is_some_and(|leaf| leaf.spans(run));
        let left = before
            .and_then(|(position, before)| Some((position, before.joined(run)?)))
            .filter(|(position, joined)| spans(*position, joined));
        let middle = left.map_or(*run, |(_, joined)| joined);
        let right = after
            .and_then(|(position, after)| Some((position, middle.joined(&after)?)))
            .filter(|(position, joined)| {
                spans(left.map_or(*position, |(position, _)| position), joined)
            });
        match (left, right) {
            (Some((position, _)), Some((emptied, all))) => {
                self.set(position, &all)?;
                self.delete(emptied)
            }
            (Some((position, joined)), None) | (None, Some((position, joined))) => {
                self.set(position, &joined)
            }
            (None, None) => None,
        }
    }

    /// Adds an entry for `run`, for which [`Self::locate`] returned `at`.
    ///
    /// Returns `None`, and leaves the table unchanged, if the spares do not suffice.
    pub(super) fn add(&mut self, at: Position, run: &Run, spares: &mut SpareNodes) -> Option<()> {
        let position = match self.insert_point(at, run) {
            InsertPoint::NewLeaf { branch, index } => {
                return self.add_new_leaf(branch, index, run, spares)
            }
            InsertPoint::InLeaf(position) => position,
        };
        if self.leaf(position)?.entries.len() < LEAF_ENTRIES {
            return self.put(position, run);
        }
        if self.rebalance(position).is_none() {
            match position.entry {
                0 => return self.add_new_leaf(position.branch, position.leaf, run, spares),
                LEAF_ENTRIES => {
                    let next = position.leaf.wrapping_add(1);
                    return self.add_new_leaf(position.branch, next, run, spares);
                }
                _ => self.split(position, spares)?,
            }
        }
        // A leaf has room now, but it need not be the same one.
        match self.insert_point(self.locate(run.old.0), run) {
            InsertPoint::InLeaf(position) => self.put(position, run),
            InsertPoint::NewLeaf { .. } => None,
        }
    }

    /// Returns the place of an entry for `run`, for which [`Self::locate`] returned `at`.
    ///
    /// This is the leaf before or the leaf after, whichever can span the run, even if it is full.
    fn insert_point(&self, at: Position, run: &Run) -> InsertPoint {
        let spans = |position: &Position| self.leaf(*position).is_some_and(|leaf| leaf.spans(run));
        if spans(&at) {
            return InsertPoint::InLeaf(at);
        }
        if at.entry == 0 {
            return InsertPoint::NewLeaf {
                branch: at.branch,
                index: at.leaf,
            };
        }
        let [same, next] = at.next_leaves();
        let after = self.leaf(same).map_or(next, |_| same);
        if spans(&after) {
            return InsertPoint::InLeaf(after);
        }
        InsertPoint::NewLeaf {
            branch: at.branch,
            index: same.leaf,
        }
    }

    /// Adds an entry to a leaf that has room.
    fn put(&mut self, position: Position, run: &Run) -> Option<()> {
        let branch = self.root.get_mut(position.branch)?;
        let leaf = branch.leaves.get_mut(position.leaf)?;
        leaf.insert(position.entry, run)?;
        branch.update_first();
        self.entries = self.entries.wrapping_add(1);
        Some(())
    }

    /// Makes room in a full leaf: moves entries to a neighbour in the same branch.
    fn rebalance(&mut self, position: Position) -> Option<()> {
        let branch = self.root.get_mut(position.branch)?;
        let lefts = [Some(position.leaf), position.leaf.checked_sub(1)];
        for left in lefts.into_iter().flatten() {
            let pair = branch
                .leaves
                .get_mut(left..)
                .and_then(|leaves| leaves.get_mut(..2));
            if let Some([left, right]) = pair {
                if Leaf::balance(left, right).is_some() {
                    return Some(());
                }
            }
        }
        None
    }

    /// Splits a full leaf in two.
    fn split(&mut self, position: Position, spares: &mut SpareNodes) -> Option<()> {
        if !self.can_add_leaf(position.branch, spares) {
            return None;
        }
        let branch = self.root.get_mut(position.branch)?;
        let leaf = branch.leaves.get_mut(position.leaf)?;
        let upper = leaf.split(spares.leaf.take()?)?;
        self.add_leaf(
            position.branch,
            position.leaf.wrapping_add(1),
            upper,
            spares,
        )
    }

    /// Adds a leaf with `run` as its only entry, before leaf `index` of a branch.
    fn add_new_leaf(
        &mut self,
        branch: usize,
        index: usize,
        run: &Run,
        spares: &mut SpareNodes,
    ) -> Option<()> {
        if !self.can_add_leaf(branch, spares) {
            return None;
        }
        let mut leaf = Leaf {
            first: run.old.0,
            entries: spares.leaf.take()?,
        };
        leaf.insert(0, run)?;
        self.add_leaf(branch, index, leaf, spares)?;
        self.entries = self.entries.wrapping_add(1);
        Some(())
    }

    /// Returns whether a branch exists and has room for a leaf.
    fn has_room(&self, branch: usize) -> bool {
        let branch = self.root.get(branch);
        branch.is_some_and(|branch| branch.leaves.len() < BRANCH_LEAVES)
    }

    /// Returns whether the spares suffice for a new leaf in a branch.
    fn can_add_leaf(&self, branch: usize, spares: &SpareNodes) -> bool {
        let branches = self.root.len();
        let root = branches < self.root.capacity() || spares.has_root(branches.wrapping_add(1));
        spares.leaf.is_some() && (self.has_room(branch) || (spares.branch.is_some() && root))
    }

    /// Adds a leaf before leaf `index` of a branch. Called after [`Self::can_add_leaf`].
    fn add_leaf(
        &mut self,
        branch: usize,
        index: usize,
        leaf: Leaf,
        spares: &mut SpareNodes,
    ) -> Option<()> {
        let (branch, index) = if self.has_room(branch) {
            (branch, index)
        } else {
            self.add_branch(branch, index, spares)?
        };
        let branch = self.root.get_mut(branch)?;
        branch.leaves.insert_within_capacity(index, leaf).ok()?;
        branch.update_first();
        self.leaves = self.leaves.wrapping_add(1);
        Some(())
    }

    /// Adds a branch beside a full one, or the first branch, and returns the branch and the index
    /// at which leaf `index` of the full branch belongs now.
    ///
    /// A leaf for either end of the full branch goes to the new branch alone. For any other leaf,
    /// half of the leaves move to the new branch.
    fn add_branch(
        &mut self,
        branch: usize,
        index: usize,
        spares: &mut SpareNodes,
    ) -> Option<(usize, usize)> {
        let next = branch.wrapping_add(1);
        let mut new = Branch {
            first: 0,
            leaves: spares.branch.take()?,
        };
        if self.root.len() >= self.root.capacity() {
            self.grow(spares)?;
        }
        let (at, target) = match self.root.get_mut(branch) {
            None => (branch, (branch, 0)),
            Some(_) if index == 0 => (branch, (branch, 0)),
            Some(_) if index >= BRANCH_LEAVES => (next, (next, 0)),
            Some(full) => {
                for leaf in full.leaves.get_mut(BRANCH_LEAVES / 2..)? {
                    let leaf = core::mem::take(leaf);
                    new.leaves.push_within_capacity(leaf).ok()?;
                }
                full.leaves.truncate(BRANCH_LEAVES / 2);
                let position = match index.checked_sub(BRANCH_LEAVES / 2) {
                    Some(rest) => (next, rest),
                    None => (branch, index),
                };
                (next, position)
            }
        };
        new.update_first();
        self.root.insert_within_capacity(at, new).ok()?;
        Some(target)
    }

    /// Moves the branches to the spare root. The old root becomes the spare.
    fn grow(&mut self, spares: &mut SpareNodes) -> Option<()> {
        let larger = spares.root.as_mut()?;
        for branch in self.root.iter_mut() {
            let branch = core::mem::take(branch);
            larger.push_within_capacity(branch).ok()?;
        }
        self.root.clear();
        core::mem::swap(&mut self.root, larger);
        Some(())
    }

    /// Allocates the nodes that a run after all others needs if it does not continue the last.
    fn allocate_for_append(&self, spares: &mut SpareNodes, flags: Flags) -> Result<(), AllocError> {
        spares.leaf = Some(KVVec::with_capacity(LEAF_ENTRIES, flags)?);
        if !self.has_room(self.root.len().wrapping_sub(1)) {
            spares.branch = Some(KVVec::with_capacity(BRANCH_LEAVES, flags)?);
            let root_capacity = self.spare_root_capacity();
            if root_capacity != 0 {
                spares.root = Some(KVVec::with_capacity(root_capacity, flags)?);
            }
        }
        Ok(())
    }
}
