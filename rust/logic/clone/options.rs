// SPDX-License-Identifier: GPL-2.0

//! The optional words of a clone's table line: features, then keys with values.
//!
//! Both groups open with a count. Names are compared without case, may repeat, and the last value
//! wins; words behind the second group are left alone. Counterparts in C: `parse_feature_args` and
//! `parse_core_args` of `drivers/md/dm-clone-target.c`.

use crate::logic::args::{
    eq_ignore_case,
    parse_decimal_u32,
    parse_group,
    Refusal, //
};

/// The feature word that starts a clone without background hydration.
pub(crate) const NO_HYDRATION: &str = "no_hydration";
/// The feature word that keeps discards from the destination.
pub(crate) const NO_DISCARD_PASSDOWN: &str = "no_discard_passdown";
/// The key of the most regions in flight.
pub(crate) const HYDRATION_THRESHOLD: &str = "hydration_threshold";
/// The key of the most regions in one copy.
pub(crate) const HYDRATION_BATCH_SIZE: &str = "hydration_batch_size";

/// The highest number of feature words.
const MAX_FEATURES: u32 = 2;
/// The highest number of words in the group of keys and values.
const MAX_CORE_ARGS: u32 = 4;

/// What the optional words of a table line ask for.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Whether background hydration is on from the start.
    pub(crate) hydration: bool,
    /// Whether discards are passed to the destination if it can take them.
    pub(crate) discard_passdown: bool,
    /// The most regions in flight; zero stops background hydration.
    pub(crate) threshold: u32,
    /// The most regions in one copy; zero acts as one.
    pub(crate) batch: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hydration: true,
            discard_passdown: true,
            threshold: 1,
            batch: 1,
        }
    }
}

impl Options {
    /// Reads the words behind the region size; either group may be missing from the end of the line.
    pub(crate) fn parse<'a>(
        words: &mut impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<Self, Refusal> {
        let mut options = Self::default();
        options.parse_features(words)?;
        options.parse_core_args(words)?;
        Ok(options)
    }

    /// Reads the group of features.
    fn parse_features<'a>(
        &mut self,
        words: &mut impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<(), Refusal> {
        if words.size_hint().0 == 0 {
            return Ok(());
        }
        let text = c"Invalid number of feature arguments";
        for _ in 0..parse_group(words, MAX_FEATURES, text)? {
            let word = words.next().unwrap_or_default();
            if eq_ignore_case(word, NO_HYDRATION.as_bytes()) {
                self.hydration = false;
            } else if eq_ignore_case(word, NO_DISCARD_PASSDOWN.as_bytes()) {
                self.discard_passdown = false;
            } else {
                return Err(Refusal::invalid(c"Invalid feature argument"));
            }
        }
        Ok(())
    }

    /// Reads the group of keys and values.
    fn parse_core_args<'a>(
        &mut self,
        words: &mut impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<(), Refusal> {
        if words.size_hint().0 == 0 {
            return Ok(());
        }
        let text = c"Invalid number of core arguments";
        let count = parse_group(words, MAX_CORE_ARGS, text)?;
        if count % 2 != 0 {
            let text = c"Number of core arguments must be even";
            return Err(Refusal::invalid(text));
        }
        for _ in 0..count / 2 {
            let key = words.next().unwrap_or_default();
            let (slot, text) = if eq_ignore_case(key, HYDRATION_THRESHOLD.as_bytes()) {
                let text = c"Invalid value for argument `hydration_threshold'";
                (&mut self.threshold, text)
            } else if eq_ignore_case(key, HYDRATION_BATCH_SIZE.as_bytes()) {
                let text = c"Invalid value for argument `hydration_batch_size'";
                (&mut self.batch, text)
            } else {
                return Err(Refusal::invalid(c"Invalid core argument"));
            };
            *slot = words
                .next()
                .and_then(parse_decimal_u32)
                .ok_or(Refusal::invalid(text))?;
        }
        Ok(())
    }
}
