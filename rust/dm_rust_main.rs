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
#[allow(
    dead_code,
    reason = "wrappers are complete for all targets; each target uses a part"
)]
mod dm;
mod env;
#[allow(dead_code, reason = "the host tests use more of it")]
mod logic;
#[allow(unsafe_code)]
#[allow(
    dead_code,
    reason = "wrappers are complete for all targets; each target uses a part"
)]
mod sys;
mod targets;

use dm::target::{
    Registration,
    Target, //
};
use kernel::prelude::*;

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
    alias: ["dm-clone", "dm-era", "dm-snapshot", "dm-snapshot-origin", "dm-snapshot-merge"],
}

/// A target type that is registered, unless the user chose others.
type Slot<T> = Option<Pin<KBox<Registration<T>>>>;

/// The module: dropping it unregisters the targets.
struct DmRust {
    _clone: Slot<targets::clone::Clone>,
    _era: Slot<targets::era::Era>,
    _snapshot: Slot<targets::snapshot::SnapshotTarget>,
    _origin: Slot<targets::snapshot::OriginTarget>,
    _merge: Slot<targets::snapshot::MergeTarget>,
    #[cfg(dm_rust_example)]
    _example: Slot<targets::example::Example>,
    #[cfg(dm_rust_example)]
    _stray: Slot<targets::stray::Stray>,
}

impl kernel::Module for DmRust {
    fn init(module: &'static ThisModule) -> Result<Self> {
        sys::params::check_target_names(|name| {
            [
                targets::clone::Clone::NAME,
                targets::era::Era::NAME,
                targets::snapshot::SnapshotTarget::NAME,
                targets::snapshot::OriginTarget::NAME,
                targets::snapshot::MergeTarget::NAME,
            ]
            .iter()
            .any(|target| name == sys::string::bytes(target))
                || (cfg!(dm_rust_example) && [&b"rust-linear"[..], b"rust-stray"].contains(&name))
        })?;
        let snapshots = targets::snapshot::Origins::new()?;
        Ok(DmRust {
            _clone: register(module, targets::shared_metadata::SharedMetadata::new()?)?,
            _era: register(module, targets::shared_metadata::SharedMetadata::new()?)?,
            _snapshot: register(module, snapshots.clone())?,
            _origin: register(module, snapshots.clone())?,
            _merge: register(module, snapshots)?,
            #[cfg(dm_rust_example)]
            _example: register(module, ())?,
            #[cfg(dm_rust_example)]
            _stray: register(module, targets::stray::no_device_lent()?)?,
        })
    }
}

/// Registers a target type if the parameter `targets` does not leave it out.
fn register<T: Target>(module: &'static ThisModule, shared: T::Shared) -> Result<Slot<T>> {
    if !sys::params::is_target_enabled(T::NAME) {
        return Ok(None);
    }
    Ok(Some(KBox::try_pin_init(
        Registration::new(module, shared),
        GFP_KERNEL,
    )?))
}
