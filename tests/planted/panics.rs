// SPDX-License-Identifier: GPL-2.0

//! Functions that can panic, and some that cannot, for the test of `scripts/audit`.
//!
//! Nothing calls them, and the module must not be loaded.
//!
//! There is a function for each way in which Rust code can panic: a check that the compiler adds,
//! a function of `core` that checks, a function of `core` that is not inlined, and a function that
//! is called through a table.

#![allow(missing_docs)]

use core::cell::RefCell;
use kernel::prelude::*;

module! {
    type: Panics,
    name: "panics",
    authors: ["The dm-rust developers"],
    description: "Panics on purpose, for the test of the audit",
    license: "GPL",
}

struct Panics;

impl kernel::Module for Panics {
    fn init(_: &'static ThisModule) -> Result<Self> {
        Err(EINVAL)
    }
}

#[no_mangle]
pub fn panics_copy_from_slice(to: &mut [u8], from: &[u8]) {
    to.copy_from_slice(from)
}

#[no_mangle]
pub fn panics_index(from: &[u8], index: usize) -> u8 {
    from[index]
}

#[no_mangle]
pub fn panics_array(from: &[u8; 4], index: usize) -> u8 {
    from[index]
}

#[no_mangle]
pub fn panics_slice(from: &[u8], start: usize, end: usize) -> &[u8] {
    &from[start..end]
}

#[no_mangle]
pub fn panics_str(from: &str, start: usize) -> &str {
    &from[start..]
}

#[no_mangle]
pub fn panics_split(from: &[u8], at: usize) -> (&[u8], &[u8]) {
    from.split_at(at)
}

#[no_mangle]
pub fn panics_chunks(from: &[u8], size: usize) -> usize {
    from.chunks(size).len()
}

#[no_mangle]
pub fn panics_unwrap(value: Option<u8>) -> u8 {
    value.unwrap()
}

#[no_mangle]
pub fn panics_expect(value: core::result::Result<u8, u8>) -> u8 {
    value.expect("planted")
}

#[no_mangle]
pub fn panics_assert(value: u8) {
    assert!(value != 7)
}

#[no_mangle]
pub fn panics_unreachable(value: u8) -> u8 {
    match value {
        0 => 1,
        _ => unreachable!(),
    }
}

#[no_mangle]
pub fn panics_borrow(cell: &RefCell<u8>) -> u8 {
    *cell.borrow()
}

#[no_mangle]
pub fn panics_divide(a: u32, b: u32) -> u32 {
    a / b
}

#[no_mangle]
pub fn panics_remainder(a: u32, b: u32) -> u32 {
    a % b
}

#[no_mangle]
pub fn panics_add(a: u8, b: u8) -> u8 {
    a + b
}

#[no_mangle]
pub fn panics_subtract(a: u64, b: u64) -> u64 {
    a - b
}

#[no_mangle]
pub fn panics_multiply(a: usize, b: usize) -> usize {
    a * b
}

#[no_mangle]
pub fn panics_negate(a: i32) -> i32 {
    -a
}

#[no_mangle]
pub fn panics_shift(a: u32, by: u32) -> u32 {
    a << by
}

#[no_mangle]
pub fn panics_radix(text: &str, radix: u32) -> Option<u32> {
    u32::from_str_radix(text, radix).ok()
}

/// `Debug` of a string is a function of `core` that is called indirectly.
#[no_mangle]
pub fn panics_debug(text: &str) {
    pr_info!("{:?}\n", text)
}

static TABLE: [fn(&[u8]) -> u8; 2] = [
    |from| from.len().leading_zeros() as u8,
    |from| from[from.len() / 2],
];

#[no_mangle]
pub fn panics_table(from: &[u8], index: usize) -> u8 {
    TABLE.get(index).map_or(0, |call| call(from))
}

#[no_mangle]
pub fn fine_copy(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

#[no_mangle]
pub fn fine_get(from: &[u8], index: usize) -> u8 {
    from.get(index).copied().unwrap_or_default()
}

#[no_mangle]
pub fn fine_arithmetic(a: u32, b: u32) -> Option<u32> {
    a.checked_add(b)?.checked_rem(b)?.checked_shl(a)
}

#[no_mangle]
pub fn fine_number(value: u64) {
    pr_info!("{}\n", value)
}
