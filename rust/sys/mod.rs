// SPDX-License-Identifier: GPL-2.0

//! Safe wrappers of generic kernel facilities that the kernel crate lacks.
//!
//! Nothing here depends on device-mapper.

pub(crate) mod bdev;
pub(crate) mod delay;
pub(crate) mod epochs;
pub(crate) mod irq_lock;
pub(crate) mod log;
pub(crate) mod noio;
pub(crate) mod params;
pub(crate) mod plug;
pub(crate) mod pool;
pub(crate) mod queue;
pub(crate) mod rcu;
pub(crate) mod rw_sem;
pub(crate) mod service;
pub(crate) mod string;
pub(crate) mod time;
pub(crate) mod wait;
