// SPDX-License-Identifier: GPL-2.0

//! Log messages in device-mapper's form: `device-mapper: <subject>: <text>`.
//!
//! `pr_err!` and its siblings put the module's own name first, so they cannot print the texts that
//! administrators know from the C targets. The macros here call `_printk` with `%pA`, which the
//! kernel provides for the formatted arguments of Rust.
//!
//! C counterpart: `DMERR`, `DMWARN`, `DMINFO` of
//! [`include/linux/device-mapper.h`](srctree/include/linux/device-mapper.h)

use crate::{
    bindings,
    sys::string::bytes, //
};
use kernel::fmt;
#[cfg(CONFIG_PRINTK)]
use kernel::{
    bindings as kb,
    ffi::c_void,
    str::CStrExt as _, //
};

/// The level of a log message.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    /// Something failed (`KERN_ERR`).
    Error,
    /// Something is unusual, but works (`KERN_WARNING`).
    Warning,
    /// An event of normal operation (`KERN_INFO`).
    Info,
}

/// Prints one message. Use the macros [`err!`], [`warning!`] and [`info!`]. Any context.
#[cfg_attr(not(CONFIG_PRINTK), expect(unused_variables))]
pub(crate) fn write(level: Level, subject: &'static core::ffi::CStr, args: fmt::Arguments<'_>) {
    #[cfg(CONFIG_PRINTK)]
    {
        let format = match level {
            Level::Error => c"\x013device-mapper: %s: %pA\n",
            Level::Warning => c"\x014device-mapper: %s: %pA\n",
            Level::Info => c"\x016device-mapper: %s: %pA\n",
        };
        let args = core::ptr::from_ref(&args).cast::<c_void>();
        // SAFETY: Each format takes a nul-terminated string and a pointer to `fmt::Arguments`. Both
        // live until the call returns.
        unsafe { kb::_printk(format.as_char_ptr(), subject.as_char_ptr(), args) };
    }
}

/// Returns whether a rate-limited message may be printed now. The kernel counts those that may not.
/// Any context.
pub(crate) fn may_print() -> bool {
    // SAFETY: The function has no preconditions.
    unsafe { bindings::dmr_log_allowed() }
}

/// Warns once of a counter that would have fallen below zero. Any context.
#[cold]
pub(crate) fn miscounted() {
    // SAFETY: The function has no preconditions.
    unsafe { bindings::dmr_warn_miscounted() }
}

/// Displays a C string in a message; a string that is not UTF-8 is shown as a question mark.
pub(crate) struct CStrDisplay<'a>(pub(crate) &'a core::ffi::CStr);

impl fmt::Display for CStrDisplay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(core::str::from_utf8(bytes(self.0)).unwrap_or("?"))
    }
}

/// Prints an error message.
///
/// # Examples
///
/// ```ignore
/// err!("clone", "{}: hydration failed", name);
/// ```
macro_rules! err {
    ($subject:literal, $($args:tt)*) => {
        $crate::sys::log::write(
            $crate::sys::log::Level::Error,
            $crate::c_name!($subject),
            kernel::prelude::fmt!($($args)*),
        )
    };
}
pub(crate) use err;

/// Prints an error message, unless too many were printed of late. All messages of the module share
/// one limit. C counterpart: `DMERR_LIMIT`.
macro_rules! err_limit {
    ($subject:literal, $($args:tt)*) => {
        if $crate::sys::log::may_print() {
            $crate::sys::log::err!($subject, $($args)*);
        }
    };
}
pub(crate) use err_limit;

/// Prints a warning.
macro_rules! warning {
    ($subject:literal, $($args:tt)*) => {
        $crate::sys::log::write(
            $crate::sys::log::Level::Warning,
            $crate::c_name!($subject),
            kernel::prelude::fmt!($($args)*),
        )
    };
}
pub(crate) use warning;

/// Prints an informational message.
macro_rules! info {
    ($subject:literal, $($args:tt)*) => {
        $crate::sys::log::write(
            $crate::sys::log::Level::Info,
            $crate::c_name!($subject),
            kernel::prelude::fmt!($($args)*),
        )
    };
}
pub(crate) use info;
