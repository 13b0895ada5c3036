// SPDX-License-Identifier: GPL-2.0

//! Raw bindings, which `bindgen` generates from `bindings_helper.h`.
//!
//! Types that the kernel crate binds are those of the kernel crate. Only `sys` and `dm` may use
//! this module.

#![allow(
    clippy::all,
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_imports
)]
#![cfg_attr(CONFIG_RUSTC_HAS_UNNECESSARY_TRANSMUTES, allow(unnecessary_transmutes))]

use kernel::bindings::*;
use kernel::ffi;
use pin_init::{
    MaybeZeroable,
    Zeroable, //
};

include!(concat!(
    env!("DM_RUST_OBJ"),
    "/bindings/bindings_generated.rs"
));
