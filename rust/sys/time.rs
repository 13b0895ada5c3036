// SPDX-License-Identifier: GPL-2.0

//! Time in the one unit that the targets decide in: milliseconds.

use kernel::{
    bindings as kb,
    time::{
        msecs_to_jiffies,
        Jiffies, //
    }, //
};

/// A duration or a monotonic time stamp in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Millis(pub(crate) u64);

impl Millis {
    /// One second.
    pub(crate) const SECOND: Millis = Millis(1000);

    /// The timer ticks of this duration, rounded up; an hour at most.
    pub(crate) fn to_jiffies(self) -> Jiffies {
        let capped = u32::try_from(self.0).unwrap_or(u32::MAX).min(3_600_000);
        msecs_to_jiffies(capped)
    }
}

/// The monotonic clock, since boot. Any context.
pub(crate) fn now() -> Millis {
    // SAFETY: No preconditions.
    let ns = unsafe { kb::ktime_get() };
    Millis(u64::try_from(ns).unwrap_or(0) / 1_000_000)
}
