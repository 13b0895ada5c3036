// SPDX-License-Identifier: GPL-2.0

//! Host build of the module's pure logic, with property tests, models and fault injection.
//!
//! The crate includes the logic from the source of the kernel module. There, as here, the logic
//! finds `env` at the root of the crate. `cargo build` proves that the logic needs no `std`, and
//! `cargo test` tests it.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), allow(dead_code, reason = "only the tests use the logic"))]

extern crate alloc;

mod env;

#[allow(
    dead_code,
    reason = "some of it is used by the kernel or by the tests only"
)]
#[path = "../../../rust/logic/mod.rs"]
mod logic;

#[cfg(test)]
mod tests;
