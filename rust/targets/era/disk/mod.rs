// SPDX-License-Identifier: GPL-2.0

//! The metadata device of an era: what is on it, and the steps that change it.
//!
//! A step changes the running transaction; [`OpenMetadata::commit`] makes it true on the device, all at
//! once. A step that fails leaves the transaction in an unknown state: the whole [`OpenMetadata`] is then
//! thrown away and opened again, as of the last commit. See `metadata.rs`.

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

/// Blocks that one thread holds at a time, in the library's own code too.
const MAX_HELD_BLOCKS: u32 = 5;
/// Sectors in a metadata block.
const METADATA_BLOCK: u64 = 8;
/// Metadata blocks that the space map can manage.
const MAX_METADATA_BLOCKS: u64 = MAX_BITMAPS * BLOCKS_PER_BITMAP;
/// What is logged when there is no cache for the metadata.
const NO_BLOCK_MANAGER: &str = "could not create block manager";

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

pub(super) fn log_invalid(reason: impl Into<Invalid>) -> Error {
    let reason = reason.into();
    err!("era", "{}", reason);
    reason.into()
}

/// Logs what could not be done, and passes the error on.
pub(super) fn log_step(what: &'static str) -> impl FnOnce(Error) -> Error {
    move |error| {
        err_limit!("era", "{}: error {}", what, error.to_errno());
        error
    }
}

/// Size of a metadata device in blocks, as far as it can be used.
pub(super) fn device_blocks(device: &BlockDevice) -> u64 {
    (device.sectors() / METADATA_BLOCK).min(MAX_METADATA_BLOCKS)
}

/// Whether there is room for a step. If not nothing is wrong: what was done before it is still
/// good, and can be committed.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FreeSpace {
    Enough,
    Short,
}

/// The open metadata.
pub(super) struct OpenMetadata {
    tm: TransactionManager,
    writeset_tree: BitsetTree,
    era_array: Array<u32>,
    sb: Superblock,
    word: Option<CachedWord>,
    /// The transaction has changes.
    dirty: bool,
    /// A commit has succeeded since the metadata was opened.
    committed: bool,
    digest: Option<Digest>,
}

impl OpenMetadata {
    /// What the status line would say of metadata for blocks of a size; none if the device is
    /// blank. Refuses what is wrong with it. Writes nothing, and keeps nothing. Sleeps for I/O.
    pub(super) fn probe(
        device: &Arc<BlockDevice>,
        size: BlockSize,
    ) -> Result<Option<MetadataStats>> {
        let blocks = BlockManager::read_only(device.clone(), MAX_HELD_BLOCKS)
            .map_err(log_step(NO_BLOCK_MANAGER))?;
        let md = Self::load(blocks, device, size)?;
        md.map(|md| md.stats()).transpose()
    }

    /// Opens metadata for blocks of a size, as it is durably; none if the device is blank. Writes
    /// nothing. Sleeps for I/O.
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
            word: None,
            dirty: false,
            committed: false,
            digest: None,
        }))
    }

    /// Looks at all that the library would trust.
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

    /// Writes empty metadata to a blank device. Sleeps for I/O.
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
            word: None,
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

    /// The present era.
    pub(super) fn era(&self) -> EraNr {
        self.sb.current_era
    }

    /// The number of blocks that the metadata is for.
    pub(super) fn blocks(&self) -> u32 {
        self.sb.blocks
    }

    /// Whether there is a metadata snapshot.
    pub(super) fn has_metadata_snap(&self) -> bool {
        self.sb.metadata_snap != 0
    }

    /// Whether the transaction has changes that a commit would make durable.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether a commit has shown that the metadata works.
    pub(super) fn has_committed(&self) -> bool {
        self.committed
    }

    /// What the status line says.
    pub(super) fn stats(&self) -> Result<MetadataStats> {
        let total = self.tm.total_blocks()?;
        Ok(MetadataStats {
            used: total.saturating_sub(self.tm.free_blocks()?),
            total,
            era: self.sb.current_era,
            metadata_snap: self.sb.metadata_snap,
        })
    }

    /// Ends the transaction: after it, all steps since the last one are on disk, durably.
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

    /// Metadata blocks that a small step takes at most: a leaf, nodes, the space map.
    fn step_margin(&self) -> Result<u64> {
        let bitmaps = self.tm.total_blocks()?.div_ceil(BLOCKS_PER_BITMAP);
        Ok(bitmaps.saturating_mul(3).saturating_add(7).min(100))
    }

    /// Looks whether there is room for a small step, if need be after a commit, which sets free
    /// what was replaced since the last one. The library must not run out of space in the midst of
    /// a change: it would keep a block locked for ever.
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

    /// Refuses a step that takes so many blocks, and a small one, if there are not so many. Where
    /// nothing has been changed.
    fn require_blocks(&self, blocks: u64) -> Result {
        if self.tm.free_blocks()? < blocks.saturating_add(self.step_margin()?) {
            return Err(ENOSPC);
        }
        Ok(())
    }
}
