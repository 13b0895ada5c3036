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

/// Words in a block of a bitset.
pub(super) const WORDS_PER_BLOCK: u32 = 509;

/// Blocks of a bitset on disk, with its nodes.
pub(super) fn full_writeset_blocks(bits: u32) -> u64 {
    let leaves = u64::from(words(bits).div_ceil(WORDS_PER_BLOCK));
    leaves.saturating_add(leaves / 126).saturating_add(2)
}

/// Blocks of a bitset on disk in which nothing is marked yet, with its nodes.
pub(super) fn empty_writeset_blocks(bits: u32) -> u64 {
    let leaves = u64::from(words(bits).div_ceil(WORDS_PER_BLOCK));
    leaves.min(3).saturating_add(leaves / 126).saturating_add(1)
}

/// A word of the present bitset that differs from the array.
#[derive(Clone, Copy)]
pub(super) struct CachedWord {
    index: u32,
    bits: u64,
    dirty: bool,
}

impl OpenMetadata {
    pub(super) fn write_back_word(&mut self) -> Result {
        if let Some(word) = self.word.filter(|word| word.dirty) {
            let root = Block(self.sb.writeset_root);
            let bits = self.writeset_tree.words();
            self.sb.writeset_root = bits.set(&mut self.tm, root, word.index, word.bits)?.0;
            self.dirty = true;
        }
        self.word = None;
        Ok(())
    }

    fn load_word(&mut self, index: u32) -> Result<CachedWord> {
        match self.word {
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

    /// Whether all blocks of a range are marked, in the transaction.
    pub(in crate::targets::era) fn is_marked(&mut self, blocks: Blocks) -> Result<bool> {
        for part in split_into_words(blocks) {
            let word = self.load_word(part.word)?;
            self.word = Some(word);
            if word.bits & part.mask != part.mask {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Marks the blocks of a range in the present era. If space is short, what was marked so far is
    /// committed first. If that is not enough, some blocks of the range may be marked, and others
    /// not.
    pub(in crate::targets::era) fn mark(&mut self, blocks: Blocks) -> Result<FreeSpace> {
        for part in split_into_words(blocks) {
            let mut word = self.load_word(part.word)?;
            if word.bits & part.mask != part.mask {
                if !word.dirty && self.ensure_space()? == FreeSpace::Short {
                    self.word = Some(word);
                    return Ok(FreeSpace::Short);
                }
                word.bits |= part.mask;
                word.dirty = true;
                self.dirty = true;
            }
            self.word = Some(word);
        }
        Ok(FreeSpace::Enough)
    }
}
