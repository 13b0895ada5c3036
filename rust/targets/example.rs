// SPDX-License-Identifier: GPL-2.0

//! A worked example: `rust-linear <device> <offset>`, which maps a target to a part of a device.
//!
//! Built only on request (`make DM_RUST_EXAMPLE=1`). `Documentation/adding-a-target.md` goes through it.

use crate::dm::bio::{MapBio, Mapped};
use crate::dm::device::{Access, Device};
use crate::dm::io::{Buffer, IoClient, Transfer};
use crate::dm::status::{StatusBuf, StatusKind};
use crate::dm::table::Words;
use crate::dm::target::{CtrError, DeviceVisitor, New, Stop, Target, Text};
use crate::logic::args::parse_decimal_u64;
use crate::logic::units::{Sector, Sectors};
use crate::sys::string::bytes;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// One line of a table.
pub(crate) struct Example {
    device: Device,
    offset: Sector,
    len: Sectors,
    io: IoClient,
}

impl Example {
    /// Where a sector of the target lies on the device; `None` if there is no such sector.
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

    fn ctr(new: &mut New<'_>, (): &(), mut words: Words<'_>) -> Result<Arc<Self>, CtrError> {
        let (Some(path), Some(offset), None) = (words.next(), words.next(), words.next()) else {
            return Err(CtrError::new(c"Device and offset are needed", EINVAL));
        };
        let offset = parse_decimal_u64(bytes(offset)).map(Sector);
        let offset = offset.ok_or(EINVAL).text(c"Invalid offset")?;
        let device = new
            .open(path, Access::ReadWrite)
            .text(c"Device lookup failed")?;
        let (len, io) = (new.len(), new.io_client()?);
        new.want_flushes();
        Arc::new(
            Example {
                device,
                offset,
                len,
                io,
            },
            GFP_KERNEL,
        )
        .text(c"Out of memory")
    }

    fn map<'a>(this: ArcBorrow<'_, Self>, mut bio: MapBio<'a, [u8; 0]>) -> Mapped<'a> {
        match this.locate(bio.sector()) {
            Some(sector) => bio.set_sector(sector),
            None => return bio.kill(),
        }
        bio.remap(&this.device)
    }

    fn status(this: ArcBorrow<'_, Self>, kind: StatusKind, _: bool, out: &mut StatusBuf<'_>) {
        if kind == StatusKind::Table {
            out.emit(fmt!("{} {}", this.device, this.offset))
        }
    }

    /// `peek <sector>` answers with the first bytes of a sector.
    fn message(this: ArcBorrow<'_, Self>, words: Words<'_>, out: &mut StatusBuf<'_>) -> Result {
        let sector = words.last().and_then(|w| parse_decimal_u64(bytes(w)));
        let sector = this.locate(Sector(sector.ok_or(EINVAL)?)).ok_or(EINVAL)?;
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
