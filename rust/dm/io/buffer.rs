// SPDX-License-Identifier: GPL-2.0

//! Memory for synchronous transfers.

use core::ops::Range;
use kernel::{
    block::SECTOR_SIZE,
    prelude::*, //
};

/// A buffer of whole sectors, virtually contiguous.
#[derive(Default)]
pub(crate) struct Buffer(pub(super) VVec<u8>);

impl Buffer {
    /// Allocates zeroed memory. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EOVERFLOW` for more sectors than memory can have.
    pub(crate) fn new(sectors: u32) -> Result<Self> {
        let bytes = usize::try_from(sectors.checked_mul(SECTOR_SIZE).ok_or(EOVERFLOW)?)?;
        Ok(Buffer(VVec::from_elem(0, bytes, GFP_KERNEL)?))
    }

    /// Copies bytes, such as another buffer, up to the length of the shorter one. Any context.
    pub(crate) fn copy_from(&mut self, bytes: &[u8]) {
        for (to, from) in self.0.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    /// Returns some sectors. Any context.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the buffer does not have these sectors.
    pub(crate) fn part(&mut self, part: Range<u32>) -> Result<&mut [u8]> {
        let byte = |sector: u32| usize::try_from(u64::from(sector) << kernel::block::SECTOR_SHIFT);
        self.0
            .get_mut(byte(part.start)?..byte(part.end)?)
            .ok_or(EINVAL)
    }
}

impl core::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl core::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
