// SPDX-License-Identifier: GPL-2.0

//! The status line of an era target.

use crate::env::fmt;
use crate::logic::era::era_nr::EraNr;

/// The size of a metadata block in sectors.
const METADATA_BLOCK: u32 = 8;

/// The status line of an era target whose metadata has failed.
pub(crate) const ERROR: &str = "Error";

/// The contents of the status line, which `Display` writes. Any context.
///
/// C counterpart: `struct metadata_stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MetadataStats {
    /// Metadata blocks in use.
    pub(crate) used: u64,
    /// Metadata blocks in total.
    pub(crate) total: u64,
    /// The current era.
    pub(crate) era: EraNr,
    /// The block of the metadata snapshot; zero if there is none.
    pub(crate) metadata_snap: u64,
}

impl fmt::Display for MetadataStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MetadataStats {
            used,
            total,
            era,
            metadata_snap,
        } = self;
        f.write_fmt(fmt!("{} {}/{} {} ", METADATA_BLOCK, used, total, era))?;
        match metadata_snap {
            0 => f.write_str("-"),
            location => f.write_fmt(fmt!("{}", location)),
        }
    }
}
