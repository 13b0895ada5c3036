// SPDX-License-Identifier: GPL-2.0

//! Delay points, at which tests widen races. `Documentation/testing.md` describes them.

#[cfg(CONFIG_RUST_DEBUG_ASSERTIONS)]
use crate::bindings;
#[cfg(CONFIG_RUST_DEBUG_ASSERTIONS)]
use kernel::prelude::*;

/// Implements [`delay_point!`]. May sleep.
#[cfg(CONFIG_RUST_DEBUG_ASSERTIONS)]
pub(crate) fn pass(name: &'static CStr) {
    // SAFETY: The string is nul-terminated and never freed. The helper warns if the caller may not
    // sleep.
    unsafe { bindings::dmr_delay_point(name.as_char_ptr()) };
}

/// Marks a place between a decision made under a lock and its use after the lock is released.
///
/// In a kernel with `CONFIG_RUST_DEBUG_ASSERTIONS`, the module's parameters `delay_*` make threads
/// sleep there, at random or until a test releases them. In other kernels the macro is no code. May
/// sleep.
///
/// # Examples
///
/// ```ignore
/// delay_point!(c"snapshot: merge paused, not yet active");
/// ```
macro_rules! delay_point {
    ($name:literal) => {{
        #[cfg(CONFIG_RUST_DEBUG_ASSERTIONS)]
        $crate::sys::delay::pass($name);
    }};
}
pub(crate) use delay_point;
