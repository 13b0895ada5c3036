// SPDX-License-Identifier: GPL-2.0

//! From sectors to regions and back.
//!
//! A target of `len` sectors is cut into regions of one size, a power of two. The last region is
//! short if the size does not divide the length. Any context.
//!
//! C counterparts: `region_to_sector()`, `bio_to_region()`, `bio_region_range()`.

use core::ffi::CStr;

use crate::env::{
    Error,
    EINVAL, //
};
use crate::logic::args::parse_u32;
use crate::logic::regions::{
    Region,
    RegionRange, //
};
use crate::logic::units::{
    Sector,
    Sectors, //
};

/// Maximum number of regions of a clone: the limit of the on-disk bitset.
pub(crate) const MAX_REGIONS: u64 = 1 << 31;

/// The size of a region: a power of two between 8 and 2097152 sectors (4 KiB to 1 GiB).
///
/// # Invariants
///
/// `MIN_SHIFT <= shift <= MAX_SHIFT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionSize {
    shift: u32,
}

impl RegionSize {
    /// The binary logarithm of the smallest size in sectors.
    const MIN_SHIFT: u32 = 3;
    /// The binary logarithm of the largest size in sectors.
    const MAX_SHIFT: u32 = 21;

    /// Makes a size from sectors. `None` if it is out of range or no power of two.
    pub(crate) fn from_sectors(sectors: u64) -> Option<Self> {
        let shift = sectors.checked_ilog2()?;
        if !sectors.is_power_of_two() || !(Self::MIN_SHIFT..=Self::MAX_SHIFT).contains(&shift) {
            return None;
        }
        // INVARIANT: Checked just above.
        Some(Self { shift })
    }

    /// Parses the argument of a table line.
    ///
    /// # Errors
    ///
    /// The error message; the error code is `EINVAL`.
    pub(crate) fn parse(word: &[u8]) -> Result<Self, &'static CStr> {
        let sectors = parse_u32(word)
            .filter(|sectors| (1 << Self::MIN_SHIFT..=1 << Self::MAX_SHIFT).contains(sectors))
            .ok_or(c"Invalid region size")?;
        Self::from_sectors(u64::from(sectors)).ok_or(c"Region size is not a power of 2")
    }

    /// Returns the size in sectors.
    #[inline]
    pub(crate) fn sectors(self) -> Sectors {
        Sectors(1u64.wrapping_shl(self.shift))
    }

    /// Whether the size is a multiple of a logical block size given in sectors.
    ///
    /// A size of zero (the block layer never has one) is treated as one sector.
    pub(crate) fn is_multiple_of(self, block: Sectors) -> bool {
        // The region size is a power of two, hence its divisors are the powers of two up to it.
        block.is_zero() || (block.get().is_power_of_two() && block <= self.sectors())
    }

    /// Returns the number of the region that holds `sector`, and whether it starts before it.
    #[inline]
    fn split(self, sector: u64) -> (u64, bool) {
        let region = sector.wrapping_shr(self.shift);
        (region, region.wrapping_shl(self.shift) != sector)
    }

    /// Returns the number of regions that start before `sector`.
    #[inline]
    fn ceil(self, sector: u64) -> u64 {
        let (region, inside) = self.split(sector);
        region.saturating_add(u64::from(inside))
    }
}

/// The target has more than [`MAX_REGIONS`] regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooManyRegions;

impl TooManyRegions {
    /// The error message.
    pub(crate) const TEXT: &'static CStr = c"Too many regions. Consider increasing the region size";
}

impl From<TooManyRegions> for Error {
    #[inline]
    fn from(_: TooManyRegions) -> Self {
        EINVAL
    }
}

/// How a target is cut into regions.
///
/// Sectors are counted from the start of the target. A plain value, free to use in any context.
///
/// # Invariants
///
/// `regions` is `len` divided by the region size, rounded up, and at most [`MAX_REGIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    size: RegionSize,
    len: u64,
    regions: u64,
}

impl Geometry {
    /// Cuts a target of `len` sectors into regions of the given size.
    pub(crate) fn new(size: RegionSize, len: Sectors) -> Result<Self, TooManyRegions> {
        let regions = size.ceil(len.get());
        if regions > MAX_REGIONS {
            return Err(TooManyRegions);
        }
        // INVARIANT: Computed and checked just above.
        Ok(Self {
            size,
            len: len.get(),
            regions,
        })
    }

    /// Returns the size of all regions but perhaps the last.
    #[inline]
    pub(crate) fn region_size(&self) -> RegionSize {
        self.size
    }

    /// Returns the length of the target.
    #[inline]
    pub(crate) fn len(&self) -> Sectors {
        Sectors(self.len)
    }

    /// Returns the number of regions, a short last one included.
    #[inline]
    pub(crate) fn regions(&self) -> u64 {
        self.regions
    }

    /// Returns the range of all regions.
    #[inline]
    pub(crate) fn all(&self) -> RegionRange {
        RegionRange::with_len(Region(0), self.regions)
    }

    /// Returns the region that holds `sector`.
    #[inline]
    pub(crate) fn region_of(&self, sector: Sector) -> Region {
        let (region, _) = self.size.split(sector.get());
        Region(region)
    }

    /// Returns the regions that share a sector with the access, clipped to the target.
    ///
    /// An access without length counts as touching the region its sector lies in.
    pub(crate) fn touched(&self, start: Sector, len: Sectors) -> RegionRange {
        if start.get() >= self.len {
            return RegionRange::with_len(Region(self.regions), 0);
        }
        let end = start.get().saturating_add(len.get().max(1)).min(self.len);
        RegionRange::new(self.region_of(start), Region(self.size.ceil(end)))
    }

    /// Returns the regions that lie wholly inside the access, clipped to the target.
    ///
    /// A short last region counts if the access holds all of its sectors, that is if it reaches
    /// the end of the target.
    pub(crate) fn covered(&self, start: Sector, len: Sectors) -> RegionRange {
        let end = start.get().saturating_add(len.get());
        let first = self.size.ceil(start.get()).min(self.regions);
        let after = if end >= self.len {
            Region(self.regions)
        } else {
            self.region_of(Sector(end))
        };
        RegionRange::new(Region(first), after)
    }

    /// Returns the first sector of a region, not clipped to the target.
    #[inline]
    pub(crate) fn start_of(&self, region: Region) -> Sector {
        Sector(region.get().saturating_mul(self.size.sectors().get()))
    }

    /// Returns the sectors of a range of regions as position and length, clipped to the target.
    pub(crate) fn extent(&self, range: RegionRange) -> (Sector, Sectors) {
        let start = Sector(self.start_of(range.start).get().min(self.len));
        (start, self.sectors_until(start, range.end))
    }

    /// Returns the distance from `from` to the start of region `end`, or to the end of the target
    /// if that comes first; zero if `from` is not before it.
    ///
    /// If `end` is the first region that an access from `from` must *not* touch, this is the length
    /// of the access that can be accepted.
    pub(crate) fn sectors_until(&self, from: Sector, end: Region) -> Sectors {
        let end = self.start_of(end).get().min(self.len);
        Sectors(end.saturating_sub(from.get()))
    }
}
