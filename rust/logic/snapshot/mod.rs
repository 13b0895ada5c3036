// SPDX-License-Identifier: GPL-2.0

//! Logic of the snapshot targets, without I/O and without locks.
//!
//! | file | subject | C counterpart |
//! | --- | --- | --- |
//! | `chunks`, `run` | chunks, runs of chunks | `chunk_t`, `dm_consecutive_chunk_count()` |
//! | `options` | arguments of a table line | `dm-exception-store.c` |
//! | `status` | status line | `snapshot_status()` |
//! | `header`, `record`, `layout` | on-disk format and allocation | `dm-snap-persistent.c` |
//! | `record_batch` | the writes for a batch of records | `persistent_commit_exception()` |
//! | `loader`, `stripes`, `sort` | reading the exceptions of a store | `read_exceptions()` |
//! | `exception_table` | completed exceptions | `struct dm_exception_table complete` |
//! | `pending` | pending exceptions | `struct dm_exception_table pending` |
//! | `preserved` | what all snapshots of an origin have preserved | |
//! | `tracked_reads` | reads of the origin in flight | `tracked_chunk_hash` |
//! | `handover` | exception handover | `snapshot_preresume()`, `snapshot_resume()` |
//! | `merge`, `merge_batch` | merging a snapshot into its origin | `snapshot_merge_next_chunks()` |
//! | `lists` | what the kernel's vectors lack | |

pub(crate) mod chunks;
pub(crate) mod exception_table;
pub(crate) mod handover;
pub(crate) mod header;
pub(crate) mod layout;
pub(crate) mod lists;
pub(crate) mod loader;
pub(crate) mod merge;
pub(crate) mod merge_batch;
pub(crate) mod options;
pub(crate) mod pending;
pub(crate) mod preserved;
pub(crate) mod record;
pub(crate) mod record_batch;
pub(crate) mod run;
pub(crate) mod sort;
pub(crate) mod status;
pub(crate) mod stripes;
pub(crate) mod tracked_reads;
