// SPDX-License-Identifier: GPL-2.0

//! The map of hydrated regions: one bit per region, read without locks.
//!
//! Above the bits lie summary levels, each 64 times smaller than the one below:
//!
//! ```text
//! level 2                      [w0]                 bit i set: word i of level 1 is all ones
//! level 1              [w0]    ...   [w63]          bit i set: word i of level 0 is all ones
//! level 0      [w0] .. [w63]   ...   [w4095]        bit i set: region i is hydrated
//! ```
//!
//! Hence a few steps find the next region to copy, even if nearly all are hydrated. Bits after the
//! last region, and after the last word of a level, are ones from the start.
//!
//! Bits only go from zero to one. A word is stored before the summary bit that says that it is
//! full, with release; readers load with acquire. Hence a summary bit that is set is true, and one
//! that is clear may be out of date, which costs one more load.
//!
//! C counterpart: `region_map` of `struct dm_clone_metadata`.

use crate::env::{
    Acquire,
    Atomic,
    KVVec,
    Relaxed,
    Release,
    Result,
    EINVAL,
    EOVERFLOW,
    GFP_KERNEL, //
};
use crate::logic::regions::{
    Region,
    RegionRange, //
};

/// The binary logarithm of the number of bits in a word.
const WORD_SHIFT: u32 = 6;
/// The number of bits in a word.
const WORD_BITS: u64 = 1 << WORD_SHIFT;
/// The number of levels; six are enough for 2^36 regions.
const LEVELS: usize = 6;

/// Returns the number of the word that holds bit `bit`.
#[inline]
fn word_of(bit: u64) -> u64 {
    bit >> WORD_SHIFT
}

/// Returns a word with ones from bit `bit % 64` up.
#[inline]
fn from_bit(bit: u64) -> u64 {
    // CAST: Only the low six bits count, and `wrapping_shl` masks with just these.
    u64::MAX.wrapping_shl(bit as u32)
}

/// Returns a word with ones below bit `bit % 64`, where zero stands for 64: all ones.
#[inline]
fn below_bit(bit: u64) -> u64 {
    match bit % WORD_BITS {
        0 => u64::MAX,
        _ => !from_bit(bit),
    }
}

/// A run of regions in the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// This number of regions is hydrated.
    Set(u64),
    /// This number of regions is not.
    Clear(u64),
}

/// The right to set bits of a [`RegionMap`], and the number of bits that are set.
///
/// It is made together with its map. Its owner keeps it under the lock that serialises writers.
#[derive(Debug)]
pub(crate) struct MapWriter {
    set: u64,
}

impl MapWriter {
    /// Returns the number of hydrated regions.
    #[inline]
    pub(crate) fn set(&self) -> u64 {
        self.set
    }
}

/// The place of a level within the words of the map.
#[derive(Clone, Copy, Default)]
struct Level {
    /// The number of words of all levels below.
    first: u64,
    /// The number of words of this level; zero for a level that is not needed.
    words: u64,
}

/// One bit per region, set once the region's data is on the destination.
///
/// Shared between all contexts. The queries take no lock and never sleep; setting bits needs the
/// [`MapWriter`] of the same map.
///
/// # Invariants
///
/// The levels fill `words` without gaps. A bit of an upper level is set only if all bits of its
/// word in the level below are.
pub(crate) struct RegionMap {
    words: KVVec<Atomic<u64>>,
    levels: [Level; LEVELS],
    regions: u64,
}

impl RegionMap {
    /// Makes a map of `regions` regions, none of them hydrated, and the right to write it.
    ///
    /// May sleep.
    pub(crate) fn new(regions: u64) -> Result<(Self, MapWriter)> {
        let mut levels = [Level::default(); LEVELS];
        let mut total = 0u64;
        let mut bits = regions;
        for level in levels.iter_mut() {
            let words = bits.div_ceil(WORD_BITS);
            *level = Level {
                first: total,
                words,
            };
            total = total.checked_add(words).ok_or(EOVERFLOW)?;
            bits = if words > 1 { words } else { 0 };
        }
        if bits != 0 {
            return Err(EOVERFLOW);
        }

        let mut words = KVVec::with_capacity(usize::try_from(total)?, GFP_KERNEL)?;
        let mut bits = regions;
        for level in levels.iter().take_while(|level| level.words != 0) {
            for _ in 1..level.words {
                words.push_within_capacity(Atomic::new(0))?;
            }
            words.push_within_capacity(Atomic::new(!below_bit(bits)))?;
            bits = level.words;
        }
        let map = Self {
            words,
            levels,
            regions,
        };
        Ok((map, MapWriter { set: 0 }))
    }

    /// Returns the number of all regions.
    #[inline]
    pub(crate) fn regions(&self) -> u64 {
        self.regions
    }

    /// Returns the number of 64-bit words that hold the regions' bits.
    #[inline]
    pub(crate) fn words(&self) -> u64 {
        self.level(0).words
    }

    /// Returns the bits of 64 regions from `64 * index` on; ones after the last region.
    #[inline]
    pub(crate) fn word(&self, index: u64) -> Option<u64> {
        self.at(self.level(0), index).map(|word| word.load(Acquire))
    }

    /// Whether `region` is hydrated; regions that do not exist are not.
    ///
    /// If it is, I/O sent to the destination after this call finds the region's data there.
    #[cfg(test)]
    #[inline]
    pub(crate) fn contains(&self, region: Region) -> bool {
        region.get() < self.regions
            && self.word(word_of(region.get())).is_some_and(|word| {
                word & below_bit(region.get().wrapping_add(1)) & from_bit(region.get()) != 0
            })
    }

    /// Returns the first region at or after `from` that is not hydrated.
    ///
    /// Takes a number of steps logarithmic in the number of regions.
    pub(crate) fn next_clear(&self, from: Region) -> Option<Region> {
        let mut bit = from.get();
        let mut depth = 0;
        // Up while a word has no zero bit left, down again as soon as one is found.
        loop {
            let level = self.level(depth);
            match self.zero_in_word(level, bit) {
                Some(zero) => match depth.checked_sub(1) {
                    None => return Some(Region(zero)).filter(|region| region.0 < self.regions),
                    Some(below) => {
                        depth = below;
                        bit = zero.wrapping_shl(WORD_SHIFT);
                    }
                },
                None => {
                    bit = word_of(bit).checked_add(1)?;
                    depth = depth.wrapping_add(1);
                    if depth >= LEVELS {
                        return None;
                    }
                }
            }
        }
    }

    /// Returns the state of the first region of `range`, and the number of regions that share it.
    ///
    /// The range is clipped to the map, and should not be empty then. Takes a step per 64 regions
    /// at most.
    pub(crate) fn run(&self, range: RegionRange) -> Run {
        let range = range.intersect(RegionRange::with_len(Region(0), self.regions));
        let start = range.start;
        let end = match self.next_clear(start) {
            Some(clear) if clear == start => {
                // The first region was clear a moment ago. This is the answer even if it is set by
                // now: another load could find an empty run.
                let rest = RegionRange::new(Region(start.0.saturating_add(1)), range.end);
                let end = self.next_set(rest).min(range.end);
                return Run::Clear(end.0.saturating_sub(start.0));
            }
            Some(clear) => clear.min(range.end),
            None => range.end,
        };
        match RegionRange::new(start, end).len() {
            0 => Run::Clear(0), // The range is empty.
            len => Run::Set(len),
        }
    }

    /// Whether all regions of `range` are hydrated, as far as they exist.
    pub(crate) fn all_set(&self, range: RegionRange) -> bool {
        match self.next_clear(range.start) {
            Some(clear) => clear >= range.end,
            None => true,
        }
    }

    /// Marks the regions of `range` hydrated. Returns how many of them were not.
    ///
    /// All I/O that put the regions' data onto the destination must have completed. Regions that do
    /// not exist are ignored. Takes a step per 64 regions; never sleeps.
    pub(crate) fn insert(&self, writer: &mut MapWriter, range: RegionRange) -> u64 {
        let range = range.intersect(RegionRange::with_len(Region(0), self.regions));
        if range.is_empty() {
            return 0;
        }
        let new = self.fill(0, range.start.get(), range.end.get());
        writer.set = writer.set.saturating_add(new);
        new
    }

    /// Loads 64 bits from disk: those of the regions from `64 * index` on.
    ///
    /// For use before the map is shared. Words may come in any order, each index once; a word that
    /// does not come is zero. Bits after the last region are ignored.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a word without regions.
    pub(crate) fn load_word(&mut self, writer: &mut MapWriter, index: u64, word: u64) -> Result {
        let slot = self.at(self.level(0), index).ok_or(EINVAL)?;
        let old = slot.load(Relaxed);
        let new = old | word;
        slot.store(new, Release);
        if new == u64::MAX && old != u64::MAX {
            self.fill(1, index, index.saturating_add(1));
        }
        writer.set = writer
            .set
            .saturating_add(u64::from((new & !old).count_ones()));
        Ok(())
    }

    /// Returns the place of a level; an empty one if the map has fewer levels.
    #[inline]
    fn level(&self, depth: usize) -> Level {
        self.levels.get(depth).copied().unwrap_or_default()
    }

    /// Returns word `index` of a level.
    #[inline]
    fn at(&self, level: Level, index: u64) -> Option<&Atomic<u64>> {
        if index >= level.words {
            return None;
        }
        let index = level.first.checked_add(index)?;
        self.words.get(usize::try_from(index).ok()?)
    }

    /// Returns the first zero bit of a level at or after `bit`, within the same word.
    #[inline]
    fn zero_in_word(&self, level: Level, bit: u64) -> Option<u64> {
        let word = self.at(level, word_of(bit))?.load(Acquire);
        let zeros = !word & from_bit(bit);
        if zeros == 0 {
            return None;
        }
        Some((bit & !(WORD_BITS - 1)) | u64::from(zeros.trailing_zeros()))
    }

    /// Returns the first hydrated region of a non-empty range, or the range's end.
    fn next_set(&self, range: RegionRange) -> Region {
        let start = range.start.get();
        let mut mask = from_bit(start);
        let mut bit = start & !(WORD_BITS - 1);
        while bit < range.end.get() {
            match self.word(word_of(bit)).map(|word| word & mask) {
                Some(0) => {}
                Some(ones) => {
                    let set = bit | u64::from(ones.trailing_zeros());
                    return Region(set).min(range.end);
                }
                None => break,
            }
            mask = u64::MAX;
            bit = bit.saturating_add(WORD_BITS);
        }
        range.end
    }

    /// Sets the bits `start..end` of a level and, above it, the bits of all words that became full.
    ///
    /// The range is not empty and inside the level. Returns the number of bits of the first level
    /// that were not set before.
    fn fill(&self, depth: usize, start: u64, end: u64) -> u64 {
        let mut range = (start, end);
        let mut new = None;
        for level in self.levels.iter().skip(depth) {
            if range.0 >= range.1 || level.words == 0 {
                break;
            }
            let (count, full) = self.fill_level(*level, range.0, range.1);
            new.get_or_insert(count);
            range = full;
        }
        new.unwrap_or(0)
    }

    /// Sets the bits `start..end` of one level. Returns how many of them were not set, and the
    /// range of words that are full now.
    fn fill_level(&self, level: Level, start: u64, end: u64) -> (u64, (u64, u64)) {
        let first = word_of(start);
        let last = word_of(end.saturating_sub(1));
        let mut full = (first, last.saturating_add(1));
        let mut count = 0u64;
        for index in first..=last {
            let Some(slot) = self.at(level, index) else {
                break;
            };
            let mut mask = u64::MAX;
            if index == first {
                mask &= from_bit(start);
            }
            if index == last {
                mask &= below_bit(end);
            }
            let old = slot.load(Relaxed);
            let new = old | mask;
            if new != old {
                slot.store(new, Release);
                count = count.saturating_add(u64::from((new & !old).count_ones()));
            }
            // Words between the first and the last are full in any case.
            if new != u64::MAX {
                if index == first {
                    full.0 = first.saturating_add(1);
                } else {
                    full.1 = index;
                }
            }
        }
        (count, full)
    }
}
