// SPDX-License-Identifier: GPL-2.0

//! The environment of the pure logic: the implementation for the kernel.
//!
//! The files in `logic/` import only from `core`, `zerocopy` and this module. The implementation
//! for the host tests, `tests/host/src/env.rs`, has the same names and signatures over `std`, so a
//! name that is missing on one side does not compile there.

#![allow(
    unused_imports,
    reason = "it has the same names as tests/host/src/env.rs, whatever the logic uses"
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
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        SetOnce, //
    }, //
};

/// Returns `EILSEQ`, the error of a block with a wrong magic number or checksum.
///
/// This is a function because the kernel crate has no such constant, and converts numbers to errors
/// only at run time. Any context.
#[inline]
pub(crate) fn eilseq() -> Error {
    // CAST: Error numbers are far below `i32::MAX`.
    Error::from_errno(-(kernel::bindings::EILSEQ as i32))
}

/// Warns, once, of a counter that would have become negative.
///
/// Any context.
#[cold]
pub(crate) fn miscounted() {
    crate::sys::log::miscounted();
}

/// Returns the checksum of `data` as persistent-data computes it: crc32c, started with all ones,
/// without the final inversion, XOR `xor`.
///
/// Any context.
#[inline]
pub(crate) fn crc32c_block(data: &[u8], xor: u32) -> u32 {
    crate::dm::pdata::checksum(data, xor)
}
