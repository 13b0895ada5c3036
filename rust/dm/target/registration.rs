// SPDX-License-Identifier: GPL-2.0

//! The registration of a target type, and the C functions that call its hooks.

use super::{
    DeviceVisitor,
    Stop,
    Target,
    TargetBuilder, //
};
use crate::{
    bindings,
    dm::{
        arguments::Arguments,
        bio::{
            bio_data_size,
            EndBio,
            MapBio, //
        },
        device::TargetResources,
        limits::Limits,
        status::{
            CStrBuffer,
            MessageReply,
            StatusBuf,
            StatusKind, //
        }, //
    },
    sys::{
        delay::delay_point,
        log::err, //
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
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    }, //
};

/// The value that `ti->private` points to.
struct Private<T> {
    target: Arc<T>,
    resources: Arc<TargetResources>,
}

/// A registered target type, until [`withdraw`](Self::withdraw) is called or it is dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: Target> {
    #[pin]
    inner: Opaque<bindings::target_type>,
    shared: T::Shared,
    is_registered: Atomic<bool>,
}

// SAFETY: A target type may be unregistered by any thread. Device-mapper has a lock for its list,
// and `T::Shared: Send`.
unsafe impl<T: Target> Send for Registration<T> {}
// SAFETY: Shared references give access to `T::Shared` only, which is `Sync`.
unsafe impl<T: Target> Sync for Registration<T> {}

impl<T: Target> Registration<T> {
    /// Registers the target type. C counterpart: `dm_register_target()`. May sleep.
    ///
    /// # Errors
    ///
    /// `EBUSY` or `EEXIST`, with a log message, if another module has registered the name.
    pub(crate) fn new(
        module: &'static ThisModule,
        shared: T::Shared,
    ) -> impl PinInit<Self, Error> + use<T> {
        try_pin_init!(Self {
            shared,
            is_registered: Atomic::new(true),
            // The last field: the constructor may run at once, and reads the others.
            inner <- Opaque::try_ffi_init(|slot: *mut bindings::target_type| {
                // SAFETY: The slot can be written.
                unsafe { slot.write(Self::table(module)) };
                // SAFETY: The type is complete. It is pinned until `drop` unregisters it.
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

    /// Unregisters the target type before this value is dropped.
    ///
    /// A table that has found the type keeps the module loaded, and so this value. May sleep.
    pub(crate) fn withdraw(&self) {
        if self.is_registered.xchg(false, Relaxed) {
            // SAFETY: `new` registered the type. Because of the exchange, it is unregistered once.
            unsafe { bindings::dm_unregister_target(self.inner.get()) }
        }
    }

    /// Creates the table of the hooks.
    fn table(module: &'static ThisModule) -> bindings::target_type {
        /// Returns the function of a hook, or `None` if the target does not implement the hook.
        macro_rules! optional {
            ($is_implemented:ident, $hook:ident) => {
                if T::$is_implemented {
                    Some(Self::$hook)
                } else {
                    None
                }
            };
        }
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
            end_io: optional!(HAS_END_IO, end_io),
            presuspend: optional!(HAS_PRESUSPEND, presuspend),
            presuspend_undo: optional!(HAS_PRESUSPEND_UNDO, presuspend_undo),
            postsuspend: optional!(HAS_POSTSUSPEND, postsuspend),
            preresume: optional!(HAS_PRERESUME, preresume),
            resume: optional!(HAS_RESUME, resume),
            status: Some(Self::status),
            message: optional!(HAS_MESSAGE, message),
            iterate_devices: Some(Self::iterate_devices),
            io_hints: optional!(HAS_IO_HINTS, io_hints),
            ..Default::default()
        }
    }

    /// # Safety
    ///
    /// Called by device-mapper only, as the `ctr` hook of a registered target type.
    unsafe extern "C" fn ctr(
        ti: *mut bindings::dm_target,
        argc: c_uint,
        argv: *mut *mut c_char,
    ) -> c_int {
        from_result(|| {
            let ti = NonNull::new(ti).ok_or(EINVAL)?;
            let private = KBox::new_uninit(GFP_KERNEL)?;
            // SAFETY: This is the constructor. `dtr` closes the resources, or the failure below
            // does.
            let resources = unsafe { TargetResources::new(ti) }?;
            // SAFETY: Device-mapper sets the type of a target before it calls the constructor.
            let kind = unsafe { (*ti.as_ptr()).type_ };
            // SAFETY: The type is the `inner` of a registration of this `T`. It outlives its
            // targets, because they keep the module loaded.
            let this = unsafe { &*container_of!(Opaque::cast_from(kind), Self, inner) };
            // SAFETY: Device-mapper keeps the arguments until the constructor returns.
            let args = unsafe { Arguments::new(argc, argv) };
            // INVARIANT: This is the constructor, and nothing else uses the target before it
            // returns.
            let mut builder = TargetBuilder {
                ti,
                resources: resources.clone(),
                _call: PhantomData,
            };
            match T::ctr(&mut builder, &this.shared, args) {
                Ok(target) => {
                    let private = KBox::write(private, Private { target, resources });
                    // SAFETY: Device-mapper lends the target to the constructor, and the builder is
                    // not used any more.
                    let ti = unsafe { &mut *ti.as_ptr() };
                    // CAST: This is a few bytes.
                    ti.per_io_data_size = bio_data_size::<T::PerBio>() as c_uint;
                    // A bio that `map` takes is accounted by `Bio::submit`.
                    ti.set_accounts_remapped_io(true);
                    ti.private = private.into_foreign();
                    Ok(0)
                }
                Err(error) => {
                    if let Some(message) = error.message {
                        // SAFETY: Device-mapper lends the target to the constructor. The message is
                        // static.
                        unsafe { (*ti.as_ptr()).error = message.as_char_ptr().cast_mut() };
                    }
                    resources.close();
                    Err(error.code)
                }
            }
        })
    }

    /// # Safety
    ///
    /// Called by device-mapper only, as the `dtr` hook of a registered target type.
    unsafe extern "C" fn dtr(ti: *mut bindings::dm_target) {
        // SAFETY: The constructor stored the pointer of a box. Device-mapper calls the destructor
        // once, after all other hooks have returned.
        let private = unsafe { <KBox<Private<T>>>::from_foreign((*ti).private) };
        let Private { target, resources } = KBox::into_inner(private);
        T::dtr(&target);
        drop(target);
        resources.close();
    }

    /// Returns the target that a hook is called for.
    ///
    /// # Safety
    ///
    /// `ti` is the argument of a running hook other than the constructor, and `'a` ends before the
    /// hook returns.
    unsafe fn target<'a>(ti: *mut bindings::dm_target) -> ArcBorrow<'a, T> {
        // SAFETY: The constructor stored the pointer of a box, which exists until the destructor
        // runs.
        let private: &'a Private<T> = unsafe { <KBox<Private<T>>>::borrow((*ti).private) };
        private.target.as_arc_borrow()
    }

    /// # Safety
    ///
    /// Called by device-mapper only, as the `map` hook of a registered target type.
    unsafe extern "C" fn map(ti: *mut bindings::dm_target, bio: *mut kb::bio) -> c_int {
        // SAFETY: Device-mapper never passes a null pointer.
        let raw = unsafe { NonNull::new_unchecked(bio) };
        // SAFETY: Device-mapper never passes a null pointer.
        let target = unsafe { NonNull::new_unchecked(ti) };
        // SAFETY: These are the arguments of this hook, for which the constructor declared the size
        // of the per-bio data. The hook returns the token.
        let bio = unsafe { MapBio::<T::PerBio>::new(raw, target) };
        // SAFETY: `ti` is the argument of the running hook, which is not the constructor. The
        // borrow ends before the hook returns.
        T::map(unsafe { Self::target(ti) }, bio).code()
    }

    /// # Safety
    ///
    /// Called by device-mapper only, as the `end_io` hook of a registered target type.
    unsafe extern "C" fn end_io(
        ti: *mut bindings::dm_target,
        bio: *mut kb::bio,
        status: *mut kb::blk_status_t,
    ) -> c_int {
        // SAFETY: Device-mapper never passes a null pointer.
        let raw = unsafe { NonNull::new_unchecked(bio) };
        // SAFETY: Device-mapper never passes a null pointer.
        let target = unsafe { NonNull::new_unchecked(ti) };
        // SAFETY: These are the arguments of this hook, for which the constructor declared the size
        // of the per-bio data. The hook returns the token. The status can be read.
        let bio = unsafe { EndBio::<T::PerBio>::new(raw, target, *status) };
        // SAFETY: `ti` is the argument of the running hook, which is not the constructor. The
        // borrow ends before the hook returns.
        let (code, new) = T::end_io(unsafe { Self::target(ti) }, bio).into_parts();
        // SAFETY: Device-mapper lends the variable to the hook.
        unsafe { *status = new };
        code
    }

    /// # Safety
    ///
    /// Called by device-mapper only, as the `presuspend` hook of a registered target type.
    unsafe extern "C" fn presuspend(ti: *mut bindings::dm_target) {
        // SAFETY: `ti` is the argument of the running hook, which is not the constructor. The
        // borrow ends before the hook returns.
        T::presuspend(unsafe { Self::target(ti) })
    }

    /// # Safety
    ///
    /// Called by device-mapper only, as the `presuspend_undo` hook of a registered target type.
    unsafe extern "C" fn presuspend_undo(ti: *mut bindings::dm_target) {
        // SAFETY: `ti` is the argument of the running hook, which is not the constructor. The
        // borrow ends before the hook returns.
        T::presuspend_undo(unsafe { Self::target(ti) })
    }

    /// # Safety
    ///
    /// Called by device-mapper only, as the `postsuspend` hook of a registered target type.
    unsafe extern "C" fn postsuspend(ti: *mut bindings::dm_target) {
        // SAFETY: `ti` is the argument of the running hook, which is not the constructor. The
        // borrow ends before the hook returns.
        T::postsuspend(unsafe { Self::target(ti) })
    }

    /// # Safety
    ///
    /// Called by device-mapper only, as the `preresume` hook of a registered target type.
    unsafe extern "C" fn preresume(ti: *mut bindings::dm_target) -> c_int {
        // SAFETY: `ti` is the argument of the running hook, which is not the constructor. The
        // borrow ends before the hook returns.
        from_result(|| T::preresume(unsafe { Self::target(ti) }).map(|()| 0))
    }

    /// # Safety
    ///
    /// Called by device-mapper only, as the `resume` hook of a registered target type.
    unsafe extern "C" fn resume(ti: *mut bindings::dm_target) {
        // SAFETY: `ti` is the argument of the running hook, which is not the constructor. The
        // borrow ends before the hook returns.
        let target = unsafe { Self::target(ti) };
        delay_point!(c"between preresume and resume");
        T::resume(target)
    }

    /// # Safety
    ///
    /// Called by device-mapper only, as the `status` hook of a registered target type.
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
        // SAFETY: Device-mapper passes a buffer of `maxlen` bytes, which is initialised and which
        // nothing else uses meanwhile.
        // CAST: 32 bits fit into usize.
        let buffer = unsafe { core::slice::from_raw_parts_mut(result, maxlen as usize) };
        // SAFETY: `ti` is the argument of the running hook, which is not the constructor. The
        // borrow ends before the hook returns.
        let target = unsafe { Self::target(ti) };
        T::status(
            target,
            kind,
            flags & bindings::DMR_STATUS_NOFLUSH != 0,
            &mut StatusBuf::new(&mut CStrBuffer::new(buffer)),
        )
    }

    /// # Safety
    ///
    /// Called by device-mapper only, as the `message` hook of a registered target type.
    unsafe extern "C" fn message(
        ti: *mut bindings::dm_target,
        argc: c_uint,
        argv: *mut *mut c_char,
        result: *mut c_char,
        maxlen: c_uint,
    ) -> c_int {
        from_result(|| {
            // SAFETY: Device-mapper keeps the arguments until the hook returns.
            let args = unsafe { Arguments::new(argc, argv) };
            // One byte is left for the final nul. CAST: 32 bits fit into usize.
            let mut reply = MessageReply::new(maxlen.saturating_sub(1) as usize);
            // SAFETY: `ti` is the argument of the running hook, which is not the constructor. The
            // borrow
            // ends before the hook returns.
            let target = unsafe { Self::target(ti) };
            T::message(target, args, &mut StatusBuf::new(&mut reply))?;
            let text = reply.finish()?;
            if text.is_empty() {
                return Ok(0);
            }
            // SAFETY: Device-mapper passes a buffer of `maxlen` bytes, and the text is shorter. The
            // buffer may overlap the arguments, which nothing uses any more.
            unsafe {
                result.copy_from_nonoverlapping(text.as_ptr(), text.len());
                result.add(text.len()).write(0);
            }
            // 1 tells device-mapper that there is a reply.
            Ok(1)
        })
    }

    /// # Safety
    ///
    /// Called by device-mapper only, as the `iterate_devices` hook of a registered target type.
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
        // SAFETY: `ti` is the argument of the running hook, which is not the constructor. The
        // borrow ends before the hook returns.
        match T::iterate_devices(unsafe { Self::target(ti) }, &mut visitor) {
            Ok(()) => 0,
            Err(Stop(code)) => code,
        }
    }

    /// # Safety
    ///
    /// Called by device-mapper only, as the `io_hints` hook of a registered target type.
    unsafe extern "C" fn io_hints(ti: *mut bindings::dm_target, limits: *mut kb::queue_limits) {
        // SAFETY: Device-mapper lends the limits to the hook, and nothing else uses them meanwhile.
        let limits = unsafe { &mut *limits };
        // SAFETY: `ti` is the argument of the running hook, which is not the constructor. The
        // borrow ends before the hook returns.
        T::io_hints(unsafe { Self::target(ti) }, &mut Limits::new(limits))
    }
}

#[pinned_drop]
impl<T: Target> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // No table uses the type, because each keeps the module loaded.
        self.withdraw();
    }
}
