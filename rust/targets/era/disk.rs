// SPDX-License-Identifier: GPL-2.0

//! The metadata device of an era: what is on it, and the steps that change it.
//!
//! A step changes the running transaction; [`OpenMetadata::commit`] makes it true on the device, all at
//! once. A step that fails leaves the transaction in an unknown state: the whole [`OpenMetadata`] is then
//! thrown away and opened again, as of the last commit. See `metadata.rs`.

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
        tree::{
            Bitset,
            BitsetTree, //
        },
        verify::Verifier, //
    },
    logic::{
        era::{
            digest_cursor::{
                blocks_in_word,
                DigestCursor, //
            }, //
            era_nr::EraNr,
            geometry::{
                BlockSize,
                Blocks, //
            },
            status::MetadataStats,
            superblock::{
                Invalid,
                Superblock,
                FORMAT, //
            },
            writeset::{
                split_into_words,
                words, //
            },
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
            err_limit,
            info,
            warning, //
        }, //
    }, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Blocks that one thread holds at a time, in the library's own code too.
const MAX_HELD_BLOCKS: u32 = 5;
/// Sectors in a metadata block.
const METADATA_BLOCK: u64 = 8;
/// Metadata blocks that the space map can manage.
const MAX_METADATA_BLOCKS: u64 = MAX_BITMAPS * BLOCKS_PER_BITMAP;
/// Blocks of the array that are added or cut off between two commits: 4 MiB.
const RESIZE_STEP_BLOCKS: u32 = 1024;
/// The entries of so many.
const RESIZE_STEP: u32 = RESIZE_STEP_BLOCKS * ERAS_PER_BLOCK;
/// Entries in a block of the array.
const ERAS_PER_BLOCK: u32 = 1018;
/// Words in a block of a bitset.
const WORDS_PER_BLOCK: u32 = 509;
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
pub(super) fn failed(what: &'static str) -> impl FnOnce(Error) -> Error {
    move |error| {
        err_limit!("era", "{}: error {}", what, error.to_errno());
        error
    }
}

/// Blocks of a bitset on disk, with its nodes.
fn full_writeset_blocks(bits: u32) -> u64 {
    let leaves = u64::from(words(bits).div_ceil(WORDS_PER_BLOCK));
    leaves.saturating_add(leaves / 126).saturating_add(2)
}

/// Blocks of a bitset on disk in which nothing is marked yet, with its nodes.
fn empty_writeset_blocks(bits: u32) -> u64 {
    let leaves = u64::from(words(bits).div_ceil(WORDS_PER_BLOCK));
    leaves.min(3).saturating_add(leaves / 126).saturating_add(1)
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

/// What has become of a slice of digestion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum DigestProgress {
    /// There is more to do.
    More,
    /// Only the newest archived era is left.
    Done,
    /// There is more to do, but no room for it.
    NoSpace,
}

/// A word of the present bitset that differs from the array.
#[derive(Clone, Copy)]
struct CachedWord {
    index: u32,
    bits: u64,
    dirty: bool,
}

/// An era that is being digested.
struct Digest {
    cursor: DigestCursor,
    writeset: Bitset,
    /// The leaf of the bitset that is being read, and whether it was empty so far.
    leaf: Option<(Block, bool)>,
    /// A leaf that is empty: others may be the same.
    zero_leaf: Option<Block>,
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
            .map_err(failed(NO_BLOCK_MANAGER))?;
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
            .map_err(failed("dm_tm_open_with_sm failed"))?;
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
            .map_err(failed("dm_tm_create_with_sm failed"))?;
        let writeset_tree = BitsetTree::new(&tm)?;
        let era_array = Array::new(&tm)?;
        let writeset_tree_root = writeset_tree
            .empty(&mut tm)
            .map_err(failed("couldn't create new writeset tree"))?;
        let era_array_root = era_array
            .empty(&mut tm)
            .map_err(failed("couldn't create era array"))?;
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
        BlockManager::new(device.clone(), MAX_HELD_BLOCKS).map_err(failed(NO_BLOCK_MANAGER))
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
        self.tm.pre_commit().map_err(failed("pre commit failed"))?;
        self.sb.sm_root = self
            .tm
            .space_map_root()
            .map_err(failed("save_sm_root failed"))?;
        let sb = self.sb;
        self.tm
            .commit(Block(LOCATION), &SUPERBLOCK, |block| {
                // Fails only for a block that is shorter than a superblock.
                let _ = sb.write(block);
            })
            .map_err(failed("commit failed"))?;
        self.dirty = false;
        self.committed = true;
        Ok(())
    }

    // The present bitset

    fn write_back_word(&mut self) -> Result {
        if let Some(word) = self.word.filter(|word| word.dirty) {
            let root = Block(self.sb.writeset_root);
            let bits = self.writeset_tree.words();
            self.sb.writeset_root = bits.set(&mut self.tm, root, word.index, word.bits)?.0;
            self.dirty = true;
        }
        self.word = None;
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
        let step_margin = self.step_margin()?;
        if self.dirty && self.tm.free_blocks()? < step_margin {
            self.commit()?;
        }
        Ok(if self.tm.free_blocks()? >= step_margin {
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

    fn load_word(&mut self, index: u32) -> Result<CachedWord> {
        match self.word {
            Some(word) if word.index == index => Ok(word),
            _ => {
                self.write_back_word()?;
                let root = Block(self.sb.writeset_root);
                let bits = self.writeset_tree.words().get(&self.tm, root, index)?;
                Ok(CachedWord {
                    index,
                    bits,
                    dirty: false,
                })
            }
        }
    }

    /// Whether all blocks of a range are marked, in the transaction.
    pub(super) fn is_marked(&mut self, blocks: Blocks) -> Result<bool> {
        for part in split_into_words(blocks) {
            let word = self.load_word(part.word)?;
            self.word = Some(word);
            if word.bits & part.mask != part.mask {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Marks the blocks of a range in the present era. If space is short, what was marked so far is
    /// committed first. If that is not enough, some blocks of the range may be marked, and others
    /// not.
    pub(super) fn mark(&mut self, blocks: Blocks) -> Result<FreeSpace> {
        for part in split_into_words(blocks) {
            let mut word = self.load_word(part.word)?;
            if word.bits & part.mask != part.mask {
                if !word.dirty && self.ensure_space()? == FreeSpace::Short {
                    self.word = Some(word);
                    return Ok(FreeSpace::Short);
                }
                word.bits |= part.mask;
                word.dirty = true;
                self.dirty = true;
            }
            self.word = Some(word);
        }
        Ok(FreeSpace::Enough)
    }

    // Eras

    /// Puts the present bitset into the tree, for good. There is none after it.
    pub(super) fn archive_era(&mut self) -> Result {
        self.write_back_word()?;
        if self.sb.writeset_root == 0 {
            return Ok(());
        }
        let bitset = Bitset {
            bits: self.sb.writeset_bits,
            root: Block(self.sb.writeset_root),
        };
        let (root, key) = (Block(self.sb.writeset_tree_root), self.sb.current_era.key());
        self.sb.writeset_tree_root = self
            .writeset_tree
            .insert(&mut self.tm, root, key, bitset)
            .map_err(failed("couldn't insert writeset into btree"))?
            .0;
        self.sb.writeset_root = 0;
        self.sb.writeset_bits = 0;
        self.dirty = true;
        Ok(())
    }

    /// Begins a new era, with the present one archived. `EOVERFLOW` if this is the last era there
    /// can be.
    pub(super) fn begin_next_era(&mut self) -> Result {
        let next = self.sb.current_era.next().ok_or(EOVERFLOW)?;
        let bits = self.sb.blocks;
        // First what may fail for lack of space.
        let root = self
            .writeset_tree
            .words()
            .create_sparse(&mut self.tm, words(bits))
            .map_err(failed("couldn't create bitset"))?;
        self.archive_era()?;
        self.sb.writeset_root = root.0;
        self.sb.writeset_bits = bits;
        self.sb.current_era = next;
        self.dirty = true;
        if next.is_first_warning() {
            warning!("era", "the numbers of eras will soon be used up");
        }
        Ok(())
    }

    /// Whether there is room for another bitset, once it is filled.
    pub(super) fn has_space_for_era(&self) -> Result<bool> {
        let needed = full_writeset_blocks(self.sb.blocks).saturating_add(self.step_margin()?);
        Ok(self.tm.free_blocks()? >= needed)
    }

    /// Begins an era when the device goes live: a new one, unless this is the last one already.
    pub(super) fn begin_era_on_resume(&mut self) -> Result {
        if !self.sb.current_era.is_last() {
            return self.begin_next_era();
        }
        let (wanted, key) = (self.sb.blocks, self.sb.current_era.key());
        if self.sb.writeset_root == 0 {
            // Archived at the suspend. Two bitsets of one era cannot be, so it is taken out again.
            let tree = Block(self.sb.writeset_tree_root);
            match self.writeset_tree.next(&self.tm, tree, key)? {
                Some((found, bitset)) if found == key => {
                    self.tm.inc_block(bitset.root)?;
                    self.sb.writeset_tree_root =
                        self.writeset_tree.remove(&mut self.tm, tree, key)?.0;
                    self.sb.writeset_root = bitset.root.0;
                    self.sb.writeset_bits = bitset.bits;
                }
                _ => {
                    let bits = self.writeset_tree.words();
                    let root = bits.create_sparse(&mut self.tm, words(wanted))?;
                    self.sb.writeset_root = root.0;
                    self.sb.writeset_bits = wanted;
                }
            }
            self.dirty = true;
        }
        if self.sb.writeset_bits != wanted {
            let (old, new) = (words(self.sb.writeset_bits), words(wanted));
            let (root, bits) = (Block(self.sb.writeset_root), self.writeset_tree.words());
            self.require_blocks(full_writeset_blocks(
                wanted.saturating_sub(self.sb.writeset_bits),
            ))?;
            if !bits.has_len(&self.tm, root, old, new, 0)? {
                return Err(log_invalid(Invalid::Impossible));
            }
            self.sb.writeset_root = bits.resize(&mut self.tm, root, old, new, 0)?.0;
            self.sb.writeset_bits = wanted;
            self.dirty = true;
        }
        Ok(())
    }

    // Sizes

    /// Uses what was added to the metadata device.
    pub(super) fn extend_metadata(&mut self, device: &BlockDevice) -> Result {
        let (total, now) = (self.tm.total_blocks()?, device_blocks(device));
        if now <= total {
            return Ok(());
        }
        info!(
            "era",
            "metadata device grows from {} to {} blocks", total, now
        );
        self.tm
            .extend(now.saturating_sub(total))
            .map_err(failed("couldn't extend the metadata"))?;
        self.commit()
    }

    /// Changes the number of blocks, in slices with a commit each: a power cut in between is no
    /// harm. Only for metadata that has just been opened. `ENOSPC` if there is no room for the
    /// blocks and the era that follows; then nothing has been changed, and with the old number the
    /// device goes live as before.
    pub(super) fn resize(&mut self, blocks: u32) -> Result {
        let old = self.sb.blocks;
        if old == blocks {
            return Ok(());
        }
        let root = Block(self.sb.era_array_root);
        let step = u64::from(RESIZE_STEP_BLOCKS);
        if !self.era_array.has_len(&self.tm, root, old, blocks, step)? {
            return Err(log_invalid(Invalid::Impossible));
        }
        let array = |blocks: u32| u64::from(blocks.div_ceil(ERAS_PER_BLOCK));
        let added = array(blocks).saturating_sub(array(old));
        let needed = match added {
            0 => 0,
            _ => (added / 126).saturating_add(empty_writeset_blocks(blocks)),
        };
        self.require_blocks(added.saturating_add(needed))?;
        while self.sb.blocks < blocks {
            let step = blocks.min(self.sb.blocks.saturating_add(RESIZE_STEP));
            self.resize_array(step, 0)?;
            self.commit()?;
        }
        while self.sb.blocks > blocks {
            let step = blocks.max(self.sb.blocks.saturating_sub(RESIZE_STEP));
            // Nodes that lose entries are replaced, and so are their neighbours.
            self.require_blocks(array(self.sb.blocks).saturating_sub(array(step)) / 40)?;
            self.shrink(step)?;
            self.commit()?;
        }
        Ok(())
    }

    fn shrink(&mut self, blocks: u32) -> Result {
        if blocks % ERAS_PER_BLOCK != 0 || blocks == 0 {
            return self.resize_array(blocks, 0);
        }
        // The library forgets to drop a last block that is cut down to nothing, so it never is.
        let last = blocks.saturating_sub(1);
        let root = Block(self.sb.era_array_root);
        let value = self.era_array.get(&self.tm, root, last)?;
        self.resize_array(last, 0)?;
        self.resize_array(blocks, value)
    }

    fn resize_array(&mut self, blocks: u32, value: u32) -> Result {
        let (root, old) = (Block(self.sb.era_array_root), self.sb.blocks);
        self.sb.era_array_root = self
            .era_array
            .resize(&mut self.tm, root, old, blocks, value)
            .map_err(failed("dm_array_resize failed"))?
            .0;
        self.sb.blocks = blocks;
        self.dirty = true;
        Ok(())
    }

    // Metadata snapshots

    /// Keeps what is archived now for user space to read.
    pub(super) fn take_metadata_snap(&mut self) -> Result<FreeSpace> {
        // The copy is one of the superblock on disk.
        self.commit()?;
        if self.ensure_space()? == FreeSpace::Short {
            return Ok(FreeSpace::Short);
        }
        let copy = self
            .tm
            .copy_block(Block(LOCATION), &SUPERBLOCK)
            .map_err(failed("couldn't shadow superblock"))?;
        self.tm.inc_block(Block(self.sb.writeset_tree_root))?;
        self.tm.inc_block(Block(self.sb.era_array_root))?;
        self.sb.metadata_snap = copy.0;
        self.dirty = true;
        Ok(FreeSpace::Enough)
    }

    /// Lets the metadata snapshot go.
    pub(super) fn drop_metadata_snap(&mut self, device: &BlockDevice) -> Result {
        let location = Block(self.sb.metadata_snap);
        let copy = {
            let block = self
                .tm
                .blocks()
                .read(location, Some(&SUPERBLOCK))
                .map_err(failed("couldn't read lock superblock clone"))?;
            let (size, total) = (self.sb.block_size, device_blocks(device));
            Superblock::parse(&block, location.0, size, total).map_err(log_invalid)?
        };
        self.writeset_tree
            .delete(&mut self.tm, Block(copy.writeset_tree_root))
            .map_err(failed("error deleting writeset tree clone"))?;
        self.era_array
            .delete(&mut self.tm, Block(copy.era_array_root))
            .map_err(failed("error deleting era array clone"))?;
        self.tm.dec_block(location)?;
        self.sb.metadata_snap = 0;
        self.dirty = true;
        Ok(())
    }

    // Digestion

    /// Digests archived eras until `stop`. Commits by itself where space is short, and with each
    /// finished era.
    pub(super) fn digest(&mut self, mut stop: impl FnMut() -> bool) -> Result<DigestProgress> {
        loop {
            let Some(mut digest) = self.next_digest()? else {
                return Ok(DigestProgress::Done);
            };
            let (mut room, mut stopped) = (self.has_space_to_digest()?, false);
            while digest.cursor.word().is_some() && room && !stopped {
                self.digest_word(&mut digest)?;
                room = self.has_space_to_digest()?;
                stopped = stop();
            }
            let done = digest.cursor.word().is_none();
            if done {
                if self.ensure_space()? == FreeSpace::Short {
                    self.digest = Some(digest);
                    return Ok(DigestProgress::NoSpace);
                }
                let (root, key) = (Block(self.sb.writeset_tree_root), digest.cursor.era.key());
                self.sb.writeset_tree_root = self
                    .writeset_tree
                    .remove(&mut self.tm, root, key)
                    .map_err(failed("dm_btree_remove failed"))?
                    .0;
                self.dirty = true;
            } else {
                self.digest = Some(digest);
            }
            if done || !room {
                // It sets free what was replaced.
                self.commit()?;
                if !self.has_space_to_digest()? {
                    return Ok(DigestProgress::NoSpace);
                }
            }
            if stopped || stop() {
                return Ok(DigestProgress::More);
            }
        }
    }

    /// Whether digesting a word more leaves what the present era needs. What the array's blocks are
    /// replaced by is free again after a commit, unless a snapshot keeps them.
    fn has_space_to_digest(&self) -> Result<bool> {
        let mut needed = self.step_margin()?.saturating_mul(2);
        if self.has_metadata_snap() {
            needed = needed.saturating_add(full_writeset_blocks(self.sb.blocks));
        }
        Ok(self.tm.free_blocks()? >= needed)
    }

    /// The era to digest: the oldest one, unless it is the newest archived one too.
    fn next_digest(&mut self) -> Result<Option<Digest>> {
        if let Some(digest) = self.digest.take() {
            return Ok(Some(digest));
        }
        let root = Block(self.sb.writeset_tree_root);
        let Some((key, bitset)) = self.writeset_tree.next(&self.tm, root, 0)? else {
            return Ok(None);
        };
        let Some(after) = key.checked_add(1) else {
            return Ok(None);
        };
        if self.writeset_tree.next(&self.tm, root, after)?.is_none() {
            return Ok(None);
        }
        let era = EraNr::of_key(key).ok_or(EINVAL)?;
        // A record without a bitset: an early C target could leave one.
        let bits = if bitset.root.0 == 0 { 0 } else { bitset.bits };
        Ok(Some(Digest {
            cursor: DigestCursor::new(era, bits, self.sb.blocks),
            writeset: bitset,
            leaf: None,
            zero_leaf: None,
        }))
    }

    /// Transcribes a word of a bitset, or skips a whole empty leaf.
    fn digest_word(&mut self, digest: &mut Digest) -> Result {
        let Some(word) = digest.cursor.word() else {
            return Ok(());
        };
        let (root, era) = (digest.writeset.root, digest.cursor.era.0);
        if word % WORDS_PER_BLOCK == 0 {
            if let Some((leaf, true)) = digest.leaf {
                digest.zero_leaf = Some(leaf);
            }
            let leaf = self.writeset_tree.words().block_of(&self.tm, root, word)?;
            if digest.zero_leaf == Some(leaf) {
                digest.leaf = None;
                digest.cursor.advance(WORDS_PER_BLOCK);
                return Ok(());
            }
            digest.leaf = Some((leaf, true));
        }
        let bits = self.writeset_tree.words().get(&self.tm, root, word)?;
        if let (Some((_, empty)), true) = (&mut digest.leaf, bits != 0) {
            *empty = false;
        }
        for block in blocks_in_word(word, bits, self.sb.blocks) {
            let array = Block(self.sb.era_array_root);
            self.sb.era_array_root = self.era_array.set(&mut self.tm, array, block, era)?.0;
            self.dirty = true;
        }
        digest.cursor.advance(1);
        Ok(())
    }
}
