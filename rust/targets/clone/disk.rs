// SPDX-License-Identifier: GPL-2.0

//! The metadata of a clone on disk: superblock, space map, and the bitset of hydrated regions.
//!
//! C counterpart: the on-disk part of `drivers/md/dm-clone-metadata.c`. Layout:
//! [`superblock`](crate::logic::clone::superblock).

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

/// Sectors of a metadata block. C counterpart: `DM_CLONE_METADATA_BLOCK_SIZE`.
const METADATA_BLOCK: u64 = 8;

/// Maximum number of blocks that one thread holds at a time, including those that the
/// persistent-data library holds. C counterpart: `DM_CLONE_MAX_CONCURRENT_LOCKS`.
const MAX_HELD_BLOCKS: u32 = 5;

/// The checks of the superblock block. C counterpart: `sb_validator`.
struct SuperblockKind;

impl Validate for SuperblockKind {
    const NAME: &'static CStr = c"superblock";

    fn check(data: &[u8], location: u64) -> Result {
        FORMAT.check(data, location).map_err(log_invalid)
    }

    fn seal(data: &mut [u8], location: u64) {
        // It fails only for a block that is shorter than a superblock.
        let _ = FORMAT.seal(data, location);
    }
}

static SUPERBLOCK: Validator = Validator::new::<SuperblockKind>();

/// Logs why a superblock cannot be used. Returns the error. Any context.
pub(super) fn log_invalid(reason: impl Into<Invalid>) -> Error {
    let reason = reason.into();
    err!("clone metadata", "{}", reason);
    reason.into()
}

/// Returns a function that logs what failed, and passes the error on. Any context.
pub(super) fn log_error(what: &'static str) -> impl FnOnce(Error) -> Error {
    move |error| {
        err!("clone metadata", "{}", what);
        error
    }
}

/// How metadata is opened.
#[derive(Clone, Copy)]
pub(super) enum OpenMode {
    /// For writing; a blank device is formatted.
    FormatIfBlank,
    /// For writing; a blank device is refused.
    ReadWrite,
    /// For reading; a blank device is refused.
    ReadOnly,
}

/// How much of a metadata device is in use.
#[derive(Clone, Copy)]
pub(super) struct Usage {
    /// The number of blocks in use.
    pub(super) used: u64,
    /// The number of blocks.
    pub(super) total: u64,
}

/// The open metadata device.
///
/// C counterpart: the on-disk part of `struct dm_clone_metadata`.
pub(super) struct Disk {
    /// The transaction manager, with the space map.
    pub(super) tm: TransactionManager,
    /// The bitset of hydrated regions: an array of words.
    pub(super) bits: WordArray,
    /// The root block of `bits`.
    pub(super) root: Block,
    /// Whether the device was just formatted: no bit is set.
    pub(super) fresh: bool,
}

impl Disk {
    /// Opens the metadata of a device. May sleep.
    ///
    /// C counterpart: `__open_or_format_metadata()`.
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

    /// Loads metadata, and verifies the structures that the library would trust. May sleep.
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

    /// Formats a device, and commits the result. May sleep.
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

    /// Returns how much of the device is in use. May sleep.
    pub(super) fn usage(&self) -> Result<Usage> {
        let total = self.tm.total_blocks()?;
        let used = total.saturating_sub(self.tm.free_blocks()?);
        Ok(Usage { used, total })
    }

    /// Ends the transaction: all bits that were set are durable on disk. May sleep.
    ///
    /// C counterpart: `__metadata_commit()`.
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
                // It fails only for a block that is shorter than a superblock.
                let _ = superblock.write(block);
            })
            .map_err(log_error("Failed to commit superblock"))
    }

    /// Returns how many blocks must be free before the bits of another array block are set.
    pub(super) fn margin(&self, geometry: &Geometry) -> Result<u64> {
        let words = geometry.regions().div_ceil(64);
        let total = self.tm.total_blocks()?;
        Ok(array_margin(words.div_ceil(WORDS_PER_BLOCK), total))
    }

    /// Makes room to set bits of another array block. May sleep.
    ///
    /// If blocks are short and bits were set, it commits: this frees the blocks that the previous
    /// transaction replaced. The library must not run out of space in the middle of a change,
    /// because it would keep a block locked for good.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if there is no room.
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

    /// Sets the bits of a log in the current transaction. May sleep.
    ///
    /// It sets them word by word, in the order of the array. Where space is short, it commits the
    /// bits that are set so far: every region of the log is hydrated, so any part of the log may be
    /// durable.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if there is no room.
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
