// SPDX-License-Identifier: GPL-2.0

//! Device-mapper targets in Rust, in place of the C ones.
//!
//! Layers, from below: `bindings` (raw), `sys` and `dm` (safe wrappers, all unsafe code), `logic`
//! (pure decisions and formats, also compiled and tested on the host), `targets` (what connects
//! them). See `Documentation/design.md`.

#![crate_name = "dm_rust"]
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod bindings;
#[allow(unsafe_code)]
mod dm;
mod env;
#[allow(dead_code, reason = "the host tests use more of it")]
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
    log::err,
    params, //
};
use targets::{
    clone::Clone as CloneTarget,
    era::Era as EraTarget,
    shared_metadata::SharedMetadata,
    snapshot::{
        MergeTarget,
        OriginTarget,
        Origins,
        SnapshotTarget, //
    }, //
};

/// A C string literal made of several literals.
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

/// A target type, unless the user chose others or another module has its name.
type Slot<T> = Option<Pin<KBox<Registration<T>>>>;

/// The module: dropping it unregisters the targets.
struct DmRust {
    _clone: Slot<CloneTarget>,
    _era: Slot<EraTarget>,
    _snapshots: SnapshotTargets,
    #[cfg(dm_rust_example)]
    _example: Slot<targets::example::Example>,
    #[cfg(dm_rust_example)]
    _stray: Slot<targets::stray::Stray>,
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
            err!("dm_rust", "all names of targets are taken");
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

/// The targets that find each other by the origin. With a part of them in another module, writes to
/// the origin would not reach the snapshots, and data would be lost in silence.
struct SnapshotTargets {
    snapshot: Slot<SnapshotTarget>,
    origin: Slot<OriginTarget>,
    merge: Slot<MergeTarget>,
}

impl SnapshotTargets {
    /// Registers all three targets or none.
    fn register(module: &'static ThisModule) -> Result<Self> {
        let origins = Origins::new()?;
        let this = SnapshotTargets {
            snapshot: register(module, origins.clone())?,
            origin: register(module, origins.clone())?,
            merge: register(module, origins)?,
        };
        if !this.is_complete() {
            // Kept, though withdrawn: a table may have found one already.
            this.snapshot.iter().for_each(|it| it.withdraw());
            this.origin.iter().for_each(|it| it.withdraw());
            this.merge.iter().for_each(|it| it.withdraw());
        }
        Ok(this)
    }

    fn is_complete(&self) -> bool {
        self.snapshot.is_some() && self.origin.is_some() && self.merge.is_some()
    }

    fn show(&self) -> bool {
        self.is_complete() && show(&self.snapshot) & show(&self.origin) & show(&self.merge)
    }
}

/// Registers a target type, if the parameter `targets` does not leave it out. A name that is taken
/// is an error if the user asked for it; otherwise it is left to the other module.
fn register<T: Target>(module: &'static ThisModule, shared: T::Shared) -> Result<Slot<T>> {
    if !params::is_target_enabled(T::NAME) {
        return Ok(None);
    }
    match KBox::try_pin_init(Registration::new(module, shared), GFP_KERNEL) {
        Ok(registration) => Ok(Some(registration)),
        // Kernels differ in the code.
        Err(EBUSY | EEXIST) if !params::are_targets_chosen() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Shows users that a target is served; returns whether it is.
fn show<T: Target>(slot: &Slot<T>) -> bool {
    if slot.is_some() {
        params::add_served(T::NAME);
    }
    slot.is_some()
}

/// Refuses names in the parameter `targets` that do not exist, and a part of the snapshot targets.
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
