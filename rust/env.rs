// SPDX-License-Identifier: GPL-2.0

//! What pure logic may use of its surroundings: the kernel's side of the facade.
//!
//! The files under `logic/` import from `core`, `zerocopy` and this module only. The host test
//! crate has a module of the same name with the same names and signatures over `std`
//! (`tests/host/src/env.rs`), so a name that is missing on one side does not compile there.

#![allow(
    unused_imports,
    reason = "the facade offers a fixed set, users come and go"
)]

pub(crate) use kernel::{
    alloc::{
        flags::{
            GFP_KERNEL,
            GFP_NOWAIT,
            __GFP_NOWARN,
            __GFP_ZERO, //
        },
        AllocError,
        Flags,
        KVVec, //
    },
    error::{
        code::{
            EINVAL,
            EIO,
            ENOMEM,
            ENOSPC,
            ENOTBLK,
            ENXIO,
            EOVERFLOW,
            EPERM,
            ERANGE, //
        },
        Error,
        Result, //
    },
    fmt,
    prelude::fmt,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
};

/// Returns "illegal byte sequence", the code of a block with a wrong magic or checksum.
///
/// A function, because the kernel crate has no constant for it and makes errors from numbers at
/// run time only. May be called in any context.
#[inline]
pub(crate) fn eilseq() -> Error {
    // CAST: an error number, far below `i32::MAX`.
    Error::from_errno(-(kernel::bindings::EILSEQ as i32))
}

/// Warns of a counter that would have fallen below zero; once.
///
/// May be called in any context.
#[cold]
pub(crate) fn miscounted() {
    crate::sys::log::miscounted();
}

/// Returns the checksum persistent-data puts over `data`: crc32c from all ones, without the final
/// inversion, exclusive-or `xor`.
///
/// May be called in any context.
#[inline]
pub(crate) fn crc32c_block(data: &[u8], xor: u32) -> u32 {
    crate::dm::pdata::checksum(data, xor)
}
