//! One question to the arbiter at a time: read, then swap what was read; again after a while if there is no answer.
//!
//! A swap whose answer did not come may still count, even later than a read that does not show it. So a claimant
//! is *settled* only when nothing is out and the revision that the last unanswered swap expected is known to be past.
//!
//! ```text
//!          start                    read answered                  owner: swap
//!   Idle --------> Due --> Reading ---------------> Idle (Current) ------------> Swapping
//!                   ^         |                                                      |
//!                   +---------+--- no answer: later, a little longer each time ------+--> Idle (Won, Current)
//! ```

use crate::arbiter::{ArbiterAnswer, ArbiterError, ArbiterRequest, Swap};
use crate::moment::Moment;
use crate::standing::{Revision, Standing, Versioned};

/// The wait after the first failure; it doubles with each one.
const FIRST_RETRY_MS: u64 = 20;
/// The longest wait between two attempts: an arbiter that comes back is noticed within a second.
const MAX_RETRY_MS: u64 = 1000;

/// What came of an answer.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing to act upon: there was no answer, the attempt is repeated by itself.
    Nothing,
    /// This is in force. The claimant is idle; its owner swaps, asks again, or rests.
    Current(Option<Versioned<Standing>>),
    /// The swap was won.
    Won(Versioned<Standing>),
}

#[derive(Debug)]
enum Stage {
    Idle,
    Due(Moment),
    Reading,
    Swapping {
        expected: Option<Revision>,
        next: Standing,
    },
}

/// What a swap found before it; none: no standing at all.
#[derive(Clone, Copy, Debug)]
struct Expected(Option<Revision>);

/// Talks to the arbiter for a decider.
#[derive(Debug)]
pub(super) struct Claimant {
    stage: Stage,
    failures: u32,
    trouble: Option<String>,
    /// The revision expected by a swap that was never answered: until the arbiter is past it, the swap may count.
    unsettled: Option<Expected>,
}

impl Claimant {
    pub(super) fn new() -> Self {
        Self {
            stage: Stage::Idle,
            failures: 0,
            trouble: None,
            unsettled: None,
        }
    }

    /// Asks soon, unless a question is out or due already.
    pub(super) fn start(&mut self, now: Moment) {
        if matches!(self.stage, Stage::Idle) {
            self.stage = Stage::Due(now);
        }
    }

    /// Asks now instead of after the wait.
    pub(super) fn hurry(&mut self, now: Moment) {
        if matches!(self.stage, Stage::Idle | Stage::Due(_)) {
            self.stage = Stage::Due(now);
        }
    }

    /// Asks at `at`, unless a question is out.
    pub(super) fn start_at(&mut self, at: Moment) {
        if matches!(self.stage, Stage::Idle | Stage::Due(_)) {
            self.stage = Stage::Due(at);
        }
    }

    /// Nothing to ask any more. What is out is still answered.
    pub(super) fn rest(&mut self) {
        if matches!(self.stage, Stage::Due(_)) {
            self.stage = Stage::Idle;
        }
        self.failures = 0;
        self.trouble = None;
    }

    /// Whether no swap of ours can still change anything.
    pub(super) fn is_settled(&self) -> bool {
        self.unsettled.is_none() && !matches!(self.stage, Stage::Swapping { .. })
    }

    /// Why there is no answer yet, if something is in the way.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The question that is due, if any. `told` goes with a read.
    pub(super) fn poll(
        &mut self,
        now: Moment,
        told: impl FnOnce() -> Option<Standing>,
    ) -> Option<ArbiterRequest> {
        match self.stage {
            Stage::Due(at) if at <= now => {
                self.stage = Stage::Reading;
                Some(ArbiterRequest::Read { told: told() })
            }
            _ => None,
        }
    }

    /// When a question becomes due.
    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        match self.stage {
            Stage::Due(at) => Some(at),
            _ => None,
        }
    }

    /// Replaces the standing that was just found current.
    pub(super) fn swap(
        &mut self,
        expected: Option<Revision>,
        next: Standing,
        permit: bool,
    ) -> ArbiterRequest {
        assert!(
            matches!(self.stage, Stage::Idle),
            "one question at a time: swapping while {:?}",
            self.stage
        );
        self.stage = Stage::Swapping {
            expected,
            next: next.clone(),
        };
        ArbiterRequest::Swap {
            expected,
            next,
            permit,
        }
    }

    /// What was found current is of no use: says why, and looks again later.
    pub(super) fn fail(&mut self, now: Moment, trouble: String) {
        let wait = FIRST_RETRY_MS
            .saturating_mul(1 << self.failures.min(16))
            .min(MAX_RETRY_MS);
        self.failures = self.failures.saturating_add(1);
        self.trouble = Some(trouble);
        self.stage = Stage::Due(now.plus_ms(wait));
    }

    /// Takes the answer to the question that is out; one to no question says nothing.
    pub(super) fn handle(&mut self, now: Moment, answer: ArbiterAnswer) -> Outcome {
        match (std::mem::replace(&mut self.stage, Stage::Idle), answer) {
            (Stage::Reading, ArbiterAnswer::Read(Ok(current))) => self.current(current),
            (Stage::Reading, ArbiterAnswer::Read(Err(error))) => self.no_answer(now, &error),
            (Stage::Swapping { next, .. }, ArbiterAnswer::Swap(Ok(Swap::Won(revision)))) => self
                .won(Versioned {
                    revision,
                    value: next,
                }),
            (Stage::Swapping { next, .. }, ArbiterAnswer::Swap(Ok(Swap::Lost(current)))) => {
                self.unsettled = None;
                match current {
                    // An earlier attempt of ours, whose answer did not come, had counted.
                    Some(current) if current.value == next => self.won(current),
                    current => self.current(current),
                }
            }
            (Stage::Swapping { expected, .. }, ArbiterAnswer::Swap(Err(error))) => {
                if error.is_unsettled() {
                    self.unsettled = Some(Expected(expected));
                }
                self.no_answer(now, &error)
            }
            (stage, _) => {
                self.stage = stage;
                Outcome::Nothing
            }
        }
    }

    fn won(&mut self, won: Versioned<Standing>) -> Outcome {
        self.unsettled = None;
        self.rest();
        Outcome::Won(won)
    }

    fn current(&mut self, current: Option<Versioned<Standing>>) -> Outcome {
        let revision = current.as_ref().map(|current| current.revision);
        if self
            .unsettled
            .is_some_and(|Expected(expected)| expected != revision)
        {
            self.unsettled = None;
        }
        Outcome::Current(current)
    }

    fn no_answer(&mut self, now: Moment, error: &ArbiterError) -> Outcome {
        self.fail(now, error.to_string());
        Outcome::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::standing::{HostName, Phase, Term};

    fn standing(term: u64) -> Standing {
        Standing::new(
            Term::new(term),
            HostName::new("alpha").unwrap(),
            Phase::Running,
        )
    }

    fn at(ms: u64) -> Moment {
        Moment::from_ms(ms)
    }

    #[expect(clippy::unnecessary_wraps, reason = "as arbiters answer")]
    fn current(revision: u64, term: u64) -> Option<Versioned<Standing>> {
        Some(Versioned {
            revision: Revision(revision),
            value: standing(term),
        })
    }

    /// A claimant that has read revision 1 and swapped it, without an answer.
    fn unanswered() -> Claimant {
        let mut claimant = Claimant::new();
        claimant.start(at(0));
        claimant.poll(at(0), || None).unwrap();
        claimant.handle(at(1), ArbiterAnswer::Read(Ok(current(1, 1))));
        claimant.swap(Some(Revision(1)), standing(2), false);
        let error = ArbiterError::Unsettled {
            next: standing(2),
            reason: "timeout".to_owned(),
        };
        claimant.handle(at(2), ArbiterAnswer::Swap(Err(error)));
        claimant
    }

    #[test]
    fn an_unanswered_swap_stays_unsettled_until_its_revision_is_past() {
        let mut claimant = unanswered();
        assert!(!claimant.is_settled());
        claimant.poll(at(100), || None).unwrap();
        claimant.handle(at(101), ArbiterAnswer::Read(Ok(current(1, 1))));
        assert!(
            !claimant.is_settled(),
            "a read that does not show it proves nothing"
        );
        claimant.start(at(200));
        claimant.poll(at(200), || None).unwrap();
        claimant.handle(at(201), ArbiterAnswer::Read(Ok(current(2, 2))));
        assert!(claimant.is_settled());
    }

    #[test]
    fn losing_to_ones_own_earlier_swap_is_winning() {
        let mut claimant = unanswered();
        claimant.poll(at(100), || None).unwrap();
        claimant.handle(at(101), ArbiterAnswer::Read(Ok(current(1, 1))));
        claimant.swap(Some(Revision(1)), standing(2), false);
        let outcome = claimant.handle(at(102), ArbiterAnswer::Swap(Ok(Swap::Lost(current(2, 2)))));
        assert!(matches!(outcome, Outcome::Won(won) if won.revision == Revision(2)));
        assert!(claimant.is_settled());
    }

    #[test]
    fn attempts_grow_apart_up_to_a_second() {
        let mut claimant = Claimant::new();
        claimant.start(at(0));
        let mut waits = Vec::new();
        let mut now = at(0);
        for _ in 0..60 {
            claimant.poll(now, || None).unwrap();
            let error = ArbiterError::Other("down".to_owned());
            assert!(matches!(
                claimant.handle(now, ArbiterAnswer::Read(Err(error))),
                Outcome::Nothing
            ));
            let next = claimant.poll_timeout().unwrap();
            waits.push(next.ms_since(now));
            now = next;
        }
        assert_eq!(waits[..4], [20, 40, 80, 160]);
        assert_eq!(*waits.last().unwrap(), MAX_RETRY_MS);
        assert_eq!(claimant.trouble(), Some("arbiter: down"));
    }
}
