// SPDX-License-Identifier: GPL-2.0

//! The ranges of regions in flight, each with a value.
//!
//! A fixed number of slots holds the ranges, which never overlap; an array of keys, sorted by
//! region, finds them. Nothing is allocated after construction, so that all of it works under a
//! spinlock and in interrupt context.
//!
//! C counterpart: the hash table of hydrations, `struct hash_table_bucket`.

use crate::env::{
    KVVec,
    Result,
    GFP_KERNEL, //
};
use crate::logic::count::subtract;
use crate::logic::regions::{
    Region,
    RegionRange, //
};

/// The name of an entry of an [`InFlight`], from its insertion to its removal.
///
/// Afterwards it names nothing: a place is used again under another generation. The name repeats
/// after 2^32 entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    place: u32,
    generation: u32,
}

impl Slot {
    /// Returns the number of the place, below the number of slots of the structure.
    #[inline]
    pub(crate) fn index(self) -> usize {
        // CAST: `usize` has at least 32 bits on all architectures with device-mapper.
        self.place as usize
    }

    /// Returns place and generation, to be kept in a bio. The place fits into 31 bits.
    #[inline]
    pub(crate) fn to_raw(self) -> (u32, u32) {
        (self.place, self.generation)
    }

    /// Makes a name from the numbers of [`Self::to_raw`]. Other numbers name nothing, or another
    /// entry.
    #[inline]
    pub(crate) fn from_raw(place: u32, generation: u32) -> Self {
        Self { place, generation }
    }
}

/// A range in flight, and its slot.
#[derive(Clone, Copy, Debug)]
struct Key {
    start: u32,
    end: u32,
    slot: Slot,
}

impl Key {
    /// Returns the range in its unpacked form.
    #[inline]
    fn range(&self) -> RegionRange {
        RegionRange::new(Region(u64::from(self.start)), Region(u64::from(self.end)))
    }
}

/// The contents of a slot.
struct Entry<T> {
    /// The range; empty in a free slot.
    range: RegionRange,
    value: T,
    /// Number of times that the slot became free, modulo 2^32.
    generation: u32,
    /// The next free place; for a free slot.
    next_free: Option<u32>,
}

/// Disjoint ranges of regions in a fixed number of slots, each with a value of type `T`.
///
/// Called with a lock of its owner held. Only [`Self::new`] may sleep.
///
/// # Invariants
///
/// - `keys` is sorted, its ranges are not empty and do not overlap.
/// - Each slot is either in `keys` or in the chain that starts at `free`.
/// - `regions` is the sum of the lengths.
pub(crate) struct InFlight<T: Default> {
    keys: KVVec<Key>,
    entries: KVVec<Entry<T>>,
    free: Option<u32>,
    regions: u64,
}

impl<T: Default> InFlight<T> {
    /// Makes an empty structure with room for `slots` ranges, at most 2^31. May sleep.
    pub(crate) fn new(slots: usize) -> Result<Self> {
        let mut entries = KVVec::with_capacity(slots, GFP_KERNEL)?;
        let count = u32::try_from(slots)?;
        for index in 0..count {
            let next = index.saturating_add(1);
            entries.push_within_capacity(Entry {
                range: RegionRange::default(),
                value: T::default(),
                generation: 0,
                next_free: (next < count).then_some(next),
            })?;
        }
        Ok(Self {
            keys: KVVec::with_capacity(slots, GFP_KERNEL)?,
            entries,
            free: (count != 0).then_some(0),
            regions: 0,
        })
    }

    /// Returns the number of ranges in flight.
    #[cfg(test)]
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether nothing is in flight.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns how many more ranges can be inserted.
    #[inline]
    pub(crate) fn free_slots(&self) -> usize {
        self.entries.len().saturating_sub(self.keys.len())
    }

    /// Returns the number of regions in flight, over all ranges.
    #[inline]
    pub(crate) fn regions(&self) -> u64 {
        self.regions
    }

    /// Returns the slot of the range that holds `region`.
    pub(crate) fn find(&self, region: Region) -> Option<Slot> {
        self.first_overlap(RegionRange::single(region))
            .map(|(slot, _)| slot)
    }

    /// Returns the first range in flight that shares a region with `range`, not clipped to it.
    pub(crate) fn first_overlap(&self, range: RegionRange) -> Option<(Slot, RegionRange)> {
        if range.is_empty() {
            return None;
        }
        let key = self.keys.get(self.position(range.start))?;
        if u64::from(key.start) >= range.end.get() {
            return None;
        }
        Some((key.slot, key.range()))
    }

    /// Returns the number of regions at the start of `range` that are not in flight.
    pub(crate) fn clear_prefix(&self, range: RegionRange) -> u64 {
        match self.first_overlap(range) {
            Some((_, busy)) => busy.start.get().saturating_sub(range.start.get()),
            None => range.len(),
        }
    }

    /// Adds a range, with the default value.
    ///
    /// `None` if all slots are in use, or if the range is empty, overlaps one in flight, or is out
    /// of bounds.
    pub(crate) fn insert(&mut self, range: RegionRange) -> Option<Slot> {
        if range.is_empty() || self.first_overlap(range).is_some() {
            return None;
        }
        let place = self.free?;
        let position = self.position(range.start);
        let entry = self.entries.get_mut(usize::try_from(place).ok()?)?;
        let slot = Slot {
            place,
            generation: entry.generation,
        };
        let key = Key {
            start: u32::try_from(range.start.get()).ok()?,
            end: u32::try_from(range.end.get()).ok()?,
            slot,
        };
        let regions = self.regions.checked_add(range.len())?;
        self.keys.insert_within_capacity(position, key).ok()?;
        entry.range = range;
        self.regions = regions;
        self.free = entry.next_free;
        Some(slot)
    }

    /// Returns the value of a slot.
    pub(crate) fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        let entry = self.entries.get_mut(slot.index())?;
        if entry.range.is_empty() || entry.generation != slot.generation {
            return None;
        }
        Some(&mut entry.value)
    }

    /// Returns the range in a slot.
    pub(crate) fn range(&self, slot: Slot) -> Option<RegionRange> {
        let entry = self.entries.get(slot.index())?;
        Some(entry.range).filter(|range| !range.is_empty() && entry.generation == slot.generation)
    }

    /// Removes a range, and returns it with its value.
    pub(crate) fn remove(&mut self, slot: Slot) -> Option<(RegionRange, T)> {
        let range = self.range(slot)?;
        let position = self.position(range.start);
        if self.keys.get(position)?.slot != slot {
            return None;
        }
        let entry = self.entries.get_mut(slot.index())?;
        self.keys.remove(position).ok()?;
        self.regions = subtract(self.regions, range.len());
        entry.range = RegionRange::default();
        let value = core::mem::take(&mut entry.value);
        entry.generation = entry.generation.wrapping_add(1);
        entry.next_free = self.free;
        self.free = Some(slot.place);
        Some((range, value))
    }

    /// Iterates over the ranges in flight, in ascending order.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Slot, RegionRange)> + '_ {
        self.keys.iter().map(|key| (key.slot, key.range()))
    }

    /// Returns the position of the first key that ends after `region`.
    #[inline]
    fn position(&self, region: Region) -> usize {
        // Not the binary search of `core`, which may panic.
        let mut low = 0usize;
        let mut high = self.keys.len();
        while low < high {
            let middle = low.wrapping_add(high.wrapping_sub(low) / 2);
            match self.keys.get(middle) {
                Some(key) if u64::from(key.end) <= region.get() => low = middle.wrapping_add(1),
                _ => high = middle,
            }
        }
        low
    }
}
