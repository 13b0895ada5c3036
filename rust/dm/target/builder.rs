// SPDX-License-Identifier: GPL-2.0

//! A target under construction, and why its constructor fails.

use crate::{
    bindings,
    dm::{
        device::{
            Access,
            Device,
            TargetHandle,
            TargetResources, //
        },
        io::IoClient,
        kcopyd::KcopydClient, //
    },
    logic::units::{
        Sector,
        Sectors, //
    },
    sys::{
        queue::{
            QueueKind,
            WorkQueue, //
        },
        service::{
            Service,
            ServiceRef, //
        }, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Why a constructor failed: the text for the user, and the error code.
pub(crate) struct CtrError {
    pub(super) text: Option<&'static CStr>,
    pub(super) code: Error,
}

impl CtrError {
    /// An error with a text, which device-mapper logs.
    pub(crate) fn new(text: &'static CStr, code: Error) -> Self {
        CtrError {
            text: Some(text),
            code,
        }
    }
}

/// An error without a text: device-mapper logs "Unknown error".
impl From<Error> for CtrError {
    fn from(code: Error) -> Self {
        CtrError { text: None, code }
    }
}

/// Attaches a text to an error: `open()?` becomes `open().or_message(c"Error opening device")?`.
pub(crate) trait OrMessage<T> {
    /// The same result with a text for the user.
    fn or_message(self, message: &'static CStr) -> Result<T, CtrError>;
}

impl<T, E: Into<Error>> OrMessage<T> for Result<T, E> {
    fn or_message(self, message: &'static CStr) -> Result<T, CtrError> {
        self.map_err(|e| CtrError::new(message, e.into()))
    }
}

/// A target under construction.
///
/// # Invariants
///
/// The constructor of the target is running, in this thread: device-mapper lends the target to
/// nobody else.
pub(crate) struct TargetBuilder<'a> {
    pub(super) ti: NonNull<bindings::dm_target>,
    pub(super) resources: Arc<TargetResources>,
    pub(super) _call: PhantomData<&'a mut ()>,
}

impl TargetBuilder<'_> {
    /// Length of the target.
    pub(crate) fn len(&self) -> Sectors {
        // SAFETY: By the invariant the target is live.
        Sectors(unsafe { (*self.ti.as_ptr()).len })
    }

    /// Where the target begins on the mapped device.
    pub(crate) fn begin(&self) -> Sector {
        // SAFETY: By the invariant the target is live.
        Sector(unsafe { (*self.ti.as_ptr()).begin })
    }

    /// How the table may use its devices.
    pub(crate) fn access(&self) -> Access {
        // SAFETY: By the invariant the target is live, and its table with it.
        let mode = unsafe { bindings::dm_table_get_mode((*self.ti.as_ptr()).table) };
        if mode & bindings::BLK_OPEN_WRITE != 0 {
            Access::ReadWrite
        } else {
            Access::Read
        }
    }

    /// Opens a device that the table line names. It is closed when the target is destroyed. Sleeps.
    pub(crate) fn open(&self, path: &CStr, access: Access) -> Result<Device> {
        Device::open(&self.resources, path, access)
    }

    /// Makes a dm-io client for the target's devices. Sleeps.
    pub(crate) fn io_client(&self) -> Result<IoClient> {
        IoClient::new(self.resources.reference())
    }

    /// Makes a workqueue. Its items cannot outlive the target: after the destructor device-mapper
    /// waits for them. Sleeps.
    pub(crate) fn queue(&self, name: &CStr, kind: QueueKind) -> Result<WorkQueue> {
        // SAFETY: The resources drop the owner in the destructor, or when the constructor has
        // failed: in a system call or a work item of device-mapper, and the module stays loaded as
        // long as it has targets.
        self.resources
            .own_service(|| unsafe { WorkQueue::make(name, kind) })
    }

    /// Makes a client of kcopyd, in the same way. Sleeps.
    pub(crate) fn copy_client(&self) -> Result<KcopydClient> {
        // SAFETY: The resources drop the owner in process context, in the destructor or after a
        // failed constructor, never from a callback of kcopyd; the module stays while it has
        // targets.
        self.resources
            .own_service(|| unsafe { KcopydClient::make() })
    }

    /// Makes the target one of those that a workqueue, or a client of kcopyd, belongs to. It is
    /// destroyed with the last of them. Each target that has a use of one must be one of them: else
    /// the last one waits for it in its destructor.
    pub(crate) fn share<S: Service>(&self, service: &ServiceRef<S>) -> Result {
        // SAFETY: These resources drop their owner like that of a service of its own: in process
        // context, not from a callback of the service, and while the module cannot go.
        self.resources
            .own_service(|| Ok(((), unsafe { service.owner() }?)))
    }

    /// The handle that the target keeps for its later life.
    pub(crate) fn handle(&self) -> TargetHandle {
        TargetHandle::new(&self.resources)
    }

    /// Asks for requests that write zeros, if all devices below support them.
    pub(crate) fn want_write_zeroes(&mut self) {
        // SAFETY: By the invariant the target is live and lent to us.
        unsafe { (*self.ti.as_ptr()).num_write_zeroes_bios = 1 };
    }

    /// Asks for flushes, one per request, whether or not the devices below need them.
    pub(crate) fn want_flushes(&mut self) {
        // SAFETY: By the invariant the target is live and lent to us.
        let ti = unsafe { self.ti.as_mut() };
        ti.num_flush_bios = 1;
        ti.set_flush_supported(true);
    }

    /// Asks for flushes, `copies` per request, if the devices below need them.
    pub(crate) fn pass_flushes(&mut self, copies: u32) {
        // SAFETY: By the invariant the target is live and lent to us.
        unsafe { (*self.ti.as_ptr()).num_flush_bios = copies };
    }

    /// Asks for discards, one per request, if the devices below support them.
    pub(crate) fn pass_discards(&mut self) {
        // SAFETY: By the invariant the target is live and lent to us.
        unsafe { (*self.ti.as_ptr()).num_discard_bios = 1 };
    }

    /// Asks for discards, `copies` per request, none crossing a multiple of the largest discard of
    /// `io_hints`, if the devices below support them.
    pub(crate) fn split_discards(&mut self, copies: u32) {
        // SAFETY: By the invariant the target is live and lent to us.
        let ti = unsafe { self.ti.as_mut() };
        ti.num_discard_bios = copies;
        ti.set_max_discard_granularity(true);
    }

    /// Asks for discards, one per request, whether or not the devices below support them.
    pub(crate) fn want_discards(&mut self) {
        // SAFETY: By the invariant the target is live and lent to us.
        let ti = unsafe { self.ti.as_mut() };
        ti.num_discard_bios = 1;
        ti.set_discards_supported(true);
    }
}
