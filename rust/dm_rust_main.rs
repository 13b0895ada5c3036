// SPDX-License-Identifier: GPL-2.0

//! Device-mapper targets in Rust, in place of the C ones.
//!
//! The layers, from the bottom: `bindings` has raw bindings, `sys` and `dm` have safe wrappers and
//! all unsafe code, `logic` has decisions and formats, which are also compiled and tested on the
//! host, and `targets` connects them. `Documentation/design.md` describes them.

#![crate_name = "dm_rust"]
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod bindings;
#[allow(unsafe_code)]
mod dm;
mod env;
mod logic;
#[allow(unsafe_code)]
mod sys;
mod targets;

use dm::target::{
    Registration,
    Target, //
};
use kernel::prelude::*;
use sys::{
    log::{
        err,
        warning, //
    },
    params, //
};
use targets::{
    clone::CloneTarget,
    era::EraTarget,
    shared_metadata::SharedMetadata,
    snapshot::{
        MergeTarget,
        OriginTarget,
        Origins,
        SnapshotTarget, //
    }, //
};

/// Creates a C string from several string literals.
macro_rules! c_name {
    ($($part:literal),+) => {
        const {
            match core::ffi::CStr::from_bytes_with_nul(concat!($($part,)+ "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a nul byte in a name"),
            }
        }
    };
}
use c_name;

module! {
    type: DmRust,
    name: "dm_rust",
    authors: ["The dm-rust developers"],
    description: "Device-mapper targets in Rust",
    license: "GPL",
}

/// A target type, which is registered unless the user chose others or another module has its name.
type MaybeRegistered<T> = Option<Pin<KBox<Registration<T>>>>;

/// The module. Dropping it unregisters the target types.
struct DmRust {
    _clone: MaybeRegistered<CloneTarget>,
    _era: MaybeRegistered<EraTarget>,
    _snapshots: SnapshotTargets,
    #[cfg(dm_rust_example)]
    _example: MaybeRegistered<targets::example::Example>,
    #[cfg(dm_rust_example)]
    _stray: MaybeRegistered<targets::stray::Stray>,
}

impl kernel::Module for DmRust {
    fn init(module: &'static ThisModule) -> Result<Self> {
        check_chosen_targets()?;
        let clone = register(module, SharedMetadata::new()?)?;
        let era = register(module, SharedMetadata::new()?)?;
        let snapshots = SnapshotTargets::register(module)?;
        #[cfg(dm_rust_example)]
        let (example, stray) = (
            register(module, ())?,
            register(module, targets::stray::no_device_lent()?)?,
        );
        let is_any_served = show(&clone) | show(&era) | snapshots.show();
        #[cfg(dm_rust_example)]
        let is_any_served = is_any_served | show(&example) | show(&stray);
        if !is_any_served {
            err!(
                "dm_rust",
                "no target can be registered: all names are taken"
            );
            return Err(EBUSY);
        }
        Ok(DmRust {
            _clone: clone,
            _era: era,
            _snapshots: snapshots,
            #[cfg(dm_rust_example)]
            _example: example,
            #[cfg(dm_rust_example)]
            _stray: stray,
        })
    }
}

/// The snapshot targets, which find each other by their origin.
///
/// One module must have all of them. Otherwise writes to an origin would not reach the snapshots
/// that another module has, and data would be lost silently.
struct SnapshotTargets {
    snapshot: MaybeRegistered<SnapshotTarget>,
    origin: MaybeRegistered<OriginTarget>,
    merge: MaybeRegistered<MergeTarget>,
}

impl SnapshotTargets {
    /// Registers all three target types, or none.
    fn register(module: &'static ThisModule) -> Result<Self> {
        let origins = Origins::new()?;
        let targets = SnapshotTargets {
            snapshot: register(module, origins.clone())?,
            origin: register(module, origins.clone())?,
            merge: register(module, origins.clone())?,
        };
        if targets.is_complete() {
            origins.open();
        } else if targets.is_any_registered() {
            warning!(
                "dm_rust",
                "the snapshot targets go together: none of them is registered"
            );
            // They are withdrawn, but not dropped: a table may have found one already. It is
            // refused. (If loading fails, the kernel frees the module without looking for tables,
            // as it does with every module.)
            targets.snapshot.iter().for_each(|it| it.withdraw());
            targets.origin.iter().for_each(|it| it.withdraw());
            targets.merge.iter().for_each(|it| it.withdraw());
        }
        Ok(targets)
    }

    fn is_complete(&self) -> bool {
        self.snapshot.is_some() && self.origin.is_some() && self.merge.is_some()
    }

    fn is_any_registered(&self) -> bool {
        self.snapshot.is_some() || self.origin.is_some() || self.merge.is_some()
    }

    /// Adds the types to the parameter `serves`. Returns whether they are registered.
    fn show(&self) -> bool {
        if self.is_complete() {
            show(&self.snapshot);
            show(&self.origin);
            show(&self.merge);
        }
        self.is_complete()
    }
}

/// Registers a target type, unless the parameter `targets` leaves it out.
///
/// If another module has registered the name, that is an error only if the user named the target.
fn register<T: Target>(
    module: &'static ThisModule,
    shared: T::Shared,
) -> Result<MaybeRegistered<T>> {
    if !params::is_target_enabled(T::NAME) {
        return Ok(None);
    }
    match KBox::try_pin_init(Registration::new(module, shared), GFP_KERNEL) {
        Ok(registration) => Ok(Some(registration)),
        // The error depends on the version of the kernel.
        Err(EBUSY | EEXIST) if !params::are_targets_chosen() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Adds a registered type to the parameter `serves`. Returns whether it is registered.
fn show<T: Target>(target: &MaybeRegistered<T>) -> bool {
    if target.is_some() {
        params::add_served(T::NAME);
    }
    target.is_some()
}

/// Checks the parameter `targets`: each name is that of a target, and the snapshot targets are
/// complete or absent.
fn check_chosen_targets() -> Result {
    let snapshots = [SnapshotTarget::NAME, OriginTarget::NAME, MergeTarget::NAME];
    params::check_target_names(|name| {
        let is_in = |targets: &[&CStr]| targets.iter().any(|it| name == sys::string::bytes(it));
        is_in(&[CloneTarget::NAME, EraTarget::NAME])
            || is_in(&snapshots)
            || (cfg!(dm_rust_example) && [&b"rust-linear"[..], b"rust-stray"].contains(&name))
    })?;
    let enabled = snapshots
        .iter()
        .filter(|target| params::is_target_enabled(target))
        .count();
    if enabled != 0 && enabled != snapshots.len() {
        err!(
            "dm_rust",
            "parameter `targets': snapshot, snapshot-origin and snapshot-merge go together"
        );
        return Err(EINVAL);
    }
    Ok(())
}
