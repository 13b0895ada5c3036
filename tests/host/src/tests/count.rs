// SPDX-License-Identifier: GPL-2.0

//! Counters that cannot fall below zero.

use std::panic::{
    catch_unwind,
    AssertUnwindSafe, //
};

use crate::logic::count::{
    subtract,
    Count, //
};

#[test]
fn what_comes_goes() {
    let mut count = Count::one();
    count.increment();
    assert!(!count.decrement() && !count.is_zero());
    assert!(count.decrement() && count.is_zero());
    assert_eq!(count, Count::default());
    assert_eq!(subtract(7, 7), 0);
}

#[test]
fn nothing_goes_that_did_not_come() {
    let mut count = Count::default();
    let below = catch_unwind(AssertUnwindSafe(|| count.decrement()));
    assert!(below.is_err() && count.is_zero());
    assert!(catch_unwind(|| subtract(6, 7)).is_err());
}
