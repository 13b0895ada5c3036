// SPDX-License-Identifier: GPL-2.0

//! The metadata device of an era: what is on it, and the steps that change it.
//!
//! A step changes the running transaction; [`Disk::commit`] makes it true on the device, all at
//! once. A step that fails leaves the transaction in an unknown state: the whole [`Disk`] is then
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
            geometry::{
                BlockSize,
                Blocks, //
            },
            marks::{
                by_words,
                words, //
            },
            number::Era,
            status::Info,
            superblock::{
                Invalid,
                Superblock,
                FORMAT, //
            },
            transcript::{
                blocks_of,
                Transcript, //
            }, //
        },
        pdata::superblock::{
            is_blank,
            LOCATION, //
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
const MAX_METADATA_BLOCKS: u64 = 255 * 16_320;
/// Blocks of the array that are added or cut off between two commits: 4 MiB.
const STEP_BLOCKS: u32 = 1024;
/// The entries of so many.
const STEP: u32 = STEP_BLOCKS * ENTRIES;
/// Entries in a block of the array.
const ENTRIES: u32 = 1018;
/// Words in a block of a bitset.
const WORDS: u32 = 509;
/// What is logged when there is no cache for the metadata.
const NO_MANAGER: &str = "could not create block manager";
/// Blocks of metadata that one bitmap of the space map stands for.
const PER_BITMAP: u64 = 16_320;

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
fn bitset_blocks(bits: u32) -> u64 {
    let leaves = u64::from(words(bits).div_ceil(WORDS));
    leaves.saturating_add(leaves / 126).saturating_add(2)
}

/// Blocks of a bitset on disk in which nothing is marked yet, with its nodes.
fn sparse_blocks(bits: u32) -> u64 {
    let leaves = u64::from(words(bits).div_ceil(WORDS));
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
pub(super) enum Room {
    Enough,
    None,
}

/// What has become of a slice of digestion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Digested {
    /// There is more to do.
    Some,
    /// Only the newest archived era is left.
    All,
    /// There is more to do, but no room for it.
    NoRoom,
}

/// A word of the present bitset that differs from the array.
#[derive(Clone, Copy)]
struct Word {
    index: u32,
    value: u64,
    changed: bool,
}

/// An era that is being digested.
struct Digest {
    transcript: Transcript,
    bitset: Bitset,
    /// The leaf of the bitset that is being read, and whether it was empty so far.
    leaf: Option<(Block, bool)>,
    /// A leaf that is empty: others may be the same.
    empty: Option<Block>,
}

/// The open metadata.
pub(super) struct Disk {
    tm: TransactionManager,
    tree: BitsetTree,
    eras: Array<u32>,
    now: Superblock,
    word: Option<Word>,
    /// The transaction has changes.
    dirty: bool,
    /// A commit has succeeded since the metadata was opened.
    proven: bool,
    digest: Option<Digest>,
}

impl Disk {
    /// What the status line would say of metadata for blocks of a size; none if the device is
    /// blank. Refuses what is wrong with it. Writes nothing, and keeps nothing. Sleeps for I/O.
    pub(super) fn look(device: &Arc<BlockDevice>, size: BlockSize) -> Result<Option<Info>> {
        let blocks =
            BlockManager::read_only(device.clone(), MAX_HELD_BLOCKS).map_err(failed(NO_MANAGER))?;
        let disk = Self::load(blocks, device, size)?;
        disk.map(|disk| disk.info()).transpose()
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
        let now = {
            let block = blocks
                .read(Block(LOCATION), Some(&SUPERBLOCK))
                .inspect_err(|_| err!("era", "couldn't read_lock superblock"))?;
            Superblock::parse(&block, LOCATION, size, device_blocks(device)).map_err(log_invalid)?
        };
        Self::verify(&blocks, &now, device).inspect_err(|error| {
            err!("era", "the metadata is damaged: error {}", error.to_errno())
        })?;
        let tm = TransactionManager::open(blocks, Block(LOCATION), &now.sm_root)
            .map_err(failed("dm_tm_open_with_sm failed"))?;
        Ok(Some(Disk {
            tree: BitsetTree::new(&tm)?,
            eras: Array::new(&tm)?,
            tm,
            now,
            word: None,
            dirty: false,
            proven: false,
            digest: None,
        }))
    }

    /// Looks at all that the library would trust.
    fn verify(blocks: &BlockManager, now: &Superblock, device: &BlockDevice) -> Result {
        let total = device_blocks(device);
        let verifier = Verifier::new(blocks, &now.sm_root, total)?;
        verifier.bitset_tree(Block(now.tree_root))?;
        verifier.array(Block(now.array_root))?;
        if now.bitset_root != 0 {
            verifier.array(Block(now.bitset_root))?;
        }
        if now.snapshot != 0 {
            let block = blocks.read(Block(now.snapshot), None)?;
            let kept = Superblock::parse(&block, now.snapshot, now.block_size, total)
                .map_err(log_invalid)?;
            verifier.bitset_tree(Block(kept.tree_root))?;
            verifier.array(Block(kept.array_root))?;
        }
        Ok(())
    }

    /// Writes empty metadata to a blank device. Sleeps for I/O.
    pub(super) fn format(device: &Arc<BlockDevice>, size: BlockSize) -> Result<Self> {
        let blocks = Self::manager(device)?;
        let mut tm = TransactionManager::create(blocks, Block(LOCATION))
            .map_err(failed("dm_tm_create_with_sm failed"))?;
        let tree = BitsetTree::new(&tm)?;
        let eras = Array::new(&tm)?;
        let tree_root = tree
            .empty(&mut tm)
            .map_err(failed("couldn't create new writeset tree"))?;
        let array_root = eras
            .empty(&mut tm)
            .map_err(failed("couldn't create era array"))?;
        let now = Superblock {
            block_size: size,
            blocks: 0,
            era: Era::NONE,
            bits: 0,
            bitset_root: 0,
            tree_root: tree_root.0,
            array_root: array_root.0,
            snapshot: 0,
            sm_root: [0; _],
        };
        let mut disk = Disk {
            tm,
            tree,
            eras,
            now,
            word: None,
            dirty: true,
            proven: false,
            digest: None,
        };
        disk.commit()?;
        Ok(disk)
    }

    fn manager(device: &Arc<BlockDevice>) -> Result<BlockManager> {
        BlockManager::new(device.clone(), MAX_HELD_BLOCKS).map_err(failed(NO_MANAGER))
    }

    /// The present era.
    pub(super) fn era(&self) -> Era {
        self.now.era
    }

    /// The number of blocks that the metadata is for.
    pub(super) fn blocks(&self) -> u32 {
        self.now.blocks
    }

    /// Whether there is a metadata snapshot.
    pub(super) fn has_snapshot(&self) -> bool {
        self.now.snapshot != 0
    }

    /// Whether the transaction has changes that a commit would make durable.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Whether a commit has shown that the metadata works.
    pub(super) fn is_proven(&self) -> bool {
        self.proven
    }

    /// What the status line says.
    pub(super) fn info(&self) -> Result<Info> {
        let total = self.tm.total_blocks()?;
        Ok(Info {
            used: total.saturating_sub(self.tm.free_blocks()?),
            total,
            era: self.now.era,
            snapshot: self.now.snapshot,
        })
    }

    /// Ends the transaction: after it, all steps since the last one are on disk, durably.
    pub(super) fn commit(&mut self) -> Result {
        self.flush_word()?;
        self.tm.pre_commit().map_err(failed("pre commit failed"))?;
        self.now.sm_root = self
            .tm
            .space_map_root()
            .map_err(failed("save_sm_root failed"))?;
        let now = self.now;
        self.tm
            .commit(Block(LOCATION), &SUPERBLOCK, |block| {
                // Fails only for a block that is shorter than a superblock.
                let _ = now.write(block);
            })
            .map_err(failed("commit failed"))?;
        self.dirty = false;
        self.proven = true;
        Ok(())
    }

    // The present bitset

    fn flush_word(&mut self) -> Result {
        if let Some(word) = self.word.filter(|word| word.changed) {
            let root = Block(self.now.bitset_root);
            let bits = self.tree.words();
            self.now.bitset_root = bits.set(&mut self.tm, root, word.index, word.value)?.0;
            self.dirty = true;
        }
        self.word = None;
        Ok(())
    }

    /// Metadata blocks that a small step takes at most: a leaf, nodes, the space map.
    fn margin(&self) -> Result<u64> {
        let bitmaps = self.tm.total_blocks()?.div_ceil(PER_BITMAP);
        Ok(bitmaps.saturating_mul(3).saturating_add(7).min(100))
    }

    /// Looks whether there is room for a small step, if need be after a commit, which sets free
    /// what was replaced since the last one. The library must not run out of space in the midst of
    /// a change: it would keep a block locked for ever.
    fn make_room(&mut self) -> Result<Room> {
        let margin = self.margin()?;
        if self.dirty && self.tm.free_blocks()? < margin {
            self.commit()?;
        }
        Ok(if self.tm.free_blocks()? >= margin {
            Room::Enough
        } else {
            Room::None
        })
    }

    /// Refuses a step that takes so many blocks, and a small one, if there are not so many. Where
    /// nothing has been changed.
    fn require(&self, blocks: u64) -> Result {
        if self.tm.free_blocks()? < blocks.saturating_add(self.margin()?) {
            return Err(ENOSPC);
        }
        Ok(())
    }

    fn load_word(&mut self, index: u32) -> Result<Word> {
        match self.word {
            Some(word) if word.index == index => Ok(word),
            _ => {
                self.flush_word()?;
                let root = Block(self.now.bitset_root);
                let value = self.tree.words().get(&self.tm, root, index)?;
                Ok(Word {
                    index,
                    value,
                    changed: false,
                })
            }
        }
    }

    /// Whether all blocks of a range are marked, in the transaction.
    pub(super) fn is_marked(&mut self, blocks: Blocks) -> Result<bool> {
        for part in by_words(blocks) {
            let word = self.load_word(part.word)?;
            self.word = Some(word);
            if word.value & part.mask != part.mask {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Marks the blocks of a range in the present era. If space is short, what was marked so far is
    /// committed first. If that is not enough, some blocks of the range may be marked, and others
    /// not.
    pub(super) fn mark(&mut self, blocks: Blocks) -> Result<Room> {
        for part in by_words(blocks) {
            let mut word = self.load_word(part.word)?;
            if word.value & part.mask != part.mask {
                if !word.changed && self.make_room()? == Room::None {
                    self.word = Some(word);
                    return Ok(Room::None);
                }
                word.value |= part.mask;
                word.changed = true;
                self.dirty = true;
            }
            self.word = Some(word);
        }
        Ok(Room::Enough)
    }

    // Eras

    /// Puts the present bitset into the tree, for good. There is none after it.
    pub(super) fn archive(&mut self) -> Result {
        self.flush_word()?;
        if self.now.bitset_root == 0 {
            return Ok(());
        }
        let bitset = Bitset {
            bits: self.now.bits,
            root: Block(self.now.bitset_root),
        };
        let (root, key) = (Block(self.now.tree_root), self.now.era.key());
        self.now.tree_root = self
            .tree
            .insert(&mut self.tm, root, key, bitset)
            .map_err(failed("couldn't insert writeset into btree"))?
            .0;
        self.now.bitset_root = 0;
        self.now.bits = 0;
        self.dirty = true;
        Ok(())
    }

    /// Begins a new era, with the present one archived. `EOVERFLOW` if this is the last era there
    /// can be.
    pub(super) fn roll_over(&mut self) -> Result {
        let next = self.now.era.next().ok_or(EOVERFLOW)?;
        let bits = self.now.blocks;
        // First what may fail for lack of space.
        let root = self
            .tree
            .words()
            .create_sparse(&mut self.tm, words(bits))
            .map_err(failed("couldn't create bitset"))?;
        self.archive()?;
        self.now.bitset_root = root.0;
        self.now.bits = bits;
        self.now.era = next;
        self.dirty = true;
        if next.is_first_warning() {
            warning!("era", "the numbers of eras will soon be used up");
        }
        Ok(())
    }

    /// Whether there is room for another bitset, once it is filled.
    pub(super) fn has_room_for_era(&self) -> Result<bool> {
        let needed = bitset_blocks(self.now.blocks).saturating_add(self.margin()?);
        Ok(self.tm.free_blocks()? >= needed)
    }

    /// Begins an era when the device goes live: a new one, unless this is the last one already.
    pub(super) fn begin(&mut self) -> Result {
        if !self.now.era.is_last() {
            return self.roll_over();
        }
        let (wanted, key) = (self.now.blocks, self.now.era.key());
        if self.now.bitset_root == 0 {
            // Archived at the suspend. Two bitsets of one era cannot be, so it is taken out again.
            let tree = Block(self.now.tree_root);
            match self.tree.next(&self.tm, tree, key)? {
                Some((found, bitset)) if found == key => {
                    self.tm.inc_block(bitset.root)?;
                    self.now.tree_root = self.tree.remove(&mut self.tm, tree, key)?.0;
                    self.now.bitset_root = bitset.root.0;
                    self.now.bits = bitset.bits;
                }
                _ => {
                    let bits = self.tree.words();
                    let root = bits.create_sparse(&mut self.tm, words(wanted))?;
                    self.now.bitset_root = root.0;
                    self.now.bits = wanted;
                }
            }
            self.dirty = true;
        }
        if self.now.bits != wanted {
            let (old, new) = (words(self.now.bits), words(wanted));
            let (root, bits) = (Block(self.now.bitset_root), self.tree.words());
            self.require(bitset_blocks(wanted.saturating_sub(self.now.bits)))?;
            if !bits.has_len(&self.tm, root, old, new, 0)? {
                return Err(log_invalid(Invalid::Impossible));
            }
            self.now.bitset_root = bits.resize(&mut self.tm, root, old, new, 0)?.0;
            self.now.bits = wanted;
            self.dirty = true;
        }
        Ok(())
    }

    // Sizes

    /// Uses what was added to the metadata device.
    pub(super) fn extend(&mut self, device: &BlockDevice) -> Result {
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
        let old = self.now.blocks;
        if old == blocks {
            return Ok(());
        }
        let root = Block(self.now.array_root);
        let step = u64::from(STEP_BLOCKS);
        if !self.eras.has_len(&self.tm, root, old, blocks, step)? {
            return Err(log_invalid(Invalid::Impossible));
        }
        let array = |blocks: u32| u64::from(blocks.div_ceil(ENTRIES));
        let added = array(blocks).saturating_sub(array(old));
        let needed = match added {
            0 => 0,
            _ => (added / 126).saturating_add(sparse_blocks(blocks)),
        };
        self.require(added.saturating_add(needed))?;
        while self.now.blocks < blocks {
            let step = blocks.min(self.now.blocks.saturating_add(STEP));
            self.resize_array(step, 0)?;
            self.commit()?;
        }
        while self.now.blocks > blocks {
            let step = blocks.max(self.now.blocks.saturating_sub(STEP));
            // Nodes that lose entries are replaced, and so are their neighbours.
            self.require(array(self.now.blocks).saturating_sub(array(step)) / 40)?;
            self.shrink(step)?;
            self.commit()?;
        }
        Ok(())
    }

    fn shrink(&mut self, blocks: u32) -> Result {
        if blocks % ENTRIES != 0 || blocks == 0 {
            return self.resize_array(blocks, 0);
        }
        // The library forgets to drop a last block that is cut down to nothing, so it never is.
        let last = blocks.saturating_sub(1);
        let root = Block(self.now.array_root);
        let value = self.eras.get(&self.tm, root, last)?;
        self.resize_array(last, 0)?;
        self.resize_array(blocks, value)
    }

    fn resize_array(&mut self, blocks: u32, value: u32) -> Result {
        let (root, old) = (Block(self.now.array_root), self.now.blocks);
        self.now.array_root = self
            .eras
            .resize(&mut self.tm, root, old, blocks, value)
            .map_err(failed("dm_array_resize failed"))?
            .0;
        self.now.blocks = blocks;
        self.dirty = true;
        Ok(())
    }

    // Metadata snapshots

    /// Keeps what is archived now for user space to read.
    pub(super) fn take_snapshot(&mut self) -> Result<Room> {
        // The copy is one of the superblock on disk.
        self.commit()?;
        if self.make_room()? == Room::None {
            return Ok(Room::None);
        }
        let copy = self
            .tm
            .copy_block(Block(LOCATION), &SUPERBLOCK)
            .map_err(failed("couldn't shadow superblock"))?;
        self.tm.inc_block(Block(self.now.tree_root))?;
        self.tm.inc_block(Block(self.now.array_root))?;
        self.now.snapshot = copy.0;
        self.dirty = true;
        Ok(Room::Enough)
    }

    /// Lets the metadata snapshot go.
    pub(super) fn drop_snapshot(&mut self, device: &BlockDevice) -> Result {
        let location = Block(self.now.snapshot);
        let copy = {
            let block = self
                .tm
                .blocks()
                .read(location, Some(&SUPERBLOCK))
                .map_err(failed("couldn't read lock superblock clone"))?;
            let (size, total) = (self.now.block_size, device_blocks(device));
            Superblock::parse(&block, location.0, size, total).map_err(log_invalid)?
        };
        self.tree
            .delete(&mut self.tm, Block(copy.tree_root))
            .map_err(failed("error deleting writeset tree clone"))?;
        self.eras
            .delete(&mut self.tm, Block(copy.array_root))
            .map_err(failed("error deleting era array clone"))?;
        self.tm.dec_block(location)?;
        self.now.snapshot = 0;
        self.dirty = true;
        Ok(())
    }

    // Digestion

    /// Digests archived eras until `stop`. Commits by itself where space is short, and with each
    /// finished era.
    pub(super) fn digest(&mut self, mut stop: impl FnMut() -> bool) -> Result<Digested> {
        loop {
            let Some(mut digest) = self.next_digest()? else {
                return Ok(Digested::All);
            };
            let (mut room, mut stopped) = (self.has_room_to_digest()?, false);
            while digest.transcript.word().is_some() && room && !stopped {
                self.digest_word(&mut digest)?;
                room = self.has_room_to_digest()?;
                stopped = stop();
            }
            let done = digest.transcript.word().is_none();
            if done {
                if self.make_room()? == Room::None {
                    self.digest = Some(digest);
                    return Ok(Digested::NoRoom);
                }
                let (root, key) = (Block(self.now.tree_root), digest.transcript.era.key());
                self.now.tree_root = self
                    .tree
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
                if !self.has_room_to_digest()? {
                    return Ok(Digested::NoRoom);
                }
            }
            if stopped || stop() {
                return Ok(Digested::Some);
            }
        }
    }

    /// Whether digesting a word more leaves what the present era needs. What the array's blocks are
    /// replaced by is free again after a commit, unless a snapshot keeps them.
    fn has_room_to_digest(&self) -> Result<bool> {
        let mut needed = self.margin()?.saturating_mul(2);
        if self.has_snapshot() {
            needed = needed.saturating_add(bitset_blocks(self.now.blocks));
        }
        Ok(self.tm.free_blocks()? >= needed)
    }

    /// The era to digest: the oldest one, unless it is the newest archived one too.
    fn next_digest(&mut self) -> Result<Option<Digest>> {
        if let Some(digest) = self.digest.take() {
            return Ok(Some(digest));
        }
        let root = Block(self.now.tree_root);
        let Some((key, bitset)) = self.tree.next(&self.tm, root, 0)? else {
            return Ok(None);
        };
        let Some(after) = key.checked_add(1) else {
            return Ok(None);
        };
        if self.tree.next(&self.tm, root, after)?.is_none() {
            return Ok(None);
        }
        let era = Era::of_key(key).ok_or(EINVAL)?;
        // A record without a bitset: an early C target could leave one.
        let bits = if bitset.root.0 == 0 { 0 } else { bitset.bits };
        Ok(Some(Digest {
            transcript: Transcript::new(era, bits, self.now.blocks),
            bitset,
            leaf: None,
            empty: None,
        }))
    }

    /// Transcribes a word of a bitset, or skips a whole empty leaf.
    fn digest_word(&mut self, digest: &mut Digest) -> Result {
        let Some(word) = digest.transcript.word() else {
            return Ok(());
        };
        let (root, era) = (digest.bitset.root, digest.transcript.era.0);
        if word % WORDS == 0 {
            if let Some((leaf, true)) = digest.leaf {
                digest.empty = Some(leaf);
            }
            let leaf = self.tree.words().block_of(&self.tm, root, word)?;
            if digest.empty == Some(leaf) {
                digest.leaf = None;
                digest.transcript.advance(WORDS);
                return Ok(());
            }
            digest.leaf = Some((leaf, true));
        }
        let bits = self.tree.words().get(&self.tm, root, word)?;
        if let (Some((_, empty)), true) = (&mut digest.leaf, bits != 0) {
            *empty = false;
        }
        for block in blocks_of(word, bits, self.now.blocks) {
            let array = Block(self.now.array_root);
            self.now.array_root = self.eras.set(&mut self.tm, array, block, era)?.0;
            self.dirty = true;
        }
        digest.transcript.advance(1);
        Ok(())
    }
}
