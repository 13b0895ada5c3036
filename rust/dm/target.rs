// SPDX-License-Identifier: GPL-2.0

//! Targets: the hooks of device-mapper as a Rust trait, and their registration.
//!
//! A target has two lives. While its constructor runs it is a [`TargetBuilder`]: exclusive, in process
//! context, free to sleep and to fail. What the constructor returns is shared: every hook gets
//! `&self` and may run at any time, on any CPU, together with the others.
//!
//! C header: [`include/linux/device-mapper.h`](srctree/include/linux/device-mapper.h), `struct
//! target_type`

use crate::{
    bindings,
    dm::{
        arguments::Arguments, //
        bio::{
            bio_data_size,
            EndBio,
            Ended,
            MapBio,
            Mapped,
            PerBio, //
        },
        device::{
            Access,
            Device,
            Handle, //
            TargetRef,
        },
        io::IoClient,
        kcopyd::KcopydClient,
        limits::Limits,
        status::{
            Answer,
            Lent,
            StatusBuf,
            StatusKind, //
        },
    },
    logic::units::{
        Sector,
        Sectors, //
    },
    sys::{
        delay::delay_point,
        kept::{
            Kept,
            Service, //
        },
        log::err,
        queue::{
            QueueKind,
            WorkQueue, //
        }, //
    }, //
};
use core::{
    marker::PhantomData,
    pin::Pin,
    ptr::NonNull, //
};
use kernel::{
    bindings as kb,
    container_of,
    error::{
        from_result,
        to_result, //
    },
    ffi::{
        c_char,
        c_int,
        c_uint,
        c_void, //
    },
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    }, //
};

/// Why a constructor failed: the text for the user, and the error code.
pub(crate) struct CtrError {
    text: Option<&'static CStr>,
    code: Error,
}

impl CtrError {
    /// An error with a text, which device-mapper logs.
    pub(crate) fn new(text: &'static CStr, code: Error) -> Self {
        CtrError {
            text: Some(text),
            code,
        }
    }
}

/// An error without a text: device-mapper logs "Unknown error".
impl From<Error> for CtrError {
    fn from(code: Error) -> Self {
        CtrError { text: None, code }
    }
}

/// Attaches a text to an error: `open()?` becomes `open().or_message(c"Error opening device")?`.
pub(crate) trait OrMessage<T> {
    /// The same result with a text for the user.
    fn or_message(self, message: &'static CStr) -> Result<T, CtrError>;
}

impl<T, E: Into<Error>> OrMessage<T> for Result<T, E> {
    fn or_message(self, message: &'static CStr) -> Result<T, CtrError> {
        self.map_err(|e| CtrError::new(message, e.into()))
    }
}

/// A target under construction.
///
/// # Invariants
///
/// The constructor of the target is running, in this thread: device-mapper lends the target to
/// nobody else.
pub(crate) struct TargetBuilder<'a> {
    ti: NonNull<bindings::dm_target>,
    anchor: Arc<TargetRef>,
    _call: PhantomData<&'a mut ()>,
}

impl TargetBuilder<'_> {
    /// Length of the target.
    pub(crate) fn len(&self) -> Sectors {
        // SAFETY: By the invariant the target is live.
        Sectors(unsafe { (*self.ti.as_ptr()).len })
    }

    /// Where the target begins on the mapped device.
    pub(crate) fn begin(&self) -> Sector {
        // SAFETY: By the invariant the target is live.
        Sector(unsafe { (*self.ti.as_ptr()).begin })
    }

    /// How the table may use its devices.
    pub(crate) fn access(&self) -> Access {
        // SAFETY: By the invariant the target is live, and its table with it.
        let mode = unsafe { bindings::dm_table_get_mode((*self.ti.as_ptr()).table) };
        if mode & bindings::BLK_OPEN_WRITE != 0 {
            Access::ReadWrite
        } else {
            Access::Read
        }
    }

    /// Opens a device that the table line names. It is closed when the target is destroyed. Sleeps.
    pub(crate) fn open(&self, path: &CStr, access: Access) -> Result<Device> {
        Device::open(&self.anchor, path, access)
    }

    /// Makes a dm-io client for the target's devices. Sleeps.
    pub(crate) fn io_client(&self) -> Result<IoClient> {
        IoClient::new(self.anchor.user())
    }

    /// Makes a workqueue. Its items cannot outlive the target: after the destructor device-mapper
    /// waits for them. Sleeps.
    pub(crate) fn queue(&self, name: &CStr, kind: QueueKind) -> Result<WorkQueue> {
        // SAFETY: The anchor drops the keeper in the destructor, or when the constructor has
        // failed: in a system call or a work item of device-mapper, and the module stays loaded as
        // long as it has targets.
        self.anchor.keep(|| unsafe { WorkQueue::make(name, kind) })
    }

    /// Makes a client of kcopyd, in the same way. Sleeps.
    pub(crate) fn copy_client(&self) -> Result<KcopydClient> {
        // SAFETY: The anchor drops the keeper in process context, in the destructor or after a
        // failed constructor, never from a callback of kcopyd; the module stays while it has
        // targets.
        self.anchor.keep(|| unsafe { KcopydClient::make() })
    }

    /// Makes the target one of those that a workqueue, or a client of kcopyd, belongs to. It is
    /// destroyed with the last of them. Each target that has a use of one must be one of them: else
    /// the last one waits for it in its destructor.
    pub(crate) fn share<S: Service>(&self, service: &Kept<S>) -> Result {
        // SAFETY: This anchor drops its keeper like that of a service of its own: in process
        // context, not from a callback of the service, and while the module cannot go.
        self.anchor.keep(|| Ok(((), unsafe { service.keeper() }?)))
    }

    /// The handle that the target keeps for its later life.
    pub(crate) fn handle(&self) -> Handle {
        Handle::new(&self.anchor)
    }

    /// Asks for requests that write zeros, if all devices below support them.
    pub(crate) fn want_write_zeroes(&mut self) {
        // SAFETY: By the invariant the target is live and lent to us.
        unsafe { (*self.ti.as_ptr()).num_write_zeroes_bios = 1 };
    }

    /// Lets device-mapper split reads and writes so that none crosses a multiple of `sectors`.
    pub(crate) fn split_at(&mut self, sectors: u32) {
        // SAFETY: By the invariant the target is live and lent to us.
        unsafe { (*self.ti.as_ptr()).max_io_len = sectors };
    }

    /// Asks for flushes, one per request, whether or not the devices below need them.
    pub(crate) fn want_flushes(&mut self) {
        // SAFETY: By the invariant the target is live and lent to us.
        let ti = unsafe { self.ti.as_mut() };
        ti.num_flush_bios = 1;
        ti.set_flush_supported(true);
    }

    /// Asks for flushes, `copies` per request, if the devices below need them.
    pub(crate) fn pass_flushes(&mut self, copies: u32) {
        // SAFETY: By the invariant the target is live and lent to us.
        unsafe { (*self.ti.as_ptr()).num_flush_bios = copies };
    }

    /// Asks for discards, one per request, if the devices below support them.
    pub(crate) fn pass_discards(&mut self) {
        // SAFETY: By the invariant the target is live and lent to us.
        unsafe { (*self.ti.as_ptr()).num_discard_bios = 1 };
    }

    /// Asks for discards, `copies` per request, none crossing a multiple of the largest discard of
    /// `io_hints`, if the devices below support them.
    pub(crate) fn split_discards(&mut self, copies: u32) {
        // SAFETY: By the invariant the target is live and lent to us.
        let ti = unsafe { self.ti.as_mut() };
        ti.num_discard_bios = copies;
        ti.set_max_discard_granularity(true);
    }

    /// Asks for discards, one per request, whether or not the devices below support them.
    pub(crate) fn want_discards(&mut self) {
        // SAFETY: By the invariant the target is live and lent to us.
        let ti = unsafe { self.ti.as_mut() };
        ti.num_discard_bios = 1;
        ti.set_discards_supported(true);
    }
}

/// Stops [`Target::iterate_devices`] early with device-mapper's code.
pub(crate) struct Stop(c_int);

/// Visits the devices of a target.
pub(crate) struct DeviceVisitor<'a> {
    ti: *mut bindings::dm_target,
    call: bindings::iterate_devices_callout_fn,
    data: *mut c_void,
    _hook: PhantomData<&'a ()>,
}

impl DeviceVisitor<'_> {
    /// Reports a part of a device that the target uses.
    pub(crate) fn visit(
        &mut self,
        device: &Device,
        start: Sector,
        len: Sectors,
    ) -> Result<(), Stop> {
        if device.target().as_ptr() != self.ti {
            err!("dm_rust", "a target names a device of another one");
            return Err(Stop(EINVAL.to_errno()));
        }
        let (ti, bdev) = (self.ti, device.raw_bdev());
        // SAFETY: The arguments of the running hook; the device is one that this target has opened.
        match unsafe { bindings::dmr_device_visit(ti, bdev, self.call, start.0, len.0, self.data) }
        {
            0 => Ok(()),
            code => Err(Stop(code)),
        }
    }
}

/// A device-mapper target type. `Self` is the state of one target of a live or inactive table.
///
/// Hooks that a target does not implement are not announced to device-mapper at all.
#[vtable]
pub(crate) trait Target: Send + Sync + Sized + 'static {
    /// Name in table lines.
    const NAME: &'static CStr;
    /// Version as `dmsetup targets` shows it.
    const VERSION: [u32; 3];
    /// The C module that has a target of this name.
    const C_MODULE: &'static str;
    /// Whether `map` never waits, so that bios which ask not to wait may come.
    const NOWAIT: bool;
    /// Data kept with each bio.
    type PerBio: PerBio;
    /// What all targets of this type share, perhaps with those of other types.
    type Shared: Send + Sync + 'static;

    /// Makes a target of a table line. Process context, sleeps; the device may be live with another
    /// table meanwhile.
    fn ctr(
        builder: &mut TargetBuilder<'_>,
        shared: &Self::Shared,
        args: Arguments<'_>,
    ) -> Result<Arc<Self>, CtrError>;

    /// The target is about to go: stop what runs on its own (work items, copies). Sleeps.
    ///
    /// After it nothing can be enqueued any more, and device-mapper waits for what is pending, and
    /// for whoever has a device, the handle or a queue of the target. So what is forgotten here
    /// makes the destructor slow, and nothing worse.
    fn dtr(_this: &Arc<Self>) {}

    /// Decides on a bio. Process context, may sleep if that is certain to end without this target's
    /// help.
    fn map<'a>(this: ArcBorrow<'_, Self>, bio: MapBio<'a, Self::PerBio>) -> Mapped<'a>;

    /// A mapped or submitted bio has ended. Any context, hard interrupts included.
    fn end_io<'a>(_this: ArcBorrow<'_, Self>, bio: EndBio<'a, Self::PerBio>) -> Ended<'a> {
        bio.done()
    }

    /// Suspending begins: new I/O still comes. Sleeps.
    fn presuspend(_this: ArcBorrow<'_, Self>) {}

    /// Suspending was given up.
    fn presuspend_undo(_this: ArcBorrow<'_, Self>) {}

    /// No bio is in flight any more, and none will come before `resume`. Sleeps.
    fn postsuspend(_this: ArcBorrow<'_, Self>) {}

    /// About to go live; an error refuses it. Sleeps.
    fn preresume(_this: ArcBorrow<'_, Self>) -> Result {
        Ok(())
    }

    /// I/O starts. Sleeps.
    fn resume(_this: ArcBorrow<'_, Self>) {}

    /// Writes a status line. Process context, sleeps. `noflush`: user space asked to leave things
    /// alone.
    fn status(this: ArcBorrow<'_, Self>, kind: StatusKind, noflush: bool, out: &mut StatusBuf<'_>);

    /// Executes a message; what is written to `out` is its answer. Process context, sleeps.
    fn message(
        _this: ArcBorrow<'_, Self>,
        _args: Arguments<'_>,
        _out: &mut StatusBuf<'_>,
    ) -> Result {
        Err(EINVAL)
    }

    /// Names the devices below. Process context.
    fn iterate_devices(
        this: ArcBorrow<'_, Self>,
        visitor: &mut DeviceVisitor<'_>,
    ) -> Result<(), Stop>;

    /// Adjusts the limits of the mapped device. Process context.
    fn io_hints(_this: ArcBorrow<'_, Self>, _limits: &mut Limits<'_>) {}
}

/// What `ti->private` points to.
struct Private<T> {
    target: Arc<T>,
    anchor: Arc<TargetRef>,
}

/// A registered target type. Unregisters when dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: Target> {
    #[pin]
    inner: Opaque<bindings::target_type>,
    shared: T::Shared,
}

// SAFETY: The registration is only touched when it is made and dropped; device-mapper has its own
// lock for the list.
unsafe impl<T: Target> Send for Registration<T> {}
// SAFETY: As above.
unsafe impl<T: Target> Sync for Registration<T> {}

impl<T: Target> Registration<T> {
    /// Registers the target type. Fails with a message if another module has the name.
    pub(crate) fn new(
        module: &'static ThisModule,
        shared: T::Shared,
    ) -> impl PinInit<Self, Error> + use<T> {
        try_pin_init!(Self {
            shared,
            inner <- Opaque::try_ffi_init(|slot: *mut bindings::target_type| {
                // SAFETY: The slot can be written and stays where it is until `drop` unregisters
                // it.
                unsafe { slot.write(Self::table(module)) };
                // SAFETY: The type is complete and pinned.
                let result = to_result(unsafe { bindings::dm_register_target(slot) });
                if result.is_err() {
                    err!(
                        "dm_rust",
                        "target `{}' is registered already: is module `{}' loaded?",
                        crate::sys::log::CStrDisplay(T::NAME),
                        T::C_MODULE
                    );
                }
                result
            }),
        })
    }

    fn table(module: &'static ThisModule) -> bindings::target_type {
        bindings::target_type {
            features: if T::NOWAIT {
                bindings::DM_TARGET_NOWAIT.into()
            } else {
                0
            },
            name: T::NAME.as_char_ptr(),
            module: module.as_ptr(),
            version: T::VERSION,
            ctr: Some(Self::ctr),
            dtr: Some(Self::dtr),
            map: Some(Self::map),
            end_io: if T::HAS_END_IO {
                Some(Self::end_io)
            } else {
                None
            },
            presuspend: if T::HAS_PRESUSPEND {
                Some(Self::presuspend)
            } else {
                None
            },
            presuspend_undo: if T::HAS_PRESUSPEND_UNDO {
                Some(Self::presuspend_undo)
            } else {
                None
            },
            postsuspend: if T::HAS_POSTSUSPEND {
                Some(Self::postsuspend)
            } else {
                None
            },
            preresume: if T::HAS_PRERESUME {
                Some(Self::preresume)
            } else {
                None
            },
            resume: if T::HAS_RESUME {
                Some(Self::resume)
            } else {
                None
            },
            status: Some(Self::status),
            message: if T::HAS_MESSAGE {
                Some(Self::message)
            } else {
                None
            },
            iterate_devices: Some(Self::iterate_devices),
            io_hints: if T::HAS_IO_HINTS {
                Some(Self::io_hints)
            } else {
                None
            },
            ..Default::default()
        }
    }

    /// # Safety
    ///
    /// For device-mapper only, as the `ctr` hook of a registered target type.
    unsafe extern "C" fn ctr(
        ti: *mut bindings::dm_target,
        argc: c_uint,
        argv: *mut *mut c_char,
    ) -> c_int {
        from_result(|| {
            let ti = NonNull::new(ti).ok_or(EINVAL)?;
            let private = KBox::new_uninit(GFP_KERNEL)?;
            // SAFETY: `dtr`, or the failure below, closes the anchor before the target goes away.
            let anchor = unsafe { TargetRef::new(ti) }?;
            // SAFETY: The type of a target is set before its constructor runs.
            let kind = unsafe { (*ti.as_ptr()).type_ };
            // SAFETY: The type is the `inner` of a registration of this `T`, which outlives its
            // tables.
            let this = unsafe { &*container_of!(Opaque::cast_from(kind), Self, inner) };
            // SAFETY: Device-mapper keeps the words until the constructor returns.
            let args = unsafe { Arguments::new(argc, argv) };
            // INVARIANT: This is the constructor.
            let mut new = TargetBuilder {
                ti,
                anchor: anchor.clone(),
                _call: PhantomData,
            };
            match T::ctr(&mut new, &this.shared, args) {
                Ok(target) => {
                    let private = KBox::write(private, Private { target, anchor });
                    // SAFETY: The target is still lent to the constructor.
                    let ti = unsafe { &mut *ti.as_ptr() };
                    // CAST: At most a few bytes.
                    ti.per_io_data_size = bio_data_size::<T::PerBio>() as c_uint;
                    // `Bio::submit` starts the accounting of a bio that `map` has taken.
                    ti.set_accounts_remapped_io(true);
                    ti.private = private.into_foreign();
                    Ok(0)
                }
                Err(error) => {
                    if let Some(text) = error.text {
                        // SAFETY: The target is still lent to the constructor.
                        unsafe { (*ti.as_ptr()).error = text.as_char_ptr().cast_mut() };
                    }
                    anchor.close();
                    Err(error.code)
                }
            }
        })
    }

    /// # Safety
    ///
    /// For device-mapper only, as the `dtr` hook of a registered target type.
    unsafe extern "C" fn dtr(ti: *mut bindings::dm_target) {
        // SAFETY: Device-mapper calls the destructor once, after every other hook has returned.
        let private = unsafe { <KBox<Private<T>>>::from_foreign((*ti).private) };
        let Private { target, anchor } = KBox::into_inner(private);
        T::dtr(&target);
        drop(target);
        anchor.close();
    }

    /// The target of a hook's first argument.
    ///
    /// # Safety
    ///
    /// `ti` is the argument of a hook other than the constructor, and `'a` ends before the hook
    /// returns.
    unsafe fn target<'a>(ti: *mut bindings::dm_target) -> ArcBorrow<'a, T> {
        // SAFETY: The constructor stored a `Private<T>`, which stays until the destructor.
        let private: &'a Private<T> = unsafe { <KBox<Private<T>>>::borrow((*ti).private) };
        private.target.as_arc_borrow()
    }

    /// # Safety
    ///
    /// For device-mapper only, as the `map` hook of a registered target type.
    unsafe extern "C" fn map(ti: *mut bindings::dm_target, bio: *mut kb::bio) -> c_int {
        // SAFETY: Device-mapper passes a live bio, never null.
        let raw = unsafe { NonNull::new_unchecked(bio) };
        // SAFETY: Device-mapper passes a live target, never null.
        let target = unsafe { NonNull::new_unchecked(ti) };
        // SAFETY: The arguments of this `map`; its token is the result, and the constructor asked
        // for that size.
        let bio = unsafe { MapBio::<T::PerBio>::new(raw, target) };
        // SAFETY: In a hook.
        T::map(unsafe { Self::target(ti) }, bio).code()
    }

    /// # Safety
    ///
    /// For device-mapper only, as the `end_io` hook of a registered target type.
    unsafe extern "C" fn end_io(
        ti: *mut bindings::dm_target,
        bio: *mut kb::bio,
        status: *mut kb::blk_status_t,
    ) -> c_int {
        // SAFETY: Device-mapper passes a live bio, never null.
        let raw = unsafe { NonNull::new_unchecked(bio) };
        // SAFETY: Device-mapper passes a live target, never null.
        let target = unsafe { NonNull::new_unchecked(ti) };
        // SAFETY: The arguments of this `end_io`; its token is the result, and the constructor
        // asked for that size.
        let bio = unsafe { EndBio::<T::PerBio>::new(raw, target, *status) };
        // SAFETY: In a hook.
        let (code, new) = T::end_io(unsafe { Self::target(ti) }, bio).into_parts();
        // SAFETY: Device-mapper lends its variable to the hook.
        unsafe { *status = new };
        code
    }

    /// # Safety
    ///
    /// For device-mapper only, as the `presuspend` hook of a registered target type.
    unsafe extern "C" fn presuspend(ti: *mut bindings::dm_target) {
        // SAFETY: In a hook.
        T::presuspend(unsafe { Self::target(ti) })
    }

    /// # Safety
    ///
    /// For device-mapper only, as the `presuspend_undo` hook of a registered target type.
    unsafe extern "C" fn presuspend_undo(ti: *mut bindings::dm_target) {
        // SAFETY: In a hook.
        T::presuspend_undo(unsafe { Self::target(ti) })
    }

    /// # Safety
    ///
    /// For device-mapper only, as the `postsuspend` hook of a registered target type.
    unsafe extern "C" fn postsuspend(ti: *mut bindings::dm_target) {
        // SAFETY: In a hook.
        T::postsuspend(unsafe { Self::target(ti) })
    }

    /// # Safety
    ///
    /// For device-mapper only, as the `preresume` hook of a registered target type.
    unsafe extern "C" fn preresume(ti: *mut bindings::dm_target) -> c_int {
        // SAFETY: In a hook.
        from_result(|| T::preresume(unsafe { Self::target(ti) }).map(|()| 0))
    }

    /// # Safety
    ///
    /// For device-mapper only, as the `resume` hook of a registered target type.
    unsafe extern "C" fn resume(ti: *mut bindings::dm_target) {
        // SAFETY: In a hook.
        let target = unsafe { Self::target(ti) };
        delay_point!(c"between preresume and resume");
        T::resume(target)
    }

    /// # Safety
    ///
    /// For device-mapper only, as the `status` hook of a registered target type.
    unsafe extern "C" fn status(
        ti: *mut bindings::dm_target,
        kind: bindings::status_type_t,
        flags: c_uint,
        result: *mut c_char,
        maxlen: c_uint,
    ) {
        let kind = match kind {
            bindings::status_type_t_STATUSTYPE_TABLE => StatusKind::Table,
            bindings::status_type_t_STATUSTYPE_IMA => StatusKind::Ima,
            _ => StatusKind::Info,
        };
        // SAFETY: Device-mapper passes a buffer of `maxlen` bytes that only this call uses.
        // CAST: 32 bits fit into usize.
        let buffer = unsafe { core::slice::from_raw_parts_mut(result, maxlen as usize) };
        // SAFETY: In a hook.
        let target = unsafe { Self::target(ti) };
        T::status(
            target,
            kind,
            flags & bindings::DMR_STATUS_NOFLUSH != 0,
            &mut StatusBuf::new(&mut Lent::new(buffer)),
        )
    }

    /// # Safety
    ///
    /// For device-mapper only, as the `message` hook of a registered target type.
    unsafe extern "C" fn message(
        ti: *mut bindings::dm_target,
        argc: c_uint,
        argv: *mut *mut c_char,
        result: *mut c_char,
        maxlen: c_uint,
    ) -> c_int {
        from_result(|| {
            // SAFETY: Device-mapper keeps the words until the hook returns.
            let args = unsafe { Arguments::new(argc, argv) };
            // One byte stays for the final nul. CAST: 32 bits fit into usize.
            let mut answer = Answer::new(maxlen.saturating_sub(1) as usize);
            // SAFETY: In a hook.
            let target = unsafe { Self::target(ti) };
            T::message(target, args, &mut StatusBuf::new(&mut answer))?;
            let text = answer.finish()?;
            if text.is_empty() {
                return Ok(0);
            }
            // SAFETY: Device-mapper passes a buffer of `maxlen` bytes, and the text is shorter. It
            // may lie over the words, but nobody has those any more.
            unsafe {
                result.copy_from_nonoverlapping(text.as_ptr(), text.len());
                result.add(text.len()).write(0);
            }
            // There is text.
            Ok(1)
        })
    }

    /// # Safety
    ///
    /// For device-mapper only, as the `iterate_devices` hook of a registered target type.
    unsafe extern "C" fn iterate_devices(
        ti: *mut bindings::dm_target,
        call: bindings::iterate_devices_callout_fn,
        data: *mut c_void,
    ) -> c_int {
        let mut visitor = DeviceVisitor {
            ti,
            call,
            data,
            _hook: PhantomData,
        };
        // SAFETY: In a hook.
        match T::iterate_devices(unsafe { Self::target(ti) }, &mut visitor) {
            Ok(()) => 0,
            Err(Stop(code)) => code,
        }
    }

    /// # Safety
    ///
    /// For device-mapper only, as the `io_hints` hook of a registered target type.
    unsafe extern "C" fn io_hints(ti: *mut bindings::dm_target, limits: *mut kb::queue_limits) {
        // SAFETY: Device-mapper lends the limits to the hook, exclusively.
        let limits = unsafe { &mut *limits };
        // SAFETY: In a hook.
        T::io_hints(unsafe { Self::target(ti) }, &mut Limits::new(limits))
    }
}

#[pinned_drop]
impl<T: Target> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by `new`. No table uses the type: each pins the module.
        unsafe { bindings::dm_unregister_target(self.inner.get()) }
    }
}
