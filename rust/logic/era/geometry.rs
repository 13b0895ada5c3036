// SPDX-License-Identifier: GPL-2.0

//! The sizes of an era target, and the blocks that a range of sectors touches.
//!
//! All values and functions: any context.

use core::ffi::CStr;

use crate::env::fmt;
use crate::logic::units::{
    Sector,
    Sectors, //
};

/// Block sizes are multiples of this number of sectors. C counterpart: `MIN_BLOCK_SIZE`.
const GRANULARITY: u32 = 8;
/// Maximum number of blocks. C counterpart: `valid_nr_blocks()`.
pub(crate) const MAX_BLOCKS: u64 = (1 << 31) - 1;

/// The size of an era block: a multiple of eight sectors, not necessarily a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockSize(u32);

impl BlockSize {
    /// The error message for an invalid block size.
    pub(crate) const INVALID: &'static CStr = c"Invalid block size";
    /// The error message for a block size that is not a number.
    pub(crate) const UNREADABLE: &'static CStr = c"Error parsing block size";

    /// Makes a block size from a number of sectors; `None` if it is invalid.
    pub(crate) fn from_sectors(sectors: u32) -> Option<Self> {
        (sectors != 0 && sectors % GRANULARITY == 0).then_some(Self(sectors))
    }

    /// The size as a number of sectors.
    #[inline]
    pub(crate) fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes; `None` if that exceeds 32 bits.
    pub(crate) fn bytes(self) -> Option<u32> {
        self.0.checked_mul(512)
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A range of blocks, with at least one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// The first block.
    pub(crate) first: u32,
    /// The last block.
    pub(crate) last: u32,
}

/// The sizes of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    size: BlockSize,
    /// The binary logarithm of the block size, if it is a power of two.
    shift: Option<u32>,
    len: Sectors,
    blocks: u32,
}

impl Geometry {
    /// The error message for a target with too many blocks.
    pub(crate) const TOO_MANY: &'static CStr = c"Too many blocks: choose a larger block size";

    /// Makes the geometry of a target of `len` sectors; `None` if it is empty or has too many
    /// blocks.
    pub(crate) fn new(size: BlockSize, len: Sectors) -> Option<Self> {
        let whole = len.get().checked_div(size.0.into())?;
        let short = len.get().checked_rem(size.0.into())? != 0;
        let blocks = whole.saturating_add(short.into());
        let shift = size.0.is_power_of_two().then(|| size.0.trailing_zeros());
        (1..=MAX_BLOCKS).contains(&blocks).then_some(Self {
            size,
            shift,
            len,
            blocks: u32::try_from(blocks).ok()?,
        })
    }

    /// The size of a block.
    #[inline]
    pub(crate) fn size(&self) -> BlockSize {
        self.size
    }

    /// The length of the target.
    #[inline]
    pub(crate) fn len(&self) -> Sectors {
        self.len
    }

    /// The number of blocks; the last one may be short.
    #[inline]
    pub(crate) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The block of a sector. C counterpart: `get_block()`.
    #[inline]
    fn block_of(&self, sector: u64) -> u32 {
        let block = match self.shift {
            Some(shift) => sector.wrapping_shr(shift),
            None => sector.checked_div(self.size.0.into()).unwrap_or(0),
        };
        let last = self.blocks.saturating_sub(1);
        u32::try_from(block).map_or(last, |block| block.min(last))
    }

    /// The blocks that an access touches. Sectors beyond the end count as the last block.
    #[inline]
    pub(crate) fn touched(&self, start: Sector, len: Sectors) -> Blocks {
        let end = start.get().saturating_add(len.get().saturating_sub(1));
        Blocks {
            first: self.block_of(start.get()),
            last: self.block_of(end),
        }
    }
}
