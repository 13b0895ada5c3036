// SPDX-License-Identifier: GPL-2.0

//! Owned workqueues.

use crate::{
    bindings,
    sys::time::Millis, //
};
use core::ptr::NonNull;
use kernel::{
    bindings as kb,
    container_of,
    prelude::*,
    sync::Arc,
    workqueue::{
        HasDelayedWork,
        HasWork,
        Queue,
        Work,
        WorkItem, //
    }, //
};

/// A workqueue of our own with `WQ_MEM_RECLAIM`: its work makes progress even when memory is short.
///
/// A pending item holds a reference to its container but does not keep the module loaded, and an item may hold the
/// last reference to the structure that owns the queue. So a target cancels its items in its destructor, before it
/// lets the queue go.
pub(crate) struct OwnedQueue {
    raw: NonNull<kb::workqueue_struct>,
}

// SAFETY: Workqueues may be used from any thread.
unsafe impl Send for OwnedQueue {}
// SAFETY: As above; all operations are thread-safe.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Makes a queue that runs several items at once. May sleep.
    pub(crate) fn new(name: &CStr) -> Result<Self> {
        let flags = bindings::DMR_WQ_MEM_RECLAIM | bindings::DMR_WQ_PERCPU;
        // SAFETY: `name` is nul-terminated; the kernel copies it.
        Self::own(unsafe { bindings::dmr_alloc_workqueue(name.as_char_ptr(), flags, 0) })
    }

    /// The same, but the items run on whatever CPU is idle, not on that which enqueued them. May sleep.
    pub(crate) fn unbound(name: &CStr) -> Result<Self> {
        let flags = bindings::DMR_WQ_MEM_RECLAIM | bindings::DMR_WQ_UNBOUND;
        // SAFETY: `name` is nul-terminated; the kernel copies it.
        Self::own(unsafe { bindings::dmr_alloc_workqueue(name.as_char_ptr(), flags, 0) })
    }

    /// Makes a queue that runs one item at a time, in the order of enqueueing. May sleep.
    pub(crate) fn ordered(name: &CStr) -> Result<Self> {
        // SAFETY: `name` is nul-terminated; the kernel copies it.
        Self::own(unsafe {
            bindings::dmr_alloc_ordered_workqueue(name.as_char_ptr(), bindings::DMR_WQ_MEM_RECLAIM)
        })
    }

    fn own(raw: *mut kb::workqueue_struct) -> Result<Self> {
        Ok(OwnedQueue {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
        })
    }

    fn as_queue(&self) -> &Queue {
        // SAFETY: The queue lives as long as `self`.
        unsafe { Queue::from_raw(self.raw.as_ptr()) }
    }

    /// Makes an item run soon. Does nothing if it is pending already, or just being cancelled. Any context.
    pub(crate) fn enqueue<T, const ID: u64>(&self, item: Arc<T>)
    where
        T: WorkItem<ID, Pointer = Arc<T>> + HasWork<T, ID> + Send + Sync + 'static,
    {
        // An error gives the reference back because the item is pending: it will run, which is what was asked for.
        let _ = self.as_queue().enqueue::<Arc<T>, ID>(item);
    }

    /// Makes an item run after `delay`. Does nothing if it is pending already, or just being cancelled. Any context.
    pub(crate) fn enqueue_delayed<T, const ID: u64>(&self, item: Arc<T>, delay: Millis)
    where
        T: WorkItem<ID, Pointer = Arc<T>> + HasDelayedWork<T, ID> + Send + Sync + 'static,
    {
        let _ = self
            .as_queue()
            .enqueue_delayed::<Arc<T>, ID>(item, delay.to_jiffies());
    }

    /// Makes an item run after `delay`, counted from now even if it is pending already. Any context.
    pub(crate) fn rearm<T, const ID: u64>(&self, item: Arc<T>, delay: Millis)
    where
        T: WorkItem<ID, Pointer = Arc<T>> + HasDelayedWork<T, ID> + Send + Sync + 'static,
    {
        // Not `mod_delayed_work`: if the item is just being cancelled, that takes it off, or does not queue it, and says
        // neither.
        let container = Arc::as_ptr(&item);
        // SAFETY: The item was initialised with its container, which `item` keeps alive.
        if unsafe { kb::cancel_delayed_work(delayed_work::<T, ID>(container)) } {
            // SAFETY: The item was pending and now is not, so the reference that enqueueing leaked is ours to take back.
            drop(unsafe { Arc::from_raw(container) });
        }
        self.enqueue_delayed(item, delay);
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: The queue is ours; destroying it first runs what is pending. Sleeps.
        unsafe { kb::destroy_workqueue(self.raw.as_ptr()) }
    }
}

/// The work of a live container.
fn work<T: HasWork<T, ID>, const ID: u64>(container: *const T) -> *mut kb::work_struct {
    // SAFETY: The callers pass live containers.
    let work = unsafe { T::raw_get_work(container.cast_mut()) };
    // SAFETY: The field of a live container.
    unsafe { Work::raw_get(work) }
}

/// The delayed work of a live container.
fn delayed_work<T: HasDelayedWork<T, ID>, const ID: u64>(
    container: *const T,
) -> *mut kb::delayed_work {
    let work = work::<T, ID>(container);
    // SAFETY: `HasDelayedWork` promises that the work is the field of a `delayed_work`.
    unsafe { container_of!(work, kb::delayed_work, work) }
}

/// Waits until an item that is queued or running now has ended. Sleeps.
pub(crate) fn flush<T, const ID: u64>(item: &Arc<T>)
where
    T: WorkItem<ID, Pointer = Arc<T>> + HasWork<T, ID>,
{
    // SAFETY: The item was initialised with its container, which the caller's reference keeps alive.
    unsafe { kb::flush_work(work::<T, ID>(Arc::as_ptr(item))) };
}

/// Takes an item off its queue, or waits until its running instance has ended. Sleeps.
pub(crate) fn cancel<T, const ID: u64>(item: &Arc<T>)
where
    T: WorkItem<ID, Pointer = Arc<T>> + HasWork<T, ID>,
{
    let container = Arc::as_ptr(item);
    // SAFETY: The item was initialised with its container, which the caller's reference keeps alive.
    if unsafe { kb::cancel_work_sync(work::<T, ID>(container)) } {
        // SAFETY: The item was pending and now is not, so the reference that enqueueing leaked is ours to take back.
        drop(unsafe { Arc::from_raw(container) });
    }
}

/// The same as [`cancel`], for an item that may wait for its delay.
pub(crate) fn cancel_delayed<T, const ID: u64>(item: &Arc<T>)
where
    T: WorkItem<ID, Pointer = Arc<T>> + HasDelayedWork<T, ID>,
{
    let container = Arc::as_ptr(item);
    // SAFETY: The item was initialised with its container, which the caller's reference keeps alive.
    if unsafe { kb::cancel_delayed_work_sync(delayed_work::<T, ID>(container)) } {
        // SAFETY: The item was pending and now is not, so the reference that enqueueing leaked is ours to take back.
        drop(unsafe { Arc::from_raw(container) });
    }
}
