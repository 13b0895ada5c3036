// SPDX-License-Identifier: GPL-2.0

//! Queue limits of the mapped device and of the devices below.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h), `struct queue_limits`

use core::{
    marker::PhantomData,
    ptr::addr_of, //
};
use kernel::bindings as kb;

/// Reads a field of the limits of a device, which may change at any time.
///
/// There is no reference to the field, because a reference promises that nothing changes.
macro_rules! read {
    ($limits:expr, $field:ident) => {{
        // SAFETY: By the invariant of `DeviceLimits`, the limits exist.
        let field = unsafe { addr_of!((*$limits.limits).$field) };
        // SAFETY: The pointer is to a field of existing limits, which is an aligned integer. C code
        // writes it as a whole.
        unsafe { field.read_volatile() }
    }};
}

/// The limits of the mapped device, within the hook `io_hints`.
///
/// Device-mapper has combined them from those of the devices below.
pub(crate) struct Limits<'a>(&'a mut kb::queue_limits);

impl<'a> Limits<'a> {
    /// Wraps the limits that the hook got. Any context.
    pub(super) fn new(limits: &'a mut kb::queue_limits) -> Self {
        Limits(limits)
    }

    /// Returns the optimal I/O size in bytes, or zero if it is unknown. Any context.
    pub(crate) fn io_opt(&self) -> u32 {
        self.0.io_opt
    }

    /// Sets the minimum and the optimal I/O size, in bytes. Any context.
    pub(crate) fn set_io_sizes(&mut self, min: u32, opt: u32) {
        self.0.io_min = min;
        self.0.io_opt = opt;
    }

    /// Sets the largest discard in sectors, and the granularity in bytes, aligned to zero. Any
    /// context.
    pub(crate) fn set_discard(&mut self, max_sectors: u32, granularity: u32) {
        self.0.max_hw_discard_sectors = max_sectors;
        self.0.discard_granularity = granularity;
        self.0.discard_alignment = 0;
    }

    /// Copies the discard limits of a device below. Any context.
    pub(crate) fn copy_discard(&mut self, from: &DeviceLimits<'_>) {
        self.0.max_hw_discard_sectors = read!(from, max_hw_discard_sectors);
        self.0.discard_granularity = read!(from, discard_granularity);
        self.0.discard_alignment = read!(from, discard_alignment);
        self.0.max_discard_segments = read!(from, max_discard_segments);
    }
}

/// The limits of an open block device.
///
/// # Invariants
///
/// The pointer is to the limits of a block device that is open during `'a`.
pub(crate) struct DeviceLimits<'a> {
    limits: *const kb::queue_limits,
    _device: PhantomData<&'a ()>,
}

impl DeviceLimits<'_> {
    /// Wraps the limits of a block device. Any context.
    ///
    /// # Safety
    ///
    /// `limits` points to the limits of a block device that is open during `'a`.
    pub(super) unsafe fn new(limits: *const kb::queue_limits) -> Self {
        // INVARIANT: This is the contract of the function.
        DeviceLimits {
            limits,
            _device: PhantomData,
        }
    }
}
