//! How long a chunk may run.
//!
//! Long chunks cost little for computing, and much when they are lost or when others wait for what
//! they have not committed. So a chunk's length grows while chunks commit at their timer, and
//! shrinks when one is squashed. A vCPU whose chunk changed no memory is probably waiting for
//! another: its next chunks start short, and it asks the others to commit what they have.

use std::time::Duration;

/// Chunk length of one vCPU.
#[derive(Debug)]
pub(super) struct Pacing {
    min: Duration,
    max: Duration,
    length: Duration,
    idle_chunks: u32,
    squashes: u32,
    exclusive_after: u32,
}

/// What to tell the others after a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// This vCPU gets on.
    No,
    /// It seems to wait for another: others should commit soon.
    Yes,
}

impl Pacing {
    pub(super) fn new(min: Duration, max: Duration, exclusive_after: u32) -> Self {
        let length = (min * 4).min(max);
        Self {
            min,
            max,
            length,
            idle_chunks: 0,
            squashes: 0,
            exclusive_after,
        }
    }

    /// How long the next chunk may run.
    pub(super) fn limit(&self) -> Duration {
        if self.idle_chunks == 0 {
            return self.length;
        }
        (self.min * (1 << self.idle_chunks.min(8))).min(self.max)
    }

    /// Whether the next chunk must run alone: it has lost too often.
    pub(super) fn must_be_exclusive(&self) -> bool {
        self.squashes >= self.exclusive_after
    }

    /// A chunk was squashed.
    pub(super) fn squashed(&mut self) {
        self.squashes += 1;
        self.length = (self.length / 2).max(self.min);
    }

    /// A chunk committed; `cut_by_timer` if nothing else ended it.
    pub(super) fn committed(&mut self, cut_by_timer: bool, changed_memory: bool) -> Waiting {
        self.squashes = 0;
        if changed_memory || !cut_by_timer {
            self.idle_chunks = 0;
        } else {
            self.idle_chunks += 1;
        }
        if cut_by_timer && changed_memory {
            self.length = (self.length * 5 / 4).min(self.max);
        }
        if self.idle_chunks > 0 {
            Waiting::Yes
        } else {
            Waiting::No
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_adapts_within_its_bounds() {
        let (min, max) = (Duration::from_micros(200), Duration::from_millis(5));
        let mut pacing = Pacing::new(min, max, 4);
        for _ in 0..40 {
            assert_eq!(pacing.committed(true, true), Waiting::No);
        }
        assert_eq!(pacing.limit(), max);
        for _ in 0..40 {
            pacing.squashed();
        }
        assert_eq!(pacing.limit(), min);
        assert!(pacing.must_be_exclusive());
        assert_eq!(pacing.committed(true, false), Waiting::Yes);
        assert!(!pacing.must_be_exclusive());
        assert!(pacing.limit() <= min * 2);
        for _ in 0..40 {
            pacing.committed(true, false);
        }
        assert_eq!(pacing.limit(), max);
    }
}
