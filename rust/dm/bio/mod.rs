// SPDX-License-Identifier: GPL-2.0

//! Owned bios.
//!
//! A [`Bio`] is a value, which its owner passes on exactly once: by submitting, ending or queueing
//! it. A bio that is dropped instead ends with an I/O error, so that its submitter does not wait
//! for ever.
//!
//! The hooks `map` and `end_io` get a bio as [`MapBio`] or [`EndBio`]. Each method that consumes it
//! returns the token that the hook must return, so that device-mapper is told what was done with
//! the bio.
//!
//! A bio is sent to devices of its own target only. These stay open until the bio has ended,
//! because device-mapper destroys no target that has a bio in flight. A device of another target
//! could be closed earlier, and is refused.
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

/// The operation of a bio. C counterpart: `enum req_op`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Read data.
    Read,
    /// Write data, or flush: see [`Bio::is_flush`].
    Write,
    /// Discard data that is no longer needed.
    Discard,
    /// Write zeros. The bio has a length, but no data.
    WriteZeroes,
    /// Any other operation. Device-mapper sends these to targets that declare them only.
    Other,
}

/// The status of a bio that has ended. C counterpart: `blk_status_t`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlkStatus(kb::blk_status_t);

impl BlkStatus {
    /// Success.
    pub(crate) const OK: BlkStatus = BlkStatus(bindings::BLK_STS_OK);
    /// The bio has `REQ_NOWAIT`, and would have had to wait (`EAGAIN`).
    pub(crate) const AGAIN: BlkStatus = BlkStatus(bindings::BLK_STS_AGAIN);
    /// The I/O failed (`EIO`).
    pub(crate) const IO_ERROR: BlkStatus = BlkStatus(bindings::BLK_STS_IOERR);

    /// Device-mapper maps the bio again after the next resume: see [`MapBio::requeue`].
    pub(crate) const REQUEUE: BlkStatus = BlkStatus(bindings::BLK_STS_DM_REQUEUE);

    /// Returns whether this is success. Any context.
    pub(crate) fn is_ok(self) -> bool {
        self == BlkStatus::OK
    }
}

impl From<Error> for BlkStatus {
    fn from(error: Error) -> Self {
        // SAFETY: The function has no preconditions.
        BlkStatus(unsafe { kb::errno_to_blk_status(error.to_errno()) })
    }
}

/// Returns the size of the per-bio data that a target declares: a `D`, and before it the target
/// that owns a bio outside of the hooks. Any context.
pub(super) const fn bio_data_size<D: PerBio>() -> usize {
    size_of::<D>() + size_of::<NonNull<bindings::dm_target>>()
}

/// An owned bio, with per-bio data `D` of the target.
///
/// # Invariants
///
/// - The pointer is to a live bio that nothing else submits, ends or queues. Before it there are
///   [`bio_data_size`] bytes of per-bio data, which contain a `D` once [`MapBio::new`] has
///   returned.
/// - Outside of [`MapBio`] and [`EndBio`], the per-bio data contains the target that device-mapper
///   made the bio for.
#[must_use = "a bio must be submitted, ended or queued"]
pub(crate) struct Bio<D: PerBio> {
    raw: NonNull<kb::bio>,
    _data: PhantomData<D>,
}

// SAFETY: A bio is not tied to a thread, and `D: Send`.
unsafe impl<D: PerBio> Send for Bio<D> {}

impl<D: PerBio> Bio<D> {
    /// Takes ownership of a bio.
    ///
    /// # Safety
    ///
    /// - The bio is live, and device-mapper made it for a target that declares [`bio_data_size`].
    /// - The caller owns the bio, and passes the ownership to the result.
    /// - Unless the result becomes a part of `MapBio` or `EndBio`, the bio is a result of
    ///   [`into_raw`](Self::into_raw).
    unsafe fn from_raw(raw: NonNull<kb::bio>) -> Self {
        // INVARIANT: By this function's contract, the bio is live, has per-bio data of that size,
        // and nothing else owns it.
        Bio {
            raw,
            _data: PhantomData,
        }
    }

    /// Gives up the ownership.
    fn into_raw(self) -> NonNull<kb::bio> {
        ManuallyDrop::new(self).raw
    }

    fn flags(&self) -> kb::blk_opf_t {
        // SAFETY: By the invariant, the bio is live.
        unsafe { (*self.raw.as_ptr()).bi_opf }
    }

    fn iter(&self) -> kb::bvec_iter {
        // SAFETY: By the invariant, the bio is live. The iterator is plain data.
        unsafe { addr_of!((*self.raw.as_ptr()).bi_iter).read() }
    }

    /// Returns the operation. C counterpart: `bio_op()`. Any context.
    pub(crate) fn op(&self) -> Op {
        match self.flags() & bindings::REQ_OP_MASK {
            kb::req_op_REQ_OP_READ => Op::Read,
            kb::req_op_REQ_OP_WRITE => Op::Write,
            kb::req_op_REQ_OP_DISCARD => Op::Discard,
            kb::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
            _ => Op::Other,
        }
    }

    /// Returns whether this is a flush of the volatile cache. Device-mapper sends a flush as a
    /// write without data. Any context.
    pub(crate) fn is_flush(&self) -> bool {
        self.flags() & bindings::REQ_PREFLUSH != 0
    }

    /// Returns whether the data must be durable before the bio ends ("force unit access"). Any
    /// context.
    pub(crate) fn is_fua(&self) -> bool {
        self.flags() & bindings::REQ_FUA != 0
    }

    /// Returns whether the bio is to fail rather than wait (`REQ_NOWAIT`). Any context.
    pub(crate) fn is_nowait(&self) -> bool {
        self.flags() & bindings::REQ_NOWAIT != 0
    }

    /// Returns the first sector, counted from the start of the target. Any context.
    pub(crate) fn sector(&self) -> Sector {
        Sector(self.iter().bi_sector)
    }

    /// Returns the length, which is zero for a flush. Any context.
    pub(crate) fn sectors(&self) -> Sectors {
        Sectors(u64::from(self.iter().bi_size) >> kernel::block::SECTOR_SHIFT)
    }

    /// Sets the first sector, for a device on which the target does not start at zero. Any context.
    pub(crate) fn set_sector(&mut self, sector: Sector) {
        // SAFETY: By the invariant, the bio is live, and nothing else uses it.
        unsafe { addr_of_mut!((*self.raw.as_ptr()).bi_iter.bi_sector).write_unaligned(sector.0) }
    }

    /// Trims a discard to a part of itself.
    ///
    /// Returns false, and changes nothing, for any other operation and for a range that is not a
    /// part of the bio. Any context.
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
                // SAFETY: By the invariant, the bio is live, and nothing else uses it.
                unsafe { addr_of_mut!((*self.raw.as_ptr()).bi_iter.bi_size).write_unaligned(size) };
                self.set_sector(start);
                true
            }
            _ => false,
        }
    }

    fn data(&self) -> *mut D {
        // SAFETY: By the invariant, device-mapper made the bio, with at least so much per-bio data.
        unsafe { bindings::dm_per_bio_data(self.raw.as_ptr(), size_of::<D>()) }.cast()
    }

    /// Returns the per-bio data, which is zeros until it is set for the first time after `map` got
    /// the bio. Any context.
    pub(crate) fn per_bio(&self) -> D {
        // SAFETY: By the invariant, the per-bio data contains a `D`, which nothing else uses.
        unsafe { self.data().read_unaligned() }
    }

    /// Sets the per-bio data. Any context.
    pub(crate) fn set_per_bio(&mut self, value: D) {
        // SAFETY: By the invariant, the per-bio data has room for a `D`, and nothing else uses it.
        unsafe { self.data().write_unaligned(value) }
    }

    fn owner(&self) -> *mut NonNull<bindings::dm_target> {
        // SAFETY: By the invariant, device-mapper made the bio, with so much per-bio data.
        unsafe { bindings::dm_per_bio_data(self.raw.as_ptr(), bio_data_size::<D>()) }.cast()
    }

    /// Records the target of a bio that is taken out of a hook.
    fn owned_by(self, target: NonNull<bindings::dm_target>) -> Self {
        // SAFETY: By the invariant, the per-bio data has room for it, and nothing else uses it.
        unsafe { self.owner().write_unaligned(target) };
        self
    }

    /// Returns whether a device belongs to the bio's own target. For bios outside of the hooks.
    fn is_for(&self, device: &Device) -> bool {
        // SAFETY: By the invariant, the per-bio data contains the target: a bio leaves a hook by
        // `owned_by` only.
        unsafe { self.owner().read_unaligned() == device.target() }
    }

    /// Sends the bio to a device. C counterpart: `dm_submit_bio_remap()`.
    ///
    /// When the bio has ended, the hook `end_io` gets it. If the device is of another target, the
    /// bio ends with an I/O error. The I/O is charged to the sender of the bio, not to this thread.
    ///
    /// Within `map`, use [`MapBio::remap`]. This may wait for a request of the device below, also
    /// if the bio has `REQ_NOWAIT`. May sleep.
    pub(crate) fn submit(self, device: &Device) {
        if !self.is_for(device) {
            report_foreign_device();
            return self.end(BlkStatus::IO_ERROR);
        }
        // SAFETY: By the invariant, the bio is live, and nothing else uses it.
        unsafe { (*self.raw.as_ptr()).bi_opf &= !bindings::REQ_NOWAIT };
        // SAFETY: The bio is live, was taken out of a hook, and passes to the block layer. The
        // device is open until the bio has ended, because both belong to the same target.
        unsafe { bindings::dmr_bio_submit(self.into_raw().as_ptr(), device.raw_bdev()) }
    }

    /// Ends the bio, which calls the hook `end_io`. C counterpart: `bio_endio()`. Any context.
    pub(crate) fn end(self, status: BlkStatus) {
        // SAFETY: The bio is live, and passes to its submitter.
        unsafe { bindings::dmr_bio_end(self.into_raw().as_ptr(), status.0) }
    }
}

impl<D: PerBio> Drop for Bio<D> {
    fn drop(&mut self) {
        err!("dm_rust", "BUG: bio dropped without completion, failing it");
        // SAFETY: By the invariant, the bio is live and owned, and nothing uses it after this.
        unsafe { bindings::dmr_bio_end(self.raw.as_ptr(), BlkStatus::IO_ERROR.0) }
    }
}

/// Logs that a target has sent a bio to a device of another target.
#[cold]
fn report_foreign_device() {
    err_limit!(
        "dm_rust",
        "a bio was sent to a device of another target, it ends with an error"
    );
}

/// Per-bio data of a target: plain data, of which zeros are a value.
///
/// It is zeros whenever `map` gets a bio. C counterpart: `dm_target::per_io_data_size`.
pub(crate) trait PerBio: FromZeros + Copy + Send + 'static {}

impl<D: FromZeros + Copy + Send + 'static> PerBio for D {}
