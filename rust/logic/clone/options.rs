// SPDX-License-Identifier: GPL-2.0

//! The optional arguments of a table line: feature arguments, then core arguments.
//!
//! Both groups start with a count. Names are compared without case and may repeat; the last value
//! wins. Arguments after the second group are ignored. C counterparts: `parse_feature_args()` and
//! `parse_core_args()` of `drivers/md/dm-clone-target.c`.

use crate::logic::args::{
    eq_ignore_case,
    parse_decimal_u32,
    parse_group,
    ArgumentError, //
};

/// The feature argument that disables background hydration at the start.
pub(crate) const NO_HYDRATION: &str = "no_hydration";
/// The feature argument that keeps discards from the destination.
pub(crate) const NO_DISCARD_PASSDOWN: &str = "no_discard_passdown";
/// The key of the maximum number of regions in flight.
pub(crate) const HYDRATION_THRESHOLD: &str = "hydration_threshold";
/// The key of the maximum number of regions in one copy.
pub(crate) const HYDRATION_BATCH_SIZE: &str = "hydration_batch_size";

/// The feature argument that copies regions when they are read. The C target knows neither this nor
/// the following arguments.
pub(crate) const HYDRATE_ON_READ: &str = "hydrate_on_read";
/// The feature argument that zeroes discarded regions that are not hydrated.
pub(crate) const ZERO_DISCARDS: &str = "zero_discards";
/// The key of the number of failed copies after which hydration is disabled.
pub(crate) const MAX_FAILURES: &str = "max_failures";

/// Maximum number of feature arguments of the C target.
const MAX_FEATURES: u32 = 2;
/// Maximum number of core arguments, keys and values, of the C target.
const MAX_CORE_ARGS: u32 = 4;
/// Maximum number of arguments in a group with arguments that the C target does not know.
///
/// A group without such arguments is refused as the C target refuses it.
const MAX_EXTENDED: u32 = 16;

/// The optional arguments of a table line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Whether background hydration is enabled at the start.
    pub(crate) hydration: bool,
    /// Whether discards are passed to the destination if it supports them.
    pub(crate) discard_passdown: bool,
    /// Maximum number of regions in flight; zero stops background hydration.
    pub(crate) threshold: u32,
    /// Maximum number of regions in one copy; zero acts as one.
    pub(crate) batch: u32,
    /// Whether regions are copied when they are read.
    pub(crate) hydrate_on_read: bool,
    /// Whether a discard zeroes regions that are not hydrated.
    pub(crate) zero_discards: bool,
    /// Number of failed copies after which hydration is disabled; zero is no limit.
    pub(crate) max_failures: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hydration: true,
            discard_passdown: true,
            threshold: 1,
            batch: 1,
            hydrate_on_read: false,
            zero_discards: false,
            max_failures: 0,
        }
    }
}

impl Options {
    /// Parses the arguments after the region size. Either group may be missing from the end of the
    /// line.
    pub(crate) fn parse<'a>(
        words: &mut impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<Self, ArgumentError> {
        let mut options = Self::default();
        options.parse_features(words)?;
        options.parse_core_args(words)?;
        Ok(options)
    }

    /// Parses the feature arguments. C counterpart: `parse_feature_args()`.
    fn parse_features<'a>(
        &mut self,
        words: &mut impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<(), ArgumentError> {
        if words.size_hint().0 == 0 {
            return Ok(());
        }
        let text = c"Invalid number of feature arguments";
        let count = parse_group(words, MAX_EXTENDED, text)?;
        let (mut extended, mut unknown) = (false, false);
        for word in words.by_ref().take(usize::try_from(count).unwrap_or(0)) {
            if eq_ignore_case(word, NO_HYDRATION.as_bytes()) {
                self.hydration = false;
            } else if eq_ignore_case(word, NO_DISCARD_PASSDOWN.as_bytes()) {
                self.discard_passdown = false;
            } else if eq_ignore_case(word, HYDRATE_ON_READ.as_bytes()) {
                (self.hydrate_on_read, extended) = (true, true);
            } else if eq_ignore_case(word, ZERO_DISCARDS.as_bytes()) {
                (self.zero_discards, extended) = (true, true);
            } else {
                unknown = true;
            }
        }
        if count > MAX_FEATURES && !extended {
            return Err(ArgumentError::invalid(text));
        }
        if unknown {
            return Err(ArgumentError::invalid(c"Invalid feature argument"));
        }
        Ok(())
    }

    /// Parses the core arguments. C counterpart: `parse_core_args()`.
    fn parse_core_args<'a>(
        &mut self,
        words: &mut impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<(), ArgumentError> {
        if words.size_hint().0 == 0 {
            return Ok(());
        }
        let text = c"Invalid number of core arguments";
        let count = parse_group(words, MAX_EXTENDED, text)?;
        let (mut extended, mut refused) = (false, None);
        let mut group = words.by_ref().take(usize::try_from(count).unwrap_or(0));
        while let Some(key) = group.next() {
            let (slot, text) = if eq_ignore_case(key, HYDRATION_THRESHOLD.as_bytes()) {
                let text = c"Invalid value for argument `hydration_threshold'";
                (&mut self.threshold, text)
            } else if eq_ignore_case(key, HYDRATION_BATCH_SIZE.as_bytes()) {
                let text = c"Invalid value for argument `hydration_batch_size'";
                (&mut self.batch, text)
            } else if eq_ignore_case(key, MAX_FAILURES.as_bytes()) {
                extended = true;
                let text = c"Invalid value for argument `max_failures'";
                (&mut self.max_failures, text)
            } else {
                group.next();
                refused = refused.or(Some(c"Invalid core argument"));
                continue;
            };
            match group.next().and_then(parse_decimal_u32) {
                Some(value) => *slot = value,
                None => refused = refused.or(Some(text)),
            }
        }
        if count > MAX_CORE_ARGS && !extended {
            return Err(ArgumentError::invalid(text));
        }
        if count % 2 != 0 {
            let text = c"Number of core arguments must be even";
            return Err(ArgumentError::invalid(text));
        }
        match refused {
            Some(text) => Err(ArgumentError::invalid(text)),
            None => Ok(()),
        }
    }
}
