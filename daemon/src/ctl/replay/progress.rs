//! What a long replay says of itself.

use std::time::{Duration, Instant};

use samsara_commitlog::{CommitSeq, GuestTime};

/// A replay that takes less says nothing.
const FIRST: Duration = Duration::from_secs(3);
const EVERY: Duration = Duration::from_secs(5);
/// Looks between two at the clock.
const LOOKS: u32 = 64;

/// Where a replay is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    pub(super) seq: CommitSeq,
    pub(super) guest_time: GuestTime,
    /// Bytes of the log that were read, and all.
    pub(super) read_bytes: u64,
    pub(super) file_bytes: u64,
}

/// Decides when there is something to say.
#[derive(Debug)]
pub(super) struct Progress {
    next: Instant,
    looks: u32,
}

impl Progress {
    pub(super) fn new(started: Instant) -> Self {
        Self {
            next: started + FIRST,
            looks: 0,
        }
    }

    /// Tells where the replay is, if it is time to.
    pub(super) fn look(&mut self, position: Position, tell: impl Fn(&str)) {
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS)
            && let Some(line) = self.due(Instant::now(), position)
        {
            tell(&line);
        }
    }

    fn due(&mut self, now: Instant, position: Position) -> Option<String> {
        if now < self.next {
            return None;
        }
        self.next = now + EVERY;
        let percent = position.read_bytes.saturating_mul(100) / position.file_bytes.max(1);
        Some(format!(
            "at commit {}, {:.1} s of guest time, {}% of the log",
            position.seq,
            position.guest_time.0 as f64 / 1e9,
            percent.min(100)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_replay_says_nothing_a_long_one_something_now_and_then() {
        let start = Instant::now();
        let mut progress = Progress::new(start);
        let position = Position {
            seq: CommitSeq(7),
            guest_time: GuestTime(1_500_000_000),
            read_bytes: 50,
            file_bytes: 200,
        };
        let mut said = Vec::new();
        for tenths in 0..200 {
            let now = start + Duration::from_millis(100 * tenths);
            said.extend(progress.due(now, position).map(|line| (tenths, line)));
        }
        let times: Vec<_> = said.iter().map(|(tenths, _)| *tenths).collect();
        assert_eq!(times, [30, 80, 130, 180]);
        assert_eq!(
            said[0].1,
            "at commit 7, 1.5 s of guest time, 25% of the log"
        );
    }
}
