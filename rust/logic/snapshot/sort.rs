// SPDX-License-Identifier: GPL-2.0

//! Sorting of runs by their chunks of the origin.
//!
//! [`Sorter`] loads a store: it is stable and takes time in proportion to the number of runs, but
//! needs memory. [`sort_and_join`] prepares the batch of a merge, and needs none.

use crate::env::{
    AllocError,
    Flags,
    KVVec, //
};
use crate::logic::snapshot::run::{
    PackedRun,
    Run, //
};

/// The maximum number of bits of a digit of [`Sorter`].
const MAX_DIGIT_BITS: u32 = 11;

/// A stable radix sort, which uses the same memory for one list of runs after the other.
#[derive(Default)]
pub(crate) struct Sorter {
    spare: KVVec<PackedRun>,
    /// Indexed by the value of a digit: first the number of runs that have this value, then the
    /// index at which the next of them is stored.
    slots: KVVec<u32>,
}

impl Sorter {
    /// Sorts runs by their chunks of the origin. Runs of the same chunk keep their order.
    ///
    /// Returns the sorted runs, in `runs` or in the sorter's own memory. May sleep if `flags` allow
    /// that.
    ///
    /// Sorts by one digit after the other, the lowest first. Bits that all runs have in common are
    /// skipped.
    ///
    /// # Errors
    ///
    /// Fails if memory is short.
    pub(crate) fn sort<'a>(
        &'a mut self,
        runs: &'a mut [PackedRun],
        flags: Flags,
    ) -> Result<&'a [PackedRun], AllocError> {
        let (any, all) = runs.iter().fold((0, u64::MAX), |(any, all), run| {
            (any | run.old(), all & run.old())
        });
        let differing = if runs.is_empty() { 0 } else { any ^ all };
        let low = differing.trailing_zeros();
        let high = u64::BITS.saturating_sub(differing.leading_zeros());
        // Keys that are all the same have no differing bits: then `low` is above `high`.
        let bits = high.saturating_sub(low);
        let passes = bits.div_ceil(MAX_DIGIT_BITS);
        if passes == 0 {
            return Ok(runs);
        }
        let width = bits.div_ceil(passes);
        let values = 1usize.wrapping_shl(width);
        let len = runs.len();
        ensure_len(&mut self.spare, len, flags)?;
        ensure_len(&mut self.slots, values, flags)?;
        let slots = self.slots.get_mut(..values).ok_or(AllocError)?;
        let mut from = runs;
        let mut to = self.spare.get_mut(..len).ok_or(AllocError)?;
        for pass in 0..passes {
            let shift = low.wrapping_add(pass.wrapping_mul(width));
            // CAST: The mask leaves at most `MAX_DIGIT_BITS` bits.
            let digit =
                |run: &PackedRun| run.old().wrapping_shr(shift) as usize & values.wrapping_sub(1);
            slots.fill(0);
            for run in from.iter() {
                if let Some(count) = slots.get_mut(digit(run)) {
                    *count = count.wrapping_add(1);
                }
            }
            let mut next = 0u32;
            for slot in slots.iter_mut() {
                next = next.wrapping_add(core::mem::replace(slot, next));
            }
            for run in from.iter() {
                if let Some(slot) = slots.get_mut(digit(run)) {
                    // CAST: `usize` has at least 32 bits.
                    if let Some(to) = to.get_mut(*slot as usize) {
                        *to = *run;
                    }
                    *slot = slot.wrapping_add(1);
                }
            }
            core::mem::swap(&mut from, &mut to);
        }
        Ok(from)
    }
}

/// Ensures that a vector has at least `len` items. Its contents may be lost.
fn ensure_len<T: Copy + Default>(
    items: &mut KVVec<T>,
    len: usize,
    flags: Flags,
) -> Result<(), AllocError> {
    if items.len() < len {
        // Freed first, so that the old and the new memory are never held together.
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

/// Sorts runs by their chunks of the origin, and joins those that continue each other.
///
/// Any context.
pub(crate) fn sort_and_join(runs: &mut KVVec<Run>) {
    // Heap sort needs no memory. The sort of `core` may panic.
    let len = runs.len();
    for root in (0..len / 2).rev() {
        sift_down(runs, root, len);
    }
    for end in (1..len).rev() {
        exchange(runs, 0, end);
        sift_down(runs, 0, end);
    }
    let mut last = 0usize;
    for index in 1..runs.len() {
        let Some(run) = runs.get(index).copied() else {
            break;
        };
        let Some(joined) = runs.get_mut(last) else {
            break;
        };
        let continues = joined.old.0.checked_add(joined.len) == Some(run.old.0)
            && joined.new.0.checked_add(joined.len) == Some(run.new.0);
        if continues {
            joined.len = joined.len.wrapping_add(run.len);
        } else {
            last = last.wrapping_add(1);
            if let Some(next) = runs.get_mut(last) {
                *next = run;
            }
        }
    }
    runs.truncate(last.wrapping_add(1));
}

fn exchange(runs: &mut [Run], a: usize, b: usize) {
    if let (Some(first), Some(second)) = (runs.get(a).copied(), runs.get(b).copied()) {
        for (index, run) in [(a, second), (b, first)] {
            if let Some(slot) = runs.get_mut(index) {
                *slot = run;
            }
        }
    }
}

/// Moves the run at `root` down the heap below `end` until no child is larger.
fn sift_down(runs: &mut [Run], mut root: usize, end: usize) {
    let old = |runs: &[Run], index: usize| runs.get(index).map(|run| run.old);
    loop {
        let left = root.wrapping_mul(2).wrapping_add(1);
        let right = left.wrapping_add(1);
        if left >= end {
            return;
        }
        let larger = if right < end && old(runs, right) > old(runs, left) {
            right
        } else {
            left
        };
        if old(runs, root) >= old(runs, larger) {
            return;
        }
        exchange(runs, root, larger);
        root = larger;
    }
}
