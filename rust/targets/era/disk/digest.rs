// SPDX-License-Identifier: GPL-2.0

//! Digestion on disk: an archived writeset becomes numbers in the era array and is deleted.
//!
//! When this runs, and for how long, is up to `digester.rs`. C counterpart: `struct digest` and the
//! `metadata_digest_*()` functions.

use super::{
    log_step,
    writeset::{
        full_writeset_blocks,
        WORDS_PER_BLOCK, //
    },
    FreeSpace,
    OpenMetadata, //
};
use crate::{
    dm::pdata::{
        block::Block,
        tree::Bitset, //
    },
    logic::era::{
        digest_cursor::{
            blocks_in_word,
            DigestCursor, //
        },
        era_nr::EraNr, //
    }, //
};
use kernel::prelude::*;

/// Result of a slice of digestion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::targets::era) enum DigestProgress {
    /// There is more to digest.
    More,
    /// Only the newest archived era is left, which is not digested.
    Done,
    /// There is more to digest, but no space for it.
    NoSpace,
}

/// The digestion of an archived era. C counterpart: `struct digest`.
pub(super) struct Digest {
    cursor: DigestCursor,
    writeset: Bitset,
    /// The array block that is being read, and whether all its words so far are zero.
    leaf: Option<(Block, bool)>,
    /// An array block that is all zeros. A sparse writeset refers to it in many places, which are
    /// skipped.
    zero_leaf: Option<Block>,
}

impl OpenMetadata {
    /// Digests archived eras, from the oldest on, until `stop` returns true after a word.
    ///
    /// Commits when an era is finished, and when space is short.
    pub(in crate::targets::era) fn digest(
        &mut self,
        mut stop: impl FnMut() -> bool,
    ) -> Result<DigestProgress> {
        loop {
            let Some(mut digest) = self.next_digest()? else {
                return Ok(DigestProgress::Done);
            };
            let (mut has_space, mut stopped) = (self.has_space_to_digest()?, false);
            while digest.cursor.word().is_some() && has_space && !stopped {
                self.digest_word(&mut digest)?;
                has_space = self.has_space_to_digest()?;
                stopped = stop();
            }
            let done = digest.cursor.word().is_none();
            if done {
                if self.ensure_space()? == FreeSpace::Short {
                    self.digest = Some(digest);
                    return Ok(DigestProgress::NoSpace);
                }
                let (root, key) = (Block(self.sb.writeset_tree_root), digest.cursor.era.key());
                self.sb.writeset_tree_root = self
                    .writeset_tree
                    .remove(&mut self.tm, root, key)
                    .map_err(log_step("dm_btree_remove failed"))?
                    .0;
                self.dirty = true;
            } else {
                self.digest = Some(digest);
            }
            if done || !has_space {
                // The commit frees the blocks that the transaction has replaced.
                self.commit()?;
                if !self.has_space_to_digest()? {
                    return Ok(DigestProgress::NoSpace);
                }
            }
            if stopped || stop() {
                return Ok(DigestProgress::More);
            }
        }
    }

    /// Whether the digestion of another word leaves the space that the current era needs.
    ///
    /// A commit frees the array blocks that digestion replaces, unless a metadata snapshot keeps
    /// them; then the whole current writeset must still fit.
    fn has_space_to_digest(&self) -> Result<bool> {
        let mut needed = self.step_margin()?.saturating_mul(2);
        if self.has_metadata_snap() {
            needed = needed.saturating_add(full_writeset_blocks(self.sb.blocks));
        }
        Ok(self.tm.free_blocks()? >= needed)
    }

    /// The digestion under way, or that of the oldest archived era; `None` if only one is archived.
    fn next_digest(&mut self) -> Result<Option<Digest>> {
        if let Some(digest) = self.digest.take() {
            return Ok(Some(digest));
        }
        let root = Block(self.sb.writeset_tree_root);
        let Some((key, writeset)) = self.writeset_tree.next(&self.tm, root, 0)? else {
            return Ok(None);
        };
        let Some(after) = key.checked_add(1) else {
            return Ok(None);
        };
        if self.writeset_tree.next(&self.tm, root, after)?.is_none() {
            return Ok(None);
        }
        let era = EraNr::of_key(key).ok_or(EINVAL)?;
        // An early C target could leave an entry without a writeset.
        let bits = if writeset.root.0 == 0 {
            0
        } else {
            writeset.bits
        };
        Ok(Some(Digest {
            cursor: DigestCursor::new(era, bits, self.sb.blocks),
            writeset,
            leaf: None,
            zero_leaf: None,
        }))
    }

    /// Writes the era to the entries of the blocks in one word, or skips an array block of zeros.
    fn digest_word(&mut self, digest: &mut Digest) -> Result {
        let Some(word) = digest.cursor.word() else {
            return Ok(());
        };
        let (root, era) = (digest.writeset.root, digest.cursor.era.0);
        if word % WORDS_PER_BLOCK == 0 {
            if let Some((leaf, true)) = digest.leaf {
                digest.zero_leaf = Some(leaf);
            }
            let leaf = self.writeset_tree.words().block_of(&self.tm, root, word)?;
            if digest.zero_leaf == Some(leaf) {
                digest.leaf = None;
                digest.cursor.advance(WORDS_PER_BLOCK);
                return Ok(());
            }
            digest.leaf = Some((leaf, true));
        }
        let bits = self.writeset_tree.words().get(&self.tm, root, word)?;
        if let (Some((_, empty)), true) = (&mut digest.leaf, bits != 0) {
            *empty = false;
        }
        for block in blocks_in_word(word, bits, self.sb.blocks) {
            let array = Block(self.sb.era_array_root);
            self.sb.era_array_root = self.era_array.set(&mut self.tm, array, block, era)?.0;
            self.dirty = true;
        }
        digest.cursor.advance(1);
        Ok(())
    }
}
