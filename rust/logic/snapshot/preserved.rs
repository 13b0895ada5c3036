// SPDX-License-Identifier: GPL-2.0

//! Which parts of an origin all active snapshots have preserved: one bit per unit, read without a
//! lock.
//!
//! A unit is as large as the smallest chunk of the snapshots. Bits only go from zero to one. A bit
//! that is set is true; one that is clear, or has no memory, says nothing. A snapshot that becomes
//! active has preserved nothing yet, so then the map is replaced by an empty one.
//!
//! The bits are in pages, which are allocated as they are needed, up to a limit.
//!
//! C counterpart: none; `__origin_write()` looks into the table of each snapshot.

use crate::env::{
    Acquire,
    AllocError,
    Atomic,
    KVVec,
    Relaxed,
    Release,
    Result,
    SetOnce,
    ENOMEM,
    GFP_KERNEL,
    GFP_NOWAIT,
    __GFP_NOWARN, //
};
use crate::logic::{
    snapshot::chunks::{
        Chunk,
        ChunkSize,
        Chunks, //
    },
    units::{
        Sector,
        Sectors, //
    }, //
};

/// The binary logarithm of the number of bits in a word.
const WORD_SHIFT: u32 = 6;
/// The binary logarithm of the number of words in a page.
const PAGE_SHIFT: u32 = 9;
/// The number of words in a page.
const PAGE_WORDS: u64 = 1 << PAGE_SHIFT;
/// The size of a page in bytes.
pub(crate) const PAGE_BYTES: u64 = PAGE_WORDS * 8;
/// The number of units in a page.
pub(crate) const PAGE_UNITS: u64 = PAGE_WORDS << WORD_SHIFT;
/// The maximum number of units that are looked up, or recorded, at a time: 16 MiB if they are as
/// small as LVM2's chunks.
pub(crate) const MAX_UNITS: u64 = 64 << WORD_SHIFT;

/// How far a lookup counts what continues a write. A table may have an entry for each of these
/// units, which the lookup passes with interrupts disabled.
const LOOK_AHEAD: u64 = 16 << WORD_SHIFT;

/// The bits of [`PAGE_UNITS`] units.
type Page = KVVec<Atomic<u64>>;

/// The part of a range of units that lies in one word.
struct WordMask {
    page: u64,
    /// The word within the page.
    word: u64,
    /// The bits within the word; at least one.
    mask: u64,
}

/// Splits a range of units, which is not empty, into words.
#[inline]
fn split_into_words(units: Chunks) -> impl Iterator<Item = WordMask> {
    let (first, last) = (units.start.0, units.end.0.wrapping_sub(1));
    (first >> WORD_SHIFT..=last >> WORD_SHIFT).map(move |word| {
        let mut mask = u64::MAX;
        // CAST: `wrapping_shl` masks with the low six bits, which alone count.
        if word == first >> WORD_SHIFT {
            mask &= u64::MAX.wrapping_shl(first as u32);
        }
        if word == last >> WORD_SHIFT {
            // CAST: `wrapping_shr` masks with the low six bits, which alone count.
            mask &= u64::MAX.wrapping_shr(!last as u32);
        }
        WordMask {
            page: word >> PAGE_SHIFT,
            word: word & (PAGE_WORDS - 1),
            mask,
        }
    })
}

/// One bit per unit of the origin.
///
/// Shared between all contexts. Nothing here takes a lock or sleeps, but for [`new`](Self::new).
pub(crate) struct PreservedMap {
    unit: ChunkSize,
    pages: KVVec<SetOnce<Page>>,
    /// The number of pages that may still be added.
    room: Atomic<u64>,
    /// The number, counted from one, of a page that [`add_page`](Self::add_page) is to add; zero
    /// for none.
    wanted: Atomic<u64>,
}

impl PreservedMap {
    /// Makes a map for an origin of length `len`, in which nothing is preserved.
    ///
    /// The map never takes more than `limit` bytes. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, also if `limit` is too low for any page.
    pub(crate) fn new(unit: ChunkSize, len: Sectors, limit: u64) -> Result<Self> {
        let units = unit.touched(Sector(0), len).len();
        let count = units.saturating_add(PAGE_UNITS - 1) / PAGE_UNITS;
        // CAST: A size fits in 64 bits.
        let own = count.saturating_mul(size_of::<SetOnce<Page>>() as u64);
        let room = limit.saturating_sub(own) / PAGE_BYTES;
        if room == 0 {
            return Err(ENOMEM);
        }
        let count = usize::try_from(count)?;
        let mut pages = KVVec::with_capacity(count, GFP_KERNEL | __GFP_NOWARN)?;
        for _ in 0..count {
            pages.push_within_capacity(SetOnce::new())?;
        }
        Ok(Self {
            unit,
            pages,
            room: Atomic::new(room),
            wanted: Atomic::new(0),
        })
    }

    /// Returns whether the map says that a range is preserved. Gives up if it has more than
    /// [`MAX_UNITS`] units.
    #[inline]
    pub(crate) fn contains(&self, start: Sector, len: Sectors) -> bool {
        let units = self.unit.touched(start, len);
        if units.is_empty() || units.len() > MAX_UNITS {
            return false;
        }
        // Acquire: who overwrites the origin does so after everything that made the bit true.
        split_into_words(units).all(|part| {
            self.word(&part)
                .is_some_and(|word| word.load(Acquire) & part.mask == part.mask)
        })
    }

    /// Returns the smallest range of whole units that contains a range, as its start and length;
    /// and a length from there up to which it is worth while to know more.
    pub(crate) fn units_to_look_up(
        &self,
        start: Sector,
        len: Sectors,
    ) -> (Sector, Sectors, Sectors) {
        let units = self.unit.touched(start, len);
        let first = Sector(start.get().wrapping_sub(self.unit.offset(start).get()));
        let length = |units: u64| Sectors(units.saturating_mul(self.unit.len().get()));
        (
            first,
            length(units.len()),
            length(units.len().max(LOOK_AHEAD)),
        )
    }

    /// Records that the whole units of a range, up to [`MAX_UNITS`] of them, are preserved in all
    /// active snapshots: no write to the origin has to wait for them.
    ///
    /// Returns whether they have no memory, and the caller should see to it that
    /// [`add_page`](Self::add_page) is called.
    ///
    /// The caller makes sure that no snapshot becomes active meanwhile.
    pub(crate) fn insert(&self, start: Sector, len: Sectors) -> bool {
        let Some(end) = start.checked_add(len) else {
            return false;
        };
        let first = self.unit.chunk(start).0;
        let is_part = !self.unit.offset(start).is_zero();
        let first = first.saturating_add(is_part.into());
        let units = Chunks {
            start: Chunk(first),
            end: Chunk(self.unit.chunk(end).0.min(first.saturating_add(MAX_UNITS))),
        };
        if units.is_empty() {
            return false;
        }
        let mut is_wanted = false;
        for part in split_into_words(units) {
            match self.word(&part) {
                // If another thread sets bits of the word at the same time, those of one of the two
                // may be lost, but none is set that neither of them set. Acquire: the other's bits
                // become visible together with what made them true.
                Some(word) => {
                    let old = word.load(Acquire);
                    if old & part.mask != part.mask {
                        word.store(old | part.mask, Release);
                    }
                }
                None => is_wanted |= self.want(part.page),
            }
        }
        is_wanted
    }

    /// Asks for a page. Returns whether nobody asked for one before.
    fn want(&self, page: u64) -> bool {
        // CAST: A length fits in 64 bits.
        let is_possible = page < self.pages.len() as u64 && self.room.load(Relaxed) != 0;
        let is_wanted = is_possible && self.wanted.load(Relaxed) == 0;
        if is_wanted {
            self.wanted.store(page.saturating_add(1), Relaxed);
        }
        is_wanted
    }

    /// Adds the page that [`insert`](Self::insert) was short of, unless memory is short. Callers
    /// serialise their calls.
    pub(crate) fn add_page(&self) {
        let Some(number) = self.wanted.load(Relaxed).checked_sub(1) else {
            return;
        };
        if let (Some(slot), Ok(page)) = (self.slot(number), new_page()) {
            if slot.populate(page) {
                let room = self.room.load(Relaxed);
                self.room.store(room.saturating_sub(1), Relaxed);
            }
        }
        self.wanted.store(0, Relaxed);
    }

    #[inline]
    fn slot(&self, page: u64) -> Option<&SetOnce<Page>> {
        self.pages.get(usize::try_from(page).ok()?)
    }

    #[inline]
    fn word(&self, part: &WordMask) -> Option<&Atomic<u64>> {
        let page = self.slot(part.page)?.as_ref()?;
        page.get(usize::try_from(part.word).ok()?)
    }
}

/// Makes a page of clear bits, without waiting for memory.
fn new_page() -> Result<Page, AllocError> {
    // CAST: The constant is small.
    let mut page = Page::with_capacity(PAGE_WORDS as usize, GFP_NOWAIT | __GFP_NOWARN)?;
    for _ in 0..PAGE_WORDS {
        // It has room for all of them.
        let _ = page.push_within_capacity(Atomic::new(0));
    }
    Ok(page)
}
