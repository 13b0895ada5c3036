// SPDX-License-Identifier: GPL-2.0

//! Copying between devices.
//!
//! C header: [`include/linux/dm-kcopyd.h`](srctree/include/linux/dm-kcopyd.h)

use crate::{
    bindings,
    dm::device::{
        AnchorUser,
        Device, //
    },
    logic::units::{
        Sector,
        Sectors, //
    },
    sys::pool::PoolBox, //
};
use core::ptr::NonNull;
use kernel::{
    error::from_err_ptr,
    ffi::{
        c_int,
        c_ulong,
        c_void, //
    },
    prelude::*, //
};

/// A part of a device.
pub(crate) struct Extent<'a> {
    /// Where it is.
    pub(crate) device: &'a Device,
    /// Its first sector on the device.
    pub(crate) start: Sector,
    /// Its length.
    pub(crate) len: Sectors,
}

impl Extent<'_> {
    fn raw(&self) -> bindings::dm_io_region {
        bindings::dm_io_region {
            bdev: self.device.raw_bdev(),
            sector: self.start.0,
            count: self.len.0,
        }
    }
}

/// How a copy ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyResult {
    /// All is written, not necessarily durable.
    Copied,
    /// The source could not be read.
    ReadFailed,
    /// A destination could not be written.
    WriteFailed,
}

/// What happens when a copy has ended. The value is the copy's owned context.
pub(crate) trait CopyDone: Send + Sized + 'static {
    /// Called once, in kcopyd's worker thread: may sleep, but all copies of the client wait meanwhile.
    fn done(this: PoolBox<Self>, result: CopyResult);
}

/// The shared speed limit of all clients that were made with it, in percent of the time.
#[derive(Clone, Copy)]
pub(crate) struct Throttle(*mut bindings::dm_kcopyd_throttle);

impl Throttle {
    /// The one that the module parameter `clone_hydration_throttle` sets.
    pub(crate) fn clone_hydration() -> Self {
        // SAFETY: No preconditions; it returns the address of a static.
        Throttle(unsafe { bindings::dmr_clone_throttle() })
    }
}

/// A kcopyd client: its jobs, its memory and its worker thread.
///
/// It copies between devices of one target, which stay open until the client has been dropped: that waits for its copies.
pub(crate) struct Kcopyd {
    raw: NonNull<bindings::dm_kcopyd_client>,
    // Dropped last: see above.
    target: AnchorUser,
}

// SAFETY: kcopyd clients may be used from any thread.
unsafe impl Send for Kcopyd {}
// SAFETY: As above; the client has its own locks.
unsafe impl Sync for Kcopyd {}

impl Kcopyd {
    /// Makes a client. Sleeps.
    pub(super) fn new(target: AnchorUser, throttle: Throttle) -> Result<Self> {
        // SAFETY: The throttle is a static of this module.
        let raw = from_err_ptr(unsafe { bindings::dm_kcopyd_client_create(throttle.0) })?;
        Ok(Kcopyd {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            target,
        })
    }

    /// Starts to copy. Process context; may sleep until memory of the client's reserve is free, never for I/O of the
    /// caller's own. Devices of another target than the client's are refused, as if they could not be read.
    pub(crate) fn copy<C: CopyDone>(
        &self,
        from: &Extent<'_>,
        to: &Extent<'_>,
        context: PoolBox<C>,
    ) {
        /// # Safety
        ///
        /// For kcopyd only, as the callback of a job whose context is a `PoolBox<C>`.
        unsafe extern "C" fn notify<C: CopyDone>(
            read_err: c_int,
            write_err: c_ulong,
            context: *mut c_void,
        ) {
            let result = match (read_err, write_err) {
                (0, 0) => CopyResult::Copied,
                (0, _) => CopyResult::WriteFailed,
                _ => CopyResult::ReadFailed,
            };
            // SAFETY: kcopyd calls back once per job with the context of the job, made by `into_raw` below.
            C::done(unsafe { PoolBox::<C>::from_raw(context) }, result)
        }
        if !self.target.keeps(from.device) || !self.target.keeps(to.device) {
            return C::done(context, CopyResult::ReadFailed);
        }
        let (mut from, mut to) = (from.raw(), to.raw());
        // SAFETY: The client is live; kcopyd takes a copy of both extents; the context fits the callback. The devices stay
        // open until the client is gone, and so until all its copies have ended.
        unsafe {
            bindings::dm_kcopyd_copy(
                self.raw.as_ptr(),
                &mut from,
                1,
                &mut to,
                0,
                Some(notify::<C>),
                context.into_raw(),
            )
        }
    }

    /// Waits until callbacks that run now have returned. Sleeps.
    pub(crate) fn flush(&self) {
        // SAFETY: The client is live.
        unsafe { bindings::dm_kcopyd_client_flush(self.raw.as_ptr()) }
    }
}

impl Drop for Kcopyd {
    fn drop(&mut self) {
        // SAFETY: The client is ours. Waits for all its jobs.
        unsafe { bindings::dm_kcopyd_client_destroy(self.raw.as_ptr()) }
    }
}
