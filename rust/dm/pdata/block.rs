// SPDX-License-Identifier: GPL-2.0

//! Cached metadata blocks with locks and validators.

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

/// Size of a metadata block in bytes. All targets use the same.
pub(crate) const BLOCK_SIZE: usize = 4096;

/// Number of a block on the metadata device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block(pub(crate) u64);

/// Checks a kind of block after reading, and completes it before writing.
pub(crate) trait Validate {
    /// Name in messages of the block manager.
    const NAME: &'static CStr;

    /// Refuses a block that is not what it should be. `location` is its number.
    fn check(data: &[u8], location: u64) -> Result;

    /// Fills in what depends on the rest of the block: its own number and the checksum.
    fn seal(data: &mut [u8], location: u64);
}

/// The block manager's view of a [`Validate`] type. Make one `static` of each: the manager compares
/// addresses.
#[repr(transparent)]
pub(crate) struct Validator(bindings::dm_block_validator);

// SAFETY: A table of functions and a static name, never changed.
unsafe impl Sync for Validator {}

impl Validator {
    /// The validator of `V`.
    pub(crate) const fn new<V: Validate>() -> Self {
        /// # Safety
        ///
        /// For the block manager only, as a callback of a validator.
        unsafe extern "C" fn check<V: Validate>(
            _: *const bindings::dm_block_validator,
            block: *mut bindings::dm_block,
            size: usize,
        ) -> c_int {
            from_result(|| {
                // SAFETY: The block manager passes a block of `size` bytes that nobody changes
                // meanwhile.
                let data = unsafe {
                    core::slice::from_raw_parts(bindings::dm_block_data(block).cast(), size)
                };
                // SAFETY: As above.
                V::check(data, unsafe { bindings::dm_block_location(block) }).map(|()| 0)
            })
        }
        /// # Safety
        ///
        /// For the block manager only, as a callback of a validator.
        unsafe extern "C" fn seal<V: Validate>(
            _: *const bindings::dm_block_validator,
            block: *mut bindings::dm_block,
            size: usize,
        ) {
            // SAFETY: The block manager passes a block of `size` bytes that it is about to write,
            // with nobody else using it.
            let data = unsafe {
                core::slice::from_raw_parts_mut(bindings::dm_block_data(block).cast(), size)
            };
            // SAFETY: As above.
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
    pub(super) fn as_ptr(&'static self) -> *const bindings::dm_block_validator {
        &self.0
    }
}

/// A block that is locked for reading.
pub(crate) struct ReadBlock<'a> {
    raw: NonNull<bindings::dm_block>,
    held: Held<'a>,
}

/// One of the blocks that the users of a manager hold, counted.
struct Held<'a>(&'a BlockManager);

impl<'a> Held<'a> {
    /// Counts one more. More than were announced wait for each other's memory when there is little,
    /// so that is a bug.
    fn new(manager: &'a BlockManager) -> Self {
        let held = manager.held.fetch_add(1, Relaxed).wrapping_add(1);
        if held > manager.max_held {
            // SAFETY: No preconditions.
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
        // SAFETY: The block is locked: its data stays and has the manager's block size.
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
        // SAFETY: Locked by this value.
        unsafe { bindings::dm_bm_unlock(self.raw.as_ptr()) }
    }
}

/// A block that is locked for writing.
pub(crate) struct WriteBlock<'a>(ReadBlock<'a>);

impl WriteBlock<'_> {
    /// Gives the lock up, for a commit that releases it.
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
        // SAFETY: The block is locked for writing: its data is ours alone.
        unsafe { core::slice::from_raw_parts_mut(bindings::dm_block_data(data).cast(), BLOCK_SIZE) }
    }
}

/// The cache of a metadata device's blocks.
pub(crate) struct BlockManager {
    raw: NonNull<bindings::dm_block_manager>,
    max_held: u32,
    /// Blocks that safe code holds. All are locked under one lock of the target, so by one thread
    /// at a time.
    held: Atomic<u32>,
    // Dropped last: the manager uses it.
    _device: Arc<BlockDevice>,
}

// SAFETY: The manager may be used from any thread.
unsafe impl Send for BlockManager {}
// SAFETY: As above; blocks are changed by those who have `&mut` of the manager, or of the
// transactions that own it.
unsafe impl Sync for BlockManager {}

impl BlockManager {
    /// Makes the cache of a device that will be written. A thread may hold `max_held` blocks.
    /// Sleeps for I/O.
    ///
    /// The device is flushed first: whatever is read is durable. After a failed commit the device
    /// may have the new superblock in its volatile cache only. A transaction upon that would write
    /// over the blocks of the commit before, which is the one that a power cut leaves.
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

    /// Makes the cache of a device that is only read. What is read may not be durable, but nothing
    /// is built upon it: there are no writes.
    pub(crate) fn read_only(device: Arc<BlockDevice>, max_held: u32) -> Result<Self> {
        let manager = Self::create(device, max_held)?;
        // SAFETY: The manager is live.
        unsafe { bindings::dm_bm_set_read_only(manager.as_ptr()) };
        Ok(manager)
    }

    fn create(device: Arc<BlockDevice>, max_held: u32) -> Result<Self> {
        // SAFETY: The device is open, and stays so with the manager. CAST: A constant.
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

    pub(super) fn as_ptr(&self) -> *mut bindings::dm_block_manager {
        self.raw.as_ptr()
    }

    /// Locks a block for reading; it is checked when it comes from the device. Without a validator
    /// nothing is checked.
    pub(crate) fn read(
        &self,
        block: Block,
        validator: Option<&'static Validator>,
    ) -> Result<ReadBlock<'_>> {
        let validator = validator.map_or(core::ptr::null(), |v| core::ptr::from_ref(&v.0));
        let held = Held::new(self);
        let mut raw = core::ptr::null_mut();
        // SAFETY: The manager is live, the validator static, `raw` can be written.
        to_result(unsafe {
            bindings::dm_bm_read_lock(self.as_ptr(), block.0, validator, &mut raw)
        })?;
        Ok(ReadBlock {
            raw: NonNull::new(raw).ok_or(EIO)?,
            held,
        })
    }

    /// Locks a block for writing, with zeros for data, whatever is on the device.
    pub(crate) fn write_zeroed(
        &mut self,
        block: Block,
        validator: &'static Validator,
    ) -> Result<WriteBlock<'_>> {
        let held = Held::new(self);
        let mut raw = core::ptr::null_mut();
        // SAFETY: The manager is live, the validator static, `raw` can be written.
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
        // SAFETY: The manager is ours; blocks borrow it, so none is locked.
        unsafe { bindings::dm_block_manager_destroy(self.as_ptr()) }
    }
}
