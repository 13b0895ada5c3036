// SPDX-License-Identifier: GPL-2.0

//! Queue limits: those that a target changes, and those of a device below.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h), `struct queue_limits`

use core::{
    marker::PhantomData,
    ptr::addr_of, //
};
use kernel::bindings as kb;

/// Reads a field of limits that may change at any time: never through a reference.
macro_rules! read {
    ($limits:expr, $field:ident) => {{
        // SAFETY: By the contract of `DeviceLimits::new` the limits exist.
        let field = unsafe { addr_of!((*$limits.limits).$field) };
        // SAFETY: The pointer is to a field of live limits: an aligned word, every value of which
        // is valid.
        unsafe { field.read_volatile() }
    }};
}

/// The limits of the mapped device within `io_hints`, stacked from the devices below.
pub(crate) struct Limits<'a>(&'a mut kb::queue_limits);

impl<'a> Limits<'a> {
    pub(super) fn new(limits: &'a mut kb::queue_limits) -> Self {
        Limits(limits)
    }

    /// Optimal I/O size in bytes; zero if none is known.
    pub(crate) fn io_opt(&self) -> u32 {
        self.0.io_opt
    }

    /// Sets minimum and optimal I/O size, in bytes.
    pub(crate) fn set_io_sizes(&mut self, min: u32, opt: u32) {
        self.0.io_min = min;
        self.0.io_opt = opt;
    }

    /// Sets the largest discard in sectors and the granularity in bytes, aligned to zero.
    pub(crate) fn set_discard(&mut self, max_sectors: u32, granularity: u32) {
        self.0.max_hw_discard_sectors = max_sectors;
        self.0.discard_granularity = granularity;
        self.0.discard_alignment = 0;
    }

    /// Takes the discard limits over from a device below.
    pub(crate) fn copy_discard(&mut self, from: &DeviceLimits<'_>) {
        self.0.max_hw_discard_sectors = read!(from, max_hw_discard_sectors);
        self.0.discard_granularity = read!(from, discard_granularity);
        self.0.discard_alignment = read!(from, discard_alignment);
        self.0.max_discard_segments = read!(from, max_discard_segments);
    }
}

/// The limits of an open block device.
pub(crate) struct DeviceLimits<'a> {
    limits: *const kb::queue_limits,
    _device: PhantomData<&'a ()>,
}

impl DeviceLimits<'_> {
    /// # Safety
    ///
    /// `limits` are those of a block device that is open during `'a`.
    pub(super) unsafe fn new(limits: *const kb::queue_limits) -> Self {
        DeviceLimits {
            limits,
            _device: PhantomData,
        }
    }
}
