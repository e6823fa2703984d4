//! What the primary wants of the arbiter, and what it makes of the answers.

use super::{End, PrimaryDecider};
use crate::decider::event::{Action, GateMode, StopReason};
use crate::decider::settings::{Fault, StartPolicy};
use crate::moment::Moment;
use crate::standing::{Phase, Revision, Standing, Term, Versioned};

/// How often a primary whose guest has not started looks whether the term is still its own: a backup that lost
/// it may have started the guest instead, and neither of the two would connect to the other.
const LOOK_EVERY_MS: u64 = 1000;

/// What the primary wants of the arbiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// The first term.
    Start,
    /// The word that the guest has ended.
    RecordEnd,
    /// The next term, without the backup that was lost.
    GoOnAlone,
    /// The word that the guest runs.
    Commence,
    /// Who holds the term, now that the peer claims a higher one.
    Verify,
}

/// What a standing means to the holder of an earlier one.
pub(super) enum Judgement {
    /// Still this host's, or this host's next one, from a swap of its own.
    Ours,
    /// Another's.
    LostTo(Standing),
    /// It cannot have come from the standing we know.
    Unusable(String),
}

impl PrimaryDecider {
    pub(super) fn goal(&self) -> Option<Goal> {
        let Some(standing) = &self.standing else {
            return Some(Goal::Start);
        };
        let may_commence = self.settings.start == StartPolicy::Alone || self.slot.is_protected();
        if matches!(self.end, End::Drained { .. }) {
            Some(Goal::RecordEnd)
        } else if self.slot.is_undecided() {
            Some(Goal::GoOnAlone)
        } else if standing.value.phase == Phase::Starting && may_commence {
            Some(Goal::Commence)
        } else {
            self.peer_term.map(|_| Goal::Verify)
        }
    }

    pub(super) fn is_starting(&self) -> bool {
        self.standing
            .as_ref()
            .is_some_and(|standing| standing.value.phase == Phase::Starting)
    }

    pub(super) fn ask(&mut self, now: Moment) {
        if self.goal().is_some() || !self.claimant.is_settled() {
            self.claimant.start(now);
        } else if self.is_starting() && now >= self.next_look {
            self.next_look = now.plus_ms(LOOK_EVERY_MS);
            self.claimant.start(now);
        } else {
            self.claimant.rest();
        }
        let (peer, peer_term) = (&self.settings.peer, self.peer_term);
        let told = || peer_term.map(|term| Standing::new(term, peer.clone(), Phase::Running));
        if let Some(request) = self.claimant.poll(now, told) {
            self.act(Action::Ask(request));
        }
    }

    pub(super) fn next_standing(&self, current: &Standing) -> Result<Option<Standing>, String> {
        let (term, phase) = match self.goal() {
            None | Some(Goal::Start | Goal::Verify) => return Ok(None),
            Some(Goal::RecordEnd) => (current.term, Phase::Ended),
            Some(Goal::Commence) => (current.term, Phase::Running),
            Some(Goal::GoOnAlone) => (
                current.term.next().ok_or("the arbiter has no term left")?,
                current.phase,
            ),
        };
        Ok(Some(Standing::new(term, self.settings.host.clone(), phase)))
    }

    /// The arbiter has shown the standing, to a host that holds one.
    pub(super) fn judge(&mut self, now: Moment, current: Option<Versioned<Standing>>) {
        match (
            self.judgement(current.as_ref().map(|current| &current.value)),
            current,
        ) {
            (Judgement::Ours, Some(current)) => {
                let revision = current.revision;
                self.peer_term = None;
                self.adopt(current.clone());
                if self.stopped.is_some() {
                    return;
                }
                match self.next_standing(&current.value) {
                    Ok(Some(next)) => self.swap(Some(revision), next),
                    Ok(None) => {}
                    Err(trouble) => self.claimant.fail(now, trouble),
                }
            }
            (Judgement::LostTo(winner), Some(current)) => self.lost_term(winner, current.revision),
            (Judgement::Unusable(trouble), _) => self.claimant.fail(now, trouble),
            (Judgement::Ours | Judgement::LostTo(_), None) => {}
        }
    }

    pub(super) fn judgement(&self, current: Option<&Standing>) -> Judgement {
        let held = self
            .standing
            .as_ref()
            .map_or(Term::NONE, |standing| standing.value.term);
        match current {
            None => Judgement::Unusable(format!(
                "the arbiter has no record, though this host holds term {held}: restore it, or \
                 restart the hosts"
            )),
            Some(current) if current.term < held => Judgement::Unusable(format!(
                "the arbiter's record ({current}) is older than this host's term {held}: restore it"
            )),
            Some(current)
                if current.holder == self.settings.host && current.term <= self.claimed =>
            {
                Judgement::Ours
            }
            Some(current) => Judgement::LostTo(current.clone()),
        }
    }

    pub(super) fn swap(&mut self, expected: Option<Revision>, next: Standing) {
        self.claimed = self.claimed.max(next.term);
        let request = self.claimant.swap(expected, next, self.permit);
        self.act(Action::Ask(request));
    }

    /// This is in force, and it is this host's.
    pub(super) fn adopt(&mut self, ours: Versioned<Standing>) {
        let (term, phase) = (ours.value.term, ours.value.phase);
        let Some(before) = self.standing.replace(ours) else {
            return self.boot();
        };
        let before = before.value;
        if before.phase == Phase::Starting && phase == Phase::Running {
            self.act(Action::Run);
        }
        if term > before.term {
            self.settle_slot();
        }
        if phase == Phase::Ended {
            self.finish();
        }
    }

    pub(super) fn boot(&mut self) {
        self.act(Action::Gate(GateMode::Open));
        self.act(Action::Boot);
        if self.settings.broken(Fault::RunBeforeRecorded) {
            self.act(Action::Run);
        }
    }

    pub(super) fn lost_term(&mut self, winner: Standing, revision: Revision) {
        if self.settings.broken(Fault::IgnoreLostTerm) {
            let value = Standing {
                holder: self.settings.host.clone(),
                ..winner
            };
            return self.adopt(Versioned { revision, value });
        }
        // Everything of an ended guest has left here: the winner can only repeat it.
        if matches!(self.end, End::Drained { .. }) {
            return self.finish();
        }
        self.stop(StopReason::LostTerm {
            winner: winner.holder,
            term: winner.term,
        });
    }

    pub(super) fn peer_is_primary(&mut self, now: Moment, term: Term) {
        let Some(standing) = &self.standing else {
            return self.two_primaries(term);
        };
        if standing.value.phase == Phase::Starting {
            return self.two_primaries(term);
        }
        // A lower term is that of a primary which does not know yet that it has lost.
        if term > standing.value.term {
            self.peer_term = Some(term);
            self.claimant.hurry(now);
        }
    }

    pub(super) fn two_primaries(&mut self, term: Term) {
        self.stop(StopReason::TwoPrimaries {
            peer: self.settings.peer.clone(),
            term,
        });
    }
}
