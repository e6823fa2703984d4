//! A made-up network and a made-up arbiter: slow, sometimes cut, sometimes without an answer.

use super::script::Random;
use crate::arbiter::{ArbiterAnswer, ArbiterError, ArbiterRequest, Swap};
use crate::decider::{GaveUp, SyncMark};
use crate::standing::{Phase, Revision, Standing, Term, Versioned};

/// What the hosts say to each other.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Dial,
    Welcome {
        term: Term,
    },
    Decline,
    Join {
        gave_up: Option<GaveUp>,
    },
    Machine {
        guest: u32,
        commits: Vec<u64>,
        ended: bool,
        left: usize,
    },
    Commit {
        index: usize,
        value: u64,
        ended: bool,
    },
    Ack {
        commits: usize,
    },
    Released {
        left: usize,
    },
    InSync {
        term: Term,
        mark: SyncMark,
    },
    Ended {
        status: u8,
    },
    Heartbeat,
    Closed,
}

impl Message {
    fn is_control(&self) -> bool {
        !matches!(
            self,
            Self::Machine { .. } | Self::Commit { .. } | Self::Ack { .. } | Self::Released { .. }
        )
    }
}

/// A connection. Messages of one stream and direction arrive in order; one that is lost breaks the direction for good.
#[derive(Debug)]
pub(super) struct Connection {
    /// Who dialed, and its life; then who was dialed.
    pub(super) ends: [(usize, u64); 2],
    /// By direction and stream.
    delay_ms: [[u64; 2]; 2],
    /// By direction and stream.
    last_arrival: [[u64; 2]; 2],
    pub(super) cut: [bool; 2],
}

impl Connection {
    pub(super) fn new(from: (usize, u64), to: (usize, u64), random: &mut Random) -> Self {
        let mut delay = || {
            if random.percent(8) {
                random.range(100, 900)
            } else {
                random.range(1, 12)
            }
        };
        let delay_ms = [[delay(), delay()], [delay(), delay()]];
        Self {
            ends: [from, to],
            delay_ms,
            last_arrival: [[0; 2]; 2],
            cut: [false; 2],
        }
    }

    /// When a message sent now by end `from` arrives. Commits and control are streams of their own.
    pub(super) fn arrival(
        &mut self,
        from: usize,
        message: &Message,
        now: u64,
        random: &mut Random,
    ) -> u64 {
        let stream = usize::from(message.is_control());
        let at = now + 1 + random.range(0, self.delay_ms[from][stream] + 1);
        let last = &mut self.last_arrival[from][stream];
        *last = at.max(*last);
        *last
    }
}

/// What an arbiter makes of a question: when it takes effect (none: never), and when it is answered.
#[derive(Debug)]
pub(super) struct Fate {
    pub(super) applied_at: Option<u64>,
    pub(super) answered_at: u64,
    /// The answer when it cannot be the true one.
    pub(super) failure: Option<ArbiterAnswer>,
}

/// One register with revisions.
#[derive(Debug, Default)]
pub(super) struct SimArbiter {
    pub(super) current: Option<Versioned<Standing>>,
}

impl SimArbiter {
    pub(super) fn apply(&mut self, request: &ArbiterRequest) -> ArbiterAnswer {
        match request {
            ArbiterRequest::Read { .. } => ArbiterAnswer::Read(Ok(self.current.clone())),
            ArbiterRequest::Swap { expected, next, .. } => {
                let revision = self.current.as_ref().map(|current| current.revision);
                if revision != *expected {
                    return ArbiterAnswer::Swap(Ok(Swap::Lost(self.current.clone())));
                }
                let revision = Revision(revision.unwrap_or_default().0 + 1);
                self.current = Some(Versioned {
                    revision,
                    value: next.clone(),
                });
                ArbiterAnswer::Swap(Ok(Swap::Won(revision)))
            }
        }
    }

    /// Whether that swap has just put that phase in force.
    pub(super) fn has_taken(
        request: &ArbiterRequest,
        answer: &ArbiterAnswer,
        phase: Phase,
    ) -> bool {
        let swap = matches!(request, ArbiterRequest::Swap { next, .. } if next.phase == phase);
        swap && matches!(answer, ArbiterAnswer::Swap(Ok(Swap::Won(_))))
    }

    /// Decides what becomes of a question asked now.
    pub(super) fn fate(
        request: &ArbiterRequest,
        now: u64,
        down: bool,
        healed: bool,
        random: &mut Random,
    ) -> Fate {
        let slow = !healed && random.percent(10);
        let mut delay = || 1 + random.range(0, if slow { 400 } else { 8 });
        let (applied, answered) = (now + delay(), delay());
        if down
            && !random.percent(if matches!(request, ArbiterRequest::Swap { .. }) {
                30
            } else {
                0
            })
        {
            return Fate {
                applied_at: None,
                answered_at: now + 5,
                failure: Some(failure(request)),
            };
        }
        if down || !healed && random.percent(4) {
            // It may count, now or much later, or never; nobody says which.
            let late = random.percent(60).then(|| now + random.range(1, 700));
            return Fate {
                applied_at: late,
                answered_at: now + random.range(5, 60),
                failure: Some(unsettled(request)),
            };
        }
        Fate {
            applied_at: Some(applied),
            answered_at: applied + answered,
            failure: None,
        }
    }
}

fn failure(request: &ArbiterRequest) -> ArbiterAnswer {
    let error = ArbiterError::Other("down".to_owned());
    match request {
        ArbiterRequest::Read { .. } => ArbiterAnswer::Read(Err(error)),
        ArbiterRequest::Swap { .. } => ArbiterAnswer::Swap(Err(error)),
    }
}

fn unsettled(request: &ArbiterRequest) -> ArbiterAnswer {
    match request {
        ArbiterRequest::Read { .. } => failure(request),
        ArbiterRequest::Swap { next, .. } => ArbiterAnswer::Swap(Err(ArbiterError::Unsettled {
            next: next.clone(),
            reason: "no answer".to_owned(),
        })),
    }
}

impl Connection {
    /// From now on as a network should be; what was lost stays lost.
    pub(super) fn make_fast(&mut self) {
        self.delay_ms = [[5; 2]; 2];
    }
}
