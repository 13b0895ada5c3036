// SPDX-License-Identifier: GPL-2.0

//! Operations that the kernel's vectors lack, without a path that panics.

use crate::env::{
    AllocError,
    Flags,
    KVVec, //
};

/// Returns the number of leading items for which `is_before` holds.
///
/// Once `is_before` is false for an item, it must be false for all later ones.
pub(crate) fn partition_point<T>(items: &[T], is_before: impl Fn(&T) -> bool) -> usize {
    // The binary search of `core` contains a check that may panic.
    let mut low = 0usize;
    let mut high = items.len();
    while low < high {
        let middle = low.wrapping_add(high.wrapping_sub(low) / 2);
        match items.get(middle) {
            Some(item) if is_before(item) => low = middle.wrapping_add(1),
            _ => high = middle,
        }
    }
    low
}

/// Adds an item. A full vector is replaced by one of twice the capacity.
///
/// May sleep if `flags` allow that.
///
/// # Errors
///
/// Fails if memory is short. The vector is unchanged then.
pub(crate) fn push<T>(items: &mut KVVec<T>, item: T, flags: Flags) -> Result<(), AllocError> {
    if items.len() == items.capacity() {
        let capacity = items.capacity().saturating_mul(2).max(4);
        let mut larger = KVVec::with_capacity(capacity, flags)?;
        for item in core::mem::take(items) {
            // `larger` has room for all of them.
            let _ = larger.push_within_capacity(item);
        }
        *items = larger;
    }
    items.push_within_capacity(item).map_err(|_| AllocError)
}

/// Removes and returns the first item for which `is_wanted` holds.
pub(crate) fn remove_first<T>(items: &mut KVVec<T>, is_wanted: impl Fn(&T) -> bool) -> Option<T> {
    let index = items.iter().position(is_wanted)?;
    items.remove(index).ok()
}
