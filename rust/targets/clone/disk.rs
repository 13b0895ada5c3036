// SPDX-License-Identifier: GPL-2.0

//! The metadata on disk.

use crate::{
    dm::pdata::{
        array::{
            WordArray,
            WORDS_PER_BLOCK, //
        },
        block::{
            Block,
            BlockManager,
            Validate,
            Validator, //
        },
        tm::TransactionManager,
        verify::Verifier, //
    },
    logic::{
        clone::{
            dirty::RangeLog,
            geometry::Geometry,
            superblock::{
                Invalid,
                Superblock,
                FORMAT, //
            }, //
        },
        pdata::{
            space_map::array_margin,
            superblock::{
                is_blank,
                LOCATION, //
            }, //
        }, //
    },
    sys::{
        bdev::BlockDevice,
        log::err, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Sectors in a metadata block.
const METADATA_BLOCK: u64 = 8;

/// Blocks that one thread holds at a time, in the library's own code too.
const MAX_HELD_BLOCKS: u32 = 5;

struct SuperblockKind;

impl Validate for SuperblockKind {
    const NAME: &'static CStr = c"superblock";

    fn check(data: &[u8], location: u64) -> Result {
        FORMAT.check(data, location).map_err(log_invalid)
    }

    fn seal(data: &mut [u8], location: u64) {
        // Fails only for a block that is shorter than a superblock.
        let _ = FORMAT.seal(data, location);
    }
}

static SUPERBLOCK: Validator = Validator::new::<SuperblockKind>();

pub(super) fn log_invalid(reason: impl Into<Invalid>) -> Error {
    let reason = reason.into();
    err!("clone metadata", "{}", reason);
    reason.into()
}

/// Logs what could not be done, and passes the error on.
pub(super) fn log_error(what: &'static str) -> impl FnOnce(Error) -> Error {
    move |error| {
        err!("clone metadata", "{}", what);
        error
    }
}

/// Whether a blank device may be formatted.
#[derive(Clone, Copy)]
pub(super) enum OpenMode {
    FormatIfBlank,
    ReadWrite,
    /// Nor anything else be written.
    ReadOnly,
}

/// How much of a metadata device is in use.
#[derive(Clone, Copy)]
pub(super) struct Usage {
    /// Blocks in use.
    pub(super) used: u64,
    /// Blocks.
    pub(super) total: u64,
}

/// The open metadata device.
pub(super) struct Disk {
    pub(super) tm: TransactionManager,
    pub(super) bits: WordArray,
    pub(super) root: Block,
    /// Just formatted: no bit is set.
    pub(super) fresh: bool,
}

impl Disk {
    /// Opens the metadata; a blank device is formatted if that is allowed (`format`). Sleeps for
    /// I/O.
    pub(super) fn open(
        device: Arc<BlockDevice>,
        geometry: &Geometry,
        format: OpenMode,
    ) -> Result<Self> {
        let device_blocks = device.sectors() / METADATA_BLOCK;
        let blocks = match format {
            OpenMode::ReadOnly => BlockManager::read_only(device, MAX_HELD_BLOCKS),
            OpenMode::FormatIfBlank | OpenMode::ReadWrite => {
                BlockManager::new(device, MAX_HELD_BLOCKS)
            }
        };
        let blocks = blocks.map_err(log_error("Failed to create block manager"))?;
        let blank = {
            let block = blocks
                .read(Block(LOCATION), None)
                .map_err(log_error("Failed to read_lock superblock"))?;
            is_blank(&block)
        };
        match (blank, format) {
            (true, OpenMode::FormatIfBlank) => Self::format(blocks, geometry),
            (true, OpenMode::ReadWrite | OpenMode::ReadOnly) => Err(EPERM),
            (false, _) => Self::load(blocks, geometry, device_blocks),
        }
    }

    fn load(blocks: BlockManager, geometry: &Geometry, device_blocks: u64) -> Result<Self> {
        let superblock = {
            let block = blocks
                .read(Block(LOCATION), Some(&SUPERBLOCK))
                .map_err(log_error("Failed to read_lock superblock"))?;
            Superblock::parse(&block, LOCATION)
                .and_then(|sb| {
                    sb.check_sizes(geometry.region_size(), geometry.len())
                        .map(|()| sb)
                })
                .map_err(log_invalid)?
        };
        Verifier::new(&blocks, &superblock.sm_root, device_blocks)
            .and_then(|verifier| verifier.array(Block(superblock.bitset_root)))
            .map_err(log_error("The metadata is damaged"))?;
        let tm = TransactionManager::open(blocks, Block(LOCATION), &superblock.sm_root)
            .map_err(log_error("dm_tm_open_with_sm failed"))?;
        let bits = WordArray::new(&tm)?;
        Ok(Disk {
            tm,
            bits,
            root: Block(superblock.bitset_root),
            fresh: false,
        })
    }

    fn format(blocks: BlockManager, geometry: &Geometry) -> Result<Self> {
        let mut tm = TransactionManager::create(blocks, Block(LOCATION))
            .map_err(log_error("Failed to create transaction manager"))?;
        let bits = WordArray::new(&tm)?;
        let words = u32::try_from(geometry.regions().div_ceil(64)).map_err(|_| EINVAL)?;
        let root = bits
            .create(&mut tm, words)
            .map_err(log_error("Failed to resize on-disk bitset"))?;
        let mut disk = Disk {
            tm,
            bits,
            root,
            fresh: true,
        };
        disk.commit(geometry)?;
        Ok(disk)
    }

    /// How much of the device is in use.
    pub(super) fn usage(&self) -> Result<Usage> {
        let total = self.tm.total_blocks()?;
        let used = total.saturating_sub(self.tm.free_blocks()?);
        Ok(Usage { used, total })
    }

    /// Ends the transaction: after it, what was set is on disk, durably.
    pub(super) fn commit(&mut self, geometry: &Geometry) -> Result {
        self.tm
            .pre_commit()
            .map_err(log_error("dm_tm_pre_commit failed"))?;
        let superblock = Superblock {
            region_size: geometry.region_size(),
            target_size: geometry.len(),
            bitset_root: self.root.0,
            sm_root: self
                .tm
                .space_map_root()
                .map_err(log_error("__copy_sm_root failed"))?,
        };
        self.tm
            .commit(Block(LOCATION), &SUPERBLOCK, |block| {
                // Fails only for a block that is shorter than a superblock.
                let _ = superblock.write(block);
            })
            .map_err(log_error("Failed to commit superblock"))
    }

    /// Blocks that must be free before the bits of an array block are set.
    pub(super) fn margin(&self, geometry: &Geometry) -> Result<u64> {
        let words = geometry.regions().div_ceil(64);
        let total = self.tm.total_blocks()?;
        Ok(array_margin(words.div_ceil(WORDS_PER_BLOCK), total))
    }

    /// Makes sure that there is room to set bits of another array block: if need be by a commit of
    /// those that have been set, which sets free what the commit before replaced. The library must
    /// not run out of space in the midst of a change: it would keep a block locked for ever.
    fn make_room(&mut self, geometry: &Geometry, any_set: bool) -> Result {
        let margin = self.margin(geometry)?;
        if self.tm.free_blocks()? >= margin {
            return Ok(());
        }
        if any_set {
            self.commit(geometry)?;
        }
        if self.tm.free_blocks()? < margin {
            return Err(ENOSPC);
        }
        Ok(())
    }

    /// Adds the bits of a log to the running transaction, by words, in the order of the array.
    /// Where space is short, those set so far are committed on the way: what the log says is true
    /// of any part of it.
    pub(super) fn set_bits(&mut self, log: &RangeLog, geometry: &Geometry) -> Result {
        let mut present = None;
        for (index, mask) in log.words() {
            let block = index.checked_div(WORDS_PER_BLOCK);
            if present != block {
                self.make_room(geometry, present.is_some())?;
                present = block;
            }
            let index = u32::try_from(index).map_err(|_| EINVAL)?;
            let word = match mask {
                u64::MAX => mask,
                _ => self.bits.get(&self.tm, self.root, index)? | mask,
            };
            self.root = self.bits.set(&mut self.tm, self.root, index, word)?;
        }
        Ok(())
    }
}
