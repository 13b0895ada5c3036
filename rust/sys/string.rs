// SPDX-License-Identifier: GPL-2.0

//! C strings, without a reference to a panic.
//!
//! `CStr::from_ptr` adds one to a length, and `CStr::to_bytes` subtracts one. Where the kernel
//! checks for overflow, both refer to a panic, which `scripts/audit` forbids. These functions do
//! the same without.

use kernel::{
    bindings as kb,
    ffi::c_char,
    prelude::*, //
};

/// Borrows a C string. Any context.
///
/// # Safety
///
/// `string` is nul-terminated and is neither changed nor freed during `'a`.
pub(crate) unsafe fn c_string<'a>(string: *const c_char) -> &'a CStr {
    // SAFETY: By this function's contract, the string is nul-terminated.
    let len = unsafe { kb::strlen(string) };
    // SAFETY: The string and its nul byte are `len + 1` bytes, which stay unchanged during `'a`.
    let bytes = unsafe { core::slice::from_raw_parts(string.cast::<u8>(), len.wrapping_add(1)) };
    // SAFETY: `strlen` found the first nul byte at the end of `bytes`.
    unsafe { CStr::from_bytes_with_nul_unchecked(bytes) }
}

/// Returns the bytes of a string without its nul byte. Any context.
pub(crate) fn bytes(string: &CStr) -> &[u8] {
    string
        .to_bytes_with_nul()
        .split_last()
        .map_or(&[], |(_, bytes)| bytes)
}
