// SPDX-License-Identifier: GPL-2.0

//! Targets: the hooks of device-mapper as a Rust trait, and their registration.
//!
//! A target has two lives. While its constructor runs it is a [`TargetBuilder`]: exclusive, in process
//! context, free to sleep and to fail. What the constructor returns is shared: every hook gets
//! `&self` and may run at any time, on any CPU, together with the others.
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

/// Stops [`Target::iterate_devices`] early with device-mapper's code.
pub(crate) struct Stop(c_int);

/// Visits the devices of a target.
pub(crate) struct DeviceVisitor<'a> {
    ti: *mut bindings::dm_target,
    call: bindings::iterate_devices_callout_fn,
    data: *mut c_void,
    _hook: PhantomData<&'a ()>,
}

impl DeviceVisitor<'_> {
    /// Reports a part of a device that the target uses.
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
        // SAFETY: The arguments of the running hook; the device is one that this target has opened.
        match unsafe { bindings::dmr_device_visit(ti, bdev, self.call, start.0, len.0, self.data) }
        {
            0 => Ok(()),
            code => Err(Stop(code)),
        }
    }
}

/// A device-mapper target type. `Self` is the state of one target of a live or inactive table.
///
/// Hooks that a target does not implement are not announced to device-mapper at all.
#[vtable]
pub(crate) trait Target: Send + Sync + Sized + 'static {
    /// Name in table lines.
    const NAME: &'static CStr;
    /// Version as `dmsetup targets` shows it.
    const VERSION: [u32; 3];
    /// The C module that has a target of this name.
    const C_MODULE: &'static str;
    /// Whether `map` never waits, so that bios which ask not to wait may come.
    const NOWAIT: bool;
    /// Data kept with each bio.
    type PerBio: PerBio;
    /// What all targets of this type share, perhaps with those of other types.
    type Shared: Send + Sync + 'static;

    /// Makes a target of a table line. Process context, sleeps; the device may be live with another
    /// table meanwhile.
    fn ctr(
        builder: &mut TargetBuilder<'_>,
        shared: &Self::Shared,
        args: Arguments<'_>,
    ) -> Result<Arc<Self>, CtrError>;

    /// The target is about to go: stop what runs on its own (work items, copies). Sleeps.
    ///
    /// After it nothing can be enqueued any more, and device-mapper waits for what is pending, and
    /// for whoever has a device, the handle or a queue of the target. So what is forgotten here
    /// makes the destructor slow, and nothing worse.
    fn dtr(_this: &Arc<Self>) {}

    /// Decides on a bio. Process context, may sleep if that is certain to end without this target's
    /// help.
    fn map<'a>(this: ArcBorrow<'_, Self>, bio: MapBio<'a, Self::PerBio>) -> Mapped<'a>;

    /// A mapped or submitted bio has ended. Any context, hard interrupts included.
    fn end_io<'a>(_this: ArcBorrow<'_, Self>, bio: EndBio<'a, Self::PerBio>) -> Ended<'a> {
        bio.done()
    }

    /// Suspending begins: new I/O still comes. Sleeps.
    fn presuspend(_this: ArcBorrow<'_, Self>) {}

    /// Suspending was given up.
    fn presuspend_undo(_this: ArcBorrow<'_, Self>) {}

    /// No bio is in flight any more, and none will come before `resume`. Sleeps.
    fn postsuspend(_this: ArcBorrow<'_, Self>) {}

    /// About to go live; an error refuses it. Sleeps.
    fn preresume(_this: ArcBorrow<'_, Self>) -> Result {
        Ok(())
    }

    /// I/O starts. Sleeps.
    fn resume(_this: ArcBorrow<'_, Self>) {}

    /// Writes a status line. Process context, sleeps. `noflush`: user space asked to leave things
    /// alone.
    fn status(this: ArcBorrow<'_, Self>, kind: StatusKind, noflush: bool, out: &mut StatusBuf<'_>);

    /// Executes a message; what is written to `out` is its answer. Process context, sleeps.
    fn message(
        _this: ArcBorrow<'_, Self>,
        _args: Arguments<'_>,
        _out: &mut StatusBuf<'_>,
    ) -> Result {
        Err(EINVAL)
    }

    /// Names the devices below. Process context.
    fn iterate_devices(
        this: ArcBorrow<'_, Self>,
        visitor: &mut DeviceVisitor<'_>,
    ) -> Result<(), Stop>;

    /// Adjusts the limits of the mapped device. Process context.
    fn io_hints(_this: ArcBorrow<'_, Self>, _limits: &mut Limits<'_>) {}
}
