// SPDX-License-Identifier: GPL-2.0

//! Sorting of runs by their chunks of the origin.

use crate::env::{
    AllocError,
    Flags,
    KVVec, //
};
use crate::logic::snapshot::run::{
    PackedRun,
    Run, //
};

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

/// Sorts runs by their chunks of the origin, and makes one of those that continue each other on
/// both devices.
pub(crate) fn sort_and_join(runs: &mut KVVec<Run>) {
    // A heap: needs no memory.
    let all = runs.len();
    for root in (0..all / 2).rev() {
        sift(runs, root, all);
    }
    for end in (1..all).rev() {
        exchange(runs, 0, end);
        sift(runs, 0, end);
    }
    let mut kept = 0usize;
    for place in 1..runs.len() {
        let Some(run) = runs.get(place).copied() else {
            break;
        };
        let Some(last) = runs.get_mut(kept) else {
            break;
        };
        let follows = last.old.0.checked_add(last.len) == Some(run.old.0)
            && last.new.0.checked_add(last.len) == Some(run.new.0);
        if follows {
            last.len = last.len.saturating_add(run.len);
        } else {
            kept = kept.saturating_add(1);
            if let Some(next) = runs.get_mut(kept) {
                *next = run;
            }
        }
    }
    runs.truncate(kept.saturating_add(1));
}

fn exchange(runs: &mut [Run], a: usize, b: usize) {
    if let (Some(first), Some(second)) = (runs.get(a).copied(), runs.get(b).copied()) {
        for (place, run) in [(a, second), (b, first)] {
            if let Some(place) = runs.get_mut(place) {
                *place = run;
            }
        }
    }
}

/// Lets the run at `root` sink to its place in the heap below `end`.
fn sift(runs: &mut [Run], mut root: usize, end: usize) {
    let old = |runs: &[Run], place: usize| runs.get(place).map(|run| run.old);
    loop {
        let left = root.saturating_mul(2).saturating_add(1);
        let right = left.saturating_add(1);
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
