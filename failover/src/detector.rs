//! Failure detection: has the peer shown a sign of life lately?
//!
//! Both ends send heartbeats, and anything that arrives counts. A peer is lost when its connection is closed, at once,
//! or when nothing has arrived for the dead time.
//!
//! A host that is itself suspended, or starved, sees its clock jump while the peer's heartbeats wait unread in its
//! receive queue. To conclude from the jump would blame the peer for a pause of one's own, and after a pause of both
//! hosts (a snapshot of a rack, a stalled hypervisor) each would give up the other. So the detector asks to be polled
//! four times in a dead time, and when it was not, it takes the gap for a pause of its own and gives the peer one
//! whole dead time from now, which is also time to drain the queue. The price is that a peer which died during the
//! pause is noticed one dead time later. It is not a matter of safety: that is the arbiter's.

use crate::moment::Moment;

/// Polls in a dead time.
const POLLS_PER_DEAD_TIME: u64 = 4;

/// Why a peer counts as lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossCause {
    /// Its connection was closed.
    Closed,
    /// Nothing came from it for this long.
    Silent {
        /// Milliseconds since its last sign of life, without pauses of our own.
        for_ms: u64,
    },
}

impl std::fmt::Display for LossCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("its connection closed"),
            Self::Silent { for_ms } => write!(f, "no sign of life for {for_ms} ms"),
        }
    }
}

/// What a detector has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The peer has given a sign of life lately.
    Alive,
    /// It has not; this stays so for this connection.
    Lost(LossCause),
}

/// Watches the peer of one connection. Call [`poll`](Self::poll) whenever [`poll_timeout`](Self::poll_timeout) is
/// reached, and after each event.
#[derive(Clone, Debug)]
pub struct Detector {
    dead_after_ms: u64,
    /// The last sign of life, or the end of our own last pause.
    seen: Moment,
    /// When we last certainly ran.
    ran: Moment,
    lost: Option<LossCause>,
}

impl Detector {
    /// Watches from `now` on a peer that was alive then. A dead time of 0 counts as 1 ms.
    pub fn new(dead_after_ms: u64, now: Moment) -> Self {
        Self {
            dead_after_ms: dead_after_ms.max(1),
            seen: now,
            ran: now,
            lost: None,
        }
    }

    /// How often each end should send a heartbeat so that two may be lost without harm.
    pub fn heartbeat_every_ms(dead_after_ms: u64) -> u64 {
        (dead_after_ms / 5).max(1)
    }

    /// Something came from the peer: a heartbeat, an acknowledgement, anything.
    pub fn handle_sign(&mut self, now: Moment) {
        self.notice_own_pause(now);
        self.seen = self.seen.max(now);
    }

    /// The connection was closed.
    pub fn handle_closed(&mut self) {
        self.lost.get_or_insert(LossCause::Closed);
    }

    /// Whether the peer counts as lost.
    pub fn poll(&mut self, now: Moment) -> Verdict {
        self.notice_own_pause(now);
        let for_ms = now.ms_since(self.seen);
        if self.lost.is_none() && for_ms >= self.dead_after_ms {
            self.lost = Some(LossCause::Silent { for_ms });
        }
        self.lost.map_or(Verdict::Alive, Verdict::Lost)
    }

    /// When to poll next; none if there is nothing more to find out.
    pub fn poll_timeout(&self) -> Option<Moment> {
        let silent = self.seen.plus_ms(self.dead_after_ms);
        self.lost
            .is_none()
            .then(|| silent.min(self.ran.plus_ms(self.poll_every_ms())))
    }

    fn poll_every_ms(&self) -> u64 {
        (self.dead_after_ms / POLLS_PER_DEAD_TIME).max(1)
    }

    /// A gap of more than two polls was ours: it says nothing about the peer.
    fn notice_own_pause(&mut self, now: Moment) {
        if now.ms_since(self.ran) > 2 * self.poll_every_ms() {
            self.seen = self.seen.max(now);
        }
        self.ran = self.ran.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_ms(ms)
    }

    /// Polls whenever asked, up to `end`; when the peer was found lost.
    fn run(detector: &mut Detector, end: u64) -> Option<(u64, LossCause)> {
        while let Some(next) = detector.poll_timeout().filter(|next| next.as_ms() <= end) {
            if let Verdict::Lost(cause) = detector.poll(next) {
                return Some((next.as_ms(), cause));
            }
        }
        None
    }

    #[test]
    fn silence_is_noticed_exactly_when_due_and_any_sign_postpones_it() {
        let mut detector = Detector::new(150, at(0));
        assert_eq!(run(&mut detector, 100), None);
        detector.handle_sign(at(100));
        let lost = Some((250, LossCause::Silent { for_ms: 150 }));
        assert_eq!(run(&mut detector, 1000), lost);
        detector.handle_sign(at(251));
        assert!(
            matches!(detector.poll(at(251)), Verdict::Lost(_)),
            "lost stays lost"
        );
        assert_eq!(detector.poll_timeout(), None);
    }

    #[test]
    fn a_closed_connection_is_noticed_at_once() {
        let mut detector = Detector::new(150, at(0));
        detector.handle_closed();
        assert_eq!(detector.poll(at(1)), Verdict::Lost(LossCause::Closed));
    }

    #[test]
    fn a_pause_of_our_own_gives_the_peer_one_more_dead_time() {
        let mut detector = Detector::new(150, at(0));
        assert_eq!(run(&mut detector, 100), None);
        // Suspended for ten seconds: the first poll afterwards concludes nothing.
        assert_eq!(detector.poll(at(10_100)), Verdict::Alive);
        let mut drained = detector.clone();
        drained.handle_sign(at(10_110));
        assert_eq!(
            run(&mut drained, 10_255),
            None,
            "the queue held signs of life"
        );
        let lost = Some((10_250, LossCause::Silent { for_ms: 150 }));
        assert_eq!(
            run(&mut detector, 20_000),
            lost,
            "a peer that is gone is still found"
        );
    }

    #[test]
    fn polls_that_come_a_little_late_do_not_postpone_detection() {
        let mut detector = Detector::new(150, at(0));
        let mut now = 0;
        while detector.poll(at(now)) == Verdict::Alive {
            now += 50;
        }
        assert_eq!(now, 150);
    }

    #[test]
    fn a_clock_that_seems_to_go_back_or_a_tiny_dead_time_does_no_harm() {
        let mut detector = Detector::new(0, at(100));
        detector.handle_sign(at(50));
        assert_eq!(detector.poll(at(90)), Verdict::Alive);
        assert!(run(&mut detector, 1000).is_some());
    }
}
