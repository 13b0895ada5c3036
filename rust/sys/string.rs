// SPDX-License-Identifier: GPL-2.0

//! Strings from C.

use kernel::{
    bindings as kb,
    ffi::c_char,
    prelude::*, //
};

/// Borrows a C string, as [`CStr::from_char_ptr`] does, but without arithmetic that could overflow
/// and so panic.
///
/// # Safety
///
/// `string` is nul-terminated and is neither changed nor freed during `'a`.
pub(crate) unsafe fn c_string<'a>(string: *const c_char) -> &'a CStr {
    // SAFETY: By the contract.
    let len = unsafe { kb::strlen(string) };
    // SAFETY: The string and its nul byte are `len + 1` bytes, which stay during `'a`.
    let bytes = unsafe { core::slice::from_raw_parts(string.cast::<u8>(), len.wrapping_add(1)) };
    // SAFETY: `strlen` found the first nul byte at the end.
    unsafe { CStr::from_bytes_with_nul_unchecked(bytes) }
}

/// The bytes of a string without its nul byte, as [`CStr::to_bytes`], but without arithmetic that
/// could panic.
pub(crate) fn bytes(string: &CStr) -> &[u8] {
    string
        .to_bytes_with_nul()
        .split_last()
        .map_or(&[], |(_, bytes)| bytes)
}
