// SPDX-License-Identifier: GPL-2.0

//! The in-core writeset: which blocks are marked in the current writeset on disk, readable without
//! a lock.
//!
//! A bit is set only after a commit has made the mark durable. So a set bit is true, and a clear
//! bit may be out of date, which costs a look-up on disk. Clearing bits is therefore always safe.
//!
//! C counterpart: `bits` of `struct writeset`, where a bit is set before the commit.

use crate::env::{
    Acquire,
    Atomic,
    KVVec,
    Relaxed,
    Release,
    Result,
    GFP_KERNEL, //
};
use crate::logic::era::geometry::Blocks;

/// The binary logarithm of the number of bits in a word.
const WORD_SHIFT: u32 = 6;

/// The part of a range of blocks that lies in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WordMask {
    /// The number of the word.
    pub(crate) word: u32,
    /// The bits within it; at least one.
    pub(crate) mask: u64,
}

/// The number of words that hold `bits` bits.
pub(crate) fn words(bits: u32) -> u32 {
    bits.div_ceil(1 << WORD_SHIFT)
}

/// Splits a range of blocks into words, in order.
#[inline]
pub(crate) fn split_into_words(blocks: Blocks) -> impl Iterator<Item = WordMask> {
    let (first, last) = (blocks.first >> WORD_SHIFT, blocks.last >> WORD_SHIFT);
    // `wrapping_shl` and `wrapping_shr` use the low six bits of their argument.
    let from = u64::MAX.wrapping_shl(blocks.first);
    let to = u64::MAX.wrapping_shr(63 ^ (blocks.last & 63));
    (first..=last).map(move |word| {
        let mut mask = u64::MAX;
        if word == first {
            mask &= from;
        }
        if word == last {
            mask &= to;
        }
        WordMask { word, mask }
    })
}

/// One bit per block.
///
/// Reading takes no lock. Callers that set or clear bits serialise. Any context.
pub(crate) struct InCoreWriteset {
    words: KVVec<Atomic<u64>>,
}

impl InCoreWriteset {
    /// Makes a map of `blocks` clear bits. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(blocks: u32) -> Result<Self> {
        let count = usize::try_from(words(blocks))?;
        let mut words = KVVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            words.push_within_capacity(Atomic::new(0))?;
        }
        Ok(Self { words })
    }

    #[inline]
    fn word(&self, index: u32) -> Option<&Atomic<u64>> {
        self.words.get(usize::try_from(index).ok()?)
    }

    /// Whether all blocks of a range are marked.
    #[inline]
    pub(crate) fn contains(&self, blocks: Blocks) -> bool {
        split_into_words(blocks).all(|part| {
            self.word(part.word)
                .is_some_and(|word| word.load(Acquire) & part.mask == part.mask)
        })
    }

    /// Marks the blocks of a range.
    pub(crate) fn insert(&self, blocks: Blocks) {
        for part in split_into_words(blocks) {
            if let Some(word) = self.word(part.word) {
                let old = word.load(Relaxed);
                if old & part.mask != part.mask {
                    word.store(old | part.mask, Release);
                }
            }
        }
    }

    /// Clears all marks.
    pub(crate) fn clear(&self) {
        for word in self.words.iter() {
            word.store(0, Relaxed);
        }
    }
}
