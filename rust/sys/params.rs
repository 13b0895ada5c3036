// SPDX-License-Identifier: GPL-2.0

//! The parameters of the module.

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

/// Returns the names in the parameter `targets`; no name if the parameter is not set.
fn target_names() -> impl Iterator<Item = &'static [u8]> {
    // SAFETY: The helper returns the parameter's string, which is never null, lives as long as the
    // module, and is not changed: the parameter cannot be written.
    let list = unsafe { c_string(bindings::dmr_param_targets()) };
    bytes(list)
        .split(|&c| c == b',')
        .filter(|name| !name.is_empty())
}

/// Returns whether the parameter `targets` is set. Any context.
pub(crate) fn are_targets_chosen() -> bool {
    target_names().next().is_some()
}

/// Returns whether a target is to be registered: the parameter `targets` names it, or is not set.
/// Any context.
pub(crate) fn is_target_enabled(target: &CStr) -> bool {
    !are_targets_chosen() || target_names().any(|name| name == bytes(target))
}

/// Adds a registered target to the parameter `serves`, which users read. Called by the `init` of
/// the module only.
pub(crate) fn add_served(target: &CStr) {
    // SAFETY: The string is nul-terminated, and the helper copies it. No two calls run at a time,
    // because `init` runs once.
    unsafe { bindings::dmr_param_add_served(target.as_char_ptr()) }
}

/// Checks that each name in the parameter `targets` is that of a target. Process context.
///
/// # Errors
///
/// `EINVAL`, with a log message, if a name is unknown.
pub(crate) fn check_target_names(exists: impl Fn(&[u8]) -> bool) -> Result {
    for name in target_names() {
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

/// Returns the percentage of time that the hydration of a clone may use. A value above 100 means
/// 100. Any context.
pub(crate) fn hydration_throttle() -> u32 {
    // SAFETY: The function has no preconditions.
    unsafe { bindings::dmr_param_clone_throttle() }
}

/// Returns the number of chunks that a snapshot may be copying before writers have to wait. Any
/// context.
pub(crate) fn snapshot_threshold() -> u32 {
    // SAFETY: The function has no preconditions.
    unsafe { bindings::dmr_param_snapshot_threshold() }
}

/// Returns the number of bytes that each origin may use to remember which of its chunks all
/// snapshots have preserved. Any context.
pub(crate) fn snapshot_preserved_memory() -> u64 {
    // SAFETY: The function has no preconditions.
    u64::from(unsafe { bindings::dmr_param_snapshot_preserved_memory() }) << 20
}
