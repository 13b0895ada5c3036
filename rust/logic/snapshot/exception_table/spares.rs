// SPDX-License-Identifier: GPL-2.0

//! The memory that an insertion into the table may need.

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

/// Empty vectors for the next [`ExceptionTable::insert`], which takes what it needs.
///
/// Filled where the caller may allocate, dropped where it may sleep: a root can come from vmalloc.
#[derive(Default)]
pub(crate) struct SpareNodes {
    pub(super) leaf: Option<KVVec<Entry>>,
    pub(super) branch: Option<KVVec<Leaf>>,
    pub(super) root: Option<KVVec<Branch>>,
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
    pub(super) fn has_root(&self, capacity: usize) -> bool {
        let root = self.root.as_ref();
        root.is_some_and(|root| root.capacity() >= capacity)
    }
}
