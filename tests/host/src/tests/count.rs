// SPDX-License-Identifier: GPL-2.0

//! Counters that do not underflow.

use std::panic::{
    catch_unwind,
    AssertUnwindSafe, //
};

use crate::logic::count::{
    subtract,
    Count, //
};

#[test]
fn counts_up_and_down() {
    let mut count = Count::one();
    count.increment();
    assert!(!count.decrement() && !count.is_zero());
    assert!(count.decrement() && count.is_zero());
    assert_eq!(count, Count::default());
    assert_eq!(subtract(7, 7), 0);
}

#[test]
fn underflow_is_reported() {
    let mut count = Count::default();
    let below = catch_unwind(AssertUnwindSafe(|| count.decrement()));
    assert!(below.is_err() && count.is_zero());
    assert!(catch_unwind(|| subtract(6, 7)).is_err());
}
