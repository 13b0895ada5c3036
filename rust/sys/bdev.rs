// SPDX-License-Identifier: GPL-2.0

//! A block device that stays open independently of any table.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use core::ptr::NonNull;
use kernel::{
    bindings as kb,
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*, //
};

/// An open block device, without an exclusive claim.
///
/// Device-mapper's own claim on the device stays in force.
///
/// # Invariants
///
/// The pointer is to the file of a block device, opened by [`open`](Self::open) and not closed yet.
pub(crate) struct BlockDevice(NonNull<kb::file>);

// SAFETY: The file of a block device may be used and closed by any thread.
unsafe impl Send for BlockDevice {}
// SAFETY: All methods of `&self` call functions that any number of threads may call at a time.
unsafe impl Sync for BlockDevice {}

impl BlockDevice {
    /// Opens a device, named by its number, for reading and writing. May sleep.
    ///
    /// # Errors
    ///
    /// `ENXIO` or `ENODEV` if there is no such device, or the error of its driver.
    pub(crate) fn open(number: u32) -> Result<Self> {
        let mode = crate::bindings::BLK_OPEN_READ | crate::bindings::BLK_OPEN_WRITE;
        // SAFETY: The function takes any number. Without a holder, there are no holder operations.
        let file = from_err_ptr(unsafe {
            kb::bdev_file_open_by_dev(number, mode, core::ptr::null_mut(), core::ptr::null())
        })?;
        // INVARIANT: The file was opened above.
        Ok(BlockDevice(NonNull::new(file).ok_or(ENODEV)?))
    }

    /// Returns the block device, which is valid as long as `self` lives. Any context.
    pub(crate) fn as_ptr(&self) -> *mut kb::block_device {
        // SAFETY: By the invariant, this is the file of an open block device.
        unsafe { kb::file_bdev(self.0.as_ptr()) }
    }

    /// Makes all writes that the device has acknowledged durable. May sleep.
    ///
    /// # Errors
    ///
    /// The error of the flush.
    pub(crate) fn flush(&self) -> Result {
        // SAFETY: By the invariant, the block device is open.
        to_result(unsafe { kb::blkdev_issue_flush(self.as_ptr()) })
    }

    /// Returns the present size in sectors. Any context.
    pub(crate) fn sectors(&self) -> u64 {
        // SAFETY: By the invariant, the block device is open.
        unsafe { crate::bindings::dmr_bdev_sectors(self.as_ptr()) }
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        // SAFETY: By the invariant, the file is open; nothing uses it after this.
        unsafe { kb::bdev_fput(self.0.as_ptr()) }
    }
}
