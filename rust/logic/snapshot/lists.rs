// SPDX-License-Identifier: GPL-2.0

//! What lists of the kernel's vectors lack, without a path that panics.

use crate::env::{
    AllocError,
    Flags,
    KVVec, //
};

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
