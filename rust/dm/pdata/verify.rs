// SPDX-License-Identifier: GPL-2.0

//! Verification of metadata, before the library uses it.
//!
//! The library trusts metadata with a valid checksum. It follows loops for ever, uses block numbers
//! beyond the end of the device as indexes, and runs into a `BUG_ON` where a reference count is
//! missing. This module therefore checks what the library walks through: the shape and order of all
//! nodes, the range of all block numbers, and the counts of the space map. Array blocks are left to
//! the library, which checks them well enough.
//!
//! For metadata of which the library has not read a block yet. Every node and bitmap is read, which
//! is about one block in a hundred.

use crate::{
    dm::pdata::block::{
        Block,
        BlockManager,
        ReadBlock, //
    },
    logic::pdata::{
        node::{
            Node,
            MAX_DEPTH, //
        },
        space_map::{
            self,
            SpaceMapRoot, //
        }, //
    }, //
};
use core::ops::Range;
use kernel::prelude::*;

/// The range of all keys.
const ALL: Range<u64> = 0..u64::MAX;

/// A node on the path from the root to the current node.
#[derive(Default)]
struct PathNode {
    at: u64,
    /// The keys that the node may have. The ranges of the children of a node do not overlap, and a
    /// node has at least one key, so the walk meets no node twice.
    range: Range<u64>,
    /// The number of the next entry.
    next: usize,
}

/// The path from the root to the current node.
#[derive(Default)]
struct NodePath {
    steps: [PathNode; MAX_DEPTH as usize],
    depth: usize,
}

impl NodePath {
    fn last(&mut self) -> Option<&mut PathNode> {
        self.steps.get_mut(self.depth.checked_sub(1)?)
    }

    /// Descends to a child. `EINVAL` if that is deeper than the library goes.
    fn descend(&mut self, at: u64, range: Range<u64>) -> Result {
        let step = self.steps.get_mut(self.depth).ok_or(EINVAL)?;
        *step = PathNode { at, range, next: 0 };
        self.depth = self.depth.saturating_add(1);
        Ok(())
    }

    fn ascend(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }
}

/// The size of the largest value of a tree.
const MAX_VALUE_SIZE: usize = 12;

/// Copies of some entries of a leaf, so that its block is not held while they are visited.
struct LeafEntries {
    entries: [(u64, [u8; MAX_VALUE_SIZE]); 16],
    len: usize,
    value_size: usize,
}

impl LeafEntries {
    /// Copies entries from number `next` on, and advances `next`. Returns whether more entries
    /// follow.
    fn read(node: &Node<'_>, next: &mut usize) -> Result<(Self, bool)> {
        let mut leaf = LeafEntries {
            entries: Default::default(),
            len: 0,
            value_size: 0,
        };
        for to in leaf.entries.iter_mut() {
            let Some((key, value)) = node.entry(*next) else {
                break;
            };
            to.0 = key;
            for (to, from) in to.1.iter_mut().zip(value) {
                *to = *from;
            }
            leaf.value_size = value.len();
            leaf.len = leaf.len.saturating_add(1);
            *next = next.saturating_add(1);
        }
        let more = *next < node.len();
        // A value is not within the node, or is too large.
        if (leaf.len == 0 && more) || leaf.value_size > MAX_VALUE_SIZE {
            return Err(EINVAL);
        }
        Ok((leaf, more))
    }

    fn entries(&self) -> impl Iterator<Item = Option<(u64, &[u8])>> {
        let entries = self.entries.iter().take(self.len);
        entries.map(|(key, value)| Some((*key, value.get(..self.value_size)?)))
    }
}

/// A verified space map, with which trees are verified.
pub(crate) struct Verifier<'a> {
    blocks: &'a BlockManager,
    index: ReadBlock<'a>,
    total: u64,
}

impl<'a> Verifier<'a> {
    /// Verifies a space map, on a device of `device` blocks. May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the space map is invalid, or an error of the metadata device.
    pub(crate) fn new(blocks: &'a BlockManager, root: &[u8], device: u64) -> Result<Self> {
        let root = SpaceMapRoot::parse(root, device).ok_or(EINVAL)?;
        let index = blocks.read(Block(root.bitmap_root()), None)?;
        if !space_map::is_index_block(&index, root.bitmap_root()) {
            return Err(EINVAL);
        }
        let verifier = Verifier {
            blocks,
            index,
            total: root.blocks(),
        };
        let mut many = 0u64;
        for number in 0..root.bitmaps() {
            let at = space_map::bitmap_location(&verifier.index, number).ok_or(EINVAL)?;
            verifier.inside(at)?;
            let found = space_map::big_counts(&blocks.read(Block(at), None)?, at);
            many = many.saturating_add(found.ok_or(EINVAL)?);
        }
        // Each block with more than two references must have its count in the tree.
        verifier.tree(Block(root.ref_count_root()), 4, &mut |key, _| {
            if key < verifier.total && verifier.count(key)? == space_map::BIG_COUNT {
                many = many.checked_sub(1).ok_or(EINVAL)?;
            }
            Ok(())
        })?;
        if many != 0 {
            return Err(EINVAL);
        }
        verifier.used(root.bitmap_root())?;
        Ok(verifier)
    }

    fn inside(&self, block: u64) -> Result {
        if block == 0 || block >= self.total {
            return Err(EINVAL);
        }
        Ok(())
    }

    fn count(&self, block: u64) -> Result<u8> {
        let number = block / space_map::BLOCKS_PER_BITMAP;
        let at = space_map::bitmap_location(&self.index, number).ok_or(EINVAL)?;
        let bitmap = self.blocks.read(Block(at), None)?;
        space_map::ref_count(&bitmap, block).ok_or(EINVAL)
    }

    /// Checks that a block is within the device, and has a reference.
    fn used(&self, block: u64) -> Result {
        self.inside(block)?;
        if self.count(block)? == 0 {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// Verifies a tree, and calls `visit` for each of its entries. May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the tree is invalid; the error of `visit`; an error of the metadata device.
    pub(crate) fn tree(
        &self,
        root: Block,
        value_size: u32,
        visit: &mut dyn FnMut(u64, &[u8]) -> Result,
    ) -> Result {
        let mut path = NodePath::default();
        self.used(root.0)?;
        path.descend(root.0, ALL)?;
        // A node is not held while the nodes below it are visited, and locked again for each child.
        // With the index, this holds two blocks at most, however deep the tree is and whatever
        // `visit` does.
        while let Some(step) = path.last() {
            let block = self.blocks.read(Block(step.at), None)?;
            let node = Node::parse(&block, step.at, value_size, &step.range).ok_or(EINVAL)?;
            if node.is_leaf() {
                let (leaf, more) = LeafEntries::read(&node, &mut step.next)?;
                let is_empty = node.len() == 0;
                drop(block);
                for entry in leaf.entries() {
                    let (key, value) = entry.ok_or(EINVAL)?;
                    visit(key, value)?;
                }
                if !more {
                    path.ascend();
                    if is_empty && path.last().is_some() {
                        return Err(EINVAL);
                    }
                }
            } else if step.next < node.len() {
                let (child, range) = node.child(step.next, &step.range).ok_or(EINVAL)?;
                step.next = step.next.saturating_add(1);
                drop(block);
                self.used(child)?;
                path.descend(child, range)?;
            } else {
                path.ascend();
            }
        }
        Ok(())
    }

    /// Verifies the tree of blocks of an array, without the blocks. May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the tree is invalid, or an error of the metadata device.
    pub(crate) fn array(&self, root: Block) -> Result {
        self.tree(root, 8, &mut |_, value| {
            let block = value.try_into().map_err(|_| EINVAL)?;
            self.used(u64::from_le_bytes(block))
        })
    }

    /// Verifies a tree of bitsets, and the bitsets. May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` if one of them is invalid, or an error of the metadata device.
    pub(crate) fn bitset_tree(&self, root: Block) -> Result {
        self.tree(root, 12, &mut |_, value| {
            let (_, root) = value.split_first_chunk::<4>().ok_or(EINVAL)?;
            match u64::from_le_bytes(root.try_into().map_err(|_| EINVAL)?) {
                // An early C target could leave an entry without a bitset.
                0 => Ok(()),
                root => self.array(Block(root)),
            }
        })
    }
}
