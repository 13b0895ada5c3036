// SPDX-License-Identifier: GPL-2.0

//! A target under construction, and the error with which its constructor fails.

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

/// The error of a constructor: a message for the user, and a code. C counterpart:
/// `dm_target::error`.
pub(crate) struct CtrError {
    pub(super) message: Option<&'static CStr>,
    pub(super) code: Error,
}

impl CtrError {
    /// Creates an error with a message, which device-mapper logs. Any context.
    pub(crate) fn new(message: &'static CStr, code: Error) -> Self {
        CtrError {
            message: Some(message),
            code,
        }
    }
}

/// An error without a message, for which device-mapper logs "Unknown error".
impl From<Error> for CtrError {
    fn from(code: Error) -> Self {
        CtrError {
            message: None,
            code,
        }
    }
}

/// Adds a message for the user to an error.
///
/// # Examples
///
/// ```ignore
/// let device = builder.open(path, Access::Read).or_message(c"Error opening device")?;
/// ```
pub(crate) trait OrMessage<T> {
    /// Adds a message for the user, if this is an error. Any context.
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
/// The constructor of the target is running, in this thread, and nothing else uses the target.
pub(crate) struct TargetBuilder<'a> {
    pub(super) ti: NonNull<bindings::dm_target>,
    pub(super) resources: Arc<TargetResources>,
    pub(super) _call: PhantomData<&'a mut ()>,
}

impl TargetBuilder<'_> {
    /// Returns the length of the target. Process context.
    pub(crate) fn len(&self) -> Sectors {
        // SAFETY: By the invariant, the target exists, and only this thread uses it.
        Sectors(unsafe { (*self.ti.as_ptr()).len })
    }

    /// Returns the start of the target on the mapped device. Process context.
    pub(crate) fn begin(&self) -> Sector {
        // SAFETY: By the invariant, the target exists, and only this thread uses it.
        Sector(unsafe { (*self.ti.as_ptr()).begin })
    }

    /// Returns the mode of the table. C counterpart: `dm_table_get_mode()`. Process context.
    pub(crate) fn access(&self) -> Access {
        // SAFETY: By the invariant, the target exists, and so does its table.
        let mode = unsafe { bindings::dm_table_get_mode((*self.ti.as_ptr()).table) };
        if mode & bindings::BLK_OPEN_WRITE != 0 {
            Access::ReadWrite
        } else {
            Access::Read
        }
    }

    /// Opens a device that the table line names. It is closed when the target is destroyed. May
    /// sleep.
    ///
    /// # Errors
    ///
    /// The error of `dm_get_device()`.
    pub(crate) fn open(&self, path: &CStr, access: Access) -> Result<Device> {
        Device::open(&self.resources, path, access)
    }

    /// Creates a client of dm-io for the devices of the target. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn io_client(&self) -> Result<IoClient> {
        IoClient::new(self.resources.reference())
    }

    /// Creates a workqueue. After the target's destructor, no item can be enqueued, and
    /// device-mapper waits for those that are pending. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn queue(&self, name: &CStr, kind: QueueKind) -> Result<WorkQueue> {
        self.resources.own_service(|| {
            // SAFETY: The resources drop the owner in the destructor, or when the constructor
            // fails. Device-mapper calls both in process context, and never from an item of this
            // queue. The module stays loaded as long as it has targets.
            unsafe { WorkQueue::make(name, kind) }
        })
    }

    /// Creates a client of kcopyd. After its destructor, device-mapper waits for its copies. May
    /// sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn copy_client(&self) -> Result<KcopydClient> {
        self.resources.own_service(|| {
            // SAFETY: The resources drop the owner in the destructor, or when the constructor
            // fails. Device-mapper calls both in process context, and never from a callback of
            // kcopyd. The module stays loaded as long as it has targets.
            unsafe { KcopydClient::make() }
        })
    }

    /// Makes the target another owner of a workqueue or a client of kcopyd.
    ///
    /// The service is destroyed with the last target that owns it. A target that keeps a reference
    /// to the service must be an owner too, because the destructor of the last owner waits for the
    /// reference. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EBUSY` if the last owner is being destroyed.
    pub(crate) fn share<S: Service>(&self, service: &ServiceRef<S>) -> Result {
        self.resources.own_service(|| {
            // SAFETY: The resources drop the owner in the destructor, or when the constructor
            // fails. Device-mapper calls both in process context, and never from a callback of the
            // service. The module stays loaded as long as it has targets.
            let owner = unsafe { service.owner() }?;
            Ok(((), owner))
        })
    }

    /// Creates the handle that the target keeps for later. Process context.
    pub(crate) fn handle(&self) -> TargetHandle {
        TargetHandle::new(&self.resources)
    }

    /// Requests write-zeroes bios, if all devices below support them. C counterpart:
    /// `num_write_zeroes_bios`. Process context.
    pub(crate) fn want_write_zeroes(&mut self) {
        // SAFETY: By the invariant, the target exists, and only this thread uses it.
        unsafe { (*self.ti.as_ptr()).num_write_zeroes_bios = 1 };
    }

    /// Requests flushes, one bio for each, also if the devices below do not need them. C
    /// counterpart: `num_flush_bios`, `flush_supported`. Process context.
    pub(crate) fn want_flushes(&mut self) {
        // SAFETY: By the invariant, the target exists, and only this thread uses it.
        let ti = unsafe { self.ti.as_mut() };
        ti.num_flush_bios = 1;
        ti.set_flush_supported(true);
    }

    /// Requests flushes, `copies` bios for each, if the devices below need them. C counterpart:
    /// `num_flush_bios`. Process context.
    pub(crate) fn pass_flushes(&mut self, copies: u32) {
        // SAFETY: By the invariant, the target exists, and only this thread uses it.
        unsafe { (*self.ti.as_ptr()).num_flush_bios = copies };
    }

    /// Requests discards, one bio for each, if the devices below support them. C counterpart:
    /// `num_discard_bios`. Process context.
    pub(crate) fn pass_discards(&mut self) {
        // SAFETY: By the invariant, the target exists, and only this thread uses it.
        unsafe { (*self.ti.as_ptr()).num_discard_bios = 1 };
    }

    /// Requests discards, `copies` bios for each, if the devices below support them. No bio crosses
    /// a multiple of the largest discard that `io_hints` sets. C counterpart: `num_discard_bios`,
    /// `max_discard_granularity`. Process context.
    pub(crate) fn split_discards(&mut self, copies: u32) {
        // SAFETY: By the invariant, the target exists, and only this thread uses it.
        let ti = unsafe { self.ti.as_mut() };
        ti.num_discard_bios = copies;
        ti.set_max_discard_granularity(true);
    }

    /// Requests discards, one bio for each, also if the devices below do not support them. C
    /// counterpart: `num_discard_bios`, `discards_supported`. Process context.
    pub(crate) fn want_discards(&mut self) {
        // SAFETY: By the invariant, the target exists, and only this thread uses it.
        let ti = unsafe { self.ti.as_mut() };
        ti.num_discard_bios = 1;
        ti.set_discards_supported(true);
    }
}
