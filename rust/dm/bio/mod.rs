// SPDX-License-Identifier: GPL-2.0

//! Owned bios.
//!
//! A [`Bio`] is a value: whoever has it must pass it on exactly once, by submitting, ending or
//! queueing it. If one is dropped all the same, it ends with an I/O error instead of hanging its
//! submitter for ever.
//!
//! Within `map` and `end_io` a bio comes as [`MapBio`] or [`EndBio`]. Each consuming method returns
//! the token that the hook must return, so that "what became of the bio" and "what device-mapper is
//! told" cannot differ.
//!
//! A bio goes to devices of its own target only. Those stay open until it has ended: device-mapper
//! destroys no target of which a bio is under way. A device of another target is refused, for that
//! one may be gone first.
//!
//! C header: [`include/linux/bio.h`](srctree/include/linux/bio.h)

mod hooks;
mod queue;

pub(crate) use self::{
    hooks::{
        EndBio,
        Ended,
        MapBio,
        Mapped, //
    },
    queue::BioQueue, //
};

use crate::{
    bindings,
    dm::device::Device,
    logic::units::{
        Sector,
        Sectors, //
    },
    sys::log::{
        err,
        err_limit, //
    }, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::{
        addr_of,
        addr_of_mut,
        NonNull, //
    }, //
};
use kernel::{
    bindings as kb,
    error::Error, //
};
use zerocopy::FromZeros;

/// What a bio asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Read data.
    Read,
    /// Write data. A flush is a write too, see [`Bio::is_flush`].
    Write,
    /// The data is not needed any more.
    Discard,
    /// Write zeros; the bio has a length but no data.
    WriteZeroes,
    /// Anything else; device-mapper sends it only to targets that declare it.
    Other,
}

/// How a bio ended: a `blk_status_t`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlkStatus(kb::blk_status_t);

impl BlkStatus {
    /// Success.
    pub(crate) const OK: BlkStatus = BlkStatus(bindings::BLK_STS_OK);
    /// It would have had to wait, and had asked not to (`EAGAIN`).
    pub(crate) const AGAIN: BlkStatus = BlkStatus(bindings::BLK_STS_AGAIN);
    /// The I/O failed (`EIO`).
    pub(crate) const IO_ERROR: BlkStatus = BlkStatus(bindings::BLK_STS_IOERR);

    /// Goes back to device-mapper, which maps the bio again after the next resume: see
    /// [`MapBio::requeue`].
    pub(crate) const REQUEUE: BlkStatus = BlkStatus(bindings::BLK_STS_DM_REQUEUE);

    /// Whether this is success.
    pub(crate) fn is_ok(self) -> bool {
        self == BlkStatus::OK
    }
}

impl From<Error> for BlkStatus {
    fn from(error: Error) -> Self {
        // SAFETY: A table look-up without preconditions.
        BlkStatus(unsafe { kb::errno_to_blk_status(error.to_errno()) })
    }
}

/// The memory that a target asks for with each bio: a `D`, and in front of that the target of a bio
/// that was taken.
pub(super) const fn bio_data_size<D: PerBio>() -> usize {
    size_of::<D>() + size_of::<NonNull<bindings::dm_target>>()
}

/// An owned bio, with a `D` of the target's own beside it.
///
/// # Invariants
///
/// - The pointer is to a live bio that nobody else will submit, end or queue, with room of
///   [`bio_data_size`] in front of it, in which a `D` stands as soon as [`MapBio::new`] has run.
/// - Outside of [`MapBio`] and [`EndBio`], the target that device-mapper made the bio for stands in
///   that room.
#[must_use = "a bio must be submitted, ended or queued"]
pub(crate) struct Bio<D: PerBio> {
    raw: NonNull<kb::bio>,
    _data: PhantomData<D>,
}

// SAFETY: A bio has no tie to a thread; it is owned, and so is its plain data.
unsafe impl<D: PerBio> Send for Bio<D> {}

impl<D: PerBio> Bio<D> {
    /// Takes ownership of a bio.
    ///
    /// # Safety
    ///
    /// - The bio is live, and one that device-mapper made for a target that asked for
    ///   [`bio_data_size`] with each.
    /// - The caller owns it, and gives that ownership up.
    /// - Unless the result becomes a part of `MapBio` or `EndBio`, the bio comes from
    ///   [`into_raw`](Self::into_raw).
    unsafe fn from_raw(raw: NonNull<kb::bio>) -> Self {
        // INVARIANT: By the contract.
        Bio {
            raw,
            _data: PhantomData,
        }
    }

    /// Gives up ownership.
    fn into_raw(self) -> NonNull<kb::bio> {
        ManuallyDrop::new(self).raw
    }

    fn flags(&self) -> kb::blk_opf_t {
        // SAFETY: By the invariant the bio is live.
        unsafe { (*self.raw.as_ptr()).bi_opf }
    }

    fn iter(&self) -> kb::bvec_iter {
        // SAFETY: By the invariant the bio is live; the iterator is plain data.
        unsafe { addr_of!((*self.raw.as_ptr()).bi_iter).read() }
    }

    /// What the bio asks for.
    pub(crate) fn op(&self) -> Op {
        match self.flags() & bindings::REQ_OP_MASK {
            kb::req_op_REQ_OP_READ => Op::Read,
            kb::req_op_REQ_OP_WRITE => Op::Write,
            kb::req_op_REQ_OP_DISCARD => Op::Discard,
            kb::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
            _ => Op::Other,
        }
    }

    /// Whether this is a flush of the volatile cache. Device-mapper sends flushes as writes without
    /// data.
    pub(crate) fn is_flush(&self) -> bool {
        self.flags() & bindings::REQ_PREFLUSH != 0
    }

    /// Whether the data must be on stable storage before the bio ends ("force unit access").
    pub(crate) fn is_fua(&self) -> bool {
        self.flags() & bindings::REQ_FUA != 0
    }

    /// Whether the bio is to fail rather than wait.
    pub(crate) fn is_nowait(&self) -> bool {
        self.flags() & bindings::REQ_NOWAIT != 0
    }

    /// First sector, counted from the start of the target.
    pub(crate) fn sector(&self) -> Sector {
        Sector(self.iter().bi_sector)
    }

    /// Length. Zero for a flush.
    pub(crate) fn sectors(&self) -> Sectors {
        Sectors(u64::from(self.iter().bi_size) >> kernel::block::SECTOR_SHIFT)
    }

    /// Changes the first sector, for a device on which the target does not start at zero.
    pub(crate) fn set_sector(&mut self, sector: Sector) {
        // SAFETY: By the invariant the bio is live and ours alone.
        unsafe { addr_of_mut!((*self.raw.as_ptr()).bi_iter.bi_sector).write_unaligned(sector.0) }
    }

    /// Narrows a bio without data (a discard) to a part of itself. Returns false, and does nothing,
    /// for any other bio and for a range outside.
    pub(crate) fn trim(&mut self, start: Sector, len: Sectors) -> bool {
        let (old_start, old_len) = (self.sector(), self.sectors());
        let inside = match (
            start.0.checked_add(len.0),
            old_start.0.checked_add(old_len.0),
        ) {
            (Some(end), Some(old_end)) => start >= old_start && end <= old_end,
            _ => false,
        };
        let size = u32::try_from(len.0 << kernel::block::SECTOR_SHIFT);
        match size {
            Ok(size) if inside && self.op() == Op::Discard => {
                // SAFETY: By the invariant the bio is live and ours alone.
                unsafe { addr_of_mut!((*self.raw.as_ptr()).bi_iter.bi_size).write_unaligned(size) };
                self.set_sector(start);
                true
            }
            _ => false,
        }
    }

    fn data(&self) -> *mut D {
        // SAFETY: By the invariant the bio is one of device-mapper's, for a target that asked for
        // this size.
        unsafe { bindings::dm_per_bio_data(self.raw.as_ptr(), size_of::<D>()) }.cast()
    }

    /// The target's own data of this bio, as it was last set since it came to `map`; zeros if it
    /// was not.
    pub(crate) fn per_bio(&self) -> D {
        // SAFETY: By the invariant there is a `D`, ours while we have the bio.
        unsafe { self.data().read_unaligned() }
    }

    /// Sets the target's own data of this bio.
    pub(crate) fn set_per_bio(&mut self, value: D) {
        // SAFETY: By the invariant there is room for a `D`, ours while we have the bio.
        unsafe { self.data().write_unaligned(value) }
    }

    fn owner(&self) -> *mut NonNull<bindings::dm_target> {
        // SAFETY: By the invariant the bio is one of device-mapper's, for a target that asked for
        // this size.
        unsafe { bindings::dm_per_bio_data(self.raw.as_ptr(), bio_data_size::<D>()) }.cast()
    }

    /// Takes the bio out of a call of a hook of its target.
    fn owned_by(self, target: NonNull<bindings::dm_target>) -> Self {
        // SAFETY: By the invariant there is room, ours while we have the bio.
        unsafe { self.owner().write_unaligned(target) };
        self
    }

    /// Whether a device is one of the bio's own target. Not within a hook.
    fn is_for(&self, device: &Device) -> bool {
        // SAFETY: By the invariant the target of the bio stands there: hooks give bios away only by
        // `owned_by`.
        unsafe { self.owner().read_unaligned() == device.target() }
    }

    /// Sends the bio to a device; its end comes to the target's `end_io` hook. A device of another
    /// target is refused: then the bio ends with an I/O error.
    ///
    /// Process context; may sleep for a request of the device below, even if the bio asked not to
    /// wait. Not from within `map`: use [`MapBio::remap`].
    ///
    /// Whom the I/O is charged to is not the thread that does this, but who sent the bio to the
    /// mapped device.
    pub(crate) fn submit(self, device: &Device) {
        if !self.is_for(device) {
            report_foreign_device();
            return self.end(BlkStatus::IO_ERROR);
        }
        // SAFETY: By the invariant the bio is live and ours alone.
        unsafe { (*self.raw.as_ptr()).bi_opf &= !bindings::REQ_NOWAIT };
        // SAFETY: The bio is live, was taken from device-mapper, and passes to the block layer. The
        // device stays open until it has ended: both are the same target's.
        unsafe { bindings::dmr_bio_submit(self.into_raw().as_ptr(), device.raw_bdev()) }
    }

    /// Ends the bio. Any context. The target's `end_io` hook is called from within.
    pub(crate) fn end(self, status: BlkStatus) {
        // SAFETY: The bio is live and passes to its submitter.
        unsafe { bindings::dmr_bio_end(self.into_raw().as_ptr(), status.0) }
    }
}

impl<D: PerBio> Drop for Bio<D> {
    fn drop(&mut self) {
        err!("dm_rust", "BUG: bio dropped without completion, failing it");
        // SAFETY: The bio is live, owned, and not used after this.
        unsafe { bindings::dmr_bio_end(self.raw.as_ptr(), BlkStatus::IO_ERROR.0) }
    }
}

/// Says that a target has sent a bio to a device of another one.
#[cold]
fn report_foreign_device() {
    err_limit!(
        "dm_rust",
        "a bio was sent to a device of another target, it ends with an error"
    );
}

/// Plain data that a target keeps with each bio that it maps.
///
/// Each time a bio comes to `map`, it is zeros.
pub(crate) trait PerBio: FromZeros + Copy + Send + 'static {}

impl<D: FromZeros + Copy + Send + 'static> PerBio for D {}
