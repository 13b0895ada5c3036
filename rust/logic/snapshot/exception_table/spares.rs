// SPDX-License-Identifier: GPL-2.0

//! Memory for an insertion into the table of completed exceptions.

use super::{
    leaf::{
        Entry,
        Leaf,
        LEAF_ENTRIES, //
    },
    Branch,
    BRANCH_LEAVES, //
};
use crate::env::{
    AllocError,
    Flags,
    KVVec, //
};

/// Empty nodes, of which the next [`ExceptionTable::insert`](super::ExceptionTable::insert) takes
/// those that it needs.
///
/// Must be dropped where the caller may sleep: a root can come from vmalloc.
#[derive(Default)]
pub(crate) struct SpareNodes {
    pub(super) leaf: Option<KVVec<Entry>>,
    pub(super) branch: Option<KVVec<Leaf>>,
    pub(super) root: Option<KVVec<Branch>>,
}

impl SpareNodes {
    /// Makes a set without any node. Any context.
    pub(crate) const fn new() -> Self {
        Self {
            leaf: None,
            branch: None,
            root: None,
        }
    }

    /// Returns whether the next insertion cannot run out of memory.
    ///
    /// `root_capacity` comes from
    /// [`ExceptionTable::spare_root_capacity`](super::ExceptionTable::spare_root_capacity), under
    /// the lock that is still held. Any context.
    pub(crate) fn is_sufficient(&self, root_capacity: usize) -> bool {
        self.leaf.is_some()
            && self.branch.is_some()
            && (root_capacity == 0 || self.has_root(root_capacity))
    }

    /// Allocates the missing nodes, and frees a root that is too small or not needed.
    ///
    /// May sleep if `flags` allow that.
    ///
    /// # Errors
    ///
    /// Fails if memory is short. Nodes that could be allocated are kept.
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

    /// Returns whether there is a root for at least `capacity` branches.
    pub(super) fn has_root(&self, capacity: usize) -> bool {
        let root = self.root.as_ref();
        root.is_some_and(|root| root.capacity() >= capacity)
    }
}
