// SPDX-License-Identifier: GPL-2.0

//! How the table of completed exceptions gets room for an entry: from neighbours, or from spares.

use super::leaf::{
    Entry,
    Leaf,
    LEAF_ENTRIES, //
};
use super::{
    Branch,
    ExceptionTable,
    Position,
    Run,
    BRANCH_LEAVES, //
};
use crate::env::{
    AllocError,
    Flags,
    KVVec, //
};

/// Empty vectors for the next [`ExceptionTable::insert`], which takes what it needs.
///
/// Filled where the caller may allocate, dropped where it may sleep: a root can come from vmalloc.
#[derive(Default)]
pub(crate) struct SpareNodes {
    leaf: Option<KVVec<Entry>>,
    branch: Option<KVVec<Leaf>>,
    root: Option<KVVec<Branch>>,
}

impl SpareNodes {
    /// Makes spares without any vector. May be called in any context.
    pub(crate) const fn new() -> Self {
        Self {
            leaf: None,
            branch: None,
            root: None,
        }
    }

    /// Tells whether the next insertion cannot lack memory, `root_capacity` being what [`ExceptionTable::spare_root_capacity`]
    /// returned under the lock that is still held. May be called in any context.
    pub(crate) fn is_sufficient(&self, root_capacity: usize) -> bool {
        self.leaf.is_some()
            && self.branch.is_some()
            && (root_capacity == 0 || self.has_root(root_capacity))
    }

    /// Allocates what is missing, and frees a root that is not wanted.
    ///
    /// Called without locks. On failure what could be allocated stays.
    pub(crate) fn refill(&mut self, root_capacity: usize, flags: Flags) -> Result<(), AllocError> {
        if root_capacity == 0 || !self.has_root(root_capacity) {
            self.root = None;
        }
        if self.leaf.is_none() {
            self.leaf = Some(KVVec::with_capacity(LEAF_ENTRIES, flags)?);
        }
        if self.branch.is_none() {
            self.branch = Some(KVVec::with_capacity(BRANCH_LEAVES, flags)?);
        }
        if root_capacity != 0 && self.root.is_none() {
            self.root = Some(KVVec::with_capacity(root_capacity, flags)?);
        }
        Ok(())
    }

    /// Tells whether there is a root for at least `capacity` branches.
    fn has_root(&self, capacity: usize) -> bool {
        let root = self.root.as_ref();
        root.is_some_and(|root| root.capacity() >= capacity)
    }
}

impl ExceptionTable {
    /// Makes room in a full leaf by moving entries to a neighbour in the same branch.
    pub(super) fn rebalance(&mut self, position: Position) -> Option<()> {
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

    /// Divides a full leaf in two.
    pub(super) fn split(&mut self, position: Position, spares: &mut SpareNodes) -> Option<()> {
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

    /// Adds a leaf for `run` alone, in front of leaf `index` of a branch.
    pub(super) fn add_new_leaf(
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
        self.entries = self.entries.saturating_add(1);
        Some(())
    }

    /// Tells whether a branch, if there is one, has room for a leaf.
    fn has_room(&self, branch: usize) -> bool {
        let branch = self.root.get(branch);
        branch.is_some_and(|branch| branch.leaves.len() < BRANCH_LEAVES)
    }

    /// Tells whether the spares suffice for a new leaf in a branch.
    fn can_add_leaf(&self, branch: usize, spares: &SpareNodes) -> bool {
        let branches = self.root.len();
        let root = branches < self.root.capacity() || spares.has_root(branches.wrapping_add(1));
        spares.leaf.is_some() && (self.has_room(branch) || (spares.branch.is_some() && root))
    }

    /// Adds a leaf in front of leaf `index` of a branch, after [`Self::can_add_leaf`].
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
        self.leaves = self.leaves.saturating_add(1);
        Some(())
    }

    /// Adds a branch beside a full one, or the first, and returns where leaf `index` belongs now:
    /// from either end of the full branch to an empty one, else the leaves are divided.
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
        let (at, found) = match self.root.get_mut(branch) {
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
                    Some(behind) => (next, behind),
                    None => (branch, index),
                };
                (next, position)
            }
        };
        new.update_first();
        self.root.insert_within_capacity(at, new).ok()?;
        Some(found)
    }

    /// Moves the branches to the spare root, and leaves the old one as a spare.
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

    /// Allocates what a run behind all others needs that does not continue the last.
    pub(super) fn allocate_for_append(
        &self,
        spares: &mut SpareNodes,
        flags: Flags,
    ) -> Result<(), AllocError> {
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
