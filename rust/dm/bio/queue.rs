// SPDX-License-Identifier: GPL-2.0

//! A queue of bios that never allocates.

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

/// A first-in-first-out queue of bios, linked through the bios themselves: it never allocates.
pub(crate) struct BioQueue<D: PerBio> {
    head: Option<NonNull<kb::bio>>,
    tail: Option<NonNull<kb::bio>>,
    _data: PhantomData<D>,
}

// SAFETY: The queue owns its bios, which are `Send`.
unsafe impl<D: PerBio> Send for BioQueue<D> {}

impl<D: PerBio> BioQueue<D> {
    /// An empty queue.
    pub(crate) const fn new() -> Self {
        BioQueue {
            head: None,
            tail: None,
            _data: PhantomData,
        }
    }

    /// Whether nothing is queued.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// Queues a bio behind all others.
    pub(crate) fn push(&mut self, bio: Bio<D>) {
        let raw = bio.into_raw();
        // SAFETY: The bio is live and ours alone; queues may use its link.
        unsafe { (*raw.as_ptr()).bi_next = core::ptr::null_mut() };
        match self.tail.replace(raw) {
            // SAFETY: The tail is a live bio that this queue owns.
            Some(tail) => unsafe { (*tail.as_ptr()).bi_next = raw.as_ptr() },
            None => self.head = Some(raw),
        }
    }

    /// Takes the first bio.
    pub(crate) fn pop(&mut self) -> Option<Bio<D>> {
        let raw = self.head?;
        // SAFETY: The head is a live bio that this queue owns.
        let next =
            unsafe { core::mem::replace(&mut (*raw.as_ptr()).bi_next, core::ptr::null_mut()) };
        self.head = NonNull::new(next);
        if self.head.is_none() {
            self.tail = None;
        }
        // SAFETY: The queue owned the bio and has just unlinked it.
        Some(unsafe { Bio::from_raw(raw) })
    }

    /// Moves all bios of `other` behind ours.
    pub(crate) fn append(&mut self, other: &mut Self) {
        let (Some(head), Some(tail)) = (other.head.take(), other.tail.take()) else {
            return;
        };
        match self.tail.replace(tail) {
            // SAFETY: The tail is a live bio that this queue owns.
            Some(old) => unsafe { (*old.as_ptr()).bi_next = head.as_ptr() },
            None => self.head = Some(head),
        }
    }

    /// Takes out the bios of the target that a device belongs to.
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

    /// Takes all bios out.
    pub(crate) fn take(&mut self) -> Self {
        core::mem::take(self)
    }

    /// Ends all bios with one status. Any context.
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
