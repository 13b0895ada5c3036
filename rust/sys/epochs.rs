// SPDX-License-Identifier: GPL-2.0

//! Counting what is in flight by epoch, without a shared cache line.
//!
//! There are two epochs; one is the present one. What enters is counted in it, on this CPU's
//! counter, and leaves the same epoch later, on whatever CPU. To wait until all is over that began
//! before a moment, make the other epoch the present one and [drain](Epochs::drain) the old:
//!
//! ```text
//!  enter:  [ read the epoch, count ]          (one step: preemption is off)
//!  drain:    switch ... grace period ... wait until the old sum is zero
//! ```
//!
//! After the grace period whoever read the old epoch has counted itself, so the old sum can only
//! fall. Reading the counters of the CPUs one by one is then exact: a sum of zero was true when the
//! last one was read.

use crate::bindings;
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    prelude::*, //
};

/// One of the two epochs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch(u32);

impl Epoch {
    /// The other one.
    pub(crate) fn other(self) -> Epoch {
        Epoch(self.0 ^ 1)
    }

    /// The epoch's half of a pair.
    #[inline]
    pub(crate) fn of<'a, T>(self, pair: &'a (T, T)) -> &'a T {
        if self.0 == 0 {
            &pair.0
        } else {
            &pair.1
        }
    }

    /// A number for it that is not zero, to be kept with what is in flight.
    #[inline]
    pub(crate) fn to_stamp(self) -> u32 {
        self.0.wrapping_add(1)
    }

    /// The epoch of such a number; none for zero.
    #[inline]
    pub(crate) fn from_stamp(stamp: u32) -> Option<Epoch> {
        match stamp {
            1 | 2 => Some(Epoch(stamp.wrapping_sub(1))),
            _ => None,
        }
    }
}

/// The counters.
pub(crate) struct Epochs(NonNull<bindings::dmr_epochs>);

// SAFETY: The counters are per CPU, the rest is atomic or has a lock.
unsafe impl Send for Epochs {}
// SAFETY: As above.
unsafe impl Sync for Epochs {}

impl Epochs {
    /// Makes counters of zero. Sleeps.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: No preconditions.
        let raw = unsafe { bindings::dmr_epochs_create() };
        Ok(Epochs(NonNull::new(raw).ok_or(ENOMEM)?))
    }

    /// Counts one more in the present epoch, and tells which that is. Any context.
    #[inline]
    pub(crate) fn enter(&self) -> Epoch {
        // SAFETY: The counters live as long as `self`.
        Epoch(unsafe { bindings::dmr_epochs_enter(self.0.as_ptr()) })
    }

    /// Takes back what [`enter`](Self::enter) counted. Any context.
    #[inline]
    pub(crate) fn leave(&self, epoch: Epoch) {
        // SAFETY: The counters live as long as `self`; an epoch is 0 or 1.
        unsafe { bindings::dmr_epochs_leave(self.0.as_ptr(), epoch.0) }
    }

    /// The present epoch. Any context.
    pub(crate) fn current(&self) -> Epoch {
        // SAFETY: The counters live as long as `self`.
        Epoch(unsafe { bindings::dmr_epochs_current(self.0.as_ptr()) })
    }

    /// Makes an epoch the present one. Callers serialise. Any context.
    pub(crate) fn switch_to(&self, epoch: Epoch) {
        // SAFETY: The counters live as long as `self`; an epoch is 0 or 1.
        unsafe { bindings::dmr_epochs_set(self.0.as_ptr(), epoch.0) }
    }

    /// Waits until nothing of an epoch, which is not the present one, is in flight. `EINTR` if the
    /// thread is killed. One caller at a time. Sleeps.
    pub(crate) fn drain(&self, epoch: Epoch) -> Result {
        // SAFETY: The counters live as long as `self`; an epoch is 0 or 1.
        to_result(unsafe { bindings::dmr_epochs_drain(self.0.as_ptr(), epoch.0) })
    }
}

impl Drop for Epochs {
    fn drop(&mut self) {
        // SAFETY: Ours, and nobody uses it any more.
        unsafe { bindings::dmr_epochs_destroy(self.0.as_ptr()) }
    }
}
