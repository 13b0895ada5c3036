// SPDX-License-Identifier: GPL-2.0

//! The metadata on disk, and the steps that change it.
//!
//! | file | subject |
//! | --- | --- |
//! | `mod.rs` | opening, verifying, formatting, committing; free space |
//! | `writeset.rs` | the current writeset |
//! | `eras.rs` | the beginning and the end of an era |
//! | `resize.rs` | changes of size |
//! | `metadata_snap.rs` | the metadata snapshot |
//! | `digest.rs` | digestion of an archived writeset |
//!
//! A step changes the running transaction; [`OpenMetadata::commit`] makes all steps since the last
//! commit durable at once. A failed step leaves the transaction in an unknown state:
//! `Metadata::run_step` then drops the whole [`OpenMetadata`] and opens the metadata again as of
//! the last commit.
//!
//! All functions of [`OpenMetadata`] may sleep for I/O. They are called with `Metadata::state`
//! locked, except for [`probe`](OpenMetadata::probe).
//!
//! Layout on disk: `Documentation/era-format.md`.

mod digest;
mod eras;
mod metadata_snap;
mod resize;
mod writeset;

pub(super) use digest::DigestProgress;

use crate::{
    dm::pdata::{
        array::Array,
        block::{
            Block,
            BlockManager,
            Validate,
            Validator, //
        },
        tm::TransactionManager,
        tree::BitsetTree,
        verify::Verifier, //
    },
    logic::{
        era::{
            era_nr::EraNr,
            geometry::BlockSize,
            status::MetadataStats,
            superblock::{
                Invalid,
                Superblock,
                FORMAT, //
            }, //
        },
        pdata::{
            space_map::{
                BLOCKS_PER_BITMAP,
                MAX_BITMAPS, //
            },
            superblock::{
                is_blank,
                LOCATION, //
            }, //
        }, //
    },
    sys::{
        bdev::BlockDevice,
        log::{
            err,
            err_limit, //
        }, //
    }, //
};
use digest::Digest;
use kernel::{
    prelude::*,
    sync::Arc, //
};
use writeset::CachedWord;

/// Maximum number of metadata blocks that one thread locks at a time, the library included.
const MAX_HELD_BLOCKS: u32 = 5;
/// Size of a metadata block in sectors.
const METADATA_BLOCK: u64 = 8;
/// Maximum number of metadata blocks that the space map can manage.
const MAX_METADATA_BLOCKS: u64 = MAX_BITMAPS * BLOCKS_PER_BITMAP;
/// Logged when the block manager cannot be created.
const NO_BLOCK_MANAGER: &str = "could not create block manager";

/// C counterpart: `sb_validator`.
struct SuperblockValidator;

impl Validate for SuperblockValidator {
    const NAME: &'static CStr = c"superblock";

    fn check(data: &[u8], location: u64) -> Result {
        FORMAT.check(data, location).map_err(log_invalid)
    }

    fn seal(data: &mut [u8], location: u64) {
        // Fails only for a block that is shorter than a superblock.
        let _ = FORMAT.seal(data, location);
    }
}

static SUPERBLOCK: Validator = Validator::new::<SuperblockValidator>();

/// Logs why a superblock is refused, and returns the matching error. Any context.
pub(super) fn log_invalid(reason: impl Into<Invalid>) -> Error {
    let reason = reason.into();
    err!("era", "{}", reason);
    reason.into()
}

/// Logs which step failed, at a limited rate, and returns its error. Any context.
pub(super) fn log_step(what: &'static str) -> impl FnOnce(Error) -> Error {
    move |error| {
        err_limit!("era", "{}: error {}", what, error.to_errno());
        error
    }
}

/// Usable size of a metadata device in metadata blocks.
pub(super) fn device_blocks(device: &BlockDevice) -> u64 {
    (device.sectors() / METADATA_BLOCK).min(MAX_METADATA_BLOCKS)
}

/// Whether the metadata device has enough free blocks for a step.
///
/// `Short` is no failure: the transaction is intact and can be committed.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FreeSpace {
    Enough,
    Short,
}

/// The open metadata with its running transaction.
///
/// C counterpart: `struct era_metadata`, without the in-core writesets.
pub(super) struct OpenMetadata {
    tm: TransactionManager,
    writeset_tree: BitsetTree,
    era_array: Array<u32>,
    /// The superblock that the next commit writes.
    sb: Superblock,
    /// The word of the current writeset that was used last.
    cached_word: Option<CachedWord>,
    /// The transaction has changes to commit.
    dirty: bool,
    /// A commit has succeeded since the metadata was opened.
    committed: bool,
    /// The digestion under way.
    digest: Option<Digest>,
}

impl OpenMetadata {
    /// Verifies the metadata and returns what the status line shows; `None` if the device is
    /// blank.
    ///
    /// Writes nothing. May sleep.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub(super) fn probe(
        device: &Arc<BlockDevice>,
        size: BlockSize,
    ) -> Result<Option<MetadataStats>> {
        let blocks = BlockManager::read_only(device.clone(), MAX_HELD_BLOCKS)
            .map_err(log_step(NO_BLOCK_MANAGER))?;
        let md = Self::load(blocks, device, size)?;
        md.map(|md| md.stats()).transpose()
    }

    /// Opens the metadata as of the last commit; `None` if the device is blank.
    ///
    /// Writes nothing. May sleep.
    ///
    /// # Errors
    ///
    /// That of [`Invalid`] if the superblock is refused, for example because its block size is not
    /// `size`. `EINVAL` if the metadata is damaged. The error of the I/O.
    pub(super) fn open(device: &Arc<BlockDevice>, size: BlockSize) -> Result<Option<Self>> {
        Self::load(Self::manager(device)?, device, size)
    }

    fn load(
        blocks: BlockManager,
        device: &Arc<BlockDevice>,
        size: BlockSize,
    ) -> Result<Option<Self>> {
        let blank = {
            let block = blocks.read(Block(LOCATION), None)?;
            is_blank(&block)
        };
        if blank {
            return Ok(None);
        }
        let sb = {
            let block = blocks
                .read(Block(LOCATION), Some(&SUPERBLOCK))
                .inspect_err(|_| err!("era", "couldn't read_lock superblock"))?;
            Superblock::parse(&block, LOCATION, size, device_blocks(device)).map_err(log_invalid)?
        };
        Self::verify(&blocks, &sb, device).inspect_err(|error| {
            err!("era", "the metadata is damaged: error {}", error.to_errno())
        })?;
        let tm = TransactionManager::open(blocks, Block(LOCATION), &sb.sm_root)
            .map_err(log_step("dm_tm_open_with_sm failed"))?;
        Ok(Some(OpenMetadata {
            writeset_tree: BitsetTree::new(&tm)?,
            era_array: Array::new(&tm)?,
            tm,
            sb,
            cached_word: None,
            dirty: false,
            committed: false,
            digest: None,
        }))
    }

    /// Verifies everything that the persistent-data library would follow without a check.
    fn verify(blocks: &BlockManager, sb: &Superblock, device: &BlockDevice) -> Result {
        let total = device_blocks(device);
        let verifier = Verifier::new(blocks, &sb.sm_root, total)?;
        verifier.bitset_tree(Block(sb.writeset_tree_root))?;
        verifier.array(Block(sb.era_array_root))?;
        if sb.writeset_root != 0 {
            verifier.array(Block(sb.writeset_root))?;
        }
        if sb.metadata_snap != 0 {
            let block = blocks.read(Block(sb.metadata_snap), None)?;
            let kept = Superblock::parse(&block, sb.metadata_snap, sb.block_size, total)
                .map_err(log_invalid)?;
            verifier.bitset_tree(Block(kept.writeset_tree_root))?;
            verifier.array(Block(kept.era_array_root))?;
        }
        Ok(())
    }

    /// Formats a blank device. May sleep.
    ///
    /// The commit writes the superblock last, so a device whose formatting fails stays blank.
    pub(super) fn format(device: &Arc<BlockDevice>, size: BlockSize) -> Result<Self> {
        let blocks = Self::manager(device)?;
        let mut tm = TransactionManager::create(blocks, Block(LOCATION))
            .map_err(log_step("dm_tm_create_with_sm failed"))?;
        let writeset_tree = BitsetTree::new(&tm)?;
        let era_array = Array::new(&tm)?;
        let writeset_tree_root = writeset_tree
            .empty(&mut tm)
            .map_err(log_step("couldn't create new writeset tree"))?;
        let era_array_root = era_array
            .empty(&mut tm)
            .map_err(log_step("couldn't create era array"))?;
        let sb = Superblock {
            block_size: size,
            blocks: 0,
            current_era: EraNr::NONE,
            writeset_bits: 0,
            writeset_root: 0,
            writeset_tree_root: writeset_tree_root.0,
            era_array_root: era_array_root.0,
            metadata_snap: 0,
            sm_root: [0; _],
        };
        let mut md = OpenMetadata {
            tm,
            writeset_tree,
            era_array,
            sb,
            cached_word: None,
            dirty: true,
            committed: false,
            digest: None,
        };
        md.commit()?;
        Ok(md)
    }

    fn manager(device: &Arc<BlockDevice>) -> Result<BlockManager> {
        BlockManager::new(device.clone(), MAX_HELD_BLOCKS).map_err(log_step(NO_BLOCK_MANAGER))
    }

    /// The current era.
    pub(super) fn era(&self) -> EraNr {
        self.sb.current_era
    }

    /// The number of entries in the era array.
    pub(super) fn blocks(&self) -> u32 {
        self.sb.blocks
    }

    /// Whether there is a metadata snapshot.
    pub(super) fn has_metadata_snap(&self) -> bool {
        self.sb.metadata_snap != 0
    }

    /// Whether the transaction has changes to commit.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether a commit has succeeded since the metadata was opened.
    pub(super) fn has_committed(&self) -> bool {
        self.committed
    }

    /// What the status line shows.
    pub(super) fn stats(&self) -> Result<MetadataStats> {
        let total = self.tm.total_blocks()?;
        Ok(MetadataStats {
            used: total.saturating_sub(self.tm.free_blocks()?),
            total,
            era: self.sb.current_era,
            metadata_snap: self.sb.metadata_snap,
        })
    }

    /// Commits the transaction: all steps since the last commit become durable at once.
    ///
    /// 1. The cached word goes into the current writeset.
    /// 2. All changed blocks and the space map are written to free places, and the device is
    ///    flushed.
    /// 3. The superblock, with the new space map root, is written, and the device is flushed again.
    ///
    /// A power cut leaves the state before or after 3. C counterpart: `metadata_commit()`.
    pub(super) fn commit(&mut self) -> Result {
        self.write_back_word()?;
        self.tm
            .pre_commit()
            .map_err(log_step("pre commit failed"))?;
        self.sb.sm_root = self
            .tm
            .space_map_root()
            .map_err(log_step("save_sm_root failed"))?;
        let sb = self.sb;
        self.tm
            .commit(Block(LOCATION), &SUPERBLOCK, |block| {
                // Fails only for a block that is shorter than a superblock.
                let _ = sb.write(block);
            })
            .map_err(log_step("commit failed"))?;
        self.dirty = false;
        self.committed = true;
        Ok(())
    }

    /// Upper bound of the metadata blocks that a small step takes: a leaf, its nodes, the space
    /// map.
    fn step_margin(&self) -> Result<u64> {
        let bitmaps = self.tm.total_blocks()?.div_ceil(BLOCKS_PER_BITMAP);
        Ok(bitmaps.saturating_mul(3).saturating_add(7).min(100))
    }

    /// Checks that a small step has enough free blocks. If there are too few, commits first, which
    /// frees the blocks that the transaction has replaced.
    ///
    /// The library must not run out of space in the middle of a change: it would leave a block
    /// locked.
    fn ensure_space(&mut self) -> Result<FreeSpace> {
        let margin = self.step_margin()?;
        if self.dirty && self.tm.free_blocks()? < margin {
            self.commit()?;
        }
        Ok(if self.tm.free_blocks()? >= margin {
            FreeSpace::Enough
        } else {
            FreeSpace::Short
        })
    }

    /// Checks that `blocks` metadata blocks are free, and those of a small step in addition. Called
    /// before a step changes anything.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if there are fewer.
    fn require_blocks(&self, blocks: u64) -> Result {
        if self.tm.free_blocks()? < blocks.saturating_add(self.step_margin()?) {
            return Err(ENOSPC);
        }
        Ok(())
    }
}
