// SPDX-License-Identifier: GPL-2.0

//! Numbers of eras.

use crate::env::fmt;

/// From here on, users are told that the numbers come to an end.
const NEAR_END: u32 = u32::MAX - (1 << 20);

/// The number of an era. Zero means "before all eras": a block of that era was never written.
///
/// Numbers only grow, one by one, up to the highest; they never start again. A plain value, free to
/// use in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EraNr(pub(crate) u32);

impl EraNr {
    /// The era of a device that was just formatted, before anything was written.
    pub(crate) const NONE: EraNr = EraNr(0);

    /// The era that follows, or `None` behind the last one.
    #[inline]
    pub(crate) fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }

    /// Whether this is the last era there can be.
    #[inline]
    pub(crate) fn is_last(self) -> bool {
        self.0 == u32::MAX
    }

    /// Whether a warning is due: once, when the numbers come near their end.
    #[inline]
    pub(crate) fn is_first_warning(self) -> bool {
        self.0 == NEAR_END
    }

    /// The key of the era's bitset in the tree.
    #[inline]
    pub(crate) fn key(self) -> u64 {
        self.0.into()
    }

    /// The era of a key; none for a key that no era has.
    #[inline]
    pub(crate) fn of_key(key: u64) -> Option<Self> {
        u32::try_from(key).ok().map(Self)
    }
}

impl fmt::Display for EraNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
