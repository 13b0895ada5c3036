// SPDX-License-Identifier: GPL-2.0

//! Counters of what comes and goes.
//!
//! None of them can fall below zero unless there is a bug. Then the kernel warns, once, which fails
//! a run of the debug kernels; and the counter stays where it is.

use crate::env::miscounted;

/// Takes `less` off a counter.
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

/// A number of things that are there at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Count(u32);

impl Count {
    /// None.
    pub(crate) const fn zero() -> Self {
        Count(0)
    }

    /// One.
    pub(crate) const fn one() -> Self {
        Count(1)
    }

    /// One more.
    #[inline]
    pub(crate) fn increment(&mut self) {
        match self.0.checked_add(1) {
            Some(count) => self.0 = count,
            None => miscounted(),
        }
    }

    /// One less. Tells whether none is left.
    #[inline]
    pub(crate) fn decrement(&mut self) -> bool {
        match self.0.checked_sub(1) {
            Some(count) => self.0 = count,
            None => miscounted(),
        }
        self.is_zero()
    }

    /// Whether there is none.
    #[inline]
    pub(crate) fn is_zero(self) -> bool {
        self.0 == 0
    }
}
