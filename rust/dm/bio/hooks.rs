// SPDX-License-Identifier: GPL-2.0

//! A bio within the hooks `map` and `end_io`, and the result that the hook returns.

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

/// The result of `map`. C counterpart: `DM_MAPIO_*`.
///
/// Only a method that consumes the [`MapBio`] of the call makes it; `'a` ties it to that call.
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

    /// Returns the code that the hook returns to device-mapper. Any context.
    pub(in crate::dm) fn code(&self) -> kernel::ffi::c_int {
        self.code
    }
}

/// A bio within `map`. Its sectors count from the start of the target.
#[must_use = "a bio must be passed on"]
pub(crate) struct MapBio<'a, D: PerBio> {
    bio: Bio<D>,
    target: NonNull<bindings::dm_target>,
    /// Device-mapper made several bios of one request, and this is one of them.
    is_duplicate: bool,
    _call: PhantomData<fn(&'a ()) -> &'a ()>,
}

impl<'a, D: PerBio> MapBio<'a, D> {
    /// Wraps the bio of a call of `map`, and makes its sector relative to the target. Process
    /// context.
    ///
    /// # Safety
    ///
    /// - `raw` and `target` are the arguments of the running `map` hook, of a target that declares
    ///   [`bio_data_size`](super::bio_data_size).
    /// - The hook returns the token that the result is turned into.
    pub(in crate::dm) unsafe fn new(
        raw: NonNull<kb::bio>,
        target: NonNull<bindings::dm_target>,
    ) -> Self {
        // SAFETY: By this function's contract, device-mapper has lent the target to the running
        // hook. These fields do not change after the constructor.
        let (begin, discards) = unsafe {
            (
                (*target.as_ptr()).begin,
                (*target.as_ptr()).num_discard_bios,
            )
        };
        // SAFETY: The bio of a `map` hook belongs to the target until the hook returns. By this
        // function's contract, it has per-bio data of that size.
        let mut bio = unsafe { Bio::from_raw(raw) };
        // A flush has no sector.
        if let Some(offset) = bio.sector().0.checked_sub(begin) {
            bio.set_sector(Sector(offset));
        }
        // The memory comes from a pool and may never have been written.
        bio.set_per_bio(D::new_zeroed());
        let is_duplicate = discards > 1 && bio.op() == Op::Discard;
        MapBio {
            bio,
            target,
            is_duplicate,
            _call: PhantomData,
        }
    }

    /// Keeps the first `sectors` of the bio, and at least one. Device-mapper sends the rest as
    /// another bio. C counterpart: `dm_accept_partial_bio()`.
    ///
    /// For reads, writes, writes of zeros and discards. Nothing changes if the bio is not longer,
    /// or if it is one of several that device-mapper made of one request. Process context.
    pub(crate) fn accept_partial(&mut self, sectors: Sectors) {
        let all = self.bio.sectors();
        let sectors = sectors.max(Sectors(1));
        if sectors >= all || self.is_duplicate || self.bio.is_flush() {
            return;
        }
        // CAST: This is less than the bio's length, which is below 2^23 sectors.
        let kept = sectors.0 as kernel::ffi::c_uint;
        // SAFETY: This is the bio of the running `map` hook. It is no flush and not one of several,
        // as tested above. It is neither atomic nor zoned, because no target declares these. `kept`
        // is not zero and less than its length.
        unsafe { bindings::dm_accept_partial_bio(self.bio.raw.as_ptr(), kept) }
    }

    /// Sets the first sector, for a device on which the target does not start at zero. Process
    /// context.
    pub(crate) fn set_sector(&mut self, sector: Sector) {
        self.bio.set_sector(sector)
    }

    /// Returns the number of the bio among those that device-mapper made of one request. C
    /// counterpart: `dm_bio_get_target_bio_nr()`. Process context.
    pub(crate) fn target_bio_nr(&self) -> u32 {
        // SAFETY: By the invariant of `Bio`, device-mapper made the bio.
        unsafe { bindings::dm_bio_get_target_bio_nr(self.bio.raw.as_ptr()) }
    }

    /// Sets the per-bio data. Any context.
    pub(crate) fn set_per_bio(&mut self, value: D) {
        self.bio.set_per_bio(value)
    }

    /// Sends the bio to a device, at its present sector (`DM_MAPIO_REMAPPED`).
    ///
    /// If the device is of another target, the bio ends with an I/O error. Process context.
    pub(crate) fn remap(self, device: &Device) -> Mapped<'a> {
        if self.target != device.target() {
            report_foreign_device();
            return self.end(BlkStatus::IO_ERROR);
        }
        // SAFETY: The bio is live. Device-mapper submits it when the hook returns. The device is
        // open until the bio has ended, because both belong to the same target.
        unsafe { bindings::dmr_bio_set_dev(self.bio.into_raw().as_ptr(), device.raw_bdev()) };
        Mapped::new(bindings::DM_MAPIO_REMAPPED)
    }

    /// Ends the bio now, which calls the hook `end_io`. Process context.
    pub(crate) fn end(self, status: BlkStatus) -> Mapped<'a> {
        self.bio.end(status);
        Mapped::new(bindings::DM_MAPIO_SUBMITTED)
    }

    /// Fails the bio with an I/O error, without a call of `end_io` (`DM_MAPIO_KILL`). Process
    /// context.
    pub(crate) fn kill(self) -> Mapped<'a> {
        let _ = self.bio.into_raw();
        Mapped::new(bindings::DM_MAPIO_KILL)
    }

    /// Returns the bio to device-mapper, which maps it again after the next resume
    /// (`DM_MAPIO_REQUEUE`).
    ///
    /// Device-mapper fails the bio unless the device is being suspended with `--noflush`. Process
    /// context.
    pub(crate) fn requeue(self) -> Mapped<'a> {
        let _ = self.bio.into_raw();
        Mapped::new(bindings::DM_MAPIO_REQUEUE)
    }

    /// Takes the bio out of the hook, to submit, end or queue it later (`DM_MAPIO_SUBMITTED`).
    /// Process context.
    pub(crate) fn take(self) -> (Bio<D>, Mapped<'a>) {
        let bio = self.bio.owned_by(self.target);
        (bio, Mapped::new(bindings::DM_MAPIO_SUBMITTED))
    }
}

// There is no `DerefMut`, because a target could swap the bio of the call for another one.
impl<D: PerBio> Deref for MapBio<'_, D> {
    type Target = Bio<D>;

    fn deref(&self) -> &Bio<D> {
        &self.bio
    }
}

/// The result of `end_io`. C counterpart: `DM_ENDIO_*`.
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

    /// Returns the code and the status that the hook returns to device-mapper. Any context.
    pub(in crate::dm) fn into_parts(self) -> (kernel::ffi::c_int, kb::blk_status_t) {
        (self.code, self.status.0)
    }
}

/// A bio within `end_io`. Its sector and length are no longer those of the request.
#[must_use = "a bio must be passed on"]
pub(crate) struct EndBio<'a, D: PerBio> {
    bio: Bio<D>,
    target: NonNull<bindings::dm_target>,
    status: BlkStatus,
    _call: PhantomData<fn(&'a ()) -> &'a ()>,
}

impl<'a, D: PerBio> EndBio<'a, D> {
    /// Wraps the bio of a call of `end_io`. Any context.
    ///
    /// # Safety
    ///
    /// - `raw` and `target` are the arguments of the running `end_io` hook, of a target that
    ///   declares [`bio_data_size`](super::bio_data_size).
    /// - The hook returns the token that the result is turned into.
    pub(in crate::dm) unsafe fn new(
        raw: NonNull<kb::bio>,
        target: NonNull<bindings::dm_target>,
        status: kb::blk_status_t,
    ) -> Self {
        // SAFETY: Device-mapper does not use the bio while the hook runs, nor after a result that
        // keeps it. By this function's contract, it has per-bio data of that size.
        let bio = unsafe { Bio::from_raw(raw) };
        EndBio {
            bio,
            target,
            status: BlkStatus(status),
            _call: PhantomData,
        }
    }

    /// Returns the status with which the device has ended the bio. Any context.
    pub(crate) fn status(&self) -> BlkStatus {
        self.status
    }

    /// Returns whether the bio has `REQ_PREFLUSH`. The block layer removes the flag if the device
    /// has no volatile cache. Any context.
    pub(crate) fn is_flush(&self) -> bool {
        self.bio.is_flush()
    }

    /// Returns the per-bio data, as `map` or an earlier `end_io` has set it. Any context.
    pub(crate) fn per_bio(&self) -> D {
        self.bio.per_bio()
    }

    /// Sets the per-bio data. Any context.
    pub(crate) fn set_per_bio(&mut self, value: D) {
        self.bio.set_per_bio(value)
    }

    /// Ends the bio with its status (`DM_ENDIO_DONE`). Any context.
    pub(crate) fn done(self) -> Ended<'a> {
        let status = self.status;
        self.done_with(status)
    }

    /// Ends the bio with another status (`DM_ENDIO_DONE`). Any context.
    pub(crate) fn done_with(self, status: BlkStatus) -> Ended<'a> {
        let _ = self.bio.into_raw();
        Ended::new(bindings::DM_ENDIO_DONE, status)
    }

    /// Takes the bio out of the hook, to submit or end it later (`DM_ENDIO_INCOMPLETE`). `end_io`
    /// is then called for it again. Any context.
    pub(crate) fn take(self) -> (Bio<D>, Ended<'a>) {
        (
            self.bio.owned_by(self.target),
            Ended::new(bindings::DM_ENDIO_INCOMPLETE, self.status),
        )
    }
}
