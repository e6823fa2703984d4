//! How a host that is told to be the primary takes its first term.

use super::PrimaryDecider;
use crate::decider::event::StopReason;
use crate::moment::Moment;
use crate::standing::{Phase, Revision, Standing, Term, Versioned};

impl PrimaryDecider {
    /// The arbiter has shown the standing, to a host that holds none.
    pub(super) fn start_over(&mut self, now: Moment, current: Option<Versioned<Standing>>) {
        let (revision, standing) = current.map_or((None, None), |current| {
            (Some(current.revision), Some(current.value))
        });
        match &standing {
            Some(Standing {
                term,
                holder,
                phase,
            }) if *phase != Phase::Ended && *holder != self.settings.host => {
                let (holder, term, phase) = (holder.clone(), *term, *phase);
                self.stop(StopReason::Refused {
                    holder,
                    term,
                    phase,
                });
            }
            Some(Standing {
                phase: Phase::Running,
                term,
                ..
            }) => {
                if self.has_waited(now, revision) {
                    let (peer, term) = (self.settings.peer.clone(), *term);
                    self.stop(StopReason::GuestLeftBehind { peer, term });
                } else {
                    self.wait_for_backup(now, revision);
                }
            }
            _ => self.take_first_term(now, revision, standing.as_ref()),
        }
    }

    /// The guest of an earlier process of this host was running. Whoever is in sync with it is to carry it on;
    /// starting it anew would lose what it has done, so that is for a person to decide.
    fn wait_for_backup(&mut self, now: Moment, revision: Option<Revision>) {
        let until = match self.reclaim {
            Some((seen, until)) if seen == revision => until,
            _ => now.plus_ms(self.settings.reclaim_after_ms),
        };
        self.reclaim = Some((revision, until));
        self.claimant.start_at(until);
    }

    fn has_waited(&self, now: Moment, revision: Option<Revision>) -> bool {
        self.reclaim
            .is_some_and(|(seen, until)| seen == revision && now >= until)
    }

    fn take_first_term(
        &mut self,
        now: Moment,
        revision: Option<Revision>,
        before: Option<&Standing>,
    ) {
        let last = before.map_or(Term::NONE, |before| before.term);
        match last.next() {
            Some(term) => {
                let next = Standing::new(term, self.settings.host.clone(), Phase::Starting);
                self.swap(revision, next);
            }
            None => self
                .claimant
                .fail(now, "the arbiter has no term left".to_owned()),
        }
    }
}
