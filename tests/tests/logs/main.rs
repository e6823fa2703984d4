//! Logs of real runs, looked at and replayed by samsaractl: the same output, the same exit status, the same digest.
//!
//! - [`runs`]: whole runs, and those whose host was lost.
//! - [`segments`]: flight recorders, checkpoints to begin from.
//! - [`refused`]: what is no log, and readers that go away.
//! - [`again`]: chunks that are run again.
//! - [`gdb`]: real gdb, over a replay.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends at the first error")]

mod again;
mod gdb;
mod recorded;
mod refused;
mod runs;
mod segments;

use std::time::Duration;

const BOUND: Duration = Duration::from_mins(1);
