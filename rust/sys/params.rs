// SPDX-License-Identifier: GPL-2.0

//! The module's parameters.

use crate::{
    bindings,
    sys::{
        log::err,
        string::{
            bytes,
            c_string, //
        }, //
    }, //
};
use kernel::prelude::*;

/// The names in the parameter `targets`; none if the user named none.
fn names() -> impl Iterator<Item = &'static [u8]> {
    // SAFETY: The helper returns the parameter's string, never null, that lives as long as the
    // module and is read-only.
    let list = unsafe { c_string(bindings::dmr_param_targets()) };
    bytes(list)
        .split(|&c| c == b',')
        .filter(|name| !name.is_empty())
}

/// Whether the user chose targets by the parameter `targets`. Any context.
pub(crate) fn are_targets_chosen() -> bool {
    names().next().is_some()
}

/// Whether a target is to be registered: it is named, or nothing is. Any context.
pub(crate) fn is_target_enabled(target: &CStr) -> bool {
    !are_targets_chosen() || names().any(|name| name == bytes(target))
}

/// Adds a registered target to the parameter `serves`, which users read. Called by the module's
/// `init` only.
pub(crate) fn add_served(target: &CStr) {
    // SAFETY: The string is nul-terminated, and copied; `init` has one caller, so no two calls run
    // at the same time.
    unsafe { bindings::dmr_param_add_served(target.as_char_ptr()) }
}

/// Refuses names that do not exist.
///
/// # Errors
///
/// `EINVAL`, with a message, for the first of them.
pub(crate) fn check_target_names(exists: impl Fn(&[u8]) -> bool) -> Result {
    for name in names() {
        if !exists(name) {
            let text = core::str::from_utf8(name).unwrap_or("?");
            err!(
                "dm_rust",
                "parameter `targets': there is no target `{}'",
                text
            );
            return Err(EINVAL);
        }
    }
    Ok(())
}

/// The share of the time, in percent, that the hydration of a clone may use; more than 100 means
/// the same as 100.
pub(crate) fn hydration_throttle() -> u32 {
    // SAFETY: No preconditions.
    unsafe { bindings::dmr_param_clone_throttle() }
}

/// How many chunks a snapshot may be copying before writers have to wait: the parameter
/// `snapshot_cow_threshold`. Any context.
pub(crate) fn snapshot_threshold() -> u32 {
    // SAFETY: No preconditions.
    unsafe { bindings::dmr_param_snapshot_threshold() }
}
