// SPDX-License-Identifier: GPL-2.0

//! Workqueues, and work items on them.
//!
//! The kernel crate's `Queue` cannot be created by a module, and its work items cannot be
//! cancelled.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use crate::{
    bindings,
    sys::{
        service::{
            Service,
            ServiceOwner,
            ServiceRef, //
        },
        time, //
    }, //
};
use core::ptr::NonNull;
use kernel::{
    bindings as kb,
    container_of,
    prelude::*,
    sync::Arc,
    time::Delta,
    workqueue::{
        HasDelayedWork,
        HasWork,
        Queue,
        Work,
        WorkItem, //
    }, //
};

/// A workqueue with `WQ_MEM_RECLAIM`, so that its items make progress when memory is short.
///
/// # Invariants
///
/// The pointer is to a workqueue that [`Service::destroy`] has not destroyed yet.
pub(crate) struct OwnedWorkqueue {
    wq: NonNull<kb::workqueue_struct>,
}

// SAFETY: A workqueue is not tied to a thread.
unsafe impl Send for OwnedWorkqueue {}
// SAFETY: Any number of threads may call the functions of a workqueue at a time.
unsafe impl Sync for OwnedWorkqueue {}

impl Service for OwnedWorkqueue {
    unsafe fn destroy(&self) {
        // SAFETY: By the invariant, the workqueue exists; by this function's contract, nothing uses
        // it now or later. Pending items run before it is destroyed.
        unsafe { kb::destroy_workqueue(self.wq.as_ptr()) }
    }
}

/// The CPU on which the items of a queue run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueKind {
    /// The CPU that enqueued the item (`WQ_PERCPU`).
    PerCpu,
    /// Any CPU, preferably an idle one (`WQ_UNBOUND`).
    Unbound,
}

/// A reference to a workqueue.
///
/// A target creates it by [`TargetBuilder::queue`](crate::dm::target::TargetBuilder::queue), and
/// may clone and drop it anywhere. The target's destructor waits until no reference is left and no
/// item is pending, and then destroys the queue. An item that waits for a delay keeps its queue,
/// because its container has a reference to it: see [`HasQueue`].
pub(crate) type WorkQueue = ServiceRef<OwnedWorkqueue>;

/// A container of delayed work items, with a reference to their queue.
pub(crate) trait HasQueue {
    /// Returns the queue. Any context.
    fn queue(&self) -> &WorkQueue;
}

impl WorkQueue {
    /// Creates a queue that runs several items at a time. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Safety
    ///
    /// The owner is dropped before the module is unloaded, in process context, and not by an item
    /// of the queue.
    pub(crate) unsafe fn make(
        name: &CStr,
        kind: QueueKind,
    ) -> Result<(Self, ServiceOwner<OwnedWorkqueue>)> {
        let kind = match kind {
            QueueKind::PerCpu => bindings::DMR_WQ_PERCPU,
            QueueKind::Unbound => bindings::DMR_WQ_UNBOUND,
        };
        let flags = bindings::DMR_WQ_MEM_RECLAIM | kind;
        let make = || {
            // SAFETY: `name` is nul-terminated, and the kernel copies it.
            let wq = unsafe { bindings::dmr_alloc_workqueue(name.as_char_ptr(), flags, 0) };
            let wq = NonNull::new(wq).ok_or(ENOMEM)?;
            Ok(OwnedWorkqueue { wq })
        };
        // SAFETY: This function has the contract of `ServiceRef::new`.
        unsafe { ServiceRef::new(make) }
    }

    fn as_queue(&self) -> &Queue {
        // SAFETY: By the invariant, the workqueue exists as long as `self`.
        unsafe { Queue::from_raw(self.wq.as_ptr()) }
    }

    /// Enqueues an item.
    ///
    /// Nothing happens if the item is pending or being cancelled. If the queue is closing, because
    /// the last target that owns it is being destroyed, the item is dropped instead. Any context.
    pub(crate) fn enqueue<T, const ID: u64>(&self, item: Arc<T>)
    where
        T: WorkItem<ID, Pointer = Arc<T>> + HasWork<T, ID> + Send + Sync + 'static,
    {
        if self.is_closing() {
            return;
        }
        // An error returns the reference, because the item is pending already, or being cancelled.
        let _ = self.as_queue().enqueue::<Arc<T>, ID>(item);
    }
}

/// Enqueues an item on a queue of the kernel that has no rescuer.
///
/// Nothing happens if the item is pending or being cancelled. For items that may take long and that
/// no I/O waits for. Any context.
///
/// # Safety
///
/// The item has run, or is cancelled, before the module is unloaded.
pub(crate) unsafe fn enqueue_on_system<T, const ID: u64>(item: Arc<T>)
where
    T: WorkItem<ID, Pointer = Arc<T>> + HasWork<T, ID> + Send + Sync + 'static,
{
    // The kernel crate's functions for this return queues that the kernel has deprecated.
    // SAFETY: The kernel creates the queue when it boots, and never destroys it.
    let queue = unsafe { Queue::from_raw(kb::system_dfl_wq) };
    let _ = queue.enqueue::<Arc<T>, ID>(item);
}

/// Enqueues an item after a delay. C counterpart: `queue_delayed_work()`.
///
/// Nothing happens if the item is pending or being cancelled. If the queue is closing, because the
/// last target that owns it is being destroyed, the item is dropped instead. Any context.
pub(crate) fn enqueue_delayed<T, const ID: u64>(item: Arc<T>, delay: Delta)
where
    T: HasQueue + WorkItem<ID, Pointer = Arc<T>> + HasDelayedWork<T, ID> + Send + Sync + 'static,
{
    // `destroy_workqueue` does not wait for timers, so an item that waits for its delay must have a
    // reference to the queue. It has: the pending item keeps its container, and the container keeps
    // the reference that it lends here.
    let queue = item.queue().clone();
    if !queue.is_closing() {
        let delay = time::to_jiffies(delay);
        let _ = queue.as_queue().enqueue_delayed::<Arc<T>, ID>(item, delay);
    }
}

/// Enqueues an item after a delay, which begins anew if the item is pending. Any context.
pub(crate) fn rearm<T, const ID: u64>(item: Arc<T>, delay: Delta)
where
    T: HasQueue + WorkItem<ID, Pointer = Arc<T>> + HasDelayedWork<T, ID> + Send + Sync + 'static,
{
    // `mod_delayed_work` does not tell whether it queued an item that is being cancelled, and so
    // not whether the reference belongs to the queue.
    let container = Arc::as_ptr(&item);
    // SAFETY: The item was initialised with its container, which `item` keeps.
    if unsafe { kb::cancel_delayed_work(delayed_work::<T, ID>(container)) } {
        // SAFETY: The item was pending and no longer is. The reference that enqueueing turned into
        // a pointer is therefore not used by the queue any more.
        drop(unsafe { Arc::from_raw(container) });
    }
    enqueue_delayed::<T, ID>(item, delay);
}

/// Returns the work of a live container.
fn work<T: HasWork<T, ID>, const ID: u64>(container: *const T) -> *mut kb::work_struct {
    // SAFETY: All callers of this private function pass live containers.
    let work = unsafe { T::raw_get_work(container.cast_mut()) };
    // SAFETY: `raw_get_work` returned a pointer to the field of a live container.
    unsafe { Work::raw_get(work) }
}

/// Returns the delayed work of a live container.
fn delayed_work<T: HasDelayedWork<T, ID>, const ID: u64>(
    container: *const T,
) -> *mut kb::delayed_work {
    let work = work::<T, ID>(container);
    // SAFETY: `HasDelayedWork` guarantees that the work is a field of a `delayed_work`.
    unsafe { container_of!(work, kb::delayed_work, work) }
}

/// Waits until an item that is queued or running has ended. C counterpart: `flush_work()`. May
/// sleep.
pub(crate) fn flush<T, const ID: u64>(item: &Arc<T>)
where
    T: WorkItem<ID, Pointer = Arc<T>> + HasWork<T, ID>,
{
    // SAFETY: The item was initialised with its container, which the caller's reference keeps.
    unsafe { kb::flush_work(work::<T, ID>(Arc::as_ptr(item))) };
}

/// Removes an item from its queue, and waits until it has ended if it is running. C counterpart:
/// `cancel_work_sync()`. May sleep.
pub(crate) fn cancel<T, const ID: u64>(item: &Arc<T>)
where
    T: WorkItem<ID, Pointer = Arc<T>> + HasWork<T, ID>,
{
    let container = Arc::as_ptr(item);
    // SAFETY: The item was initialised with its container, which the caller's reference keeps.
    if unsafe { kb::cancel_work_sync(work::<T, ID>(container)) } {
        // SAFETY: The item was pending and no longer is. The reference that enqueueing turned into
        // a pointer is therefore not used by the queue any more.
        drop(unsafe { Arc::from_raw(container) });
    }
}

/// Cancels an item as [`cancel`] does, also while it waits for its delay. C counterpart:
/// `cancel_delayed_work_sync()`. May sleep.
pub(crate) fn cancel_delayed<T, const ID: u64>(item: &Arc<T>)
where
    T: WorkItem<ID, Pointer = Arc<T>> + HasDelayedWork<T, ID>,
{
    let container = Arc::as_ptr(item);
    // SAFETY: The item was initialised with its container, which the caller's reference keeps.
    if unsafe { kb::cancel_delayed_work_sync(delayed_work::<T, ID>(container)) } {
        // SAFETY: The item was pending and no longer is. The reference that enqueueing turned into
        // a pointer is therefore not used by the queue any more.
        drop(unsafe { Arc::from_raw(container) });
    }
}
