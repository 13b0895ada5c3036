// SPDX-License-Identifier: GPL-2.0

//! The `snapshot-origin` target: passes I/O through to the origin, but a write only after all
//! snapshots have a copy of what it overwrites.
//!
//! C counterparts: `struct dm_origin`, `origin_map`, `do_origin`.

use super::{
    group::Membership,
    per_bio::PerBioData,
    submitter::BioSubmitter,
    OriginGroup,
    Origins, //
};
use crate::{
    dm::{
        arguments::Arguments,
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
        target::{
            CtrError,
            DeviceVisitor,
            OrMessage,
            Stop,
            Target,
            TargetBuilder, //
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

/// Maximum size of a deferred write: longer ones are split, so that one write does not keep the
/// worker busy for long.
const MAX_DEFERRED: Sectors = Sectors(2048);

/// An origin that is in use. C counterpart: `struct dm_origin`.
#[pin_data]
pub(crate) struct OriginTarget {
    group: Arc<OriginGroup>,
    device: Device,
    begin: Sector,
    len: Sectors,
    /// Its number among the origin targets of the group.
    id: u32,
    /// Writes that the worker sends to the origin.
    pub(super) submitter: Arc<BioSubmitter>,
    /// Writes that `map` has left to the worker.
    #[pin]
    pub(super) deferred: IrqLock<BioQueue<PerBioData>>,
}

#[vtable]
impl Target for OriginTarget {
    const NAME: &'static CStr = c"snapshot-origin";
    const VERSION: [u32; 3] = [1, 9, 0];
    const C_MODULE: &'static str = "dm_snapshot";
    const NOWAIT: bool = false;
    type PerBio = PerBioData;
    type Shared = Arc<Origins>;

    fn ctr(
        builder: &mut TargetBuilder<'_>,
        origins: &Arc<Origins>,
        mut args: Arguments<'_>,
    ) -> Result<Arc<Self>, CtrError> {
        let (Some(path), None) = (args.next(), args.next()) else {
            let text = c"origin: incorrect number of arguments";
            return Err(CtrError::new(text, EINVAL));
        };
        let memory = c"Cannot allocate private origin structure";
        let device = builder
            .open(path, builder.access())
            .or_message(c"Cannot get target device")?;
        let membership = Membership::new(builder, origins, device.number()).or_message(memory)?;
        let group = membership.group().clone();
        builder.pass_flushes(1);
        let this =
            Self::add_to_group(group, device, builder.begin(), builder.len()).or_message(memory)?;
        membership.keep();
        Ok(this)
    }

    fn dtr(this: &Arc<Self>) {
        this.remove_from_group();
        this.group.drain();
        this.group.leave();
    }

    fn map<'a>(this: ArcBorrow<'_, Self>, mut bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
        if bio.is_flush() {
            let at = this.origin_sector(bio.sector());
            bio.set_sector(at);
            return bio.remap(&this.device);
        }
        this.map_to_origin(bio)
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

impl OriginTarget {
    /// Makes an origin target, and adds it to its group. May sleep.
    pub(super) fn add_to_group(
        group: Arc<OriginGroup>,
        device: Device,
        begin: Sector,
        len: Sectors,
    ) -> Result<Arc<Self>> {
        let submitter = BioSubmitter::new(device.shared())?;
        let id = group.members.lock().new_origin_id();
        let this = Arc::pin_init(
            pin_init!(OriginTarget {
                group,
                device,
                begin,
                len,
                id,
                submitter,
                deferred <- new_irq_lock!(BioQueue::new(), "dm_snap_origin"),
            }),
            GFP_KERNEL,
        )?;
        let _noio = NoIo::enter();
        let mut members = this.group.members.lock();
        lists::push(&mut members.origins, this.clone(), GFP_KERNEL)?;
        drop(members);
        Ok(this)
    }

    /// Removes the target from its group. It has no bios any more. May sleep.
    pub(super) fn remove_from_group(self: &Arc<Self>) {
        let mut members = self.group.members.lock();
        let taken = lists::remove_first(&mut members.origins, |other| Arc::ptr_eq(other, self));
        drop(members);
        drop(taken);
        self.submitter.drain();
    }

    /// Maps a read or a write to the origin; defers a write to chunks that a snapshot still needs.
    ///
    /// Process context: may sleep while a snapshot is added or activated.
    pub(super) fn map_to_origin<'a>(&self, mut bio: MapBio<'a, PerBioData>) -> Mapped<'a> {
        let at = self.origin_sector(bio.sector());
        if bio.op() == Op::Read {
            bio.set_sector(at);
            return bio.remap(&self.device);
        }
        let preserved = self.group.preserved_len(at, bio.sectors());
        if !preserved.is_zero() {
            bio.accept_partial(preserved);
            bio.set_sector(at);
            return bio.remap(&self.device);
        }
        bio.accept_partial(MAX_DEFERRED);
        bio.set_per_bio(PerBioData::origin_write(self.id));
        let (bio, mapped) = bio.take();
        self.deferred.lock().push(bio);
        self.group.wake();
        mapped
    }

    /// Defers writes to the worker. Any context.
    pub(super) fn defer(&self, mut bios: BioQueue<PerBioData>) {
        let mut deferred = self.deferred.lock();
        while let Some(mut bio) = bios.pop() {
            bio.set_per_bio(PerBioData::origin_write(self.id));
            deferred.push(bio);
        }
        drop(deferred);
        self.group.wake();
    }

    /// Its number among the origin targets of the group, as kept with a bio.
    pub(super) fn id(&self) -> u64 {
        self.id.into()
    }

    /// The sector of the origin for a sector of a bio, which is relative to the target.
    pub(super) fn origin_sector(&self, sector: Sector) -> Sector {
        Sector(self.begin.0.saturating_add(sector.0))
    }
}
