// SPDX-License-Identifier: GPL-2.0

//! Host build of the module's pure logic, with its properties, models and fault injection.
//!
//! The logic is included from where the kernel module has it, and finds [`env`] under the same path
//! as there. `cargo build` shows that it needs no `std`; `cargo test` tests it.

#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), allow(dead_code, reason = "the users are the tests"))]

extern crate alloc;

mod env;

#[allow(
    dead_code,
    reason = "what only the kernel uses, or only properties need"
)]
#[path = "../../../rust/logic/mod.rs"]
mod logic;

#[cfg(test)]
mod tests;
