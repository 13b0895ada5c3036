// SPDX-License-Identifier: GPL-2.0

//! The clock, and timer ticks.
//!
//! A duration is a [`Delta`]. A point in time is a number of milliseconds, the unit in which
//! `rust/logic` decides. It is not an `Instant` of the kernel crate, because the operators of that
//! type check for overflow, and so refer to a panic.
//!
//! C header: [`include/linux/ktime.h`](srctree/include/linux/ktime.h)

use kernel::{
    bindings as kb,
    time::{
        msecs_to_jiffies,
        Delta,
        Jiffies, //
    }, //
};

/// The longest delay that [`to_jiffies`] returns: one hour.
const MAX_DELAY_MS: u32 = 3_600_000;

/// Returns the number of timer ticks of a delay, rounded up, and at most an hour. Any context.
pub(super) fn to_jiffies(delay: Delta) -> Jiffies {
    let ms = u32::try_from(delay.as_millis().max(0)).unwrap_or(MAX_DELAY_MS);
    msecs_to_jiffies(ms.min(MAX_DELAY_MS))
}

/// Reads the monotonic clock: milliseconds since boot. Any context.
pub(crate) fn now_ms() -> u64 {
    // SAFETY: `ktime_get` has no preconditions.
    let ns = unsafe { kb::ktime_get() };
    u64::try_from(ns).unwrap_or(0) / 1_000_000
}
