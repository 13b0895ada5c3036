// SPDX-License-Identifier: GPL-2.0

//! What lists of the kernel's vectors lack, without a path that panics.

use crate::env::{
    AllocError,
    Flags,
    KVVec, //
};
use crate::logic::snapshot::{
    chunks::{
        Chunk,
        CowChunk, //
    },
    extents::Run, //
};

/// Counts the items at the front for which `starts` holds, if it holds for none behind them.
pub(crate) fn leading<T>(items: &[T], starts: impl Fn(&T) -> bool) -> usize {
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
pub(crate) fn take<T>(items: &mut KVVec<T>, wanted: impl Fn(&T) -> bool) -> Option<T> {
    let place = items.iter().position(wanted)?;
    items.remove(place).ok()
}

/// The values of a digit of [`sort`].
const VALUES: usize = 256;

/// Sorts runs by their chunks of the origin; those of the same chunk keep their order. May sleep, as the flags say.
///
/// Digit by digit, lowest first: the effort grows with the number of runs alone.
pub(crate) fn sort(runs: &mut KVVec<Run>, flags: Flags) -> Result<(), AllocError> {
    let mut sorted = KVVec::with_capacity(runs.len(), flags)?;
    let nothing = Run {
        old: Chunk(0),
        new: CowChunk(0),
        len: 0,
    };
    for _ in 0..runs.len() {
        sorted
            .push_within_capacity(nothing)
            .map_err(|_| AllocError)?;
    }
    let used = runs.iter().fold(0, |bits, run| bits | run.old.0);
    let same = runs.iter().fold(u64::MAX, |bits, run| bits & run.old.0);
    for shift in (0..u64::BITS).step_by(8) {
        // CAST: A byte.
        let digit = |run: &Run| run.old.0.wrapping_shr(shift) as u8 as usize;
        if (used ^ same).wrapping_shr(shift) as u8 == 0 {
            continue;
        }
        let mut places = [0usize; VALUES];
        for run in runs.iter() {
            if let Some(count) = places.get_mut(digit(run)) {
                *count = count.wrapping_add(1);
            }
        }
        let mut next = 0usize;
        for place in &mut places {
            next = next.wrapping_add(core::mem::replace(place, next));
        }
        for run in runs.iter() {
            if let Some(place) = places.get_mut(digit(run)) {
                if let Some(to) = sorted.get_mut(*place) {
                    *to = *run;
                }
                *place = place.wrapping_add(1);
            }
        }
        core::mem::swap(runs, &mut sorted);
    }
    Ok(())
}
