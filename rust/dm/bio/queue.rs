// SPDX-License-Identifier: GPL-2.0

//! Queues of bios.

use super::{
    Bio,
    BlkStatus,
    PerBio, //
};
use crate::dm::device::Device;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::bindings as kb;

/// A first-in-first-out queue of bios. C counterpart: `struct bio_list`.
///
/// The bios are linked by their own `bi_next`, so a queue never allocates.
///
/// # Invariants
///
/// The queue owns its bios. Each of them is a result of [`Bio::into_raw`].
pub(crate) struct BioQueue<D: PerBio> {
    head: Option<NonNull<kb::bio>>,
    tail: Option<NonNull<kb::bio>>,
    _data: PhantomData<D>,
}

// SAFETY: By the invariant, the queue owns its bios, and `Bio<D>: Send`.
unsafe impl<D: PerBio> Send for BioQueue<D> {}

impl<D: PerBio> BioQueue<D> {
    /// Creates an empty queue. Any context.
    pub(crate) const fn new() -> Self {
        BioQueue {
            head: None,
            tail: None,
            _data: PhantomData,
        }
    }

    /// Returns whether the queue is empty. Any context.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// Adds a bio at the end. Any context.
    pub(crate) fn push(&mut self, bio: Bio<D>) {
        let raw = bio.into_raw();
        // SAFETY: The bio is live, and its owner may use its link.
        unsafe { (*raw.as_ptr()).bi_next = core::ptr::null_mut() };
        match self.tail.replace(raw) {
            // SAFETY: By the invariant, the tail is a live bio that this queue owns.
            Some(tail) => unsafe { (*tail.as_ptr()).bi_next = raw.as_ptr() },
            None => self.head = Some(raw),
        }
    }

    /// Removes the first bio. Any context.
    pub(crate) fn pop(&mut self) -> Option<Bio<D>> {
        let raw = self.head?;
        // SAFETY: By the invariant, the head is a live bio that this queue owns.
        let next =
            unsafe { core::mem::replace(&mut (*raw.as_ptr()).bi_next, core::ptr::null_mut()) };
        self.head = NonNull::new(next);
        if self.head.is_none() {
            self.tail = None;
        }
        // SAFETY: By the invariant, the bio is a result of `into_raw`. The queue owned it until it
        // was unlinked above.
        Some(unsafe { Bio::from_raw(raw) })
    }

    /// Moves all bios of another queue to the end of this one. Any context.
    pub(crate) fn append(&mut self, other: &mut Self) {
        let (Some(head), Some(tail)) = (other.head.take(), other.tail.take()) else {
            return;
        };
        match self.tail.replace(tail) {
            // SAFETY: By the invariant, the tail is a live bio that this queue owns.
            Some(old) => unsafe { (*old.as_ptr()).bi_next = head.as_ptr() },
            None => self.head = Some(head),
        }
    }

    /// Removes the bios of the target that a device belongs to. Any context.
    pub(crate) fn take_for(&mut self, device: &Device) -> Self {
        let (mut own, mut others) = (BioQueue::new(), BioQueue::new());
        while let Some(bio) = self.pop() {
            if bio.is_for(device) {
                own.push(bio);
            } else {
                others.push(bio);
            }
        }
        *self = others;
        own
    }

    /// Removes all bios. Any context.
    pub(crate) fn take(&mut self) -> Self {
        core::mem::take(self)
    }

    /// Ends all bios with a status. Any context.
    pub(crate) fn end_all(&mut self, status: BlkStatus) {
        while let Some(bio) = self.pop() {
            bio.end(status);
        }
    }
}

impl<D: PerBio> Default for BioQueue<D> {
    fn default() -> Self {
        BioQueue::new()
    }
}

impl<D: PerBio> Drop for BioQueue<D> {
    fn drop(&mut self) {
        while let Some(bio) = self.pop() {
            drop(bio);
        }
    }
}
