// SPDX-License-Identifier: GPL-2.0

//! Arguments of a table line or of a message. C counterpart: `struct dm_arg_set`.

use crate::sys::{
    log::CStrDisplay,
    string::c_string, //
};
use core::marker::PhantomData;
use kernel::{
    ffi::c_char,
    fmt,
    prelude::*, //
};

/// The arguments that were not taken yet, in order.
///
/// # Invariants
///
/// `next` points to `left` pointers to nul-terminated strings, which are not changed during `'a`.
#[derive(Clone)]
pub(crate) struct Arguments<'a> {
    next: *const *mut c_char,
    left: usize,
    _argv: PhantomData<&'a CStr>,
}

impl Arguments<'_> {
    /// Wraps the arguments of a hook. Any context.
    ///
    /// # Safety
    ///
    /// `argv` points to `argc` pointers to nul-terminated strings, which are not changed during
    /// `'a`.
    pub(super) unsafe fn new(argc: u32, argv: *const *mut c_char) -> Self {
        // CAST: 32 bits fit into usize on every architecture with device-mapper.
        // INVARIANT: This is the contract of the function.
        Arguments {
            next: argv,
            left: argc as usize,
            _argv: PhantomData,
        }
    }
}

impl<'a> Iterator for Arguments<'a> {
    type Item = &'a CStr;

    fn next(&mut self) -> Option<&'a CStr> {
        self.left = self.left.checked_sub(1)?;
        // SAFETY: By the invariant, one more pointer can be read, because `left` was not zero.
        let argument = unsafe { self.next.read() };
        // SAFETY: By the invariant, the result is at most one past the end of the array.
        // INVARIANT: Both fields advance by one.
        self.next = unsafe { self.next.add(1) };
        // SAFETY: By the invariant, this is a nul-terminated string that does not change during
        // `'a`.
        Some(unsafe { c_string(argument) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Arguments<'_> {
    // The provided method asserts that both bounds of `size_hint` agree, and so refers to a panic.
    fn len(&self) -> usize {
        self.left
    }
}

/// Displays the arguments, separated by blanks.
impl fmt::Display for Arguments<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for argument in self.clone() {
            f.write_str(separator)?;
            fmt::Display::fmt(&CStrDisplay(argument), f)?;
            separator = " ";
        }
        Ok(())
    }
}
