// SPDX-License-Identifier: GPL-2.0

//! Devices that a target uses, and the target's own handle.
//!
//! Both point into structures of device-mapper that die when the target's destructor returns. A
//! shared [`TargetResources`] counts them, and the destructor waits for the count to drop to zero: a handle
//! can never outlive what it points to.

use crate::{
    bindings,
    dm::limits::DeviceLimits,
    logic::units::{
        Sector,
        Sectors, //
    },
    sys::{
        log::err,
        queue,
        service::{
            AnyServiceOwner,
            Service,
            ServiceOwner, //
        },
        string::{
            bytes,
            c_string, //
        },
        wait::{
            new_wait_queue,
            WaitQueue, //
        }, //
    }, //
};
use core::ptr::NonNull;
use kernel::{
    bindings as kb,
    error::{
        from_err_ptr,
        to_result, //
    },
    fmt,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
        Mutex, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    }, //
};

/// What keeps a `struct dm_target` in place while safe code has pointers into it, and closes its
/// devices at the end.
///
/// Device-mapper's list of a table's devices has no lock: it counts on constructors and
/// destructors, which it runs one at a time. So devices are opened only in the constructor
/// ([`TargetBuilder`](super::target::New) cannot leave it), and closed only by [`close`](Self::close), in the
/// destructor, whichever thread drops a [`Device`].
///
/// Of a device the file is kept, never its `dm_dev`: if another line of the table wants more of the
/// device than reading, device-mapper opens the device again and frees the `dm_dev` that all lines
/// have. Whoever needs one gets it anew.
#[pin_data]
pub(super) struct TargetResources {
    ti: NonNull<bindings::dm_target>,
    users: Atomic<i32>,
    #[pin]
    unused: WaitQueue,
    #[pin]
    opened: Mutex<Option<KBox<OpenedDevice>>>,
    /// What runs code of the target: workqueues, clients of kcopyd.
    #[pin]
    services: Mutex<Option<KBox<OwnedService>>>,
    #[pin]
    event: Work<TargetResources>,
}

impl_has_work! {
    impl HasWork<TargetResources> for TargetResources { self.event }
}

impl WorkItem for TargetResources {
    type Pointer = Arc<TargetResources>;

    /// Raises an event.
    fn run(this: Arc<TargetResources>) {
        // SAFETY: The item is cancelled by `close`, while the target is there; its table lives as
        // long, and does not change.
        unsafe { bindings::dm_table_event((*this.ti.as_ptr()).table) }
    }
}

/// A device to be closed, in the list of all of a target.
struct OpenedDevice {
    /// A reference of our own: the block device stays open for as long as we have it.
    file: NonNull<kb::file>,
    next: Option<KBox<OpenedDevice>>,
}

/// The keeper of a service, in the list of all of a target.
struct OwnedService {
    owner: KBox<dyn AnyServiceOwner>,
    next: Option<KBox<OwnedService>>,
}

// SAFETY: Pointers that are used as `TargetResources` says; the counters and lists have their own
// synchronisation.
unsafe impl Send for TargetResources {}
// SAFETY: As above.
unsafe impl Sync for TargetResources {}

impl TargetResources {
    /// Makes the resources of a target under construction. May sleep.
    ///
    /// # Safety
    ///
    /// `ti` is the target of a running constructor; before it goes away, [`close`](Self::close) is
    /// called.
    pub(super) unsafe fn new(ti: NonNull<bindings::dm_target>) -> Result<Arc<Self>> {
        let new = pin_init!(TargetResources {
            ti,
            users: Atomic::new(0),
            unused <- new_wait_queue!("dm_rust_target"),
            opened <- new_mutex!(None, "dm_rust_opened"),
            services <- new_mutex!(None, "dm_rust_services"),
            event <- new_work!("dm_rust_event"),
        });
        Arc::pin_init(new, GFP_KERNEL)
    }

    pub(super) fn reference(self: &Arc<Self>) -> TargetRef {
        self.users.fetch_add(1, Relaxed);
        TargetRef(self.clone())
    }

    /// Makes a service, or another owner of one, and owns it until [`close`](Self::close), which
    /// drops the keeper. Sleeps.
    pub(super) fn own_service<R, S: Service>(
        &self,
        make: impl FnOnce() -> Result<(R, ServiceOwner<S>)>,
    ) -> Result<R> {
        let mut services = self.services.lock();
        let entry = KBox::new_uninit(GFP_KERNEL)?;
        let place = KBox::<ServiceOwner<S>>::new_uninit(GFP_KERNEL)?;
        let (made, owner) = make()?;
        let owner: KBox<ServiceOwner<S>> = KBox::write(place, owner);
        let next = services.take();
        *services = Some(KBox::write(entry, OwnedService { owner, next }));
        Ok(made)
    }

    /// Waits until nothing points into the target any more, and nothing runs that it has started;
    /// then closes its devices. Sleeps.
    ///
    /// For the constructor that fails, or the destructor.
    pub(super) fn close(self: &Arc<Self>) {
        let mut services = self.services.lock().take();
        // What goes on by itself would be a user for ever.
        let mut next = services.as_mut();
        while let Some(owned) = next {
            owned.owner.resign();
            next = owned.next.as_mut();
        }
        self.unused.wait_until(|| self.users.load(Acquire) == 0);
        while let Some(owned) = services {
            let OwnedService { owner, next } = KBox::into_inner(owned);
            drop(owner);
            services = next;
        }
        // Nobody has a handle any more, so none comes after it. An event that is pending is still
        // raised: the mapped device may have another table by now, and users wait for it.
        queue::flush::<TargetResources, 0>(self);
        let mut next = self.opened.lock().take();
        while let Some(opened) = next {
            let OpenedDevice { file, next: rest } = KBox::into_inner(opened);
            // SAFETY: Opened for this target by `Device::open`, not closed yet, and nobody uses it
            // any more.
            unsafe { bindings::dmr_device_close(self.ti.as_ptr(), file.as_ptr()) };
            next = rest;
        }
    }
}

/// One counted pointer into the target: while it lives, the target stays, and its devices stay
/// open.
pub(super) struct TargetRef(Arc<TargetResources>);

impl TargetRef {
    /// Whether a device belongs to the same target, and so stays open as long as this lives.
    pub(super) fn keeps(&self, device: &Device) -> bool {
        Arc::ptr_eq(&self.0, &device.target_ref.0)
    }

    fn ti(&self) -> *mut bindings::dm_target {
        self.0.ti.as_ptr()
    }
}

impl Drop for TargetRef {
    fn drop(&mut self) {
        if self.0.users.fetch_sub(1, Release) == 1 {
            self.0.unused.wake_all();
        }
    }
}

/// A live target's handle to its table and mapped device.
pub(crate) struct TargetHandle(TargetRef);

impl TargetHandle {
    pub(super) fn new(resources: &Arc<TargetResources>) -> Self {
        TargetHandle(resources.reference())
    }

    fn table(&self) -> *mut bindings::dm_table {
        // SAFETY: The reference keeps the target in place; its table does not change.
        unsafe { (*self.0.ti()).table }
    }

    /// Wakes those who wait for an event of the mapped device (`dmsetup wait`, dmeventd). Any
    /// context.
    ///
    /// By a work item, for raising one takes a lock of all mapped devices, under which others
    /// allocate memory. Not on a queue with a rescuer: that one may have to write back what the
    /// allocation waits for.
    pub(crate) fn raise_event(&self) {
        // SAFETY: `close` cancels it, before the target goes, and with it the last pin of the
        // module.
        unsafe { queue::enqueue_on_system::<TargetResources, 0>(self.0 .0.clone()) }
    }

    /// The identity of the mapped device: equal for all tables of one device. Any context.
    pub(crate) fn mapped_device(&self) -> MappedDevice {
        // SAFETY: The table lives as long as the target; it belongs to one mapped device from its
        // making on.
        MappedDevice(unsafe { bindings::dm_table_get_md(self.table()) } as usize)
    }

    /// The identity of the table that the target belongs to. Any context.
    pub(crate) fn table_id(&self) -> TableId {
        TableId(self.table() as usize)
    }

    /// Whether the mapped device is suspended. Any context.
    pub(crate) fn is_suspended(&self) -> bool {
        // SAFETY: The target is live.
        unsafe { bindings::dm_suspended(self.0.ti()) != 0 }
    }

    /// Whether the present suspension does not flush: bios may be handed back. Any context.
    pub(crate) fn is_noflush_suspending(&self) -> bool {
        // SAFETY: The target is live.
        unsafe { bindings::dm_noflush_suspending(self.0.ti()) != 0 }
    }
}

/// `major:minor` of the mapped device, as device-mapper's own messages name it.
impl fmt::Display for TargetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: The table lives as long as the target, the mapped device as long as its table.
        let name = unsafe { bindings::dm_device_name(bindings::dm_table_get_md(self.table())) };
        // SAFETY: The name is a nul-terminated string in the mapped device, set once.
        write_bytes(f, bytes(unsafe { c_string(name) }))
    }
}

/// Identity of a mapped device; only to be compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct MappedDevice(usize);

/// Identity of a table, live or inactive; only to be compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableId(usize);

/// The parts of a device's number.
const MINOR_BITS: u32 = 20;
const MINOR_MASK: u32 = (1 << MINOR_BITS) - 1;

/// How a device is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Only read.
    Read,
    /// Read and written.
    ReadWrite,
}

/// A device that a target uses. It is closed when the target is destroyed.
///
/// # Invariants
///
/// The block device is that of a file in the list of the target's of opened devices.
pub(crate) struct Device {
    bdev: NonNull<kb::block_device>,
    target_ref: TargetRef,
}

// SAFETY: The device is open until it is dropped; block devices may be used from any thread.
unsafe impl Send for Device {}
// SAFETY: As above.
unsafe impl Sync for Device {}

impl Device {
    /// Opens the device that a table line names, by path or `major:minor`. Sleeps.
    pub(super) fn open(
        resources: &Arc<TargetResources>,
        path: &CStr,
        access: Access,
    ) -> Result<Self> {
        let mode = match access {
            Access::Read => bindings::BLK_OPEN_READ,
            Access::ReadWrite => bindings::BLK_OPEN_READ | bindings::BLK_OPEN_WRITE,
        };
        let entry = KBox::new_uninit(GFP_KERNEL)?;
        let ti = resources.ti.as_ptr();
        // SAFETY: The target is under construction, and the path nul-terminated.
        let file = unsafe { bindings::dmr_device_open(ti, path.as_char_ptr(), mode) };
        let file = NonNull::new(from_err_ptr(file)?).ok_or(ENODEV)?;
        // SAFETY: The file is that of a block device.
        let bdev = unsafe { kb::file_bdev(file.as_ptr()) };
        let mut opened = resources.opened.lock();
        let next = opened.take();
        *opened = Some(KBox::write(entry, OpenedDevice { file, next }));
        // INVARIANT: The file is in the list.
        Ok(Device {
            bdev: NonNull::new(bdev).ok_or(ENODEV)?,
            target_ref: resources.reference(),
        })
    }

    /// The same device once more, for another owner within the target.
    pub(crate) fn shared(&self) -> Self {
        // INVARIANT: The list is the same.
        Device {
            bdev: self.bdev,
            target_ref: self.target_ref.0.reference(),
        }
    }

    /// The block device below, open as long as `self` lives: the target closes no file earlier.
    #[inline]
    pub(super) fn raw_bdev(&self) -> *mut kb::block_device {
        self.bdev.as_ptr()
    }

    /// The target that the device was opened for.
    #[inline]
    pub(super) fn target(&self) -> NonNull<bindings::dm_target> {
        self.target_ref.0.ti
    }

    /// Another counted pointer to the device's target. Any context.
    pub(super) fn target_ref(&self) -> TargetRef {
        self.target_ref.0.reference()
    }

    /// Present size. Any context.
    pub(crate) fn sectors(&self) -> Sectors {
        // SAFETY: The block device is open.
        Sectors(unsafe { bindings::dmr_bdev_sectors(self.raw_bdev()) })
    }

    /// Logical block size in bytes.
    pub(crate) fn logical_block_size(&self) -> u32 {
        // SAFETY: The block device is open.
        unsafe { bindings::dmr_bdev_logical_block_size(self.raw_bdev()) }
    }

    /// The largest discard the device takes; zero if it takes none.
    pub(crate) fn max_discard(&self) -> Sectors {
        // SAFETY: The block device is open.
        Sectors(unsafe { bindings::dmr_bdev_max_discard_sectors(self.raw_bdev()) }.into())
    }

    /// The device's own limits.
    pub(crate) fn limits(&self) -> DeviceLimits<'_> {
        // SAFETY: The block device is open; its limits are read field by field, as C code does too.
        unsafe { DeviceLimits::new(bindings::dmr_bdev_limits(self.raw_bdev())) }
    }

    /// Identity of the block device, equal for all who have it open.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: The block device is open; its number never changes.
        unsafe { (*self.raw_bdev()).bd_dev }
    }

    /// Makes everything that the device acknowledged so far durable. Sleeps for I/O.
    pub(crate) fn flush(&self) -> Result {
        // SAFETY: The block device is open.
        to_result(unsafe { kb::blkdev_issue_flush(self.raw_bdev()) })
    }

    /// Makes a range read as zeros, as the device does it best. Not durable by itself. Sleeps for
    /// I/O.
    pub(crate) fn zero(&self, start: Sector, len: Sectors) -> Result {
        let flags = bindings::DMR_GFP_NOIO;
        // SAFETY: The block device is open.
        to_result(unsafe { kb::blkdev_issue_zeroout(self.raw_bdev(), start.0, len.0, flags, 0) })
    }

    /// The block device's name as `%pg` prints it (`vda`, `dm-3`).
    pub(crate) fn disk_name(&self) -> DiskName<'_> {
        DiskName(self)
    }
}

/// `major:minor`, as table lines show devices.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.number();
        write!(f, "{}:{}", number >> MINOR_BITS, number & MINOR_MASK)
    }
}

/// See [`Device::disk_name`].
pub(crate) struct DiskName<'a>(&'a Device);

impl fmt::Display for DiskName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = [0u8; 48];
        // SAFETY: The block device is open; the buffer has the size that is given.
        unsafe { bindings::dmr_bdev_name(self.0.raw_bdev(), buffer.as_mut_ptr(), buffer.len()) };
        let end = buffer.iter().position(|&c| c == 0).unwrap_or(buffer.len());
        write_bytes(f, buffer.get(..end).unwrap_or_default())
    }
}

fn write_bytes(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    match core::str::from_utf8(bytes) {
        Ok(text) => f.write_str(text),
        Err(_) => {
            err!("dm_rust", "a device name is not text");
            Ok(())
        }
    }
}
