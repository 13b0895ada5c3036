// SPDX-License-Identifier: GPL-2.0

//! Looks at metadata before the library does.
//!
//! The library trusts what has a right checksum: it follows loops for ever, takes numbers of blocks outside the device for
//! indexes, and stops the machine where a count is missing. So everything that it goes through is looked at first: shape
//! and order of all nodes, the range of all numbers of blocks, and the counts of the space map. Array blocks themselves the
//! library checks well enough.
//!
//! For metadata of which the library has not read a block yet. Reads every node and bitmap: about one block in a hundred.

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
        space::{
            self,
            Root, //
        }, //
    }, //
};
use core::ops::Range;
use kernel::prelude::*;

/// All keys there can be.
const ALL: Range<u64> = 0..u64::MAX;

/// A space map that has been looked at, and with its help the trees.
pub(crate) struct Verifier<'a> {
    blocks: &'a BlockManager,
    index: ReadBlock<'a>,
    total: u64,
}

impl<'a> Verifier<'a> {
    /// Looks at the space map with a root, on a device of so many blocks. Sleeps for I/O.
    pub(crate) fn new(blocks: &'a BlockManager, root: &[u8], device: u64) -> Result<Self> {
        let root = Root::parse(root, device).ok_or(EINVAL)?;
        let index = blocks.read(Block(root.index()), None)?;
        if !space::is_index(&index, root.index()) {
            return Err(EINVAL);
        }
        let verifier = Verifier {
            blocks,
            index,
            total: root.blocks(),
        };
        let mut many = 0u64;
        for number in 0..root.bitmaps() {
            let at = space::bitmap(&verifier.index, number).ok_or(EINVAL)?;
            verifier.inside(at)?;
            let found = space::many(&blocks.read(Block(at), None)?, at);
            many = many.saturating_add(found.ok_or(EINVAL)?);
        }
        // Each "more than two" must have its number in the tree.
        verifier.tree(Block(root.counts()), 4, &mut |key, _| {
            if key < verifier.total && verifier.count(key)? == space::MANY {
                many = many.checked_sub(1).ok_or(EINVAL)?;
            }
            Ok(())
        })?;
        if many != 0 {
            return Err(EINVAL);
        }
        verifier.used(root.index())?;
        Ok(verifier)
    }

    fn inside(&self, block: u64) -> Result {
        if block == 0 || block >= self.total {
            return Err(EINVAL);
        }
        Ok(())
    }

    fn count(&self, block: u64) -> Result<u8> {
        let number = block / space::PER_BITMAP;
        let at = space::bitmap(&self.index, number).ok_or(EINVAL)?;
        let bitmap = self.blocks.read(Block(at), None)?;
        space::count(&bitmap, block).ok_or(EINVAL)
    }

    /// Whether a block is one that something may refer to.
    fn used(&self, block: u64) -> Result {
        self.inside(block)?;
        if self.count(block)? == 0 {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// Looks at a tree, and passes on each entry.
    pub(crate) fn tree(
        &self,
        root: Block,
        value_size: u32,
        visit: &mut dyn FnMut(u64, &[u8]) -> Result,
    ) -> Result {
        self.node(root, value_size, &ALL, MAX_DEPTH, visit)
    }

    /// A node and what is below it. The keys of no two children overlap and each node has one, so none is met twice.
    fn node(
        &self,
        at: Block,
        value_size: u32,
        range: &Range<u64>,
        depth: u32,
        visit: &mut dyn FnMut(u64, &[u8]) -> Result,
    ) -> Result {
        let depth = depth.checked_sub(1).ok_or(EINVAL)?;
        self.used(at.0)?;
        let block = self.blocks.read(at, None)?;
        let node = Node::parse(&block, at.0, value_size, range).ok_or(EINVAL)?;
        for index in 0..node.len() {
            if node.is_leaf() {
                let (key, value) = node.entry(index).ok_or(EINVAL)?;
                visit(key, value)?;
            } else {
                let (child, range) = node.child(index, range).ok_or(EINVAL)?;
                self.node(Block(child), value_size, &range, depth, visit)?;
            }
        }
        if node.len() == 0 && depth.checked_add(1) != Some(MAX_DEPTH) {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// Looks at an array: the tree of its blocks, not the blocks.
    pub(crate) fn array(&self, root: Block) -> Result {
        self.tree(root, 8, &mut |_, value| {
            let block = value.try_into().map_err(|_| EINVAL)?;
            self.used(u64::from_le_bytes(block))
        })
    }

    /// Looks at a tree of bitsets, and at the bitsets.
    pub(crate) fn bitset_tree(&self, root: Block) -> Result {
        self.tree(root, 12, &mut |_, value| {
            let (_, root) = value.split_first_chunk::<4>().ok_or(EINVAL)?;
            match u64::from_le_bytes(root.try_into().map_err(|_| EINVAL)?) {
                // An early C target could leave a record without a bitset.
                0 => Ok(()),
                root => self.array(Block(root)),
            }
        })
    }
}
