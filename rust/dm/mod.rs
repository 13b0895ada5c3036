// SPDX-License-Identifier: GPL-2.0

//! Safe wrappers of device-mapper, `dm-io`, `dm-kcopyd` and `dm-persistent-data`.
//!
//! C headers: `include/linux/device-mapper.h`, `dm-io.h`, `drivers/md/persistent-data/*.h`.

pub(crate) mod arguments;
pub(crate) mod bio;
pub(crate) mod device;
pub(crate) mod io;
pub(crate) mod kcopyd;
pub(crate) mod limits;
pub(crate) mod pages;
pub(crate) mod pdata;
pub(crate) mod read_ahead;
pub(crate) mod status;
pub(crate) mod target;
