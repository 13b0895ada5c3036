// SPDX-License-Identifier: GPL-2.0

//! Counters that cannot fall below zero.

use std::panic::{
    catch_unwind,
    AssertUnwindSafe, //
};

use crate::logic::count::{
    minus,
    Count, //
};

#[test]
fn what_comes_goes() {
    let mut count = Count::one();
    count.add();
    assert!(!count.take() && !count.is_zero());
    assert!(count.take() && count.is_zero());
    assert_eq!(count, Count::default());
    assert_eq!(minus(7, 7), 0);
}

#[test]
fn nothing_goes_that_did_not_come() {
    let mut count = Count::default();
    let below = catch_unwind(AssertUnwindSafe(|| count.take()));
    assert!(below.is_err() && count.is_zero());
    assert!(catch_unwind(|| minus(6, 7)).is_err());
}
