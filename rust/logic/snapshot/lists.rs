// SPDX-License-Identifier: GPL-2.0

//! What lists of the kernel's vectors lack, without a path that panics.

use crate::env::{
    AllocError,
    Flags,
    KVVec, //
};
use crate::logic::snapshot::exception_table::PackedRun;

/// Counts the items at the front for which `starts` holds, if it holds for none behind them.
pub(crate) fn partition_point<T>(items: &[T], starts: impl Fn(&T) -> bool) -> usize {
    // The binary search of `core` comes with a check that may panic.
    let mut low = 0usize;
    let mut high = items.len();
    while low < high {
        let middle = low.wrapping_add(high.wrapping_sub(low) / 2);
        match items.get(middle) {
            Some(item) if starts(item) => low = middle.wrapping_add(1),
            _ => high = middle,
        }
    }
    low
}

/// Adds an item; a full list becomes twice as large. May sleep, as the flags say.
pub(crate) fn push<T>(items: &mut KVVec<T>, item: T, flags: Flags) -> Result<(), AllocError> {
    if items.len() == items.capacity() {
        let capacity = items.capacity().saturating_mul(2).max(4);
        let mut larger = KVVec::with_capacity(capacity, flags)?;
        for item in core::mem::take(items) {
            // There is room for more than all.
            let _ = larger.push_within_capacity(item);
        }
        *items = larger;
    }
    items.push_within_capacity(item).map_err(|_| AllocError)
}

/// Takes out the first item that is wanted.
pub(crate) fn remove_first<T>(items: &mut KVVec<T>, wanted: impl Fn(&T) -> bool) -> Option<T> {
    let place = items.iter().position(wanted)?;
    items.remove(place).ok()
}

/// The bits of a digit of [`Sorter`], at most.
const DIGIT: u32 = 11;

/// Sorts lists of runs, one after the other, with the same memory.
#[derive(Default)]
pub(crate) struct Sorter {
    spare: KVVec<PackedRun>,
    /// For each value of a digit how many runs have it, then where the next of them goes.
    places: KVVec<u32>,
}

impl Sorter {
    /// Sorts runs by their chunks of the origin, where they are or into memory of its own; those of
    /// the same chunk keep their order. May sleep, as the flags say.
    ///
    /// Digit by digit, lowest first: the effort grows with the number of runs alone. Bits that are
    /// the same in all are left out.
    pub(crate) fn sort<'a>(
        &'a mut self,
        runs: &'a mut [PackedRun],
        flags: Flags,
    ) -> Result<&'a [PackedRun], AllocError> {
        let (used, same) = runs.iter().fold((0, u64::MAX), |(used, same), run| {
            (used | run.old(), same & run.old())
        });
        let differing = if runs.is_empty() { 0 } else { used ^ same };
        let low = differing.trailing_zeros();
        let high = u64::BITS.saturating_sub(differing.leading_zeros());
        let bits = high.saturating_sub(low);
        let passes = bits.div_ceil(DIGIT);
        if passes == 0 {
            return Ok(runs);
        }
        let width = bits.div_ceil(passes);
        let values = 1usize.wrapping_shl(width);
        let len = runs.len();
        grow(&mut self.spare, len, flags)?;
        grow(&mut self.places, values, flags)?;
        let places = self.places.get_mut(..values).ok_or(AllocError)?;
        let mut from = runs;
        let mut to = self.spare.get_mut(..len).ok_or(AllocError)?;
        for pass in 0..passes {
            let shift = low.wrapping_add(pass.wrapping_mul(width));
            // CAST: The bits of a digit.
            let digit =
                |run: &PackedRun| run.old().wrapping_shr(shift) as usize & values.wrapping_sub(1);
            places.fill(0);
            for run in from.iter() {
                if let Some(count) = places.get_mut(digit(run)) {
                    *count = count.wrapping_add(1);
                }
            }
            let mut next = 0u32;
            for place in places.iter_mut() {
                next = next.wrapping_add(core::mem::replace(place, next));
            }
            for run in from.iter() {
                if let Some(place) = places.get_mut(digit(run)) {
                    // CAST: A u32 fits.
                    if let Some(to) = to.get_mut(*place as usize) {
                        *to = *run;
                    }
                    *place = place.wrapping_add(1);
                }
            }
            core::mem::swap(&mut from, &mut to);
        }
        Ok(from)
    }
}

/// Sees that a list has at least so many items. What was in it may be lost.
fn grow<T: Copy + Default>(
    items: &mut KVVec<T>,
    len: usize,
    flags: Flags,
) -> Result<(), AllocError> {
    if items.len() < len {
        *items = KVVec::new();
        let len = len.checked_next_power_of_two().ok_or(AllocError)?;
        let mut larger = KVVec::with_capacity(len, flags)?;
        for _ in 0..len {
            larger
                .push_within_capacity(T::default())
                .map_err(|_| AllocError)?;
        }
        *items = larger;
    }
    Ok(())
}
