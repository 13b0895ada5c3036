// SPDX-License-Identifier: GPL-2.0

//! Copying between devices, and writing zeros, by kcopyd. C counterpart: `struct dm_kcopyd_client`.
//!
//! C header: [`include/linux/dm-kcopyd.h`](srctree/include/linux/dm-kcopyd.h)

use crate::{
    bindings,
    dm::{
        device::Device,
        io::{
            InflightCount,
            Request, //
        }, //
    },
    logic::units::{
        Sector,
        Sectors, //
    },
    sys::{
        pool::PoolBox,
        service::{
            Service,
            ServiceOwner,
            ServiceRef, //
        }, //
    }, //
};
use core::ptr::NonNull;
use kernel::{
    error::from_err_ptr,
    ffi::{
        c_int,
        c_uint,
        c_ulong,
        c_void, //
    },
    prelude::*,
    sync::Arc, //
};

/// The maximum number of destinations of one copy.
pub(crate) const MAX_DESTINATIONS: usize = bindings::DM_KCOPYD_MAX_REGIONS as usize;

/// The description of a copy. It keeps its devices open.
pub(crate) trait CopyJob: Send + Sized + 'static {
    /// Returns the source; `None` if zeros are to be written. Any context.
    fn source(&self) -> Option<(&Device, Sector)>;

    /// Returns the length. Any context.
    fn sectors(&self) -> Sectors;

    /// Returns a destination, by a number below [`MAX_DESTINATIONS`]; `None` after the last one.
    /// Any context.
    fn destination(&self, number: usize) -> Option<(&Device, Sector)>;

    /// Completes the copy. Called once, from the thread of kcopyd, which must not be delayed.
    fn done(this: PoolBox<Request<Self>>, result: KcopydResult);
}

/// The result of a copy.
#[derive(Clone, Copy)]
pub(crate) struct KcopydResult {
    read_failed: bool,
    /// One bit per destination.
    writes_failed: c_ulong,
}

/// The result of a copy for one destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum DestinationResult {
    /// All data was written to it.
    Written,
    /// Reading the source, or writing to this destination, failed.
    Failed,
    /// Another destination failed, which ended the copy: a part may be missing.
    Unknown,
}

impl KcopydResult {
    /// Interprets the arguments of a `dm_kcopyd_notify_fn`.
    fn new(read_failed: bool, writes_failed: c_ulong, destinations: usize) -> Self {
        let all = (0..destinations).fold(0, |all, number| all | Self::bit(number));
        let known = writes_failed & all;
        KcopydResult {
            read_failed,
            // An error without a destination counts for all of them, so that a copy that failed
            // always has a failed destination.
            writes_failed: if writes_failed != 0 && known == 0 {
                all
            } else {
                known
            },
        }
    }

    fn bit(number: usize) -> c_ulong {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        c_ulong::checked_shl(1, number).unwrap_or(0)
    }

    /// Returns whether the source was read. Any context.
    pub(crate) fn is_read(self) -> bool {
        !self.read_failed
    }

    /// Returns the result for one destination. Any context.
    pub(crate) fn at(self, number: usize) -> DestinationResult {
        if self.read_failed || self.writes_failed & Self::bit(number) != 0 {
            DestinationResult::Failed
        } else if self.writes_failed != 0 {
            DestinationResult::Unknown
        } else {
            DestinationResult::Written
        }
    }

    /// Returns whether all data was written to a destination. Any context.
    pub(crate) fn is_written(self, number: usize) -> bool {
        self.at(number) == DestinationResult::Written
    }
}

/// A client of kcopyd. Its reserve of memory lets one copy proceed when memory is short.
///
/// # Invariants
///
/// The pointer is to a client that [`Service::destroy`] has not destroyed yet.
pub(crate) struct RawClient {
    raw: NonNull<bindings::dm_kcopyd_client>,
    in_flight: Arc<InflightCount>,
}

// SAFETY: A client is not tied to a thread.
unsafe impl Send for RawClient {}
// SAFETY: Any number of threads may start copies at a time: the client has locks of its own.
unsafe impl Sync for RawClient {}

impl Service for RawClient {
    unsafe fn destroy(&self) {
        self.in_flight.drain();
        // SAFETY: By the invariant, the client exists; by this function's contract, nothing uses it
        // now or later. None of its copies is in flight.
        unsafe { bindings::dm_kcopyd_client_destroy(self.raw.as_ptr()) }
    }
}

/// A reference to a client of kcopyd. The client is not destroyed before all copies have ended.
pub(crate) type KcopydClient = ServiceRef<RawClient>;

impl KcopydClient {
    /// Creates a client. All clients together observe the parameter `snapshot_copy_throttle`. May
    /// sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Safety
    ///
    /// The owner is dropped before the module is unloaded, in process context, and not by a
    /// callback of kcopyd.
    pub(super) unsafe fn make() -> Result<(Self, ServiceOwner<RawClient>)> {
        let make = || {
            let in_flight = InflightCount::new()?;
            // SAFETY: The throttle is a variable of the module.
            let raw = from_err_ptr(unsafe {
                bindings::dm_kcopyd_client_create(bindings::dmr_param_snapshot_throttle())
            })?;
            let raw = NonNull::new(raw).ok_or(ENOMEM)?;
            Ok(RawClient { raw, in_flight })
        };
        // SAFETY: This function has the contract of `ServiceRef::new`, and passes it on.
        unsafe { ServiceRef::new(make) }
    }

    /// Starts a copy. C counterpart: `dm_kcopyd_copy()`, `dm_kcopyd_zero()`.
    ///
    /// Waits at most for memory of the client's reserve. A job without a destination is not
    /// started, and completes with an error. May sleep.
    pub(crate) fn copy<J: CopyJob>(&self, mut job: PoolBox<Request<J>>) {
        /// # Safety
        ///
        /// Called by kcopyd only, for a copy whose context is a `PoolBox<Request<J>>`.
        unsafe extern "C" fn notify<J: CopyJob>(
            read_failed: c_int,
            writes_failed: c_ulong,
            context: *mut c_void,
        ) {
            // SAFETY: kcopyd calls this once per copy, with the context that `into_raw` made below.
            let mut job = unsafe { PoolBox::<Request<J>>::from_raw(context) };
            let client = job.client.take();
            let destinations = (0..MAX_DESTINATIONS)
                .take_while(|number| job.context.destination(*number).is_some())
                .count();
            let result = KcopydResult::new(read_failed != 0, writes_failed, destinations);
            J::done(job, result);
            if let Some(client) = client {
                client.end();
            }
        }
        fn region((device, start): (&Device, Sector), len: Sectors) -> bindings::dm_io_region {
            bindings::dm_io_region {
                bdev: device.raw_bdev(),
                sector: start.0,
                count: len.0,
            }
        }
        let len = job.context.sectors();
        let from = job.context.source().map(|source| region(source, len));
        let mut to: [bindings::dm_io_region; MAX_DESTINATIONS] = Default::default();
        let mut count: c_uint = 0;
        for (number, to) in to.iter_mut().enumerate() {
            let Some(destination) = job.context.destination(number) else {
                break;
            };
            *to = region(destination, len);
            count = count.saturating_add(1);
        }
        if count == 0 {
            // kcopyd would go by a destination that an earlier copy has left in its memory.
            return J::done(job, KcopydResult::new(true, 0, 0));
        }
        self.in_flight.begin();
        job.client = Some(self.in_flight.clone());
        // The first error ends the copy. `DM_KCOPYD_IGNORE_ERROR` would serve the other
        // destinations, but it also continues after an error of the source, and then writes pages
        // that were not filled.
        let flags = 0;
        let (raw, context) = (self.raw.as_ptr(), job.into_raw());
        let notify: bindings::dm_kcopyd_notify_fn = Some(notify::<J>);
        // SAFETY: By the invariant, the client exists. The devices are open until the callback is
        // called, because the job keeps them open, and nothing else owns the job. `count` regions,
        // at least one, are initialised; kcopyd copies them.
        unsafe {
            match from {
                Some(mut from) => bindings::dm_kcopyd_copy(
                    raw,
                    &mut from,
                    count,
                    to.as_mut_ptr(),
                    flags,
                    notify,
                    context,
                ),
                None => bindings::dm_kcopyd_zero(raw, count, to.as_mut_ptr(), 0, notify, context),
            }
        }
    }

    /// Waits until all copies have ended and their callbacks have returned. May sleep.
    pub(crate) fn drain(&self) {
        self.in_flight.drain();
    }
}
