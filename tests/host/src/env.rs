// SPDX-License-Identifier: GPL-2.0

//! The environment of the pure logic: the implementation for the host.
//!
//! `rust/env.rs` is the implementation for the kernel, and has the same names and signatures. This
//! file offers only what the kernel's types offer, and can make each allocation fail.

#![allow(
    dead_code,
    reason = "it has the same names as rust/env.rs, whatever the logic uses"
)]

use alloc::vec::Vec;
use core::ops::{
    BitOr,
    Deref,
    DerefMut, //
};

pub(crate) use core::fmt;

/// The kernel's `fmt!` uses its own formatting traits, and this one those of `core`.
macro_rules! host_fmt {
    ($($args:tt)*) => { ::core::format_args!($($args)*) };
}
pub(crate) use host_fmt as fmt;

/// A negative error number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Error(i32);

pub(crate) type Result<T = (), E = Error> = core::result::Result<T, E>;

impl Error {
    pub(crate) fn from_errno(errno: i32) -> Self {
        Self(errno)
    }

    pub(crate) fn to_errno(self) -> i32 {
        self.0
    }
}

pub(crate) const EPERM: Error = Error(-1);
pub(crate) const EIO: Error = Error(-5);
pub(crate) const ENXIO: Error = Error(-6);
pub(crate) const ENOMEM: Error = Error(-12);
pub(crate) const ENOTBLK: Error = Error(-15);
pub(crate) const EINVAL: Error = Error(-22);
pub(crate) const ENOSPC: Error = Error(-28);
pub(crate) const ERANGE: Error = Error(-34);
pub(crate) const EOVERFLOW: Error = Error(-75);

pub(crate) fn eilseq() -> Error {
    Error::from_errno(-84)
}

impl From<AllocError> for Error {
    fn from(_: AllocError) -> Self {
        ENOMEM
    }
}

impl From<core::num::TryFromIntError> for Error {
    fn from(_: core::num::TryFromIntError) -> Self {
        EINVAL
    }
}

impl<T> From<PushError<T>> for Error {
    fn from(_: PushError<T>) -> Self {
        EINVAL
    }
}

impl<T> From<InsertError<T>> for Error {
    fn from(_: InsertError<T>) -> Self {
        EINVAL
    }
}

impl From<RemoveError> for Error {
    fn from(_: RemoveError) -> Self {
        EINVAL
    }
}

/// Reports that a counter would have become negative. The kernel warns once.
pub(crate) fn miscounted() {
    panic!("a counter would have become negative");
}

/// Computes crc32c byte by byte. The kernel uses CPU instructions.
pub(crate) fn crc32c_block(data: &[u8], xor: u32) -> u32 {
    /// The remainders of all bytes for the reflected Castagnoli polynomial.
    static TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut rest = index as u32;
            let mut bit = 0;
            while bit < 8 {
                rest = (rest >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(rest & 1));
                bit += 1;
            }
            table[index] = rest;
            index += 1;
        }
        table
    };
    let crc = data.iter().fold(u32::MAX, |crc, byte| {
        TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8)
    });
    crc ^ xor
}

/// Allocation flags, which have no effect on the host.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Flags(u32);

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

pub(crate) const GFP_KERNEL: Flags = Flags(1);
pub(crate) const GFP_NOWAIT: Flags = Flags(2);
pub(crate) const __GFP_NOWARN: Flags = Flags(4);
pub(crate) const __GFP_ZERO: Flags = Flags(8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AllocError;

pub(crate) struct PushError<T>(pub(crate) T);

pub(crate) enum InsertError<T> {
    IndexOutOfBounds(T),
    OutOfCapacity(T),
}

pub(crate) struct RemoveError;

/// Makes one allocation fail: the one that finds the countdown at zero.
#[cfg(test)]
pub(crate) mod faults {
    use std::cell::Cell;

    std::thread_local! {
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    /// Runs `f`, whose allocation number `n`, counted from zero, fails.
    ///
    /// Returns whether that allocation was reached.
    pub(crate) fn with_failing<T>(n: usize, f: impl FnOnce() -> T) -> (T, bool) {
        LEFT.set(Some(n));
        let result = f();
        let reached = LEFT.take().is_none();
        (result, reached)
    }

    /// Counts an allocation, and returns whether it must fail.
    pub(super) fn hit() -> bool {
        match LEFT.get() {
            None => false,
            Some(0) => {
                LEFT.set(None);
                true
            }
            Some(left) => {
                LEFT.set(Some(left - 1));
                false
            }
        }
    }
}

#[cfg(not(test))]
mod faults {
    pub(super) fn hit() -> bool {
        false
    }
}

/// The kernel's vector, which only grows in functions that take flags and can fail.
///
/// Has the same capacities as in the kernel.
pub(crate) struct KVVec<T> {
    items: Vec<T>,
}

impl<T> KVVec<T> {
    pub(crate) const fn new() -> Self {
        Self { items: Vec::new() }
    }

    pub(crate) fn with_capacity(capacity: usize, flags: Flags) -> Result<Self, AllocError> {
        let mut vec = Self::new();
        vec.reserve(capacity, flags)?;
        Ok(vec)
    }

    pub(crate) fn reserve(&mut self, additional: usize, _flags: Flags) -> Result<(), AllocError> {
        let len = self.items.len();
        if self.capacity() - len >= additional {
            return Ok(());
        }
        let wanted = len.checked_add(additional).ok_or(AllocError)?;
        let capacity = wanted.max(self.capacity() * 2);
        if faults::hit() {
            return Err(AllocError);
        }
        self.items
            .try_reserve_exact(capacity - len)
            .map_err(|_| AllocError)?;
        // `std` may allocate more. The vector would then have more room than in the kernel.
        assert!(self.items.capacity() == capacity);
        Ok(())
    }

    pub(crate) fn capacity(&self) -> usize {
        self.items.capacity()
    }

    pub(crate) fn push(&mut self, value: T, flags: Flags) -> Result<(), AllocError> {
        self.reserve(1, flags)?;
        self.items.push(value);
        Ok(())
    }

    pub(crate) fn push_within_capacity(&mut self, value: T) -> Result<(), PushError<T>> {
        if self.items.len() < self.capacity() {
            self.items.push(value);
            Ok(())
        } else {
            Err(PushError(value))
        }
    }

    pub(crate) fn insert_within_capacity(
        &mut self,
        index: usize,
        value: T,
    ) -> Result<(), InsertError<T>> {
        if index > self.items.len() {
            return Err(InsertError::IndexOutOfBounds(value));
        }
        if self.items.len() >= self.capacity() {
            return Err(InsertError::OutOfCapacity(value));
        }
        self.items.insert(index, value);
        Ok(())
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        self.items.pop()
    }

    pub(crate) fn remove(&mut self, index: usize) -> Result<T, RemoveError> {
        if index < self.items.len() {
            Ok(self.items.remove(index))
        } else {
            Err(RemoveError)
        }
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.items.truncate(len);
    }

    pub(crate) fn clear(&mut self) {
        self.items.clear();
    }
}

impl<T> IntoIterator for KVVec<T> {
    type Item = T;
    type IntoIter = alloc::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

impl<T> Default for KVVec<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Deref for KVVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<T> DerefMut for KVVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.items
    }
}

impl<T: fmt::Debug> fmt::Debug for KVVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
use std::sync::OnceLock as Once;
// Without `std`, the crate is only built.
#[cfg(not(test))]
use core::cell::OnceCell as Once;

/// The kernel's container that is filled at most once, and read without a lock.
pub(crate) struct SetOnce<T>(Once<T>);

impl<T> SetOnce<T> {
    pub(crate) const fn new() -> Self {
        Self(Once::new())
    }

    pub(crate) fn as_ref(&self) -> Option<&T> {
        self.0.get()
    }

    pub(crate) fn populate(&self, value: T) -> bool {
        self.0.set(value).is_ok()
    }
}

pub(crate) use atomic::{
    Acquire,
    Atomic,
    Relaxed,
    Release, //
};

/// The kernel's atomics: the ordering is a type, and only valid orderings are accepted.
mod atomic {
    use core::sync::atomic::{
        AtomicU64,
        Ordering, //
    };

    pub(crate) struct Relaxed;
    pub(crate) struct Acquire;
    pub(crate) struct Release;

    pub(crate) trait AcquireOrRelaxed {
        const ORDERING: Ordering;
    }

    pub(crate) trait ReleaseOrRelaxed {
        const ORDERING: Ordering;
    }

    impl AcquireOrRelaxed for Relaxed {
        const ORDERING: Ordering = Ordering::Relaxed;
    }

    impl AcquireOrRelaxed for Acquire {
        const ORDERING: Ordering = Ordering::Acquire;
    }

    impl ReleaseOrRelaxed for Relaxed {
        const ORDERING: Ordering = Ordering::Relaxed;
    }

    impl ReleaseOrRelaxed for Release {
        const ORDERING: Ordering = Ordering::Release;
    }

    pub(crate) trait AtomicType {
        type Repr;
    }

    impl AtomicType for u64 {
        type Repr = AtomicU64;
    }

    pub(crate) struct Atomic<T: AtomicType>(T::Repr);

    impl Atomic<u64> {
        pub(crate) const fn new(value: u64) -> Self {
            Self(AtomicU64::new(value))
        }

        pub(crate) fn load<O: AcquireOrRelaxed>(&self, _: O) -> u64 {
            self.0.load(O::ORDERING)
        }

        pub(crate) fn store<O: ReleaseOrRelaxed>(&self, value: u64, _: O) {
            self.0.store(value, O::ORDERING);
        }

        pub(crate) fn get_mut(&mut self) -> &mut u64 {
            self.0.get_mut()
        }
    }
}
