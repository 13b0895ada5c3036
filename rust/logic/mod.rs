// SPDX-License-Identifier: GPL-2.0

//! Pure logic of the targets: no I/O, no locks, no kernel.
//!
//! Every file is compiled twice: for the module, and for the host tests in `tests/host`. It uses
//! only `core`, `zerocopy` and [`crate::env`], and contains no path that panics: no indexing, no
//! unchecked arithmetic, no `unwrap`.

#![forbid(unsafe_code)]

pub(crate) mod args;
pub(crate) mod clone;
pub(crate) mod count;
pub(crate) mod era;
pub(crate) mod pdata;
pub(crate) mod regions;
pub(crate) mod snapshot;
pub(crate) mod units;
