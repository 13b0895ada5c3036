// SPDX-License-Identifier: GPL-2.0

//! Arguments of a table line or of a message.

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

/// The words that are left, in order.
#[derive(Clone)]
pub(crate) struct Arguments<'a> {
    next: *const *mut c_char,
    left: usize,
    _argv: PhantomData<&'a CStr>,
}

impl Arguments<'_> {
    /// # Safety
    ///
    /// `argv` has `argc` pointers to nul-terminated strings, which are not changed during `'a`.
    pub(super) unsafe fn new(argc: u32, argv: *const *mut c_char) -> Self {
        // CAST: 32 bits fit into usize on every architecture with device-mapper.
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
        // SAFETY: There was one more word, so the pointer is within the array.
        let word = unsafe { self.next.read() };
        // SAFETY: At most one past the end of the array.
        self.next = unsafe { self.next.add(1) };
        // SAFETY: By the contract of `new` it is a string that stays.
        Some(unsafe { c_string(word) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Arguments<'_> {
    // The provided method asserts that both bounds of `size_hint` agree, hence could panic.
    fn len(&self) -> usize {
        self.left
    }
}

/// The words, separated by blanks.
impl fmt::Display for Arguments<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for word in self.clone() {
            f.write_str(separator)?;
            fmt::Display::fmt(&CStrDisplay(word), f)?;
            separator = " ";
        }
        Ok(())
    }
}
