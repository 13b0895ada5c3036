// SPDX-License-Identifier: GPL-2.0

//! A target that uses a device of another table, which no target may do.
//!
//! Its table line is `rust-stray <device> <lend|map|submit|visit>`. It is built with the example,
//! by `make DM_RUST_EXAMPLE=1`, for a test that the wrappers refuse such a device.

use crate::dm::arguments::Arguments;
use crate::dm::bio::{MapBio, Mapped};
use crate::dm::device::{Access, Device};
use crate::dm::status::{StatusBuf, StatusKind};
use crate::dm::target::{CtrError, DeviceVisitor, OrMessage, Stop, Target, TargetBuilder};
use crate::logic::units::{Sector, Sectors};
use crate::sys::string::bytes;
use kernel::new_mutex;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow, Mutex};

/// The device that one target has lent to another one.
pub(crate) type LentDevice = Mutex<Option<Device>>;

/// Creates the place for a lent device, which is empty.
pub(crate) fn no_device_lent() -> Result<Arc<LentDevice>> {
    Arc::pin_init(new_mutex!(None, "dm_rust_stray"), GFP_KERNEL)
}

/// What a target does with its own device, or with a lent one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Misuse {
    /// Maps bios to its own device, and lends that device to another target.
    Lend,
    /// Maps bios to the device of another target.
    Map,
    /// Takes bios out of `map`, and submits them to the device of another target.
    Submit,
    /// Visits the device of another target in `iterate_devices`.
    Visit,
}

/// One target of type `rust-stray`.
pub(crate) struct Stray {
    /// The device of the table line.
    device: Device,
    /// The device that it uses.
    used: Device,
    misuse: Misuse,
    len: Sectors,
}

#[vtable]
impl Target for Stray {
    const NAME: &'static CStr = c"rust-stray";
    const VERSION: [u32; 3] = [1, 0, 0];
    const C_MODULE: &'static str = "none";
    const NOWAIT: bool = true;
    type PerBio = [u8; 0];
    type Shared = Arc<LentDevice>;

    fn ctr(
        builder: &mut TargetBuilder<'_>,
        lent: &Arc<LentDevice>,
        mut args: Arguments<'_>,
    ) -> Result<Arc<Self>, CtrError> {
        let (Some(path), Some(misuse)) = (args.next(), args.next()) else {
            return Err(CtrError::new(c"A device and what to do are needed", EINVAL));
        };
        let misuse = match bytes(misuse) {
            b"lend" => Misuse::Lend,
            b"map" => Misuse::Map,
            b"submit" => Misuse::Submit,
            b"visit" => Misuse::Visit,
            _ => return Err(CtrError::new(c"Unknown word", EINVAL)),
        };
        let device = builder
            .open(path, Access::ReadWrite)
            .or_message(c"No device")?;
        let used = if misuse == Misuse::Lend {
            *lent.lock() = Some(device.shared());
            device.shared()
        } else {
            lent.lock()
                .take()
                .ok_or(ENODEV)
                .or_message(c"Nobody has lent a device")?
        };
        let len = builder.len();
        Arc::new(
            Stray {
                device,
                used,
                misuse,
                len,
            },
            GFP_KERNEL,
        )
        .or_message(c"Out of memory")
    }

    fn map<'a>(this: ArcBorrow<'_, Self>, bio: MapBio<'a, [u8; 0]>) -> Mapped<'a> {
        if this.misuse != Misuse::Submit {
            return bio.remap(&this.used);
        }
        let (bio, mapped) = bio.take();
        bio.submit(&this.used);
        mapped
    }

    fn status(this: ArcBorrow<'_, Self>, kind: StatusKind, _: bool, out: &mut StatusBuf<'_>) {
        if kind == StatusKind::Table {
            out.emit(fmt!("{}", this.device))
        }
    }

    fn iterate_devices(
        this: ArcBorrow<'_, Self>,
        visitor: &mut DeviceVisitor<'_>,
    ) -> Result<(), Stop> {
        let device = if this.misuse == Misuse::Visit {
            &this.used
        } else {
            &this.device
        };
        visitor.visit(device, Sector(0), this.len)
    }
}
