//! Time as the deciders see it: milliseconds on the daemon's monotonic clock.

use std::fmt;

/// A moment on a monotonic clock, in milliseconds since a start that only its owner knows.
///
/// The deciders never read a clock; a daemon makes one from `Instant::elapsed`, a simulation from a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// The moment `ms` milliseconds after the start of the clock.
    pub fn from_ms(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the start of the clock.
    pub fn as_ms(self) -> u64 {
        self.0
    }

    /// The moment `ms` milliseconds later; the end of time if there is none.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this moment, 0 if `earlier` is not earlier.
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s", self.0 / 1000, self.0 % 1000)
    }
}
