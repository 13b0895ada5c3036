// SPDX-License-Identifier: GPL-2.0

//! Words of table lines and messages: numbers as the C targets read them, names, counted groups.
//!
//! Numbers come in two dialects. Counts and sizes are read by dm's argument helpers, that is by
//! the kernel's `sscanf` with `%u%c`; values of keys and messages are read by `kstrtouint`. Both
//! have corners that scripts may lean on, so both are kept. All functions are free of side
//! effects and may be called in any context.

use core::ffi::CStr;

use crate::env::{
    Error,
    EINVAL, //
};

/// Why a table line is refused: the text for the user and the code of the failure.
///
/// A plain value, free to use in any context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ArgumentError {
    /// What dm prints into the kernel log.
    pub(crate) message: &'static CStr,
    /// What the constructor returns.
    pub(crate) error: Error,
}

impl ArgumentError {
    /// Makes a refusal with the code "invalid argument".
    #[inline]
    pub(crate) const fn invalid(message: &'static CStr) -> Self {
        Self {
            message,
            error: EINVAL,
        }
    }
}

impl From<ArgumentError> for Error {
    #[inline]
    fn from(error: ArgumentError) -> Self {
        error.error
    }
}

/// Tells whether the kernel's `isspace` counts `byte` as white space (the hard space included).
#[inline]
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0)
}

/// Splits `word` behind its leading decimal digits and returns their value, stuck at the highest
/// number once it is passed, with the rest; `None` if there is no digit.
fn take_digits(word: &[u8]) -> Option<(u64, &[u8])> {
    let digits = word.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (head, tail) = word.split_at_checked(digits)?;
    if head.is_empty() {
        return None;
    }
    let value = head.iter().fold(0u64, |value, byte| {
        let digit = u64::from(byte.wrapping_sub(b'0'));
        value
            .checked_mul(10)
            .and_then(|tens| tens.checked_add(digit))
            .unwrap_or(u64::MAX)
    });
    Some((value, tail))
}

/// Reads a number as `dm_read_arg` does, by `sscanf("%u%c")` that must match its first half only.
///
/// Leading white space (possible in quoted words) is skipped. No sign, no prefix and no trailing
/// byte is accepted; leading zeros do not mean octal. A value of more than 32 bits is *not*
/// refused: its low 32 bits count, and all of them are set once 64 bits overflow.
pub(crate) fn parse_u32(word: &[u8]) -> Option<u32> {
    let spaces = word.iter().take_while(|byte| is_space(**byte)).count();
    let (value, tail) = take_digits(word.get(spaces..)?)?;
    if !tail.is_empty() {
        return None;
    }
    // CAST: The kernel stores a 64-bit result into an `unsigned int`; the high half is dropped.
    Some(value as u32)
}

/// Reads a number as `kstrtouint` with base 10 does.
///
/// One leading plus and one trailing line feed are accepted, nothing else but digits, and the
/// value must fit 32 bits.
pub(crate) fn parse_decimal_u32(word: &[u8]) -> Option<u32> {
    u32::try_from(parse_decimal_u64(word)?).ok()
}

/// Reads a number as `kstrtoull` with base 10 does, for values below `u64::MAX`.
pub(crate) fn parse_decimal_u64(word: &[u8]) -> Option<u64> {
    let (value, tail) = take_digits(word.strip_prefix(b"+").unwrap_or(word))?;
    let whole = tail.is_empty() || tail == b"\n";
    // `u64::MAX` is what too many digits give.
    (whole && value < u64::MAX).then_some(value)
}

/// Reads a number of digits alone that fits 32 bits.
pub(crate) fn parse_strict_u32(word: &[u8]) -> Option<u32> {
    match take_digits(word)? {
        (value, []) => u32::try_from(value).ok(),
        _ => None,
    }
}

/// Tells whether two words are equal when the case of ASCII letters is ignored.
pub(crate) fn eq_ignore_case(left: &[u8], right: &[u8]) -> bool {
    left.eq_ignore_ascii_case(right)
}

/// Reads the count that opens a group of words, as `dm_read_arg_group` does.
///
/// Refused with `message` if the word is missing, is no number, is above `max`, or is above the number
/// of words that follow. Only the exact size hint is asked for the latter.
pub(crate) fn parse_group<'a>(
    words: &mut (impl ExactSizeIterator<Item = &'a [u8]> + ?Sized),
    max: u32,
    message: &'static CStr,
) -> Result<u32, ArgumentError> {
    let count = words
        .next()
        .and_then(parse_u32)
        .filter(|count| *count <= max)
        .ok_or(ArgumentError::invalid(message))?;
    let (left, _) = words.size_hint();
    match usize::try_from(count) {
        Ok(count) if count <= left => {}
        _ => return Err(ArgumentError::invalid(message)),
    }
    Ok(count)
}
