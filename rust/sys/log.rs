// SPDX-License-Identifier: GPL-2.0

//! Messages in device-mapper's form: `device-mapper: <subject>: <text>`.

use crate::{
    bindings,
    sys::string::bytes, //
};
use kernel::{
    fmt,
    prelude::fmt,
    print, //
};

/// How loud a message is.
#[derive(Clone, Copy)]
pub(crate) enum Level {
    /// Something failed.
    Error,
    /// Something is odd, but works.
    Warning,
    /// Worth knowing.
    Info,
}

/// Prints one line; the end of the line is added here. `prefix` ends in a nul byte; use the macros
/// [`err!`], [`warn!`] and [`info!`]. Any context.
pub(crate) fn write(level: Level, prefix: &'static core::ffi::CStr, args: fmt::Arguments<'_>) {
    let format = match level {
        Level::Error => &print::format_strings::ERR,
        Level::Warning => &print::format_strings::WARNING,
        Level::Info => &print::format_strings::INFO,
    };
    // SAFETY: The format is one of the fixed ones, and the prefix is nul-terminated.
    unsafe { print::call_printk(format, prefix.to_bytes_with_nul(), fmt!("{}\n", args)) }
}

/// Whether a rate-limited message may be printed now; if not, it is counted. Any context.
pub(crate) fn allowed() -> bool {
    // SAFETY: No preconditions.
    unsafe { bindings::dmr_log_allowed() }
}

/// Warns of a counter that would have fallen below zero, once. Any context.
#[cold]
pub(crate) fn miscounted() {
    // SAFETY: No preconditions.
    unsafe { bindings::dmr_warn_miscounted() }
}

/// A C string as text in messages; what is not UTF-8 is shown as a question mark.
pub(crate) struct CStrDisplay<'a>(pub(crate) &'a core::ffi::CStr);

impl fmt::Display for CStrDisplay<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(core::str::from_utf8(bytes(self.0)).unwrap_or("?"))
    }
}

/// Prints an error: `err!("clone", "text {}", value)`.
macro_rules! err {
    ($subject:literal, $($args:tt)*) => {
        $crate::sys::log::write(
            $crate::sys::log::Level::Error,
            $crate::c_name!("device-mapper: ", $subject),
            kernel::prelude::fmt!($($args)*),
        )
    };
}
pub(crate) use err;

/// Prints a warning.
macro_rules! warning {
    ($subject:literal, $($args:tt)*) => {
        $crate::sys::log::write(
            $crate::sys::log::Level::Warning,
            $crate::c_name!("device-mapper: ", $subject),
            kernel::prelude::fmt!($($args)*),
        )
    };
}
pub(crate) use warning;

/// Prints an information.
macro_rules! info {
    ($subject:literal, $($args:tt)*) => {
        $crate::sys::log::write(
            $crate::sys::log::Level::Info,
            $crate::c_name!("device-mapper: ", $subject),
            kernel::prelude::fmt!($($args)*),
        )
    };
}
pub(crate) use info;
