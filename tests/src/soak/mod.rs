//! How a long run of a protected Linux guest is observed, and what it must keep.
//!
//! - [`observer`]: the client's side: requests over one connection, and what the guest told, each with when.
//! - [`clock`]: the guest's clocks against the host's.
//! - [`ticks`]: the guest's timers and its load against its clock.
//! - [`memory`]: the memory of the daemons.
//! - [`processor`]: what they had of the machine's processors.
//! - [`digests`]: whether hosts compare their states, and agree.
//! - [`stretch`]: what must hold from one kill to the next.
//! - [`failovers`]: what must hold across kills.
//!
//! Each judges what it is given and does nothing else, so each is tested with a run that must not pass.

pub mod clock;
pub mod digests;
pub mod failovers;
pub mod memory;
pub mod observer;
pub mod processor;
pub mod stretch;
pub mod ticks;

use std::time::{Duration, Instant};

use crate::store::Exchange;

/// A stretch of time on the host's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Its begin.
    pub from: Instant,
    /// Its end.
    pub to: Instant,
}

impl Span {
    /// Whether all of an exchange is in it.
    pub fn has(&self, exchange: &Exchange) -> bool {
        exchange.sent >= self.from && exchange.received <= self.to
    }

    /// Its length.
    pub fn length(&self) -> Duration {
        self.to.saturating_duration_since(self.from)
    }
}

/// The middle one of some values, the lower of two.
fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len().checked_sub(1)? / 2).copied()
}
