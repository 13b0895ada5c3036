// SPDX-License-Identifier: GPL-2.0

//! Words of a table line or of a message.

use core::marker::PhantomData;
use kernel::{
    ffi::c_char,
    prelude::*,
    str::CStrExt as _, //
};

/// The words that are left, in order.
#[derive(Clone)]
pub(crate) struct Words<'a> {
    next: *const *mut c_char,
    left: usize,
    _argv: PhantomData<&'a CStr>,
}

impl Words<'_> {
    /// # Safety
    ///
    /// `argv` has `argc` pointers to nul-terminated strings, which are not changed during `'a`.
    pub(super) unsafe fn new(argc: u32, argv: *const *mut c_char) -> Self {
        // CAST: 32 bits fit into usize on every architecture with device-mapper.
        Words { next: argv, left: argc as usize, _argv: PhantomData }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a CStr;

    fn next(&mut self) -> Option<&'a CStr> {
        self.left = self.left.checked_sub(1)?;
        // SAFETY: There was one more word, so the pointer is within the array.
        let word = unsafe { self.next.read() };
        // SAFETY: At most one past the end of the array.
        self.next = unsafe { self.next.add(1) };
        // SAFETY: By the contract of `new` it is a string that stays.
        Some(unsafe { CStr::from_char_ptr(word) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Words<'_> {}
