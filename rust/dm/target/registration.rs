// SPDX-License-Identifier: GPL-2.0

//! The registration of a target type, and the hooks as device-mapper calls them.

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

/// What `ti->private` points to.
struct Private<T> {
    target: Arc<T>,
    resources: Arc<TargetResources>,
}

/// A target type that was registered, until [`withdraw`](Self::withdraw) or until it is dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: Target> {
    #[pin]
    inner: Opaque<bindings::target_type>,
    shared: T::Shared,
    is_registered: Atomic<bool>,
}

// SAFETY: The registration is only touched when it is made and dropped; device-mapper has its own
// lock for the list.
unsafe impl<T: Target> Send for Registration<T> {}
// SAFETY: As above.
unsafe impl<T: Target> Sync for Registration<T> {}

impl<T: Target> Registration<T> {
    /// Registers the target type. May sleep.
    ///
    /// # Errors
    ///
    /// `EBUSY` or `EEXIST`, with a message, if another module has the name.
    pub(crate) fn new(
        module: &'static ThisModule,
        shared: T::Shared,
    ) -> impl PinInit<Self, Error> + use<T> {
        try_pin_init!(Self {
            shared,
            is_registered: Atomic::new(true),
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

    /// Unregisters the target type before the module goes. Tables that have found it meanwhile keep
    /// the module, and so this. May sleep.
    pub(crate) fn withdraw(&self) {
        if self.is_registered.xchg(false, Relaxed) {
            // SAFETY: Registered by `new`, and by the exchange unregistered only once.
            unsafe { bindings::dm_unregister_target(self.inner.get()) }
        }
    }

    fn table(module: &'static ThisModule) -> bindings::target_type {
        /// A null pointer for a hook that the target does not implement.
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
    /// For device-mapper only, as the `ctr` hook of a registered target type.
    unsafe extern "C" fn ctr(
        ti: *mut bindings::dm_target,
        argc: c_uint,
        argv: *mut *mut c_char,
    ) -> c_int {
        from_result(|| {
            let ti = NonNull::new(ti).ok_or(EINVAL)?;
            let private = KBox::new_uninit(GFP_KERNEL)?;
            // SAFETY: `dtr`, or the failure below, closes them before the target goes away.
            let resources = unsafe { TargetResources::new(ti) }?;
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
                resources: resources.clone(),
                _call: PhantomData,
            };
            match T::ctr(&mut new, &this.shared, args) {
                Ok(target) => {
                    let private = KBox::write(private, Private { target, resources });
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
                    resources.close();
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
        let Private { target, resources } = KBox::into_inner(private);
        T::dtr(&target);
        drop(target);
        resources.close();
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
            &mut StatusBuf::new(&mut CStrBuffer::new(buffer)),
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
            let mut answer = MessageReply::new(maxlen.saturating_sub(1) as usize);
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
        // No table uses the type: each pins the module.
        self.withdraw();
    }
}
