// SPDX-License-Identifier: GPL-2.0

//! A bio within the hooks `map` and `end_io`, and what the hook tells device-mapper.

use super::{
    report_foreign_device,
    Bio,
    BlkStatus,
    Op,
    PerBio, //
};
use crate::{
    bindings,
    dm::device::Device,
    logic::units::{
        Sector,
        Sectors, //
    }, //
};
use core::{
    marker::PhantomData,
    ops::Deref,
    ptr::NonNull, //
};
use kernel::bindings as kb;

/// What `map` tells device-mapper. Made only by consuming the call's [`MapBio`]; `'a` ties it to
/// that call.
#[must_use = "the map hook returns it"]
pub(crate) struct Mapped<'a> {
    code: kernel::ffi::c_int,
    _call: PhantomData<fn(&'a ()) -> &'a ()>,
}

impl Mapped<'_> {
    fn new(code: u32) -> Self {
        // CAST: The constants are 0 to 4.
        Mapped {
            code: code as kernel::ffi::c_int,
            _call: PhantomData,
        }
    }

    /// For the callback in `target.rs`.
    pub(in crate::dm) fn code(&self) -> kernel::ffi::c_int {
        self.code
    }
}

/// A bio within `map`. Sectors count from the start of the target.
#[must_use = "a bio must be passed on"]
pub(crate) struct MapBio<'a, D: PerBio> {
    bio: Bio<D>,
    target: NonNull<bindings::dm_target>,
    /// It is one of several that device-mapper made of one request.
    is_duplicate: bool,
    _call: PhantomData<fn(&'a ()) -> &'a ()>,
}

impl<'a, D: PerBio> MapBio<'a, D> {
    /// Wraps the bio of a call of `map`, and makes its sector relative to the target.
    ///
    /// # Safety
    ///
    /// - `raw` and `target` are the arguments of a `map` callback; the target asked for
    ///   [`bio_data_size`].
    /// - The token made from it becomes the callback's result.
    pub(in crate::dm) unsafe fn new(
        raw: NonNull<kb::bio>,
        target: NonNull<bindings::dm_target>,
    ) -> Self {
        // SAFETY: Device-mapper lends a live target to the callback; start and numbers of a live
        // one do not change.
        let (begin, discards) = unsafe {
            (
                (*target.as_ptr()).begin,
                (*target.as_ptr()).num_discard_bios,
            )
        };
        // SAFETY: The bio of a `map` callback belongs to the target until the callback returns.
        let mut bio = unsafe { Bio::from_raw(raw) };
        // A flush has no sector.
        if let Some(offset) = bio.sector().0.checked_sub(begin) {
            bio.set_sector(Sector(offset));
        }
        // Memory of a pool, never written yet perhaps: from here on it has a value.
        bio.set_per_bio(D::new_zeroed());
        let is_duplicate = discards > 1 && bio.op() == Op::Discard;
        MapBio {
            bio,
            target,
            is_duplicate,
            _call: PhantomData,
        }
    }

    /// Keeps only the first `sectors`, and at least one; device-mapper sends the rest as another
    /// bio.
    ///
    /// For reads, writes and discards. More than there is changes nothing; and so it is for a bio
    /// that is one of several of a request, which cannot be cut.
    pub(crate) fn accept_partial(&mut self, sectors: Sectors) {
        let all = self.bio.sectors();
        let sectors = sectors.max(Sectors(1));
        if sectors >= all || self.is_duplicate || self.bio.is_flush() {
            return;
        }
        // CAST: Less than the bio's own length, which is below 2^23 sectors.
        let service = sectors.0 as kernel::ffi::c_uint;
        // SAFETY: Within `map` on its own bio, which is no flush, not atomic (no target declares
        // that), not zoned, and not one of several of a request; `service` is less than its length.
        unsafe { bindings::dm_accept_partial_bio(self.bio.raw.as_ptr(), service) }
    }

    /// Changes the first sector, for a device on which the target does not start at zero.
    pub(crate) fn set_sector(&mut self, sector: Sector) {
        self.bio.set_sector(sector)
    }

    /// Which of the bios it is that device-mapper made of one request, for targets that ask for
    /// several.
    pub(crate) fn target_bio_nr(&self) -> u32 {
        // SAFETY: The bio is one of device-mapper's.
        unsafe { bindings::dm_bio_get_target_bio_nr(self.bio.raw.as_ptr()) }
    }

    /// Sets the target's own data of this bio.
    pub(crate) fn set_per_bio(&mut self, value: D) {
        self.bio.set_per_bio(value)
    }

    /// Passes the bio on to a device at its present sector. The way of nearly every bio: one
    /// crossing into C. A device of another target is refused, as by [`Bio::submit`].
    pub(crate) fn remap(self, device: &Device) -> Mapped<'a> {
        if self.target != device.target() {
            report_foreign_device();
            return self.end(BlkStatus::IO_ERROR);
        }
        // SAFETY: The bio is live. Device-mapper submits it when the callback returns. The device
        // stays open until it has ended: both are the same target's.
        unsafe { bindings::dmr_bio_set_dev(self.bio.into_raw().as_ptr(), device.raw_bdev()) };
        Mapped::new(bindings::DM_MAPIO_REMAPPED)
    }

    /// Ends the bio now.
    pub(crate) fn end(self, status: BlkStatus) -> Mapped<'a> {
        self.bio.end(status);
        Mapped::new(bindings::DM_MAPIO_SUBMITTED)
    }

    /// Fails the bio with an I/O error; `end_io` is not called.
    pub(crate) fn kill(self) -> Mapped<'a> {
        let _ = self.bio.into_raw();
        Mapped::new(bindings::DM_MAPIO_KILL)
    }

    /// Hands the bio back to device-mapper, which maps it again after the next resume. Only while
    /// the device is being suspended without flushing; otherwise device-mapper fails it.
    pub(crate) fn requeue(self) -> Mapped<'a> {
        let _ = self.bio.into_raw();
        Mapped::new(bindings::DM_MAPIO_REQUEUE)
    }

    /// Takes the bio out of the call, to submit, end or queue it at any later time.
    pub(crate) fn take(self) -> (Bio<D>, Mapped<'a>) {
        let bio = self.bio.owned_by(self.target);
        (bio, Mapped::new(bindings::DM_MAPIO_SUBMITTED))
    }
}

// No `DerefMut`: it would let a target swap the bio of the call for another one, behind
// device-mapper's back.
impl<D: PerBio> Deref for MapBio<'_, D> {
    type Target = Bio<D>;

    fn deref(&self) -> &Bio<D> {
        &self.bio
    }
}

/// What `end_io` tells device-mapper.
#[must_use = "the end_io hook returns it"]
pub(crate) struct Ended<'a> {
    code: kernel::ffi::c_int,
    status: BlkStatus,
    _call: PhantomData<fn(&'a ()) -> &'a ()>,
}

impl Ended<'_> {
    fn new(code: u32, status: BlkStatus) -> Self {
        // CAST: The constants are 0 to 2.
        Ended {
            code: code as kernel::ffi::c_int,
            status,
            _call: PhantomData,
        }
    }

    /// For the callback in `target.rs`: the return value and the status.
    pub(in crate::dm) fn into_parts(self) -> (kernel::ffi::c_int, kb::blk_status_t) {
        (self.code, self.status.0)
    }
}

/// A bio within `end_io`. Any context, hard interrupts included. Its sector and length are used up.
#[must_use = "a bio must be passed on"]
pub(crate) struct EndBio<'a, D: PerBio> {
    bio: Bio<D>,
    target: NonNull<bindings::dm_target>,
    status: BlkStatus,
    _call: PhantomData<fn(&'a ()) -> &'a ()>,
}

impl<'a, D: PerBio> EndBio<'a, D> {
    /// Wraps the bio of a call of `end_io`.
    ///
    /// # Safety
    ///
    /// - `raw` and `target` are the arguments of an `end_io` callback; the target asked for
    ///   [`bio_data_size`].
    /// - The token made from it becomes the callback's result.
    pub(in crate::dm) unsafe fn new(
        raw: NonNull<kb::bio>,
        target: NonNull<bindings::dm_target>,
        status: kb::blk_status_t,
    ) -> Self {
        // SAFETY: The target may keep the bio by the callback's result, so it owns it until then.
        let bio = unsafe { Bio::from_raw(raw) };
        EndBio {
            bio,
            target,
            status: BlkStatus(status),
            _call: PhantomData,
        }
    }

    /// How the bio ended so far.
    pub(crate) fn status(&self) -> BlkStatus {
        self.status
    }

    /// Whether the bio asked for forced unit access.
    pub(crate) fn is_fua(&self) -> bool {
        self.bio.is_fua()
    }

    /// Whether the bio asked for a flush. The block layer takes that off one that a device without
    /// a volatile cache has had nothing to do for.
    pub(crate) fn is_flush(&self) -> bool {
        self.bio.is_flush()
    }

    /// The target's own data of this bio, as `map` or an earlier `end_io` set it.
    pub(crate) fn per_bio(&self) -> D {
        self.bio.per_bio()
    }

    /// Sets the target's own data of this bio.
    pub(crate) fn set_per_bio(&mut self, value: D) {
        self.bio.set_per_bio(value)
    }

    /// Lets the bio end with its own status.
    pub(crate) fn done(self) -> Ended<'a> {
        let status = self.status;
        self.done_with(status)
    }

    /// Lets the bio end with another status.
    pub(crate) fn done_with(self, status: BlkStatus) -> Ended<'a> {
        let _ = self.bio.into_raw();
        Ended::new(bindings::DM_ENDIO_DONE, status)
    }

    /// Hands the bio back to device-mapper, as [`MapBio::requeue`].
    pub(crate) fn requeue(self) -> Ended<'a> {
        let status = self.status;
        let _ = self.bio.into_raw();
        Ended::new(bindings::DM_ENDIO_REQUEUE, status)
    }

    /// Keeps the bio, to submit or end it later: `end_io` is then called for it again.
    pub(crate) fn take(self) -> (Bio<D>, Ended<'a>) {
        (
            self.bio.owned_by(self.target),
            Ended::new(bindings::DM_ENDIO_INCOMPLETE, self.status),
        )
    }
}
