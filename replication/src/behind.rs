//! Whether the backup is so far behind that the guest has to wait for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use samsara_commitlog::CommitSeq;

/// Commits that come so soon after another count as old as that one, and wait with it.
const GRAIN: Duration = Duration::from_micros(500);

/// A backup that verifies nothing for so much longer than it may be behind is not waited for: something else is wrong with it, and the
/// guest goes on as far as the queue to it allows.
const PATIENCE: Duration = Duration::from_secs(1);

/// The age of the oldest commit that the backup has not verified.
#[derive(Debug)]
pub struct Behind {
    most: Duration,
    /// What the backup has verified, and when it got there.
    verified: Option<(CommitSeq, Instant)>,
    /// The last of some commits that are not all verified, and when the first of them was made; rising.
    waiting: VecDeque<(CommitSeq, Instant)>,
}

impl Behind {
    /// The backup may be so far behind.
    pub fn new(most: Duration) -> Self {
        Self {
            most,
            verified: None,
            waiting: VecDeque::new(),
        }
    }

    /// A commit was made. Commits rise.
    pub fn committed(&mut self, seq: CommitSeq, now: Instant) {
        match self.waiting.back_mut() {
            Some((last, at)) if now.saturating_duration_since(*at) < GRAIN => *last = seq,
            _ => self.waiting.push_back((seq, now)),
        }
    }

    /// The backup has verified all commits up to this one.
    pub fn verified(&mut self, seq: CommitSeq, now: Instant) {
        if self.verified.is_none_or(|(last, _)| seq > last) {
            self.verified = Some((seq, now));
        }
        while self
            .waiting
            .pop_front_if(|(last, _)| *last <= seq)
            .is_some()
        {}
    }

    /// Whether the guest has to wait.
    pub fn is_too_far(&self, now: Instant) -> bool {
        let Some(&(_, oldest)) = self.waiting.front() else {
            return false;
        };
        let since = |at| now.saturating_duration_since(at);
        let moved = self.verified.map_or(oldest, |(_, at)| at.max(oldest));
        since(oldest) >= self.most && since(moved) < self.most + PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_oldest_commit_that_is_not_verified_decides() {
        let start = Instant::now();
        let mut behind = Behind::new(20 * MS);
        assert!(!behind.is_too_far(start + 100 * MS));
        behind.committed(CommitSeq(5), start);
        behind.committed(CommitSeq(6), start + 10 * MS);
        assert!(!behind.is_too_far(start + 19 * MS));
        assert!(behind.is_too_far(start + 20 * MS));
        behind.verified(CommitSeq(5), start + 25 * MS);
        assert!(!behind.is_too_far(start + 29 * MS));
        assert!(behind.is_too_far(start + 30 * MS));
        behind.verified(CommitSeq(9), start + 40 * MS);
        assert!(!behind.is_too_far(start + 500 * MS));
    }

    /// Commits that share an age with the one before them wait on when that one is verified.
    #[test]
    fn a_commit_soon_after_another_is_waited_for_too() {
        let start = Instant::now();
        let mut behind = Behind::new(20 * MS);
        behind.committed(CommitSeq(5), start);
        behind.committed(CommitSeq(6), start + GRAIN / 2);
        behind.verified(CommitSeq(5), start + MS);
        assert!(!behind.is_too_far(start + 19 * MS));
        assert!(behind.is_too_far(start + 21 * MS));
        behind.verified(CommitSeq(6), start + 21 * MS);
        assert!(!behind.is_too_far(start + 21 * MS));
    }

    #[test]
    fn a_backup_that_verifies_nothing_is_not_waited_for() {
        let start = Instant::now();
        let mut behind = Behind::new(20 * MS);
        behind.committed(CommitSeq(1), start);
        behind.committed(CommitSeq(2), start + MS);
        let end = start + 20 * MS + PATIENCE;
        assert!(behind.is_too_far(start + 19 * MS + PATIENCE));
        assert!(!behind.is_too_far(end));
        // It goes on.
        behind.verified(CommitSeq(1), end);
        assert!(behind.is_too_far(end));
        behind.verified(CommitSeq(1), end + 10 * MS);
        assert!(behind.is_too_far(end + 19 * MS + PATIENCE));
        assert!(!behind.is_too_far(end + 20 * MS + PATIENCE));
    }

    #[test]
    fn many_commits_take_little_memory() {
        let start = Instant::now();
        let mut behind = Behind::new(20 * MS);
        for number in 0..10_000_u32 {
            behind.committed(CommitSeq(number.into()), start + GRAIN / 100 * number);
        }
        assert_eq!(behind.waiting.len(), 100);
    }
}
