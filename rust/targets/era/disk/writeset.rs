// SPDX-License-Identifier: GPL-2.0

//! The current writeset on disk: one bit for each block that was written in the current era.
//!
//! C counterpart: `writeset_test_and_set()` and `struct dm_disk_bitset`, which keeps one word in
//! memory as [`CachedWord`] does.

use super::{
    FreeSpace,
    OpenMetadata, //
};
use crate::{
    dm::pdata::block::Block,
    logic::era::{
        geometry::Blocks,
        writeset::{
            split_into_words,
            words, //
        }, //
    }, //
};
use kernel::prelude::*;

/// Words in an array block of a writeset.
pub(super) const WORDS_PER_BLOCK: u32 = 509;

/// Metadata blocks of a writeset in which every block is marked, with the nodes of its btree.
pub(super) fn full_writeset_blocks(bits: u32) -> u64 {
    let leaves = u64::from(words(bits).div_ceil(WORDS_PER_BLOCK));
    leaves.saturating_add(leaves / 126).saturating_add(2)
}

/// Metadata blocks of a new, empty writeset, with the nodes of its btree.
pub(super) fn empty_writeset_blocks(bits: u32) -> u64 {
    let leaves = u64::from(words(bits).div_ceil(WORDS_PER_BLOCK));
    leaves.min(3).saturating_add(leaves / 126).saturating_add(1)
}

/// A word of the current writeset, written back when another word is needed and by a commit.
#[derive(Clone, Copy)]
pub(super) struct CachedWord {
    index: u32,
    bits: u64,
    dirty: bool,
}

impl OpenMetadata {
    /// Writes the cached word to the current writeset if it has changed, and drops it.
    pub(super) fn write_back_word(&mut self) -> Result {
        if let Some(word) = self.cached_word.filter(|word| word.dirty) {
            let root = Block(self.sb.writeset_root);
            let bits = self.writeset_tree.words();
            self.sb.writeset_root = bits.set(&mut self.tm, root, word.index, word.bits)?.0;
            self.dirty = true;
        }
        self.cached_word = None;
        Ok(())
    }

    /// Reads a word of the current writeset, from the cache if it is there.
    fn load_word(&mut self, index: u32) -> Result<CachedWord> {
        match self.cached_word {
            Some(word) if word.index == index => Ok(word),
            _ => {
                self.write_back_word()?;
                let root = Block(self.sb.writeset_root);
                let bits = self.writeset_tree.words().get(&self.tm, root, index)?;
                Ok(CachedWord {
                    index,
                    bits,
                    dirty: false,
                })
            }
        }
    }

    /// Whether all blocks of a range are marked in the current writeset of the transaction.
    pub(in crate::targets::era) fn is_marked(&mut self, blocks: Blocks) -> Result<bool> {
        for part in split_into_words(blocks) {
            let word = self.load_word(part.word)?;
            self.cached_word = Some(word);
            if word.bits & part.mask != part.mask {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Marks the blocks of a range in the current writeset.
    ///
    /// If space is short, commits what is marked so far and goes on. If that frees too little,
    /// returns [`FreeSpace::Short`]; only some blocks of the range may then be marked.
    pub(in crate::targets::era) fn mark(&mut self, blocks: Blocks) -> Result<FreeSpace> {
        for part in split_into_words(blocks) {
            let mut word = self.load_word(part.word)?;
            if word.bits & part.mask != part.mask {
                if !word.dirty && self.ensure_space()? == FreeSpace::Short {
                    self.cached_word = Some(word);
                    return Ok(FreeSpace::Short);
                }
                word.bits |= part.mask;
                word.dirty = true;
                self.dirty = true;
            }
            self.cached_word = Some(word);
        }
        Ok(FreeSpace::Enough)
    }
}
