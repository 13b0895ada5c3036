// SPDX-License-Identifier: GPL-2.0

//! The `snapshot-origin` target: passes everything through, but a write only when all snapshots have what it overwrites.

use super::{
    family::{
        Family,
        World, //
    },
    io::Stamp,
    Membership, //
};
use crate::{
    dm::{
        bio::{
            BioQueue,
            MapBio,
            Mapped,
            Op, //
        },
        device::Device,
        status::{
            StatusBuf,
            StatusKind, //
        },
        table::Words,
        target::{
            CtrError,
            DeviceVisitor,
            New,
            Stop,
            Target,
            Text, //
        }, //
    },
    logic::{
        snapshot::lists,
        units::{
            Sector,
            Sectors, //
        }, //
    },
    sys::{
        irq_lock::{
            new_irq_lock,
            IrqLock, //
        },
        noio::NoIo, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

/// An origin: one line of a table.
#[pin_data]
pub(crate) struct Origin {
    family: Arc<Family>,
    device: Device,
    begin: Sector,
    len: Sectors,
    /// Its name among the targets of the family.
    id: u32,
    /// Writes that the worker has to look at.
    #[pin]
    pub(super) deferred: IrqLock<BioQueue<Stamp>>,
}

#[vtable]
impl Target for Origin {
    const NAME: &'static CStr = c"snapshot-origin";
    const VERSION: [u32; 3] = [1, 9, 0];
    const C_MODULE: &'static str = "dm_snapshot";
    const NOWAIT: bool = false;
    type PerBio = Stamp;
    type Shared = Arc<World>;

    fn ctr(
        new: &mut New<'_>,
        world: &Arc<World>,
        mut words: Words<'_>,
    ) -> Result<Arc<Self>, CtrError> {
        let (Some(path), None) = (words.next(), words.next()) else {
            let text = c"origin: incorrect number of arguments";
            return Err(CtrError::new(text, EINVAL));
        };
        let memory = c"Cannot allocate private origin structure";
        let device = new
            .open(path, new.access())
            .text(c"Cannot get target device")?;
        let membership = Membership::new(world, device.number()).text(memory)?;
        let family = membership.family().clone();
        new.pass_flushes();
        let (begin, len, id) = (new.begin(), new.len(), family.roster.lock().new_id());
        let this = Arc::pin_init(
            pin_init!(Origin {
                family,
                device,
                begin,
                len,
                id,
                deferred <- new_irq_lock!(BioQueue::new(), "dm_snap_origin"),
            }),
            GFP_KERNEL,
        )
        .text(memory)?;
        let _noio = NoIo::enter();
        let mut roster = this.family.roster.lock();
        lists::push(&mut roster.origins, this.clone(), GFP_KERNEL).text(memory)?;
        drop(roster);
        membership.keep();
        Ok(this)
    }

    fn dtr(this: &Arc<Self>) {
        let family = &this.family;
        let mut roster = family.roster.lock();
        lists::take(&mut roster.origins, |other| Arc::ptr_eq(other, this));
        drop(roster);
        family.settle();
        family.leave();
    }

    fn map<'a>(this: ArcBorrow<'_, Self>, mut bio: MapBio<'a, Stamp>) -> Mapped<'a> {
        let at = this.absolute(bio.sector());
        if bio.is_flush() || bio.op() == Op::Read {
            bio.set_sector(at);
            return bio.remap(&this.device);
        }
        let clear = this.family.clear(at, bio.sectors());
        if !clear.is_zero() {
            bio.accept(clear);
            bio.set_sector(at);
            return bio.remap(&this.device);
        }
        bio.set_per_bio(Stamp::of_origin(this.id));
        let (bio, mapped) = bio.take();
        this.deferred.lock().push(bio);
        this.family.wake();
        mapped
    }

    fn status(this: ArcBorrow<'_, Self>, kind: StatusKind, _: bool, out: &mut StatusBuf<'_>) {
        if kind == StatusKind::Table {
            out.emit(fmt!("{}", this.device));
        }
    }

    fn iterate_devices(
        this: ArcBorrow<'_, Self>,
        visitor: &mut DeviceVisitor<'_>,
    ) -> Result<(), Stop> {
        visitor.visit(&this.device, Sector(0), this.len)
    }
}

impl Origin {
    /// Its name among the targets of the family.
    pub(super) fn id(&self) -> u64 {
        self.id.into()
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Where a sector of the target is on the device: at the same place as on the mapped device.
    pub(super) fn absolute(&self, sector: Sector) -> Sector {
        Sector(self.begin.0.saturating_add(sector.0))
    }
}
