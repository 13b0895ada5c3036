// SPDX-License-Identifier: GPL-2.0

//! Era numbers.

use crate::env::fmt;

/// The era at which users are warned that the numbers run out.
const NEAR_END: u32 = u32::MAX - (1 << 20);

/// The number of an era. Zero is before all eras: a block with this number was never written.
///
/// Numbers grow by one up to the highest, and never wrap. Any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EraNr(pub(crate) u32);

impl EraNr {
    /// The current era of metadata that was just formatted.
    pub(crate) const NONE: EraNr = EraNr(0);

    /// The next era; `None` after the last one.
    #[inline]
    pub(crate) fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }

    /// Whether this is the last era that has a number.
    #[inline]
    pub(crate) fn is_last(self) -> bool {
        self.0 == u32::MAX
    }

    /// Whether this is the one era at which users are warned that the numbers run out.
    #[inline]
    pub(crate) fn is_first_warning(self) -> bool {
        self.0 == NEAR_END
    }

    /// The key of the era in the writeset tree.
    #[inline]
    pub(crate) fn key(self) -> u64 {
        self.0.into()
    }

    /// The era of a key in the writeset tree; `None` if the key is no era number.
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
