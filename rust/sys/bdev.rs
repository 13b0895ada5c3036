// SPDX-License-Identifier: GPL-2.0

//! A block device held open independently of any table.

use core::ptr::NonNull;
use kernel::{
    bindings as kb,
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*, //
};

/// An open block device, without an exclusive claim: device-mapper's own claim stays in force
/// beside it.
pub(crate) struct BlockDevice(NonNull<kb::file>);

// SAFETY: An open block device file may be used and closed from any thread.
unsafe impl Send for BlockDevice {}
// SAFETY: As above.
unsafe impl Sync for BlockDevice {}

impl BlockDevice {
    /// Opens a device by its number for reading and writing. Sleeps.
    pub(crate) fn open(number: u32) -> Result<Self> {
        let mode = crate::bindings::BLK_OPEN_READ | crate::bindings::BLK_OPEN_WRITE;
        // SAFETY: Any number may be asked for; there is no holder, hence no holder operations.
        let file = from_err_ptr(unsafe {
            kb::bdev_file_open_by_dev(number, mode, core::ptr::null_mut(), core::ptr::null())
        })?;
        Ok(BlockDevice(NonNull::new(file).ok_or(ENODEV)?))
    }

    /// The block device, valid while `self` lives.
    pub(crate) fn as_ptr(&self) -> *mut kb::block_device {
        // SAFETY: The file is that of a block device, and open.
        unsafe { kb::file_bdev(self.0.as_ptr()) }
    }

    /// Makes everything that the device acknowledged so far durable. Sleeps for I/O.
    pub(crate) fn flush(&self) -> Result {
        // SAFETY: The device is open.
        to_result(unsafe { kb::blkdev_issue_flush(self.as_ptr()) })
    }

    /// Present size in sectors. Any context.
    pub(crate) fn sectors(&self) -> u64 {
        // SAFETY: The device is open.
        unsafe { crate::bindings::dmr_bdev_sectors(self.as_ptr()) }
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        // SAFETY: Opened by `open`, closed once. Sleeps.
        unsafe { kb::bdev_fput(self.0.as_ptr()) }
    }
}
