// SPDX-License-Identifier: GPL-2.0

//! Pure logic of the targets: no I/O, no locks, no kernel.
//!
//! Every file below is compiled twice, as part of the module and as part of the host tests in
//! `tests/host`. It may use `core`, `zerocopy` and [`crate::env`] only, and must not contain a
//! path that panics: no indexing, no unchecked arithmetic, no `unwrap`.

#![forbid(unsafe_code)]

pub(crate) mod args;
pub(crate) mod clone;
pub(crate) mod count;
pub(crate) mod era;
pub(crate) mod pdata;
pub(crate) mod regions;
pub(crate) mod snapshot;
pub(crate) mod units;
