// SPDX-License-Identifier: GPL-2.0

//! The devices that a target uses, and the target's handle to its own mapped device.
//!
//! Both point into structures of device-mapper that are freed when the target's destructor returns.
//! [`TargetResources`] counts these pointers, and the destructor waits until none is left.
//!
//! C header: [`include/linux/device-mapper.h`](srctree/include/linux/device-mapper.h), `struct
//! dm_target`, `struct dm_dev`

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

/// What a target owns until its destructor: open devices, services, and its event work.
///
/// It also keeps the `struct dm_target` in place while safe code has pointers into it.
///
/// Device-mapper's list of a table's devices has no lock. It relies on constructors and
/// destructors, of which device-mapper runs one at a time. Devices are therefore opened in the
/// constructor only ([`TargetBuilder`](super::target::TargetBuilder) cannot leave it), and closed
/// in the destructor only, by [`close`](Self::close), whichever thread drops the [`Device`].
///
/// A reference to the file of a device is kept, and never one to its `dm_dev`: when another line of
/// the table opens the device in another mode, device-mapper replaces the `dm_dev` of all lines.
/// Code that needs the `dm_dev` looks it up.
///
/// # Invariants
///
/// `ti` points to a target whose destructor has not returned, as long as `close` has not returned.
#[pin_data]
pub(super) struct TargetResources {
    ti: NonNull<bindings::dm_target>,
    users: Atomic<i32>,
    #[pin]
    unused: WaitQueue,
    #[pin]
    opened: Mutex<Option<KBox<OpenedDevice>>>,
    /// The services that run code of the target: workqueues and clients of kcopyd.
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

    /// Raises a dm event, from process context.
    fn run(this: Arc<TargetResources>) {
        // SAFETY: `close` waits for this item, so the target exists. The target's table exists as
        // long, and is always the same.
        unsafe { bindings::dm_table_event((*this.ti.as_ptr()).table) }
    }
}

/// A device to be closed, in the list of all devices of a target.
struct OpenedDevice {
    /// A counted reference, which keeps the block device open.
    file: NonNull<kb::file>,
    next: Option<KBox<OpenedDevice>>,
}

/// The owner of a service, in the list of all services of a target.
struct OwnedService {
    owner: KBox<dyn AnyServiceOwner>,
    next: Option<KBox<OwnedService>>,
}

// SAFETY: The target and the files are not tied to a thread. `close` uses them in process context.
unsafe impl Send for TargetResources {}
// SAFETY: The counter is atomic and the lists are behind locks. Of the target, safe code reads
// constant fields only.
unsafe impl Sync for TargetResources {}

impl TargetResources {
    /// Creates the resources of a target under construction, none so far. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `ti` is the target of the running constructor. [`close`](Self::close) is called before that
    /// constructor fails or the target's destructor returns.
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

    /// Counts another reference to the target. Any context.
    pub(super) fn reference(self: &Arc<Self>) -> TargetRef {
        self.users.fetch_add(1, Relaxed);
        TargetRef(self.clone())
    }

    /// Creates a service, or another owner of one, and keeps the owner until
    /// [`close`](Self::close). May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or the error of `make`.
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

    /// Waits until no reference is left and no code of the target runs, and then closes its
    /// devices. Called from the destructor, or from a constructor that fails. May sleep.
    pub(super) fn close(self: &Arc<Self>) {
        let mut services = self.services.lock().take();
        // First stop all services: work that enqueues itself would keep its reference for ever.
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
        // No handle is left, so no event can be raised after this. A pending one is raised, not
        // cancelled: the mapped device may have another table by now, and users wait for the event.
        queue::flush::<TargetResources, 0>(self);
        let mut next = self.opened.lock().take();
        while let Some(opened) = next {
            let OpenedDevice { file, next: rest } = KBox::into_inner(opened);
            // SAFETY: `Device::open` opened the file for this target. It was removed from the list,
            // so it is closed once, and no `Device` is left that uses it. By the invariant, the
            // target exists.
            unsafe { bindings::dmr_device_close(self.ti.as_ptr(), file.as_ptr()) };
            next = rest;
        }
    }
}

/// A counted reference to a target, which keeps the target in place and its devices open.
pub(super) struct TargetRef(Arc<TargetResources>);

impl TargetRef {
    /// Returns whether a device belongs to the same target, and so stays open as long as this
    /// reference lives. Any context.
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

/// A target's handle to its table and its mapped device.
pub(crate) struct TargetHandle(TargetRef);

impl TargetHandle {
    /// Creates the handle of a target. Any context.
    pub(super) fn new(resources: &Arc<TargetResources>) -> Self {
        TargetHandle(resources.reference())
    }

    fn table(&self) -> *mut bindings::dm_table {
        // SAFETY: The reference keeps the target in place. Its table is always the same.
        unsafe { (*self.0.ti()).table }
    }

    /// Raises a dm event, which wakes `dmsetup wait` and dmeventd. C counterpart:
    /// `dm_table_event()`.
    ///
    /// A work item raises it, because `dm_table_event()` takes a lock of all mapped devices, under
    /// which other threads allocate memory. The item is on a queue of the system, so that it cannot
    /// hold up writes that such an allocation waits for. Any context.
    pub(crate) fn raise_event(&self) {
        // SAFETY: `close` waits for the item before the target is freed, and each target keeps the
        // module loaded.
        unsafe { queue::enqueue_on_system::<TargetResources, 0>(self.0 .0.clone()) }
    }

    /// Returns the identity of the mapped device, which all tables of one device share. Any
    /// context.
    pub(crate) fn mapped_device(&self) -> MappedDevice {
        // SAFETY: The table exists as long as the target. It has belonged to the same mapped device
        // since it was created.
        MappedDevice(unsafe { bindings::dm_table_get_md(self.table()) } as usize)
    }

    /// Returns the identity of the table that the target belongs to. Any context.
    pub(crate) fn table_id(&self) -> TableId {
        TableId(self.table() as usize)
    }

    /// Returns whether the mapped device is suspended. Any context.
    pub(crate) fn is_suspended(&self) -> bool {
        // SAFETY: The reference keeps the target in place.
        unsafe { bindings::dm_suspended(self.0.ti()) != 0 }
    }

    /// Returns whether the device is being suspended with `--noflush`, so that bios may be
    /// requeued. Any context.
    pub(crate) fn is_noflush_suspending(&self) -> bool {
        // SAFETY: The reference keeps the target in place.
        unsafe { bindings::dm_noflush_suspending(self.0.ti()) != 0 }
    }
}

/// Displays `major:minor` of the mapped device, as device-mapper's own messages do.
impl fmt::Display for TargetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: The table exists as long as the target, and the mapped device as long as its
        // table.
        let name = unsafe { bindings::dm_device_name(bindings::dm_table_get_md(self.table())) };
        // SAFETY: The name is a nul-terminated string within the mapped device, which never
        // changes.
        write_bytes(f, bytes(unsafe { c_string(name) }))
    }
}

/// The identity of a mapped device, for comparison.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct MappedDevice(usize);

/// The identity of a table, live or inactive, for comparison.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableId(usize);

/// The minor part of a device number (`MINORBITS`).
const MINOR_BITS: u32 = 20;
const MINOR_MASK: u32 = (1 << MINOR_BITS) - 1;

/// The mode in which a device is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// For reading.
    Read,
    /// For reading and writing.
    ReadWrite,
}

/// A device that a target uses. It is closed when the target is destroyed.
///
/// # Invariants
///
/// `bdev` is the block device of a file in the list of the target's open devices.
pub(crate) struct Device {
    bdev: NonNull<kb::block_device>,
    target_ref: TargetRef,
}

// SAFETY: A block device is not tied to a thread.
unsafe impl Send for Device {}
// SAFETY: Any number of threads may use a block device at a time.
unsafe impl Sync for Device {}

impl Device {
    /// Opens the device that a table line names, by path or by `major:minor`. C counterpart:
    /// `dm_get_device()`. Called from the constructor. May sleep.
    ///
    /// # Errors
    ///
    /// The error of `dm_get_device()`.
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
        // SAFETY: The constructor of the target is running, and the path is nul-terminated.
        let file = unsafe { bindings::dmr_device_open(ti, path.as_char_ptr(), mode) };
        let file = NonNull::new(from_err_ptr(file)?).ok_or(ENODEV)?;
        // SAFETY: The helper returned the file of a block device.
        let bdev = unsafe { kb::file_bdev(file.as_ptr()) };
        let mut opened = resources.opened.lock();
        let next = opened.take();
        *opened = Some(KBox::write(entry, OpenedDevice { file, next }));
        // INVARIANT: The file was added to the list above.
        Ok(Device {
            bdev: NonNull::new(bdev).ok_or(ENODEV)?,
            target_ref: resources.reference(),
        })
    }

    /// Returns another reference to the device. Any context.
    pub(crate) fn shared(&self) -> Self {
        // INVARIANT: This is the same block device, of the same target.
        Device {
            bdev: self.bdev,
            target_ref: self.target_ref.0.reference(),
        }
    }

    /// Returns the block device. It is open as long as `self` lives, because the target closes no
    /// file earlier. Any context.
    #[inline]
    pub(super) fn raw_bdev(&self) -> *mut kb::block_device {
        self.bdev.as_ptr()
    }

    /// Returns the target that the device was opened for. Any context.
    #[inline]
    pub(super) fn target(&self) -> NonNull<bindings::dm_target> {
        self.target_ref.0.ti
    }

    /// Returns another reference to the target that the device was opened for. Any context.
    pub(super) fn target_ref(&self) -> TargetRef {
        self.target_ref.0.reference()
    }

    /// Returns the present size. Any context.
    pub(crate) fn sectors(&self) -> Sectors {
        // SAFETY: The block device is open.
        Sectors(unsafe { bindings::dmr_bdev_sectors(self.raw_bdev()) })
    }

    /// Returns the logical block size in bytes. Any context.
    pub(crate) fn logical_block_size(&self) -> u32 {
        // SAFETY: The block device is open.
        unsafe { bindings::dmr_bdev_logical_block_size(self.raw_bdev()) }
    }

    /// Returns the length of the largest discard, or zero if the device has none. Any context.
    pub(crate) fn max_discard(&self) -> Sectors {
        // SAFETY: The block device is open.
        Sectors(unsafe { bindings::dmr_bdev_max_discard_sectors(self.raw_bdev()) }.into())
    }

    /// Returns the queue limits of the device. Any context.
    pub(crate) fn limits(&self) -> DeviceLimits<'_> {
        // SAFETY: The block device is open as long as `self` is borrowed.
        unsafe { DeviceLimits::new(bindings::dmr_bdev_limits(self.raw_bdev())) }
    }

    /// Returns the number of the block device (`dev_t`), which identifies it. Any context.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: The block device is open, and its number never changes.
        unsafe { (*self.raw_bdev()).bd_dev }
    }

    /// Makes all writes that the device has acknowledged durable. May sleep.
    ///
    /// # Errors
    ///
    /// The error of the flush.
    pub(crate) fn flush(&self) -> Result {
        // SAFETY: The block device is open.
        to_result(unsafe { kb::blkdev_issue_flush(self.raw_bdev()) })
    }

    /// Makes a range read as zeros, in the way that the device does it best. The zeros are not
    /// durable before a flush. May sleep.
    ///
    /// # Errors
    ///
    /// The error of the write.
    pub(crate) fn zero(&self, start: Sector, len: Sectors) -> Result {
        let flags = bindings::DMR_GFP_NOIO;
        // SAFETY: The block device is open.
        to_result(unsafe { kb::blkdev_issue_zeroout(self.raw_bdev(), start.0, len.0, flags, 0) })
    }

    /// Returns the name of the block device, as `%pg` prints it (`vda`, `dm-3`). Any context.
    pub(crate) fn disk_name(&self) -> DiskName<'_> {
        DiskName(self)
    }
}

/// Displays `major:minor`, as in table lines.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.number();
        write!(f, "{}:{}", number >> MINOR_BITS, number & MINOR_MASK)
    }
}

/// The name of a block device, from [`Device::disk_name`].
pub(crate) struct DiskName<'a>(&'a Device);

impl fmt::Display for DiskName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = [0u8; 48];
        // SAFETY: The block device is open, and the buffer has the length that is passed.
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
