// SPDX-License-Identifier: GPL-2.0

//! Counters of what is in flight, by epoch, without a shared cache line.
//!
//! There are two epochs, one of which is current. An operation that enters is counted in the
//! current epoch, on the counter of its CPU. It leaves the same epoch later, on any CPU. To wait
//! for all operations that began before a moment, make the other epoch current and
//! [drain](Epochs::drain) the old one:
//!
//! ```text
//!  enter:  [ read the epoch, count ]          (one step: preemption is off)
//!  drain:    switch ... grace period ... wait until the old sum is zero
//! ```
//!
//! After the grace period, every operation that read the old epoch is counted, so the old sum can
//! only fall. Reading the counters of the CPUs one by one is then exact: if they add up to zero,
//! nothing was in flight when the last one was read.
//!
//! SRCU could count as well: `srcu_down_read_fast()` and `srcu_up_read_fast()` allow a reader to
//! end in another context than it began, and both increment a per-CPU counter, as here. Its grace
//! period is what does not fit (from the source of 7.3, not measured):
//!
//! - `synchronize_srcu()` cannot be killed, but a write to a hung device never ends. After a
//!   `call_srcu()` whose waiter was killed, the destructor would have to call `srcu_barrier()`.
//! - Each look at the counters of fast readers takes an RCU grace period, and a grace period of
//!   SRCU takes at least two looks. A drain takes one.
//! - SRCU looks again and again until the last reader has left, for ever if a write hangs. Here the
//!   last one that leaves wakes the drain.

use crate::bindings;
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    prelude::*, //
};

/// One of the two epochs.
///
/// # Invariants
///
/// The number is 0 or 1.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch(u32);

impl Epoch {
    /// Returns the other epoch. Any context.
    pub(crate) fn other(self) -> Epoch {
        // INVARIANT: The lowest bit changes, the others stay zero.
        Epoch(self.0 ^ 1)
    }

    /// Returns the half of a pair that belongs to the epoch. Any context.
    #[inline]
    pub(crate) fn of<'a, T>(self, pair: &'a (T, T)) -> &'a T {
        if self.0 == 0 {
            &pair.0
        } else {
            &pair.1
        }
    }

    /// Returns a number other than zero, to be kept with what is counted in the epoch. Any context.
    #[inline]
    pub(crate) fn to_stamp(self) -> u32 {
        self.0.wrapping_add(1)
    }

    /// Returns the epoch of a number that [`to_stamp`](Self::to_stamp) made; `None` for zero. Any
    /// context.
    #[inline]
    pub(crate) fn from_stamp(stamp: u32) -> Option<Epoch> {
        match stamp {
            // INVARIANT: 1 and 2 become 0 and 1.
            1 | 2 => Some(Epoch(stamp.wrapping_sub(1))),
            _ => None,
        }
    }
}

/// The counters of both epochs.
///
/// # Invariants
///
/// The pointer is to counters that `dmr_epochs_create` made and that are freed with this value.
pub(crate) struct Epochs(NonNull<bindings::dmr_epochs>);

// SAFETY: The counters are not tied to a thread; any thread may free them.
unsafe impl Send for Epochs {}
// SAFETY: The counters are per CPU and changed by single instructions. The epoch is read and
// written atomically, and the wait queue has a lock of its own.
unsafe impl Sync for Epochs {}

impl Epochs {
    /// Allocates counters, all zero. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: The function has no preconditions.
        let raw = unsafe { bindings::dmr_epochs_create() };
        // INVARIANT: The counters were made above.
        Ok(Epochs(NonNull::new(raw).ok_or(ENOMEM)?))
    }

    /// Counts an operation in the current epoch and returns that epoch. Any context.
    #[inline]
    pub(crate) fn enter(&self) -> Epoch {
        // SAFETY: By the invariant, the counters live as long as `self`.
        // INVARIANT: The helper returns the current epoch, which is 0 or 1.
        Epoch(unsafe { bindings::dmr_epochs_enter(self.0.as_ptr()) })
    }

    /// Reverts what [`enter`](Self::enter) counted. Any context.
    #[inline]
    pub(crate) fn leave(&self, epoch: Epoch) {
        // SAFETY: By the invariant, the counters live as long as `self`. An epoch is 0 or 1.
        unsafe { bindings::dmr_epochs_leave(self.0.as_ptr(), epoch.0) }
    }

    /// Returns the current epoch. Any context.
    pub(crate) fn current(&self) -> Epoch {
        // SAFETY: By the invariant, the counters live as long as `self`.
        // INVARIANT: The current epoch is 0 or 1.
        Epoch(unsafe { bindings::dmr_epochs_current(self.0.as_ptr()) })
    }

    /// Makes an epoch the current one. Callers serialise their calls. Any context.
    pub(crate) fn switch_to(&self, epoch: Epoch) {
        // SAFETY: By the invariant, the counters live as long as `self`. An epoch is 0 or 1.
        unsafe { bindings::dmr_epochs_set(self.0.as_ptr(), epoch.0) }
    }

    /// Waits until nothing is in flight in an epoch that is not the current one. Callers serialise
    /// their calls. May sleep.
    ///
    /// # Errors
    ///
    /// `EINTR` if the thread is killed.
    pub(crate) fn drain(&self, epoch: Epoch) -> Result {
        // SAFETY: By the invariant, the counters live as long as `self`. An epoch is 0 or 1.
        to_result(unsafe { bindings::dmr_epochs_drain(self.0.as_ptr(), epoch.0) })
    }
}

impl Drop for Epochs {
    fn drop(&mut self) {
        // SAFETY: By the invariant, the counters are freed here only, and nothing uses them after
        // this.
        unsafe { bindings::dmr_epochs_destroy(self.0.as_ptr()) }
    }
}
