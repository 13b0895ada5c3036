// SPDX-License-Identifier: GPL-2.0

//! Messages to a clone. C counterpart: `clone_message()`.

use super::{
    metadata::Recovery,
    CloneTarget, //
};
use crate::{
    dm::{
        arguments::Arguments,
        status::StatusBuf, //
    },
    logic::{
        args::{
            eq_ignore_case,
            parse_decimal_u32,
            parse_decimal_u64, //
        },
        clone::{
            options::{
                HYDRATION_BATCH_SIZE,
                HYDRATION_THRESHOLD,
                MAX_FAILURES, //
            },
            status::Mode, //
        },
        units::{
            Sector,
            Sectors, //
        }, //
    },
    sys::{
        log::{
            err,
            CStrDisplay, //
        },
        string::bytes, //
    }, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        ArcBorrow, //
    }, //
};

impl CloneTarget {
    /// Handles a message. May sleep.
    pub(super) fn handle_message(
        self: ArcBorrow<'_, Self>,
        mut args: Arguments<'_>,
        out: &mut StatusBuf<'_>,
    ) -> Result {
        let count = args.len();
        let word = args.next().ok_or(EINVAL)?;
        let is = |name: &str| eq_ignore_case(bytes(word), name.as_bytes());
        if is("enable_hydration") {
            self.failures.store(0, Relaxed);
            self.hydration_enabled.store(true, Relaxed);
            self.hydration.lock().reset_backoff();
            self.wake_hydration();
            return Ok(());
        }
        if is("disable_hydration") {
            self.hydration_enabled.store(false, Relaxed);
            return Ok(());
        }
        match count {
            1 if is("statistics") => {
                out.emit(fmt!("{}", self.metadata.statistics()));
                return Ok(());
            }
            1 if is(Mode::ReadWrite.as_str()) => return self.recover(),
            2 => {}
            3 if is("hydrate_range") => return self.hydrate_range(args),
            _ => return Err(EINVAL),
        }
        let value = args
            .next()
            .and_then(|value| parse_decimal_u32(bytes(value)));
        if is(HYDRATION_THRESHOLD) {
            self.threshold.store(value.ok_or(EINVAL)?, Relaxed);
            self.wake_hydration();
        } else if is(HYDRATION_BATCH_SIZE) {
            self.batch.store(value.ok_or(EINVAL)?, Relaxed);
        } else if is(MAX_FAILURES) {
            self.max_failures.store(value.ok_or(EINVAL)?, Relaxed);
        } else {
            err!(
                "clone",
                "{}: Unsupported message `{}'",
                self.handle,
                CStrDisplay(word)
            );
            return Err(EINVAL);
        }
        Ok(())
    }

    /// Handles `hydrate_range START LEN`: copies the regions of a range before all others. Both
    /// numbers are sectors, relative to the target.
    fn hydrate_range(self: ArcBorrow<'_, Self>, args: Arguments<'_>) -> Result {
        let mut numbers = args.map(|word| parse_decimal_u64(bytes(word)).ok_or(EINVAL));
        let mut number = || numbers.next().unwrap_or(Err(EINVAL));
        let (start, len) = (Sector(number()?), Sectors(number()?));
        let geometry = self.metadata.geometry();
        let end = start.checked_add(len).ok_or(EINVAL)?;
        if len == Sectors(0) || end.get() > geometry.len().get() {
            return Err(EINVAL);
        }
        self.prioritize(geometry.touched(start, len));
        Ok(())
    }

    /// Handles `rw`: tries to leave read-only or fail mode. May sleep.
    pub(super) fn recover(self: ArcBorrow<'_, Self>) -> Result {
        match self.metadata.recover(&self.handle)? {
            Recovery::NotNeeded => {}
            Recovery::No => return Err(EIO),
            Recovery::Yes => {
                self.report_mode(Mode::ReadWrite);
                // Resuming schedules the commit itself. Nothing may be written before it.
                if !self.is_suspended() {
                    self.wake_committer();
                }
                self.wake_hydration();
            }
        }
        Ok(())
    }
}
