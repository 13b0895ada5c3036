// SPDX-License-Identifier: GPL-2.0

//! Arguments of table lines and messages: numbers as the C targets read them, names, groups.
//!
//! Numbers come in two dialects. dm's argument helpers read counts and sizes with the kernel's
//! `sscanf("%u%c")`; `kstrtouint` reads the values of keys and messages. Scripts may depend on the
//! corner cases of both, so both are kept. All functions: any context.

use core::ffi::CStr;

use crate::env::{
    Error,
    EINVAL, //
};

/// Why a table line is refused: the message for the user, and the errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ArgumentError {
    /// The message that dm writes to the kernel log.
    pub(crate) message: &'static CStr,
    /// The error that the constructor returns.
    pub(crate) error: Error,
}

impl ArgumentError {
    /// Makes an error with the code `EINVAL`.
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

/// Whether the kernel's `isspace` accepts `byte`, which includes the no-break space of Latin-1.
#[inline]
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0)
}

/// Splits `arg` after its leading decimal digits, and returns their value, `u64::MAX` if it
/// overflows, and the rest; `None` if there is no digit.
fn take_digits(arg: &[u8]) -> Option<(u64, &[u8])> {
    let digits = arg.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (head, tail) = arg.split_at_checked(digits)?;
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

/// Parses a number as `dm_read_arg` does: `sscanf("%u%c")` must match its first conversion only.
///
/// Leading white space, which quoted arguments can have, is skipped. No sign, no prefix and no
/// trailing byte is accepted; leading zeros do not mean octal. A value of more than 32 bits is
/// *not* refused: its low 32 bits count, all of which are set if it exceeds 64 bits.
pub(crate) fn parse_u32(arg: &[u8]) -> Option<u32> {
    let spaces = arg.iter().take_while(|byte| is_space(**byte)).count();
    let (value, tail) = take_digits(arg.get(spaces..)?)?;
    if !tail.is_empty() {
        return None;
    }
    // CAST: The kernel stores a 64-bit result into an `unsigned int`; the high half is dropped.
    Some(value as u32)
}

/// Parses a number as `kstrtouint` with base 10 does.
///
/// Accepts one leading plus and one trailing line feed besides digits. The value must fit in 32
/// bits.
pub(crate) fn parse_decimal_u32(arg: &[u8]) -> Option<u32> {
    u32::try_from(parse_decimal_u64(arg)?).ok()
}

/// Parses a number as `kstrtoull` with base 10 does, for values below `u64::MAX`.
pub(crate) fn parse_decimal_u64(arg: &[u8]) -> Option<u64> {
    let (value, tail) = take_digits(arg.strip_prefix(b"+").unwrap_or(arg))?;
    let whole = tail.is_empty() || tail == b"\n";
    // `take_digits` returns `u64::MAX` for an overflow.
    (whole && value < u64::MAX).then_some(value)
}

/// Parses a number that consists of digits only and fits in 32 bits.
pub(crate) fn parse_strict_u32(arg: &[u8]) -> Option<u32> {
    match take_digits(arg)? {
        (value, []) => u32::try_from(value).ok(),
        _ => None,
    }
}

/// Whether two arguments are equal but for the case of ASCII letters, as `strcasecmp` compares.
pub(crate) fn eq_ignore_case(left: &[u8], right: &[u8]) -> bool {
    left.eq_ignore_ascii_case(right)
}

/// Parses the count at the start of a group of arguments, as `dm_read_arg_group` does.
///
/// # Errors
///
/// `EINVAL` with `message` if the count is missing, is not a number, exceeds `max`, or exceeds the
/// number of arguments that follow.
pub(crate) fn parse_group<'a>(
    args: &mut (impl ExactSizeIterator<Item = &'a [u8]> + ?Sized),
    max: u32,
    message: &'static CStr,
) -> Result<u32, ArgumentError> {
    let count = args
        .next()
        .and_then(parse_u32)
        .filter(|count| *count <= max)
        .ok_or(ArgumentError::invalid(message))?;
    let (left, _) = args.size_hint();
    match usize::try_from(count) {
        Ok(count) if count <= left => {}
        _ => return Err(ArgumentError::invalid(message)),
    }
    Ok(count)
}
