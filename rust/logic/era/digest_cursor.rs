// SPDX-License-Identifier: GPL-2.0

//! The position of the digestion of an archived era.
//!
//! Digestion writes the era's number to the era array for each block that is marked in its
//! writeset, and then deletes the writeset. Eras are digested from the oldest on, so that a later
//! number overwrites an earlier one and the keys of the writeset tree stay contiguous. The newest
//! archived era is not digested: some versions of the tools need a writeset tree that is not empty.
//!
//! Digestion proceeds in slices. Its position is not kept on disk: after a crash it starts with the
//! oldest era again, with the same result.
//!
//! C counterpart: `current_bit` of `struct digest`.

use crate::logic::era::era_nr::EraNr;

/// The position within the writeset of the era that is digested.
///
/// Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DigestCursor {
    /// The era that is digested.
    pub(crate) era: EraNr,
    next: u32,
    words: u32,
}

impl DigestCursor {
    /// Starts at the first word of a writeset of `bits` bits. The device has `blocks` blocks now,
    /// perhaps fewer than in that era.
    pub(crate) fn new(era: EraNr, bits: u32, blocks: u32) -> Self {
        Self {
            era,
            next: 0,
            words: crate::logic::era::writeset::words(bits.min(blocks)),
        }
    }

    /// The next word to digest; `None` at the end.
    #[inline]
    pub(crate) fn word(&self) -> Option<u32> {
        (self.next < self.words).then_some(self.next)
    }

    /// Advances by a number of words.
    #[inline]
    pub(crate) fn advance(&mut self, words: u32) {
        self.next = self.next.saturating_add(words);
    }
}

/// The blocks that are marked in a word of a writeset, in order, below `blocks`. Any context.
pub(crate) fn blocks_in_word(word: u32, bits: u64, blocks: u32) -> impl Iterator<Item = u32> {
    let mut left = bits;
    core::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let bit = left.trailing_zeros();
        left &= left.wrapping_sub(1);
        Some(word.wrapping_mul(64).wrapping_add(bit))
    })
    .take_while(move |block| *block < blocks)
}
