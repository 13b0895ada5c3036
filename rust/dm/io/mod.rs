// SPDX-License-Identifier: GPL-2.0

//! I/O of the targets themselves, from kernel memory. C counterpart: `struct dm_io_client`.
//!
//! C header: [`include/linux/dm-io.h`](srctree/include/linux/dm-io.h)

mod buffer;
mod parallel;
mod request;

pub(super) use self::request::InflightCount;
pub(crate) use self::{
    buffer::Buffer,
    parallel::{
        ParallelWrites,
        PartWrite, //
    },
    request::{
        Request,
        RequestList, //
    }, //
};

use crate::{
    bindings,
    dm::{
        device::{
            Device,
            TargetRef, //
        },
        pages::Pages, //
    },
    logic::{
        count,
        units::{
            Sector,
            Sectors, //
        }, //
    },
    sys::pool::PoolBox, //
};
use core::{
    ops::Range,
    ptr::NonNull, //
};
use kernel::{
    bindings as kb,
    error::{
        from_err_ptr,
        to_result, //
    },
    ffi::{
        c_ulong,
        c_void, //
    },
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    }, //
};

/// The operation of a transfer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// Read from the device.
    Read,
    /// Write to the device.
    Write,
    /// Write to the device in the background, without `REQ_SYNC`.
    WriteBehind,
    /// Write zeros, with `REQ_OP_WRITE_ZEROES`.
    WriteZeroes,
    /// Write durably.
    WriteFua,
    /// Make earlier writes durable, and then write durably.
    WriteFlushFua,
}

impl Transfer {
    fn flags(self) -> kb::blk_opf_t {
        match self {
            Transfer::Read => kb::req_op_REQ_OP_READ | bindings::REQ_SYNC,
            Transfer::Write => kb::req_op_REQ_OP_WRITE | bindings::REQ_SYNC,
            Transfer::WriteBehind => kb::req_op_REQ_OP_WRITE,
            Transfer::WriteZeroes => kb::req_op_REQ_OP_WRITE_ZEROES | bindings::REQ_SYNC,
            Transfer::WriteFua => kb::req_op_REQ_OP_WRITE | bindings::REQ_SYNC | bindings::REQ_FUA,
            Transfer::WriteFlushFua => {
                kb::req_op_REQ_OP_WRITE
                    | bindings::REQ_SYNC
                    | bindings::REQ_PREFLUSH
                    | bindings::REQ_FUA
            }
        }
    }
}

/// The owned context of an asynchronous transfer. It has the memory, and completes the transfer.
pub(crate) trait IoContext: Send + Sized + 'static {
    /// Returns the memory of the transfer. Any context.
    fn pages(&mut self) -> &mut Pages;

    /// Completes the transfer. Called once, from the completion of the bio, which may be a hard
    /// interrupt.
    fn done(this: PoolBox<Request<Self>>, result: Result);
}

/// Describes bytes to dm-io, and returns their length.
fn memory(bytes: &mut [u8]) -> (bindings::dm_io_memory, Sectors) {
    let memory = bindings::dm_io_memory {
        type_: bindings::dm_io_mem_type_DM_IO_VMA,
        offset: 0,
        ptr: bindings::dm_io_memory__bindgen_ty_1 {
            vma: bytes.as_mut_ptr().cast(),
        },
    };
    // CAST: usize has at most 64 bits.
    let len = Sectors((bytes.len() >> kernel::block::SECTOR_SHIFT) as u64);
    (memory, len)
}

/// A client of dm-io. It has a reserve of bios, so that its I/O makes progress when memory is
/// short.
///
/// A client serves the devices of one target. They stay open until the client is dropped, which
/// waits for all its requests.
///
/// # Invariants
///
/// The pointer is to a client that is destroyed with this value.
pub(crate) struct IoClient {
    raw: NonNull<bindings::dm_io_client>,
    in_flight: Arc<InflightCount>,
    // Dropped last: it keeps the devices open.
    target: TargetRef,
}

// SAFETY: A client is not tied to a thread.
unsafe impl Send for IoClient {}
// SAFETY: Any number of threads may use a client at a time: it consists of memory pools.
unsafe impl Sync for IoClient {}

impl IoClient {
    /// Creates a client for the devices of a target. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn new(target: TargetRef) -> Result<Self> {
        // SAFETY: The function has no preconditions.
        let raw = from_err_ptr(unsafe { bindings::dm_io_client_create() })?;
        let raw = NonNull::new(raw).ok_or(ENOMEM)?;
        match InflightCount::new() {
            Ok(in_flight) => Ok(IoClient {
                raw,
                in_flight,
                target,
            }),
            Err(error) => {
                // SAFETY: The client was created above, and nothing uses it.
                unsafe { bindings::dm_io_client_destroy(raw.as_ptr()) };
                Err(error)
            }
        }
    }

    /// Transfers a whole buffer, and waits for it. May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` if the I/O failed; `EINVAL` if the device is of another target.
    pub(crate) fn transfer(
        &self,
        what: Transfer,
        device: &Device,
        start: Sector,
        buffer: &mut Buffer,
    ) -> Result {
        self.transfer_bytes(what, device, start, &mut buffer.0)
    }

    /// Transfers some sectors of a buffer, and waits for them. May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` if the I/O failed; `EINVAL` if the buffer does not have these sectors, or the device
    /// is of another target.
    pub(crate) fn transfer_part(
        &self,
        what: Transfer,
        device: &Device,
        start: Sector,
        buffer: &mut Buffer,
        part: Range<u32>,
    ) -> Result {
        self.transfer_bytes(what, device, start, buffer.part(part)?)
    }

    /// Makes a range read as zeros, in the way that the device does it best.
    ///
    /// `zeros` is written if the device cannot write zeros by itself. The zeros are not durable
    /// before a flush. This allocates from the client's reserve only. May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` if the I/O failed; `EINVAL` if the device is of another target.
    pub(crate) fn zero(
        &self,
        device: &Device,
        start: Sector,
        len: Sectors,
        zeros: &mut Buffer,
    ) -> Result {
        let nothing = bindings::dm_io_memory {
            type_: bindings::dm_io_mem_type_DM_IO_KMEM,
            offset: 0,
            ptr: bindings::dm_io_memory__bindgen_ty_1 {
                addr: core::ptr::null_mut(),
            },
        };
        // SAFETY: A request that writes zeros has no data.
        let done = unsafe { self.wait(Transfer::WriteZeroes, device, (start, len), nothing) };
        if done.is_ok() {
            return Ok(());
        }
        let (mut at, mut left) = (start, len.0);
        while left != 0 {
            let most = u32::try_from(zeros.len() >> kernel::block::SECTOR_SHIFT)?;
            let piece = u32::try_from(left).map_or(most, |left| left.min(most));
            if piece == 0 {
                return Err(EINVAL);
            }
            self.transfer_part(Transfer::Write, device, at, zeros, 0..piece)?;
            at = at.checked_add(Sectors(piece.into())).ok_or(EINVAL)?;
            left = count::subtract(left, piece.into());
        }
        Ok(())
    }

    /// Transfers whole sectors, and waits for them.
    fn transfer_bytes(
        &self,
        what: Transfer,
        device: &Device,
        start: Sector,
        bytes: &mut [u8],
    ) -> Result {
        let (memory, len) = memory(bytes);
        // SAFETY: The bytes are borrowed until this returns, and the extent has their length.
        unsafe { self.wait(what, device, (start, len), memory) }
    }

    /// Starts a transfer, and waits for it.
    ///
    /// # Safety
    ///
    /// The memory is at least as large as the extent, unless the request has no data. It remains
    /// valid until this returns.
    unsafe fn wait(
        &self,
        what: Transfer,
        device: &Device,
        extent: (Sector, Sectors),
        memory: bindings::dm_io_memory,
    ) -> Result {
        let nobody = bindings::dm_io_notify {
            fn_: None,
            context: core::ptr::null_mut(),
        };
        let mut failed = 0;
        // SAFETY: By this function's contract, the memory is large enough and remains valid.
        // Without a callback, dm-io returns after the I/O has ended.
        unsafe { self.start(what, device, extent, memory, nobody, &mut failed) }?;
        if failed == 0 {
            Ok(())
        } else {
            Err(EIO)
        }
    }

    /// Starts to read some sectors of a buffer. [`drain_reads`](Self::drain_reads) returns the
    /// result.
    ///
    /// Waits at most for memory of the client's reserve. May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the buffer does not have these sectors, or the device is of another target.
    ///
    /// # Safety
    ///
    /// The memory of the buffer remains valid, and nothing else uses these sectors, until the
    /// client is drained or dropped.
    pub(super) unsafe fn read(
        &self,
        device: &Device,
        start: Sector,
        buffer: &mut Buffer,
        part: Range<u32>,
    ) -> Result {
        let (memory, len) = memory(buffer.part(part)?);
        // SAFETY: By this function's contract, the memory remains valid until the client is
        // drained, which waits for the count.
        unsafe {
            self.start_counted(
                Transfer::Read,
                device,
                (start, len),
                memory,
                &self.in_flight,
            )
        }
    }

    /// Passes a request to dm-io, and counts it in `count` until it has ended.
    ///
    /// # Safety
    ///
    /// The memory is at least as large as the extent. It remains valid, and nothing else uses it in
    /// a way that conflicts with the transfer, until the count is drained.
    unsafe fn start_counted(
        &self,
        what: Transfer,
        device: &Device,
        extent: (Sector, Sectors),
        memory: bindings::dm_io_memory,
        count: &Arc<InflightCount>,
    ) -> Result {
        /// # Safety
        ///
        /// Called by dm-io only, for a request whose context is an `Arc<InflightCount>`.
        unsafe extern "C" fn notify(error: c_ulong, unsupported: c_ulong, context: *mut c_void) {
            // SAFETY: dm-io calls this once per request, with the context that `into_raw` made
            // below.
            let in_flight = unsafe { Arc::from_raw(context.cast::<InflightCount>()) };
            if error | unsupported != 0 {
                in_flight.failed.store(true, Relaxed);
            }
            in_flight.end();
        }
        count.begin();
        let context = Arc::into_raw(count.clone());
        let notify = bindings::dm_io_notify {
            fn_: Some(notify),
            context: context.cast_mut().cast(),
        };
        // SAFETY: By this function's contract, the memory remains valid until the count is drained,
        // which waits for the callback.
        let result = unsafe { self.start(what, device, extent, memory, notify, &mut 0) };
        result.inspect_err(|_| {
            // SAFETY: dm-io refused the request, so it does not call back.
            drop(unsafe { Arc::from_raw(context) });
            count.end();
        })
    }

    /// Waits until all requests have ended. May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` if a [`read`](Self::read) failed since this was called last.
    pub(super) fn drain_reads(&self) -> Result {
        self.in_flight.drain_result()
    }

    /// Starts to transfer the pages of a context. [`IoContext::done`] gets the result.
    ///
    /// If the device is of another target than the client, the transfer fails. Waits at most for
    /// memory of the client's reserve. May sleep.
    pub(crate) fn submit<C: IoContext>(
        &self,
        what: Transfer,
        device: &Device,
        start: Sector,
        mut request: PoolBox<Request<C>>,
    ) {
        /// # Safety
        ///
        /// Called by dm-io only, for a request whose context is a `PoolBox<Request<C>>`.
        unsafe extern "C" fn notify<C: IoContext>(
            error: c_ulong,
            unsupported: c_ulong,
            context: *mut c_void,
        ) {
            // SAFETY: dm-io calls this once per request, with the context that `into_raw` made
            // below.
            let request = unsafe { PoolBox::<Request<C>>::from_raw(context) };
            // dm-io reports what the device does not support separately from errors.
            let failed = error | unsupported != 0;
            end(request, if failed { Err(EIO) } else { Ok(()) })
        }
        fn end<C: IoContext>(mut request: PoolBox<Request<C>>, result: Result) {
            let client = request.client.take();
            C::done(request, result);
            if let Some(client) = client {
                client.end();
            }
        }
        self.in_flight.begin();
        request.client = Some(self.in_flight.clone());
        let pages = request.context.pages();
        let len = pages.sectors();
        let memory = bindings::dm_io_memory {
            type_: bindings::dm_io_mem_type_DM_IO_PAGE_LIST,
            offset: 0,
            ptr: bindings::dm_io_memory__bindgen_ty_1 { pl: pages.raw() },
        };
        let raw = request.into_raw();
        let notify = bindings::dm_io_notify {
            fn_: Some(notify::<C>),
            context: raw,
        };
        // SAFETY: The pages belong to the request, which nothing uses until the callback.
        let result = unsafe { self.start(what, device, (start, len), memory, notify, &mut 0) };
        if let Err(error) = result {
            // SAFETY: dm-io refused the request, so it does not call back.
            end(unsafe { PoolBox::<Request<C>>::from_raw(raw) }, Err(error));
        }
    }

    /// Waits until all requests have ended and their contexts have completed them. May sleep.
    pub(crate) fn drain(&self) {
        self.in_flight.drain();
    }

    /// Passes a request to dm-io.
    ///
    /// # Safety
    ///
    /// The memory is at least as large as the extent, unless the request has no data. It remains
    /// valid, and nothing else uses it, until the I/O has ended: with a callback, until that is
    /// called; without, until this returns.
    unsafe fn start(
        &self,
        what: Transfer,
        device: &Device,
        (start, len): (Sector, Sectors),
        mem: bindings::dm_io_memory,
        notify: bindings::dm_io_notify,
        failed: &mut c_ulong,
    ) -> Result {
        if !self.target.keeps(device) {
            return Err(EINVAL);
        }
        let mut region = bindings::dm_io_region {
            bdev: device.raw_bdev(),
            sector: start.0,
            count: len.0,
        };
        let mut request = bindings::dm_io_request {
            bi_opf: what.flags(),
            mem,
            notify,
            client: self.raw.as_ptr(),
        };
        let unsupported = core::ptr::null_mut();
        // SAFETY: By the invariant, the client exists. The device is open, because the client's
        // reference to the target keeps it so. dm-io copies request and region. The memory is valid
        // by this function's contract.
        to_result(unsafe { bindings::dm_io(&mut request, 1, &mut region, failed, unsupported, 0) })
    }
}

impl Drop for IoClient {
    fn drop(&mut self) {
        self.drain();
        // SAFETY: By the invariant, the client is destroyed here only. None of its requests is in
        // flight.
        unsafe { bindings::dm_io_client_destroy(self.raw.as_ptr()) }
    }
}
