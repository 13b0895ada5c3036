// SPDX-License-Identifier: GPL-2.0

//! The beginning and the end of an era on disk.
//!
//! C counterpart: `metadata_era_archive()`, `metadata_new_era()` and `metadata_era_rollover()`.

use super::{
    log_invalid,
    log_step,
    writeset::full_writeset_blocks,
    OpenMetadata, //
};
use crate::{
    dm::pdata::{
        block::Block,
        tree::Bitset, //
    },
    logic::era::{
        superblock::Invalid,
        writeset::words, //
    },
    sys::log::warning, //
};
use kernel::prelude::*;

impl OpenMetadata {
    /// Archives the current writeset: moves it into the writeset tree under the number of its era.
    /// Does nothing if there is no current writeset.
    pub(in crate::targets::era) fn archive_era(&mut self) -> Result {
        self.write_back_word()?;
        if self.sb.writeset_root == 0 {
            return Ok(());
        }
        let writeset = Bitset {
            bits: self.sb.writeset_bits,
            root: Block(self.sb.writeset_root),
        };
        let (root, key) = (Block(self.sb.writeset_tree_root), self.sb.current_era.key());
        self.sb.writeset_tree_root = self
            .writeset_tree
            .insert(&mut self.tm, root, key, writeset)
            .map_err(log_step("couldn't insert writeset into btree"))?
            .0;
        self.sb.writeset_root = 0;
        self.sb.writeset_bits = 0;
        self.dirty = true;
        Ok(())
    }

    /// Archives the current era, unless that has happened, and begins the next with an empty
    /// writeset.
    ///
    /// # Errors
    ///
    /// `EOVERFLOW` if this is the last era.
    pub(in crate::targets::era) fn begin_next_era(&mut self) -> Result {
        let next = self.sb.current_era.next().ok_or(EOVERFLOW)?;
        let bits = self.sb.blocks;
        // The new writeset comes first: if it does not fit, the old one is still current.
        let root = self
            .writeset_tree
            .words()
            .create_sparse(&mut self.tm, words(bits))
            .map_err(log_step("couldn't create bitset"))?;
        self.archive_era()?;
        self.sb.writeset_root = root.0;
        self.sb.writeset_bits = bits;
        self.sb.current_era = next;
        self.dirty = true;
        if next.is_first_warning() {
            warning!("era", "era numbers will soon be exhausted");
        }
        Ok(())
    }

    /// Whether the writeset of another era fits, with every block marked.
    pub(in crate::targets::era) fn has_space_for_era(&self) -> Result<bool> {
        let needed = full_writeset_blocks(self.sb.blocks).saturating_add(self.step_margin()?);
        Ok(self.tm.free_blocks()? >= needed)
    }

    /// Begins an era for a device that is resumed: the next one, or the last one again if numbers
    /// have run out.
    pub(in crate::targets::era) fn begin_era_on_resume(&mut self) -> Result {
        if !self.sb.current_era.is_last() {
            return self.begin_next_era();
        }
        let (wanted, key) = (self.sb.blocks, self.sb.current_era.key());
        if self.sb.writeset_root == 0 {
            // The suspend archived the last era. An era has only one writeset, so the archived one
            // leaves the tree and becomes current again.
            let tree = Block(self.sb.writeset_tree_root);
            match self.writeset_tree.next(&self.tm, tree, key)? {
                Some((found, writeset)) if found == key => {
                    self.tm.inc_block(writeset.root)?;
                    self.sb.writeset_tree_root =
                        self.writeset_tree.remove(&mut self.tm, tree, key)?.0;
                    self.sb.writeset_root = writeset.root.0;
                    self.sb.writeset_bits = writeset.bits;
                }
                _ => {
                    let bits = self.writeset_tree.words();
                    let root = bits.create_sparse(&mut self.tm, words(wanted))?;
                    self.sb.writeset_root = root.0;
                    self.sb.writeset_bits = wanted;
                }
            }
            self.dirty = true;
        }
        if self.sb.writeset_bits != wanted {
            let (old, new) = (words(self.sb.writeset_bits), words(wanted));
            let (root, bits) = (Block(self.sb.writeset_root), self.writeset_tree.words());
            self.require_blocks(full_writeset_blocks(
                wanted.saturating_sub(self.sb.writeset_bits),
            ))?;
            if !bits.has_len(&self.tm, root, old, new, 0)? {
                return Err(log_invalid(Invalid::Impossible));
            }
            self.sb.writeset_root = bits.resize(&mut self.tm, root, old, new, 0)?.0;
            self.sb.writeset_bits = wanted;
            self.dirty = true;
        }
        Ok(())
    }
}
