// SPDX-License-Identifier: GPL-2.0

//! Units of block device addresses: positions and lengths in 512-byte sectors.
//!
//! Conversions are checked, so that a value from a table line or from disk cannot wrap around. All
//! functions: any context.

use crate::env::fmt;

/// Binary logarithm of the size of a sector in bytes.
pub(crate) const SECTOR_SHIFT: u32 = 9;

/// The bits of a byte count that do not fill a sector.
#[cfg(test)]
const SECTOR_MASK: u64 = (1 << SECTOR_SHIFT) - 1;

/// A position on a device or target, counted in 512-byte sectors from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sector(pub(crate) u64);

impl Sector {
    /// A position after the end of every device: I/O to it fails.
    pub(crate) const OUT_OF_RANGE: Sector = Sector(u64::MAX);

    /// Makes the position `sectors` sectors after the start.
    #[cfg(test)]
    #[inline]
    pub(crate) const fn new(sectors: u64) -> Self {
        Self(sectors)
    }

    /// Returns the position as a plain number of sectors.
    #[inline]
    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    /// Returns the position `len` sectors further on; `None` if it exceeds 64 bits.
    #[inline]
    pub(crate) fn checked_add(self, len: Sectors) -> Option<Self> {
        self.0.checked_add(len.0).map(Self)
    }

    /// Returns the distance from `earlier` to here; `None` if `earlier` is greater.
    #[inline]
    pub(crate) fn since(self, earlier: Self) -> Option<Sectors> {
        self.0.checked_sub(earlier.0).map(Sectors)
    }
}

impl fmt::Display for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A length, counted in 512-byte sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sectors(pub(crate) u64);

impl Sectors {
    /// Makes a length of `sectors` sectors.
    #[cfg(test)]
    #[inline]
    pub(crate) const fn new(sectors: u64) -> Self {
        Self(sectors)
    }

    /// Returns the length as a plain number of sectors.
    #[inline]
    pub(crate) const fn get(self) -> u64 {
        self.0
    }

    /// Whether the length is zero.
    #[inline]
    pub(crate) const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Converts a byte count; `None` if it is not a whole number of sectors.
    #[cfg(test)]
    #[inline]
    pub(crate) const fn from_bytes(bytes: u64) -> Option<Self> {
        if bytes & SECTOR_MASK == 0 {
            Some(Self(bytes >> SECTOR_SHIFT))
        } else {
            None
        }
    }

    /// Converts to a byte count; `None` if that exceeds 64 bits.
    #[cfg(test)]
    #[inline]
    pub(crate) fn to_bytes(self) -> Option<u64> {
        self.0.checked_mul(1 << SECTOR_SHIFT)
    }
}

impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
