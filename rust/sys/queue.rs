// SPDX-License-Identifier: GPL-2.0

//! Workqueues, and the work items on them.

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

/// A workqueue of our own with `WQ_MEM_RECLAIM`: its work makes progress even when memory is short.
pub(crate) struct OwnedWorkqueue {
    wq: NonNull<kb::workqueue_struct>,
}

// SAFETY: Workqueues may be used from any thread.
unsafe impl Send for OwnedWorkqueue {}
// SAFETY: As above; all operations are thread-safe.
unsafe impl Sync for OwnedWorkqueue {}

impl Service for OwnedWorkqueue {
    unsafe fn destroy(&self) {
        // SAFETY: The queue is ours, and nobody uses it any more. What is pending runs first.
        unsafe { kb::destroy_workqueue(self.wq.as_ptr()) }
    }
}

/// On which CPU the items of a queue run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueKind {
    /// On that which enqueued them.
    PerCpu,
    /// On whichever is idle.
    Unbound,
}

/// A use of a workqueue. A target gets it from its constructor (`New::queue`), may clone and drop
/// it anywhere, and forgets nothing by that: its destructor waits until all uses are gone, then for
/// the items that are pending, and destroys the queue.
///
/// An item that waits for a delay keeps its queue, since its container has a use of it: see
/// [`HasQueue`].
pub(crate) type WorkQueue = ServiceRef<OwnedWorkqueue>;

/// A container of work items that has the queue of those which wait for a delay.
pub(crate) trait HasQueue {
    /// The queue.
    fn queue(&self) -> &WorkQueue;
}

impl WorkQueue {
    /// Makes a queue that runs several items at once. Sleeps.
    ///
    /// # Safety
    ///
    /// As [`ServiceRef::new`].
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
            // SAFETY: `name` is nul-terminated; the kernel copies it.
            let wq = unsafe { bindings::dmr_alloc_workqueue(name.as_char_ptr(), flags, 0) };
            let wq = NonNull::new(wq).ok_or(ENOMEM)?;
            Ok(OwnedWorkqueue { wq })
        };
        // SAFETY: By the contract.
        unsafe { ServiceRef::new(make) }
    }

    fn as_queue(&self) -> &Queue {
        // SAFETY: The queue lives as long as `self`.
        unsafe { Queue::from_raw(self.wq.as_ptr()) }
    }

    /// Makes an item run soon. Does nothing if it is pending already, or just being cancelled. Any
    /// context.
    ///
    /// When the last target that has the queue is past its destructor, the item is dropped instead.
    pub(crate) fn enqueue<T, const ID: u64>(&self, item: Arc<T>)
    where
        T: WorkItem<ID, Pointer = Arc<T>> + HasWork<T, ID> + Send + Sync + 'static,
    {
        if self.is_closing() {
            return;
        }
        // An error gives the reference back because the item is pending: it will run, which is what
        // was asked for.
        let _ = self.as_queue().enqueue::<Arc<T>, ID>(item);
    }
}

/// Makes an item run soon, on a queue of the kernel without a rescuer, for what may take long and
/// nobody waits for. Does nothing if it is pending already, or just being cancelled. Any context.
///
/// # Safety
///
/// Before the module can go, the item has run, or is cancelled.
pub(crate) unsafe fn enqueue_on_system<T, const ID: u64>(item: Arc<T>)
where
    T: WorkItem<ID, Pointer = Arc<T>> + HasWork<T, ID> + Send + Sync + 'static,
{
    // Not by the kernel crate's functions: of the queues that those give, the kernel says that they
    // are deprecated.
    // SAFETY: The kernel makes the queue when it starts, and keeps it.
    let queue = unsafe { Queue::from_raw(kb::system_dfl_wq) };
    let _ = queue.enqueue::<Arc<T>, ID>(item);
}

/// Makes an item run after `delay`. Does nothing if it is pending already, or just being cancelled.
/// Any context.
///
/// When the last target that has the queue is past its destructor, the item is dropped instead.
pub(crate) fn enqueue_delayed<T, const ID: u64>(item: Arc<T>, delay: Delta)
where
    T: HasQueue + WorkItem<ID, Pointer = Arc<T>> + HasDelayedWork<T, ID> + Send + Sync + 'static,
{
    // A queue is not destroyed while it has users, but its destruction does not wait for timers. So
    // whoever waits for one must be a user. It is: the item keeps its container, and for as long as
    // anybody has that, it has the queue that it lends here.
    let queue = item.queue().clone();
    if !queue.is_closing() {
        let delay = time::to_jiffies(delay);
        let _ = queue.as_queue().enqueue_delayed::<Arc<T>, ID>(item, delay);
    }
}

/// Makes an item run after `delay`, counted from now even if it is pending already. Any context.
pub(crate) fn rearm<T, const ID: u64>(item: Arc<T>, delay: Delta)
where
    T: HasQueue + WorkItem<ID, Pointer = Arc<T>> + HasDelayedWork<T, ID> + Send + Sync + 'static,
{
    // Not `mod_delayed_work`: if the item is just being cancelled, that takes it off, or does not
    // queue it, and says neither.
    let container = Arc::as_ptr(&item);
    // SAFETY: The item was initialised with its container, which `item` keeps alive.
    if unsafe { kb::cancel_delayed_work(delayed_work::<T, ID>(container)) } {
        // SAFETY: The item was pending and now is not, so the reference that enqueueing leaked is
        // ours to take back.
        drop(unsafe { Arc::from_raw(container) });
    }
    enqueue_delayed::<T, ID>(item, delay);
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
    // SAFETY: The item was initialised with its container, which the caller's reference keeps
    // alive.
    unsafe { kb::flush_work(work::<T, ID>(Arc::as_ptr(item))) };
}

/// Takes an item off its queue, or waits until its running instance has ended. Sleeps.
pub(crate) fn cancel<T, const ID: u64>(item: &Arc<T>)
where
    T: WorkItem<ID, Pointer = Arc<T>> + HasWork<T, ID>,
{
    let container = Arc::as_ptr(item);
    // SAFETY: The item was initialised with its container, which the caller's reference keeps
    // alive.
    if unsafe { kb::cancel_work_sync(work::<T, ID>(container)) } {
        // SAFETY: The item was pending and now is not, so the reference that enqueueing leaked is
        // ours to take back.
        drop(unsafe { Arc::from_raw(container) });
    }
}

/// The same as [`cancel`], for an item that may wait for its delay.
pub(crate) fn cancel_delayed<T, const ID: u64>(item: &Arc<T>)
where
    T: WorkItem<ID, Pointer = Arc<T>> + HasDelayedWork<T, ID>,
{
    let container = Arc::as_ptr(item);
    // SAFETY: The item was initialised with its container, which the caller's reference keeps
    // alive.
    if unsafe { kb::cancel_delayed_work_sync(delayed_work::<T, ID>(container)) } {
        // SAFETY: The item was pending and now is not, so the reference that enqueueing leaked is
        // ours to take back.
        drop(unsafe { Arc::from_raw(container) });
    }
}
