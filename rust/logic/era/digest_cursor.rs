// SPDX-License-Identifier: GPL-2.0

//! Digesting an archived era: each block of its bitset gets the era's number in the array; then the
//! bitset can go.
//!
//! Eras are digested from the oldest on, so that a later number overwrites an earlier one, and
//! their keys stay without a gap. The newest archived era is left alone: the tree is never empty
//! then, which some versions of the tools need.
//!
//! The work goes forward in slices. Where it was is not kept on disk: after a crash the oldest era
//! begins anew, with the same result.

use crate::logic::era::era_nr::EraNr;

/// How far an era has been transcribed.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DigestCursor {
    /// The era.
    pub(crate) era: EraNr,
    next: u32,
    words: u32,
}

impl DigestCursor {
    /// Begins with an era whose bitset has `bits` bits, on a device that has `blocks` blocks by
    /// now.
    pub(crate) fn new(era: EraNr, bits: u32, blocks: u32) -> Self {
        Self {
            era,
            next: 0,
            words: crate::logic::era::writeset::words(bits.min(blocks)),
        }
    }

    /// The next word of the bitset to look at; none at the end.
    #[inline]
    pub(crate) fn word(&self) -> Option<u32> {
        (self.next < self.words).then_some(self.next)
    }

    /// Goes on by so many words.
    #[inline]
    pub(crate) fn advance(&mut self, words: u32) {
        self.next = self.next.saturating_add(words);
    }
}

/// The blocks that are set in a word of a bitset, in order, below `blocks`.
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
