// SPDX-License-Identifier: GPL-2.0

//! The targets, which connect the logic to device-mapper without unsafe code.

#![forbid(unsafe_code)]

pub(crate) mod clone;
pub(crate) mod era;
#[cfg(dm_rust_example)]
pub(crate) mod example;
pub(crate) mod shared_metadata;
pub(crate) mod snapshot;
#[cfg(dm_rust_example)]
pub(crate) mod stray;
