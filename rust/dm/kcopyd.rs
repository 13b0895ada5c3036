// SPDX-License-Identifier: GPL-2.0

//! Copying between devices, and writing zeros, by kcopyd.
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

/// As many destinations a copy may have.
pub(crate) const MAX_DESTINATIONS: usize = bindings::DM_KCOPYD_MAX_REGIONS as usize;

/// What is to be copied. It owns what keeps its devices open.
pub(crate) trait CopyJob: Send + Sized + 'static {
    /// From where; `None` if zeros are to be written.
    fn source(&self) -> Option<(&Device, Sector)>;

    /// How much.
    fn sectors(&self) -> Sectors;

    /// Where to, by a number below [`MAX_DESTINATIONS`]; `None` ends the list.
    fn destination(&self, number: usize) -> Option<(&Device, Sector)>;

    /// Called once, in the thread of kcopyd, which must not be held up.
    fn done(this: PoolBox<Request<Self>>, result: KcopydResult);
}

/// Result of a copy.
#[derive(Clone, Copy)]
pub(crate) struct KcopydResult {
    read_failed: bool,
    /// One bit for each destination.
    writes_failed: c_ulong,
}

/// Result of a copy for one of its destinations.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum DestinationResult {
    /// All data was written.
    Written,
    /// The source or this destination failed.
    Failed,
    /// Another destination failed, and that ended the copy: perhaps only a part was written.
    Unknown,
}

impl KcopydResult {
    /// # Arguments
    ///
    /// `writes_failed` is what kcopyd tells about so many destinations.
    fn new(read_failed: bool, writes_failed: c_ulong, destinations: usize) -> Self {
        let all = (0..destinations).fold(0, |all, number| all | Self::bit(number));
        let known = writes_failed & all;
        KcopydResult {
            read_failed,
            // An error without a destination is one of all of them, so a copy with an unknown end
            // has a failed one too.
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

    /// Whether the data could be read.
    pub(crate) fn is_read(self) -> bool {
        !self.read_failed
    }

    /// What the result means for a destination.
    pub(crate) fn at(self, number: usize) -> DestinationResult {
        if self.read_failed || self.writes_failed & Self::bit(number) != 0 {
            DestinationResult::Failed
        } else if self.writes_failed != 0 {
            DestinationResult::Unknown
        } else {
            DestinationResult::Written
        }
    }

    /// Whether all data was written to a destination.
    pub(crate) fn is_written(self, number: usize) -> bool {
        self.at(number) == DestinationResult::Written
    }
}

/// A client of kcopyd, with a reserve of memory so that one copy can always go on.
pub(crate) struct RawClient {
    raw: NonNull<bindings::dm_kcopyd_client>,
    in_flight: Arc<InflightCount>,
}

// SAFETY: Clients may be used from any thread.
unsafe impl Send for RawClient {}
// SAFETY: As above; a client has locks of its own.
unsafe impl Sync for RawClient {}

impl Service for RawClient {
    unsafe fn destroy(&self) {
        self.in_flight.drain();
        // SAFETY: The client is ours, nobody uses it any more, and none of its jobs is in flight.
        unsafe { bindings::dm_kcopyd_client_destroy(self.raw.as_ptr()) }
    }
}

/// A use of a client. Copies that have not ended keep the client, but not its uses.
pub(crate) type KcopydClient = ServiceRef<RawClient>;

impl KcopydClient {
    /// Makes a client that keeps to the parameter `snapshot_copy_throttle`, together with all
    /// others. Sleeps.
    ///
    /// # Safety
    ///
    /// As [`ServiceRef::new`].
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
        // SAFETY: By the contract.
        unsafe { ServiceRef::new(make) }
    }

    /// Starts a copy. Process context, sleeps at most for memory of the client's reserve.
    pub(crate) fn copy<J: CopyJob>(&self, mut job: PoolBox<Request<J>>) {
        /// # Safety
        ///
        /// For kcopyd only, as the callback of a job whose context is a `PoolBox<Request<J>>`.
        unsafe extern "C" fn notify<J: CopyJob>(
            read_failed: c_int,
            writes_failed: c_ulong,
            context: *mut c_void,
        ) {
            // SAFETY: kcopyd calls back once per job with its context, made by `into_raw` below.
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
        self.in_flight.begin();
        job.client = Some(self.in_flight.clone());
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
        // The first error ends the copy. `DM_KCOPYD_IGNORE_ERROR` would go on for the other
        // destinations, but after an error of the source too: then it writes pages that nobody has
        // filled.
        let flags = 0;
        let (raw, context) = (self.raw.as_ptr(), job.into_raw());
        let notify: bindings::dm_kcopyd_notify_fn = Some(notify::<J>);
        // SAFETY: The client is live. The devices are open until the callback: the job owns what
        // keeps them so, and nobody else has it. kcopyd copies the regions.
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

    /// Waits until all callbacks have returned. Sleeps.
    pub(crate) fn drain(&self) {
        self.in_flight.drain();
    }
}
