// SPDX-License-Identifier: GPL-2.0

//! Persistent data structures: the kernel's `dm-persistent-data` library.
//!
//! A transaction of the library survives a power cut as a whole, or not at all. Most functions wait
//! for metadata I/O. Callers serialise changes with a sleeping lock of their own.
//!
//! C headers: `drivers/md/persistent-data/*.h`

pub(crate) mod array;
pub(crate) mod block;
pub(crate) mod tm;
pub(crate) mod tree;
pub(crate) mod verify;

/// Returns the checksum of a metadata block: CRC-32C of the bytes, combined with a constant that
/// identifies the kind of block. C counterpart: `dm_bm_checksum()`. Any context.
pub(crate) fn checksum(data: &[u8], xor: u32) -> u32 {
    // SAFETY: Pointer and length are those of a slice.
    unsafe { crate::bindings::dm_bm_checksum(data.as_ptr().cast(), data.len(), xor) }
}

/// Returns whether an error means that there is no such entry.
fn is_no_data(error: kernel::error::Error) -> bool {
    // CAST: An error number fits into 31 bits.
    error.to_errno() == -(kernel::bindings::ENODATA as i32)
}
