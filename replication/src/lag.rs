//! How far the backup is behind.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use samsara_commitlog::CommitSeq;

use crate::Quantiles;
use crate::queue::{QueueDepth, QueuedFrame};

/// Commits tracked one by one between being sent and being verified; beyond, neighbours share the
/// time of the older one, so lag is at worst overstated. 2 MiB.
const MARKS_MAX: usize = 1 << 16;

/// One kind of lag, in all its units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Commits.
    pub commits: u64,
    /// Encoded bytes.
    pub bytes: u64,
    /// Age of the oldest commit that is behind.
    pub age: Duration,
}

/// An acknowledgement that cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// Not sent yet.
    #[error("acknowledged commit {acknowledged}, but only {sent} was sent")]
    NotSent {
        /// The position in the acknowledgement.
        acknowledged: CommitSeq,
        /// The last commit sent.
        sent: CommitSeq,
    },
    /// Verified without being received.
    #[error("verified commit {verified}, but received only {received}")]
    NotReceived {
        /// The verified position.
        verified: CommitSeq,
        /// The received position.
        received: CommitSeq,
    },
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    seq: CommitSeq,
    at: Instant,
    /// Bytes of the stream up to and including this commit.
    bytes_end: u64,
}

/// Follows each commit of one session from the primary to received and verified.
///
/// [`LagTracker::sent`] before a batch goes to the network, [`LagTracker::handle_ack`] for each
/// acknowledgement.
#[derive(Debug)]
pub struct LagTracker {
    marks: VecDeque<Mark>,
    /// Marks at the front that are received and not verified.
    received_marks: usize,
    sent: CommitSeq,
    sent_bytes: u64,
    received: CommitSeq,
    received_bytes: u64,
    verified: CommitSeq,
    verified_bytes: u64,
    to_received: Quantiles,
    to_verified: Quantiles,
}

impl LagTracker {
    /// A tracker for a backup that starts from a snapshot of commit `base`.
    pub fn new(base: CommitSeq) -> Self {
        Self {
            marks: VecDeque::new(),
            received_marks: 0,
            sent: base,
            sent_bytes: 0,
            received: base,
            received_bytes: 0,
            verified: base,
            verified_bytes: 0,
            to_received: Quantiles::new(),
            to_verified: Quantiles::new(),
        }
    }

    /// The backup starts from a snapshot of commit `base`, not of an earlier one; no commit was sent yet.
    pub fn rebase(&mut self, base: CommitSeq) {
        self.sent = self.sent.max(base);
        self.received = self.received.max(base);
        self.verified = self.verified.max(base);
    }

    /// A batch is about to be sent.
    pub fn sent(&mut self, batch: &[QueuedFrame]) {
        for frame in batch {
            self.sent_bytes += frame.bytes.len() as u64;
            if frame.seq <= self.sent {
                continue;
            }
            self.sent = frame.seq;
            let mark = Mark {
                seq: frame.seq,
                at: frame.at,
                bytes_end: self.sent_bytes,
            };
            self.add(mark);
        }
    }

    /// The backup acknowledged. Positions that do not advance are ignored.
    pub fn handle_ack(
        &mut self,
        received: CommitSeq,
        verified: CommitSeq,
        now: Instant,
    ) -> Result<(), AckError> {
        if received > self.sent {
            return Err(AckError::NotSent {
                acknowledged: received,
                sent: self.sent,
            });
        }
        if verified > received {
            return Err(AckError::NotReceived { verified, received });
        }
        if received >= self.received {
            self.advance_received(received, now);
        }
        if verified >= self.verified {
            self.advance_verified(verified, now);
        }
        Ok(())
    }

    /// The last commit sent.
    pub fn sent_seq(&self) -> CommitSeq {
        self.sent
    }

    /// The last commit received by the backup.
    pub fn received_seq(&self) -> CommitSeq {
        self.received
    }

    /// The last commit verified by the backup.
    pub fn verified_seq(&self) -> CommitSeq {
        self.verified
    }

    /// Bytes sent in this session.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Committed minus received; `queue` is the depth of the queue that feeds this session.
    pub fn received_lag(&self, queue: &QueueDepth, now: Instant) -> Lag {
        let oldest = self.marks.get(self.received_marks);
        lag(queue, self.received, self.received_bytes, oldest, now)
    }

    /// Committed minus verified.
    pub fn verified_lag(&self, queue: &QueueDepth, now: Instant) -> Lag {
        lag(
            queue,
            self.verified,
            self.verified_bytes,
            self.marks.front(),
            now,
        )
    }

    /// Nanoseconds from each commit to the acknowledgement that it was received.
    pub fn to_received(&self) -> &Quantiles {
        &self.to_received
    }

    /// Nanoseconds from each commit to the acknowledgement that it was verified.
    pub fn to_verified(&self) -> &Quantiles {
        &self.to_verified
    }

    fn add(&mut self, mark: Mark) {
        if self.marks.len() < MARKS_MAX {
            self.marks.push_back(mark);
            return;
        }
        if let Some(last) = self.marks.back_mut() {
            *last = Mark {
                at: last.at,
                ..mark
            };
            self.received_marks = self.received_marks.min(MARKS_MAX - 1);
        }
    }

    fn advance_received(&mut self, received: CommitSeq, now: Instant) {
        self.received = received;
        while let Some(mark) = self.marks.get(self.received_marks) {
            if mark.seq > received {
                break;
            }
            self.to_received
                .record_duration(now.saturating_duration_since(mark.at));
            self.received_bytes = mark.bytes_end;
            self.received_marks += 1;
        }
        if received == self.sent {
            self.received_bytes = self.sent_bytes;
        }
    }

    fn advance_verified(&mut self, verified: CommitSeq, now: Instant) {
        self.verified = verified;
        while let Some(mark) = self.marks.front() {
            if mark.seq > verified {
                break;
            }
            self.to_verified
                .record_duration(now.saturating_duration_since(mark.at));
            self.verified_bytes = mark.bytes_end;
            self.marks.pop_front();
            self.received_marks = self.received_marks.saturating_sub(1);
        }
        if verified == self.sent {
            self.verified_bytes = self.sent_bytes;
        }
    }
}

fn lag(
    queue: &QueueDepth,
    position: CommitSeq,
    position_bytes: u64,
    oldest_sent: Option<&Mark>,
    now: Instant,
) -> Lag {
    let oldest = oldest_sent.map(|mark| mark.at).or(queue.oldest);
    Lag {
        commits: queue.last.0.saturating_sub(position.0),
        bytes: queue.pushed_bytes.saturating_sub(position_bytes),
        age: oldest.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::queue::{CommitQueue, QueueLimits};

    const LIMITS: QueueLimits = QueueLimits {
        bytes: 1 << 20,
        frames: 1 << 20,
    };

    #[test]
    fn follows_commits_in_all_units() {
        let start = Instant::now();
        let ms = |n| start + Duration::from_millis(n);
        let queue = CommitQueue::new(LIMITS, CommitSeq(10));
        let mut tracker = LagTracker::new(CommitSeq(10));
        for n in 1..=4 {
            queue.push(CommitSeq(10 + n), Bytes::from_static(&[0; 100]), ms(n));
        }
        tracker.sent(&queue.pop_batch_blocking(300, None).unwrap());
        assert_eq!(tracker.sent_seq(), CommitSeq(13));
        let behind = tracker.received_lag(&queue.depth(), ms(11));
        assert_eq!(
            behind,
            Lag {
                commits: 4,
                bytes: 400,
                age: Duration::from_millis(10)
            }
        );

        tracker
            .handle_ack(CommitSeq(12), CommitSeq(11), ms(12))
            .unwrap();
        let received = tracker.received_lag(&queue.depth(), ms(13));
        assert_eq!(
            received,
            Lag {
                commits: 2,
                bytes: 200,
                age: Duration::from_millis(10)
            }
        );
        let verified = tracker.verified_lag(&queue.depth(), ms(13));
        assert_eq!(
            verified,
            Lag {
                commits: 3,
                bytes: 300,
                age: Duration::from_millis(11)
            }
        );
        assert_eq!(tracker.to_received().summary().max, 11_000_000);
        assert_eq!(
            (tracker.to_received().count(), tracker.to_verified().count()),
            (2, 1)
        );

        tracker
            .handle_ack(CommitSeq(13), CommitSeq(13), ms(14))
            .unwrap();
        let queued = tracker.verified_lag(&queue.depth(), ms(14));
        assert_eq!(
            queued,
            Lag {
                commits: 1,
                bytes: 100,
                age: Duration::from_millis(10)
            }
        );
    }

    #[test]
    fn a_snapshot_of_a_later_commit_is_where_it_begins() {
        let start = Instant::now();
        let queue = CommitQueue::new(LIMITS, CommitSeq(10));
        let mut tracker = LagTracker::new(CommitSeq(10));
        queue.push_between(Bytes::from_static(&[0; 100]), start);
        tracker.sent(&queue.pop_batch_blocking(300, None).unwrap());
        queue.rebase(CommitSeq(50));
        tracker.rebase(CommitSeq(50));
        queue.push(CommitSeq(51), Bytes::from_static(&[0; 100]), start);
        tracker.sent(&queue.pop_batch_blocking(300, None).unwrap());
        assert_eq!(tracker.sent_seq(), CommitSeq(51));
        assert_eq!(tracker.verified_lag(&queue.depth(), start).commits, 1);
        tracker
            .handle_ack(CommitSeq(51), CommitSeq(50), start)
            .unwrap();
        // Neither the disk nor the snapshot counts as a commit.
        assert_eq!(tracker.to_received().count(), 1);
    }

    #[test]
    fn acknowledgements_that_cannot_be_true_are_refused() {
        let mut tracker = LagTracker::new(CommitSeq(5));
        let now = Instant::now();
        assert!(tracker.handle_ack(CommitSeq(6), CommitSeq(5), now).is_err());
        assert!(tracker.handle_ack(CommitSeq(4), CommitSeq(5), now).is_err());
        assert!(tracker.handle_ack(CommitSeq(3), CommitSeq(3), now).is_ok());
        assert_eq!(
            tracker.received_seq(),
            CommitSeq(5),
            "old news changes nothing"
        );
    }

    #[test]
    fn memory_is_bounded_and_lag_never_understated() {
        let start = Instant::now();
        let mut tracker = LagTracker::new(CommitSeq::BOOT);
        let total = MARKS_MAX as u64 + 1000;
        for seq in 1..=total {
            let at = start + Duration::from_micros(seq);
            tracker.sent(&[QueuedFrame {
                seq: CommitSeq(seq),
                at,
                bytes: Bytes::new(),
            }]);
        }
        assert_eq!(tracker.marks.len(), MARKS_MAX);
        let almost = CommitSeq(total - 1);
        tracker.handle_ack(almost, almost, start).unwrap();
        let queue = CommitQueue::new(LIMITS, CommitSeq(total)).depth();
        let late = start + Duration::from_micros(total);
        assert!(tracker.verified_lag(&queue, late).age >= Duration::from_micros(1));
        tracker
            .handle_ack(CommitSeq(total), CommitSeq(total), start)
            .unwrap();
        assert_eq!(tracker.verified_lag(&queue, late), Lag::default());
    }
}
