// SPDX-License-Identifier: GPL-2.0

//! Cached metadata blocks, with locks and validators.
//!
//! C header: `drivers/md/persistent-data/dm-block-manager.h`

use crate::{
    bindings,
    sys::{
        bdev::BlockDevice,
        log::err_limit, //
    }, //
};
use core::{
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull, //
};
use kernel::{
    error::{
        from_err_ptr,
        from_result,
        to_result, //
    },
    ffi::c_int,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// The size of a metadata block in bytes, which is the same for all targets.
pub(crate) const BLOCK_SIZE: usize = 4096;

/// The number of a block on the metadata device. C counterpart: `dm_block_t`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block(pub(crate) u64);

/// A kind of block, which is checked after reading and completed before writing.
pub(crate) trait Validate {
    /// The name in messages of the block manager.
    const NAME: &'static CStr;

    /// Checks a block, whose number is `location`. May sleep.
    ///
    /// # Errors
    ///
    /// The error with which reading the block fails.
    fn check(data: &[u8], location: u64) -> Result;

    /// Writes the block's own number and its checksum into the block. May sleep.
    fn seal(data: &mut [u8], location: u64);
}

/// A [`Validate`] type for the block manager. C counterpart: `struct dm_block_validator`.
///
/// There must be one `static` of each type, because the manager compares addresses.
#[repr(transparent)]
pub(crate) struct Validator(bindings::dm_block_validator);

// SAFETY: This is a table of functions and a static name, which nothing changes.
unsafe impl Sync for Validator {}

impl Validator {
    /// Creates the validator of `V`. Any context.
    pub(crate) const fn new<V: Validate>() -> Self {
        /// # Safety
        ///
        /// Called by the block manager only, as a callback of a validator.
        unsafe extern "C" fn check<V: Validate>(
            _: *const bindings::dm_block_validator,
            block: *mut bindings::dm_block,
            size: usize,
        ) -> c_int {
            from_result(|| {
                // SAFETY: The block manager passes a block of `size` bytes, which nothing changes
                // meanwhile.
                let data = unsafe {
                    core::slice::from_raw_parts(bindings::dm_block_data(block).cast(), size)
                };
                // SAFETY: The block manager passes a block that exists.
                V::check(data, unsafe { bindings::dm_block_location(block) }).map(|()| 0)
            })
        }
        /// # Safety
        ///
        /// Called by the block manager only, as a callback of a validator.
        unsafe extern "C" fn seal<V: Validate>(
            _: *const bindings::dm_block_validator,
            block: *mut bindings::dm_block,
            size: usize,
        ) {
            // SAFETY: The block manager passes a block of `size` bytes that it is about to write.
            // Nothing else uses the block meanwhile.
            let data = unsafe {
                core::slice::from_raw_parts_mut(bindings::dm_block_data(block).cast(), size)
            };
            // SAFETY: The block manager passes a block that exists.
            V::seal(data, unsafe { bindings::dm_block_location(block) })
        }
        Validator(bindings::dm_block_validator {
            name: V::NAME.to_bytes_with_nul().as_ptr(),
            prepare_for_write: Some(seal::<V>),
            check: Some(check::<V>),
        })
    }
}

impl Validator {
    /// Returns the validator for the library. Any context.
    pub(super) fn as_ptr(&'static self) -> *const bindings::dm_block_validator {
        &self.0
    }
}

/// A block that is locked for reading.
///
/// # Invariants
///
/// The pointer is to a block that this value has locked.
pub(crate) struct ReadBlock<'a> {
    raw: NonNull<bindings::dm_block>,
    held: Held<'a>,
}

/// A held block, counted in its manager.
struct Held<'a>(&'a BlockManager);

impl<'a> Held<'a> {
    /// Counts a block.
    ///
    /// To hold more blocks than the manager was created for is a bug: threads may then wait for
    /// each other's memory when memory is short.
    fn new(manager: &'a BlockManager) -> Self {
        let held = manager.held.fetch_add(1, Relaxed).wrapping_add(1);
        if held > manager.max_held {
            // SAFETY: The function has no preconditions.
            unsafe { bindings::dmr_warn_held() };
        }
        Held(manager)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Relaxed);
    }
}

impl Deref for ReadBlock<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: By the invariant, the block is locked, so its data remains valid and unchanged.
        // It has the manager's block size.
        unsafe {
            core::slice::from_raw_parts(
                bindings::dm_block_data(self.raw.as_ptr()).cast(),
                BLOCK_SIZE,
            )
        }
    }
}

impl Drop for ReadBlock<'_> {
    fn drop(&mut self) {
        // SAFETY: By the invariant, this value has locked the block. Nothing uses it after this.
        unsafe { bindings::dm_bm_unlock(self.raw.as_ptr()) }
    }
}

/// A block that is locked for writing.
pub(crate) struct WriteBlock<'a>(ReadBlock<'a>);

impl WriteBlock<'_> {
    /// Gives up the lock, for a commit that releases it. Any context.
    pub(super) fn into_raw(self) -> *mut bindings::dm_block {
        let block = core::mem::ManuallyDrop::new(self);
        block.0.held.0.held.fetch_sub(1, Relaxed);
        block.0.raw.as_ptr()
    }
}

impl Deref for WriteBlock<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for WriteBlock<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let data = self.0.raw.as_ptr();
        // SAFETY: The block is locked for writing, so nothing else uses its data, which has the
        // manager's block size.
        unsafe { core::slice::from_raw_parts_mut(bindings::dm_block_data(data).cast(), BLOCK_SIZE) }
    }
}

/// The cache of the blocks of a metadata device. C counterpart: `struct dm_block_manager`.
///
/// # Invariants
///
/// The pointer is to a manager that is destroyed with this value.
pub(crate) struct BlockManager {
    raw: NonNull<bindings::dm_block_manager>,
    max_held: u32,
    /// The number of blocks that safe code holds. The target has a lock for its metadata, so one
    /// thread holds all of them.
    held: Atomic<u32>,
    // Dropped last, because the manager uses it.
    _device: Arc<BlockDevice>,
}

// SAFETY: A manager is not tied to a thread.
unsafe impl Send for BlockManager {}
// SAFETY: Any number of threads may lock blocks at a time: each block has a lock. Changes need
// `&mut` of the manager, or of the transaction manager that owns it.
unsafe impl Sync for BlockManager {}

impl BlockManager {
    /// Creates the cache of a device that will be written. A thread may hold up to `max_held`
    /// blocks.
    ///
    /// The device is flushed first, so that all that is read is durable. After a commit that
    /// failed, the new superblock may be in the volatile cache of the device only. A transaction
    /// that builds on it would overwrite blocks of the previous commit, which is the one that
    /// remains after a power cut. May sleep.
    ///
    /// # Errors
    ///
    /// The error of the flush; `ENOMEM`.
    pub(crate) fn new(device: Arc<BlockDevice>, max_held: u32) -> Result<Self> {
        device.flush().inspect_err(|error| {
            err_limit!(
                "block manager",
                "the metadata device cannot be flushed: error {}",
                error.to_errno()
            );
        })?;
        Self::create(device, max_held)
    }

    /// Creates the cache of a device that is read only. A thread may hold up to `max_held` blocks.
    ///
    /// What is read may not be durable, which does not matter because nothing is written. May
    /// sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn read_only(device: Arc<BlockDevice>, max_held: u32) -> Result<Self> {
        let manager = Self::create(device, max_held)?;
        // SAFETY: By the invariant, the manager exists.
        unsafe { bindings::dm_bm_set_read_only(manager.as_ptr()) };
        Ok(manager)
    }

    fn create(device: Arc<BlockDevice>, max_held: u32) -> Result<Self> {
        // SAFETY: The device is open, and remains so as long as the manager exists.
        // CAST: The size of a block fits into 32 bits.
        let raw = from_err_ptr(unsafe {
            bindings::dm_block_manager_create(device.as_ptr(), BLOCK_SIZE as u32, max_held)
        })?;
        Ok(BlockManager {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            max_held,
            held: Atomic::new(0),
            _device: device,
        })
    }

    /// Returns the manager for the library. Any context.
    pub(super) fn as_ptr(&self) -> *mut bindings::dm_block_manager {
        self.raw.as_ptr()
    }

    /// Locks a block for reading. C counterpart: `dm_bm_read_lock()`.
    ///
    /// The validator checks the block when it is read from the device. Without one, the block is
    /// not checked. May sleep.
    ///
    /// # Errors
    ///
    /// The error of the read or of the validator.
    pub(crate) fn read(
        &self,
        block: Block,
        validator: Option<&'static Validator>,
    ) -> Result<ReadBlock<'_>> {
        let validator = validator.map_or(core::ptr::null(), |v| core::ptr::from_ref(&v.0));
        let held = Held::new(self);
        let mut raw = core::ptr::null_mut();
        // SAFETY: By the invariant, the manager exists. The validator is static, and `raw` can be
        // written.
        to_result(unsafe {
            bindings::dm_bm_read_lock(self.as_ptr(), block.0, validator, &mut raw)
        })?;
        Ok(ReadBlock {
            raw: NonNull::new(raw).ok_or(EIO)?,
            held,
        })
    }

    /// Locks a block for writing, and fills it with zeros without reading it. C counterpart:
    /// `dm_bm_write_lock_zero()`. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`; `EPERM` if the manager is read-only.
    pub(crate) fn write_zeroed(
        &mut self,
        block: Block,
        validator: &'static Validator,
    ) -> Result<WriteBlock<'_>> {
        let held = Held::new(self);
        let mut raw = core::ptr::null_mut();
        // SAFETY: By the invariant, the manager exists. The validator is static, and `raw` can be
        // written.
        to_result(unsafe {
            bindings::dm_bm_write_lock_zero(self.as_ptr(), block.0, &validator.0, &mut raw)
        })?;
        Ok(WriteBlock(ReadBlock {
            raw: NonNull::new(raw).ok_or(EIO)?,
            held,
        }))
    }
}

impl Drop for BlockManager {
    fn drop(&mut self) {
        // SAFETY: By the invariant, the manager is destroyed here only. No block is locked, because
        // blocks borrow the manager.
        unsafe { bindings::dm_block_manager_destroy(self.as_ptr()) }
    }
}
