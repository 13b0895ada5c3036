// SPDX-License-Identifier: GPL-2.0

//! Persistent data structures of the kernel (`dm-persistent-data`): transactions that survive a
//! power cut.
//!
//! All functions sleep for metadata I/O. Callers hold a sleeping lock of their own around anything
//! that changes.
//!
//! C headers: `drivers/md/persistent-data/*.h`

pub(crate) mod array;
pub(crate) mod block;
pub(crate) mod tm;
pub(crate) mod tree;
pub(crate) mod verify;

/// Checksum of a metadata block: CRC-32C of the bytes, combined with a constant that tells kinds of
/// blocks apart.
pub(crate) fn checksum(data: &[u8], xor: u32) -> u32 {
    // SAFETY: The pointer and the length are those of a slice.
    unsafe { crate::bindings::dm_bm_checksum(data.as_ptr().cast(), data.len(), xor) }
}

/// Whether an error says that there is no such entry.
fn is_no_data(error: kernel::error::Error) -> bool {
    // CAST: An error number.
    error.to_errno() == -(kernel::bindings::ENODATA as i32)
}
