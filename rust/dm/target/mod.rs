// SPDX-License-Identifier: GPL-2.0

//! Target types: the hooks of device-mapper as a Rust trait, and their registration.
//!
//! While its constructor runs, a target is a [`TargetBuilder`]: exclusive, in process context, and
//! free to sleep and to fail. The value that the constructor returns is shared: the hooks may run
//! at any time, on any CPU, and concurrently.
//!
//! C header: [`include/linux/device-mapper.h`](srctree/include/linux/device-mapper.h), `struct
//! target_type`

mod builder;
mod registration;

pub(crate) use self::{
    builder::{
        CtrError,
        OrMessage,
        TargetBuilder, //
    },
    registration::Registration, //
};

use crate::{
    bindings,
    dm::{
        arguments::Arguments,
        bio::{
            EndBio,
            Ended,
            MapBio,
            Mapped,
            PerBio, //
        },
        device::Device,
        limits::Limits,
        status::{
            StatusBuf,
            StatusKind, //
        }, //
    },
    logic::units::{
        Sector,
        Sectors, //
    },
    sys::log::err, //
};
use core::marker::PhantomData;
use kernel::{
    ffi::{
        c_int,
        c_void, //
    },
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

/// The code of device-mapper that stops [`Target::iterate_devices`] early.
pub(crate) struct Stop(c_int);

/// Visits the devices of a target. C counterpart: `iterate_devices_callout_fn`.
pub(crate) struct DeviceVisitor<'a> {
    ti: *mut bindings::dm_target,
    call: bindings::iterate_devices_callout_fn,
    data: *mut c_void,
    _hook: PhantomData<&'a ()>,
}

impl DeviceVisitor<'_> {
    /// Visits the part of a device that the target uses. Process context.
    ///
    /// # Errors
    ///
    /// The code with which the hook must return; `EINVAL` if the device is of another target.
    pub(crate) fn visit(
        &mut self,
        device: &Device,
        start: Sector,
        len: Sectors,
    ) -> Result<(), Stop> {
        if device.target().as_ptr() != self.ti {
            err!("dm_rust", "a target names a device of another one");
            return Err(Stop(EINVAL.to_errno()));
        }
        let (ti, bdev) = (self.ti, device.raw_bdev());
        // SAFETY: Target, callback and data are arguments of the running hook. The target has
        // opened the device.
        match unsafe { bindings::dmr_device_visit(ti, bdev, self.call, start.0, len.0, self.data) }
        {
            0 => Ok(()),
            code => Err(Stop(code)),
        }
    }
}

/// A target type. `Self` is one target of a live or inactive table. C counterpart: `struct
/// target_type`.
///
/// Device-mapper is not told of hooks that a target does not implement.
#[vtable]
pub(crate) trait Target: Send + Sync + Sized + 'static {
    /// The name in table lines.
    const NAME: &'static CStr;
    /// The version that `dmsetup targets` shows.
    const VERSION: [u32; 3];
    /// The module with the C target of the same name.
    const C_MODULE: &'static str;
    /// `map` handles `REQ_NOWAIT`, and so may get bios with it (`DM_TARGET_NOWAIT`).
    const NOWAIT: bool;
    /// The per-bio data.
    type PerBio: PerBio;
    /// Data that all targets of this type share, and those of other types may share.
    type Shared: Send + Sync + 'static;

    /// Creates a target from a table line, while the mapped device may be live with another table.
    /// May sleep.
    ///
    /// # Errors
    ///
    /// The error and the message for the user.
    fn ctr(
        builder: &mut TargetBuilder<'_>,
        shared: &Self::Shared,
        args: Arguments<'_>,
    ) -> Result<Arc<Self>, CtrError>;

    /// Stops the target's own activity, such as work items and copies, before it is destroyed.
    ///
    /// After this, no item can be enqueued. Device-mapper waits for pending items, and until the
    /// target's devices, handles and queues are no longer used. Activity that is not stopped here
    /// delays the destruction, and does nothing worse. May sleep.
    fn dtr(_this: &Arc<Self>) {}

    /// Maps a bio. May sleep, but must not wait for other bios or work items of this target; with
    /// [`NOWAIT`](Self::NOWAIT), it must not sleep for a bio that asks for that.
    fn map<'a>(this: ArcBorrow<'_, Self>, bio: MapBio<'a, Self::PerBio>) -> Mapped<'a>;

    /// Handles a mapped or submitted bio that has ended. Any context, hard interrupts included.
    fn end_io<'a>(_this: ArcBorrow<'_, Self>, bio: EndBio<'a, Self::PerBio>) -> Ended<'a> {
        bio.done()
    }

    /// Prepares to suspend, while `map` may still get bios. May sleep.
    fn presuspend(_this: ArcBorrow<'_, Self>) {}

    /// Reverts `presuspend`, when suspending has failed. May sleep.
    fn presuspend_undo(_this: ArcBorrow<'_, Self>) {}

    /// Suspends. No bio is in flight, and `map` gets none before `resume`. May sleep.
    fn postsuspend(_this: ArcBorrow<'_, Self>) {}

    /// Prepares to resume. May sleep.
    ///
    /// # Errors
    ///
    /// The error with which resuming fails.
    fn preresume(_this: ArcBorrow<'_, Self>) -> Result {
        Ok(())
    }

    /// Resumes. `map` may get bios from now on. May sleep.
    fn resume(_this: ArcBorrow<'_, Self>) {}

    /// Writes the status or the table line. With `noflush`, user space asks for no I/O. May sleep.
    fn status(this: ArcBorrow<'_, Self>, kind: StatusKind, noflush: bool, out: &mut StatusBuf<'_>);

    /// Executes a message, whose reply is written to `out`. May sleep.
    ///
    /// # Errors
    ///
    /// The error of the message.
    fn message(
        _this: ArcBorrow<'_, Self>,
        _args: Arguments<'_>,
        _out: &mut StatusBuf<'_>,
    ) -> Result {
        Err(EINVAL)
    }

    /// Visits the devices of the target. Process context.
    ///
    /// # Errors
    ///
    /// The code of the visitor, which stops the hook.
    fn iterate_devices(
        this: ArcBorrow<'_, Self>,
        visitor: &mut DeviceVisitor<'_>,
    ) -> Result<(), Stop>;

    /// Sets limits of the mapped device. Process context.
    fn io_hints(_this: ArcBorrow<'_, Self>, _limits: &mut Limits<'_>) {}
}
