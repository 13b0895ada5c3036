// SPDX-License-Identifier: GPL-2.0

//! A module with four bugs, for the tests of the debug kernels and of `scripts/vm`.
//!
//! The tests show that the debug kernels find these bugs in Rust code, and that `scripts/vm`
//! reports them. Each module parameter that is not zero triggers one bug when the module is loaded.
//! Never load the module elsewhere.

use kernel::{
    new_mutex,
    new_spinlock,
    prelude::*,
    sync::{
        Mutex,
        SpinLock, //
    }, //
};

module! {
    type: Planted,
    name: "planted",
    authors: ["The dm-rust developers"],
    description: "Bugs on purpose, for the tests of the test machinery",
    license: "GPL",
    params: {
        use_after_free: u8 {
            default: 0,
            description: "Read memory that was freed",
        },
        lock_inversion: u8 {
            default: 0,
            description: "Take two mutexes in one order, then in the other",
        },
        sleep_in_atomic: u8 {
            default: 0,
            description: "Take a mutex while a spinlock is held",
        },
        leak: u8 {
            default: 0,
            description: "Forget some allocations",
        },
    },
}

#[pin_data]
struct Planted {
    #[pin]
    first: Mutex<u64>,
    #[pin]
    second: Mutex<u64>,
    #[pin]
    spin: SpinLock<u64>,
}

impl Planted {
    fn lock_inversion(&self) {
        {
            let _first = self.first.lock();
            *self.second.lock() += 1;
        }
        let _second = self.second.lock();
        *self.first.lock() += 1;
    }

    fn sleep_in_atomic(&self) {
        let _spin = self.spin.lock();
        *self.first.lock() += 1;
    }
}

/// Returns whether a parameter is set. Some kernels return a reference to its value.
fn is_set(value: impl core::borrow::Borrow<u8>) -> bool {
    *value.borrow() != 0
}

fn use_after_free() -> Result {
    let pointer = KBox::into_raw(KBox::new([0x5au8; 192], GFP_KERNEL)?);
    // SAFETY: `pointer` comes from `into_raw`, and this is its only copy.
    drop(unsafe { KBox::from_raw(pointer) });
    // SAFETY: None. This read of freed memory is the bug.
    let byte = unsafe { pointer.cast::<u8>().add(100).read_volatile() };
    pr_info!("read {} from memory that was freed\n", byte);
    Ok(())
}

/// Leaks many objects: kmemleak does not report those whose pointers remain on a stack or in the
/// allocator's arrays of free objects.
#[inline(never)]
fn leak() -> Result {
    for _ in 0..1024 {
        core::mem::forget(KBox::new([0xa5u8; 192], GFP_KERNEL)?);
    }
    Ok(())
}

impl kernel::InPlaceModule for Planted {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(&this in Self {
            first <- new_mutex!(0, "planted_first"),
            second <- new_mutex!(0, "planted_second"),
            spin <- new_spinlock!(0, "planted_spin"),
            _: {
                // SAFETY: All fields of `this` are initialised, and nothing has a mutable
                // reference to them while `planted` exists.
                let planted = unsafe { this.as_ref() };
                // This must be the first, because any other report disables lockdep.
                if is_set(module_parameters::lock_inversion.value()) {
                    planted.lock_inversion();
                }
                if is_set(module_parameters::sleep_in_atomic.value()) {
                    planted.sleep_in_atomic();
                }
                if is_set(module_parameters::use_after_free.value()) {
                    use_after_free()?;
                }
                if is_set(module_parameters::leak.value()) {
                    leak()?;
                }
            },
        })
    }
}
