// SPDX-License-Identifier: GPL-2.0

//! Reading blocks of a device ahead, through dm-bufio.
//!
//! C header: [`include/linux/dm-bufio.h`](srctree/include/linux/dm-bufio.h)

use crate::{
    bindings,
    dm::device::Device, //
};
use core::ptr::NonNull;
use kernel::{
    error::from_err_ptr,
    prelude::*, //
};

/// A cache of a device's blocks, for one reader that goes through them once.
pub(crate) struct Reader<'a> {
    raw: NonNull<bindings::dm_bufio_client>,
    block: usize,
    _device: &'a Device,
}

impl<'a> Reader<'a> {
    /// Makes a cache of blocks of so many bytes, which keeps at least `buffers` of them. Sleeps.
    pub(crate) fn new(device: &'a Device, block: u32, buffers: u32) -> Result<Self> {
        // SAFETY: The device is open as long as the client lives; there are no callbacks.
        let raw = from_err_ptr(unsafe {
            bindings::dm_bufio_client_create(device.raw_bdev(), block, 1, 0, None, None, 0)
        })?;
        let raw = NonNull::new(raw).ok_or(ENOMEM)?;
        // SAFETY: The client is live.
        unsafe { bindings::dm_bufio_set_minimum_buffers(raw.as_ptr(), buffers) };
        Ok(Reader {
            raw,
            block: usize::try_from(block)?,
            _device: device,
        })
    }

    /// Starts to read a block. Sleeps for memory.
    pub(crate) fn prefetch(&mut self, block: u64) {
        // SAFETY: The client is live.
        unsafe { bindings::dm_bufio_prefetch(self.raw.as_ptr(), block, 1) }
    }

    /// Reads a block, shows it to `look`, and forgets it. Sleeps for I/O.
    pub(crate) fn read<R>(&mut self, block: u64, look: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let mut buffer = core::ptr::null_mut();
        // SAFETY: The client is live; this is its only buffer that is held, since `self` is borrowed exclusively.
        let data = from_err_ptr(unsafe {
            bindings::dm_bufio_read(self.raw.as_ptr(), block, &mut buffer)
        })?;
        // SAFETY: A buffer that was read has as many bytes as a block, and stays until it is released.
        let result = look(unsafe { core::slice::from_raw_parts(data.cast(), self.block) });
        // SAFETY: Held by us, and not used any more.
        unsafe { bindings::dm_bufio_release(buffer) };
        // SAFETY: The client is live.
        unsafe { bindings::dm_bufio_forget(self.raw.as_ptr(), block) };
        Ok(result)
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        // SAFETY: The client is ours, and no buffer of it is held.
        unsafe { bindings::dm_bufio_client_destroy(self.raw.as_ptr()) }
    }
}
