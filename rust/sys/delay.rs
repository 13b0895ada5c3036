// SPDX-License-Identifier: GPL-2.0

//! Delay points: see `Documentation/testing.md`.

#[cfg(CONFIG_RUST_DEBUG_ASSERTIONS)]
use crate::bindings;
#[cfg(CONFIG_RUST_DEBUG_ASSERTIONS)]
use kernel::prelude::*;

/// What [`delay_point`] calls.
#[cfg(CONFIG_RUST_DEBUG_ASSERTIONS)]
pub(crate) fn pass(name: &'static CStr) {
    // SAFETY: A string that is never freed; the context is one that may sleep, which the other side
    // checks.
    unsafe { bindings::dmr_delay_point(name.as_char_ptr()) };
}

/// Marks a place where a lock has been let go and a decision that was made under it is used later.
///
/// In a kernel with `CONFIG_RUST_DEBUG_ASSERTIONS` whoever passes it can be made to sleep there, at
/// random or until a test lets it go on (the module's parameters `delay_*`). Elsewhere it is no
/// code. Process context, no lock held that forbids to sleep.
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
