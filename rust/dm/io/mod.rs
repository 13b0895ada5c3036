// SPDX-License-Identifier: GPL-2.0

//! Reading and writing a device from kernel memory.
//!
//! C header: [`include/linux/dm-io.h`](srctree/include/linux/dm-io.h)

mod buffer;
mod request;

pub(super) use self::request::InflightCount;
pub(crate) use self::{
    buffer::Buffer,
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

/// What to do with a [`Buffer`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// Fill it from the device.
    Read,
    /// Write it to the device.
    Write,
    /// Write it to the device; nobody waits for it.
    WriteBehind,
    /// Make it read as zeros, by requests for just that.
    WriteZeroes,
    /// Make everything written before durable, then write it, durably.
    WriteFlushFua,
}

impl Transfer {
    fn flags(self) -> kb::blk_opf_t {
        match self {
            Transfer::Read => kb::req_op_REQ_OP_READ | bindings::REQ_SYNC,
            Transfer::Write => kb::req_op_REQ_OP_WRITE | bindings::REQ_SYNC,
            Transfer::WriteBehind => kb::req_op_REQ_OP_WRITE,
            Transfer::WriteZeroes => kb::req_op_REQ_OP_WRITE_ZEROES | bindings::REQ_SYNC,
            Transfer::WriteFlushFua => {
                kb::req_op_REQ_OP_WRITE
                    | bindings::REQ_SYNC
                    | bindings::REQ_PREFLUSH
                    | bindings::REQ_FUA
            }
        }
    }
}

/// The owned context of a transfer that nobody waits for: it has the memory, and goes on when the
/// transfer has ended.
pub(crate) trait IoContext: Send + Sized + 'static {
    /// The memory of the transfer.
    fn pages(&mut self) -> &mut Pages;

    /// Called once, in the context of the bio's completion: hard interrupts included.
    fn done(this: PoolBox<Request<Self>>, result: Result);
}

/// Bytes as dm-io sees them, and their length.
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

/// A dm-io client: bios and memory of its own, so that its I/O always makes progress.
///
/// It serves devices of one target, which stay open until the client and all its requests are gone.
pub(crate) struct IoClient {
    raw: NonNull<bindings::dm_io_client>,
    in_flight: Arc<InflightCount>,
    // Dropped last: see above.
    target: TargetRef,
}

// SAFETY: dm-io clients may be used from any thread.
unsafe impl Send for IoClient {}
// SAFETY: As above; they only hold memory pools.
unsafe impl Sync for IoClient {}

impl IoClient {
    /// Makes a client. Sleeps.
    pub(super) fn new(target: TargetRef) -> Result<Self> {
        // SAFETY: No preconditions.
        let raw = from_err_ptr(unsafe { bindings::dm_io_client_create() })?;
        let raw = NonNull::new(raw).ok_or(ENOMEM)?;
        match InflightCount::new() {
            Ok(in_flight) => Ok(IoClient {
                raw,
                in_flight,
                target,
            }),
            Err(error) => {
                // SAFETY: Just made, and not used.
                unsafe { bindings::dm_io_client_destroy(raw.as_ptr()) };
                Err(error)
            }
        }
    }

    /// Transfers a whole buffer and waits for it. Sleeps for I/O.
    pub(crate) fn transfer(
        &self,
        what: Transfer,
        device: &Device,
        start: Sector,
        buffer: &mut Buffer,
    ) -> Result {
        self.transfer_bytes(what, device, start, &mut buffer.0)
    }

    /// Transfers some sectors of a buffer and waits for it. Sleeps for I/O. Refuses what the buffer
    /// does not have.
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

    /// Makes a range read as zeros, as the device does it best; `zeros` is what to write if it
    /// cannot by itself. Not durable. Sleeps for I/O, and needs no memory but the client's reserve.
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
        // SAFETY: Requests that write zeros have no data.
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

    /// Transfers bytes of a buffer, whole sectors.
    fn transfer_bytes(
        &self,
        what: Transfer,
        device: &Device,
        start: Sector,
        bytes: &mut [u8],
    ) -> Result {
        let (memory, len) = memory(bytes);
        // SAFETY: The bytes are borrowed, and the extent has their length.
        unsafe { self.wait(what, device, (start, len), memory) }
    }

    /// Starts a transfer and waits for it.
    ///
    /// # Safety
    ///
    /// The memory is at least as large as the extent, unless the request has no data, and stays
    /// until this returns.
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
        // SAFETY: By the contract. Without a callback dm-io waits for the I/O.
        unsafe { self.start(what, device, extent, memory, nobody, &mut failed) }?;
        if failed == 0 {
            Ok(())
        } else {
            Err(EIO)
        }
    }

    /// Starts to read some sectors of a buffer; [`drain_reads`](Self::drain_reads) tells how it
    /// went. Process context, sleeps at most for memory of the client's reserve. Refuses what the
    /// buffer does not have.
    ///
    /// # Safety
    ///
    /// The memory of the buffer stays, and nobody uses these sectors, until the client is drained
    /// or dropped.
    pub(super) unsafe fn read(
        &self,
        device: &Device,
        start: Sector,
        buffer: &mut Buffer,
        part: Range<u32>,
    ) -> Result {
        /// # Safety
        ///
        /// For dm-io only, as the callback of a request whose context is an `Arc<InflightCount>`.
        unsafe extern "C" fn notify(error: c_ulong, unsupported: c_ulong, context: *mut c_void) {
            // SAFETY: dm-io calls back once per request with its context, made by `into_raw` below.
            let in_flight = unsafe { Arc::from_raw(context.cast::<InflightCount>()) };
            if error | unsupported != 0 {
                in_flight.failed.store(true, Relaxed);
            }
            in_flight.end();
        }
        let (memory, len) = memory(buffer.part(part)?);
        self.in_flight.begin();
        let context = Arc::into_raw(self.in_flight.clone());
        let notify = bindings::dm_io_notify {
            fn_: Some(notify),
            context: context.cast_mut().cast(),
        };
        // SAFETY: By the contract; the client drains before it goes.
        let result =
            unsafe { self.start(Transfer::Read, device, (start, len), memory, notify, &mut 0) };
        result.inspect_err(|_| {
            // SAFETY: dm-io refused the request, so the callback will not come.
            drop(unsafe { Arc::from_raw(context) });
            self.in_flight.end();
        })
    }

    /// Waits until all requests have ended, and tells whether all that were made by
    /// [`read`](Self::read) went well since it was called last. Sleeps.
    pub(super) fn drain_reads(&self) -> Result {
        self.in_flight.drain();
        if self.in_flight.failed.xchg(false, Relaxed) {
            return Err(EIO);
        }
        Ok(())
    }

    /// Starts to transfer the context's pages. Process context, sleeps at most for memory of the
    /// client's reserve.
    ///
    /// Devices of another target than the client's are refused, with an error.
    pub(crate) fn submit<C: IoContext>(
        &self,
        what: Transfer,
        device: &Device,
        start: Sector,
        mut request: PoolBox<Request<C>>,
    ) {
        /// # Safety
        ///
        /// For dm-io only, as the callback of a request whose context is a `PoolBox<Request<C>>`.
        unsafe extern "C" fn notify<C: IoContext>(
            error: c_ulong,
            unsupported: c_ulong,
            context: *mut c_void,
        ) {
            // SAFETY: dm-io calls back once per request with its context, made by `into_raw` below.
            let request = unsafe { PoolBox::<Request<C>>::from_raw(context) };
            // What the device cannot do, or finds invalid, is told apart, and is not done either.
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
        // SAFETY: The pages belong to the request, which nobody touches until the callback.
        let result = unsafe { self.start(what, device, (start, len), memory, notify, &mut 0) };
        if let Err(error) = result {
            // SAFETY: dm-io refused the request, so the callback will not come.
            end(unsafe { PoolBox::<Request<C>>::from_raw(raw) }, Err(error));
        }
    }

    /// Waits until all requests have ended, and their contexts have been told. Sleeps.
    pub(crate) fn drain(&self) {
        self.in_flight.drain();
    }

    /// # Safety
    ///
    /// The memory is at least as large as the extent. It stays, and nobody else uses it, until the
    /// I/O has ended: when this returns if there is no callback, else when the callback is called.
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
        // SAFETY: The client is live, the device open, request and region are copied; the memory is
        // by this function's contract.
        to_result(unsafe { bindings::dm_io(&mut request, 1, &mut region, failed, unsupported, 0) })
    }
}

impl Drop for IoClient {
    fn drop(&mut self) {
        self.drain();
        // SAFETY: The client is ours, and none of its requests is in flight.
        unsafe { bindings::dm_io_client_destroy(self.raw.as_ptr()) }
    }
}
