// SPDX-License-Identifier: GPL-2.0

//! Counters that cannot underflow or overflow unless there is a bug.
//!
//! If one does, the kernel warns once, which fails the test run of a debug kernel, and the counter
//! stays at its bound. Any context.

use crate::env::miscounted;

/// Subtracts from a counter.
#[inline]
pub(crate) fn subtract(count: u64, less: u64) -> u64 {
    count.checked_sub(less).unwrap_or_else(|| {
        miscounted();
        0
    })
}

/// Subtracts from a number of elements.
#[inline]
pub(crate) fn subtract_len(count: usize, less: usize) -> usize {
    count.checked_sub(less).unwrap_or_else(|| {
        miscounted();
        0
    })
}

/// The number of objects that exist at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Count(u32);

impl Count {
    /// Makes a counter of zero.
    pub(crate) const fn zero() -> Self {
        Count(0)
    }

    /// Makes a counter of one.
    pub(crate) const fn one() -> Self {
        Count(1)
    }

    /// Adds one.
    #[inline]
    pub(crate) fn increment(&mut self) {
        match self.0.checked_add(1) {
            Some(count) => self.0 = count,
            None => miscounted(),
        }
    }

    /// Subtracts one. Returns whether the counter is zero now.
    #[inline]
    pub(crate) fn decrement(&mut self) -> bool {
        match self.0.checked_sub(1) {
            Some(count) => self.0 = count,
            None => miscounted(),
        }
        self.is_zero()
    }

    /// Whether the counter is zero.
    #[inline]
    pub(crate) fn is_zero(self) -> bool {
        self.0 == 0
    }
}
