// SPDX-License-Identifier: GPL-2.0

//! A worked example: `rust-linear <device> <offset>`, which maps a target to a part of a device.
//!
//! C counterpart: `dm-linear.c`. Built on request only, by `make DM_RUST_EXAMPLE=1`.
//! `Documentation/adding-a-target.md` explains it.

use crate::dm::arguments::Arguments;
use crate::dm::bio::{MapBio, Mapped};
use crate::dm::device::{Access, Device};
use crate::dm::io::{Buffer, IoClient, Transfer};
use crate::dm::status::{StatusBuf, StatusKind};
use crate::dm::target::{CtrError, DeviceVisitor, OrMessage as _, Stop, Target, TargetBuilder};
use crate::logic::args::parse_decimal_u64;
use crate::logic::units::{Sector, Sectors};
use crate::sys::log::CStrDisplay;
use crate::sys::queue::{enqueue_delayed, HasQueue, QueueKind, WorkQueue};
use crate::sys::string::bytes;
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{Arc, ArcBorrow};
use kernel::time::Delta;
use kernel::workqueue::{impl_has_delayed_work, new_delayed_work, DelayedWork, WorkItem};

/// One target of type `rust-linear`.
#[pin_data]
pub(crate) struct Example {
    device: Device,
    offset: Sector,
    len: Sectors,
    io: IoClient,
    queue: WorkQueue,
    ticks: Atomic<u32>,
    #[pin]
    clock: DelayedWork<Example, 1>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Example, 1> for Example { self.clock }
}

impl HasQueue for Example {
    fn queue(&self) -> &WorkQueue {
        &self.queue
    }
}

/// A clock that the target does not stop. The destructor waits until it has ticked once more.
impl WorkItem<1> for Example {
    type Pointer = Arc<Example>;

    fn run(this: Arc<Example>) {
        this.ticks.fetch_add(1, Relaxed);
        enqueue_delayed::<Example, 1>(this, Delta::from_millis(10));
    }
}

impl Example {
    /// Returns the sector of the device for a sector of the target, or `None` if it is out of
    /// range.
    fn locate(&self, sector: Sector) -> Option<Sector> {
        self.offset.0.checked_add(sector.0).map(Sector)
    }
}

#[vtable]
impl Target for Example {
    const NAME: &'static CStr = c"rust-linear";
    const VERSION: [u32; 3] = [1, 0, 0];
    const C_MODULE: &'static str = "none";
    const NOWAIT: bool = true;
    type PerBio = [u8; 0];
    type Shared = ();

    fn ctr(
        builder: &mut TargetBuilder<'_>,
        (): &(),
        mut args: Arguments<'_>,
    ) -> Result<Arc<Self>, CtrError> {
        let (Some(path), Some(offset), None) = (args.next(), args.next(), args.next()) else {
            return Err(CtrError::new(c"Device and offset are needed", EINVAL));
        };
        let offset = parse_decimal_u64(bytes(offset)).map(Sector);
        let offset = offset.ok_or(EINVAL).or_message(c"Invalid offset")?;
        let device = builder
            .open(path, Access::ReadWrite)
            .or_message(c"Device lookup failed")?;
        let (len, io) = (builder.len(), builder.io_client()?);
        let queue = builder.queue(c"rust-linear", QueueKind::Unbound)?;
        builder.want_flushes();
        Arc::pin_init(
            pin_init!(Example {
                device,
                offset,
                len,
                io,
                queue,
                ticks: Atomic::new(0),
                clock <- new_delayed_work!("rust_linear_clock"),
            }),
            GFP_KERNEL,
        )
        .or_message(c"Out of memory")
    }

    fn map<'a>(this: ArcBorrow<'_, Self>, mut bio: MapBio<'a, [u8; 0]>) -> Mapped<'a> {
        match this.locate(bio.sector()) {
            Some(sector) => bio.set_sector(sector),
            None => return bio.kill(),
        }
        bio.remap(&this.device)
    }

    fn status(this: ArcBorrow<'_, Self>, kind: StatusKind, _: bool, out: &mut StatusBuf<'_>) {
        match kind {
            StatusKind::Table => out.emit(fmt!("{} {}", this.device, this.offset)),
            StatusKind::Info => out.emit(fmt!("{}", this.ticks.load(Relaxed))),
            StatusKind::Ima => {}
        }
    }

    /// `peek <sector>` replies with the first bytes of a sector, `tick` starts the clock, and
    /// `repeat <n> <word>` replies with a word, `n` times.
    fn message(
        this: ArcBorrow<'_, Self>,
        mut args: Arguments<'_>,
        out: &mut StatusBuf<'_>,
    ) -> Result {
        let (name, number) = (args.next().ok_or(EINVAL)?, args.next());
        if bytes(name) == b"tick" {
            enqueue_delayed::<Example, 1>(this.into(), Delta::from_millis(1));
            return Ok(());
        }
        let number = number.and_then(|word| parse_decimal_u64(bytes(word)));
        let number = number.ok_or(EINVAL)?;
        if bytes(name) == b"repeat" {
            let word = CStrDisplay(args.next().ok_or(EINVAL)?);
            (0..number).for_each(|_| out.emit(fmt!("{}", word)));
            return Ok(());
        }
        let sector = this.locate(Sector(number)).ok_or(EINVAL)?;
        let mut buffer = Buffer::new(1)?;
        this.io
            .transfer(Transfer::Read, &this.device, sector, &mut buffer)?;
        out.emit(fmt!("{:02x?}", buffer.get(..4).unwrap_or_default()));
        Ok(())
    }

    fn iterate_devices(
        this: ArcBorrow<'_, Self>,
        visitor: &mut DeviceVisitor<'_>,
    ) -> Result<(), Stop> {
        visitor.visit(&this.device, this.offset, this.len)
    }
}
