//! The backup's side: joins a primary, holds a right once it is in sync, and uses it when the primary is lost.

use std::collections::VecDeque;

use super::claimant::{Claimant, Outcome};
use super::event::{Action, Event, GaveUp, PromoteRefused, SessionId, StopReason, SyncMark};
use super::settings::{Fault, Settings};
use crate::arbiter::ArbiterAnswer;
use crate::moment::Moment;
use crate::standing::{Phase, Revision, Standing, Term, Versioned};

/// A backup that becomes the primary.
#[derive(Debug)]
pub(super) struct Promotion {
    pub(super) settings: Settings,
    /// What it won: `Running` with the guest that it holds, `Starting` with one to be made.
    pub(super) won: Versioned<Standing>,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// Without a primary.
    Searching {
        /// How the last one was lost, while it is not known whether that one had started the guest.
        lost: Option<Loss>,
    },
    /// Joined, not in sync.
    Syncing { session: SessionId, term: Term },
    /// In sync: holds the right in `term`.
    InSync { session: SessionId, term: Term },
    /// Uses its right: the primary of `term` is lost.
    Claiming { term: Term, cause: String },
}

#[derive(Debug)]
pub(super) struct Loss {
    pub(super) cause: String,
    at: Moment,
}

/// The decider of a backup, until it is promoted.
#[derive(Debug)]
pub(super) struct BackupDecider {
    pub(super) settings: Settings,
    pub(super) stage: Stage,
    /// The last telling of being in sync that reached this process.
    told: Option<GaveUp>,
    /// The term that this process asked for with the guest that it holds.
    claimed: Option<Term>,
    permit: bool,
    /// Why the last claim or search ended without a guest, for people.
    pub(super) note: Option<String>,
    pub(super) claimant: Claimant,
    pub(super) stopped: Option<StopReason>,
    promotion: Option<Versioned<Standing>>,
    actions: VecDeque<Action>,
}

impl BackupDecider {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            stage: Stage::Searching { lost: None },
            told: None,
            claimed: None,
            permit: false,
            note: None,
            claimant: Claimant::new(),
            stopped: None,
            promotion: None,
            actions: VecDeque::new(),
        }
    }

    /// What this backup has become, if it was promoted.
    pub(super) fn take_promotion(&mut self) -> Option<Promotion> {
        let won = self.promotion.take()?;
        Some(Promotion {
            settings: self.settings.clone(),
            won,
        })
    }

    pub(super) fn handle(&mut self, now: Moment, event: Event) {
        if self.stopped.is_some() {
            return;
        }
        match event {
            Event::PrimaryFound { session, term } => self.found(now, session, term),
            Event::InSync {
                session,
                term,
                mark,
            } => self.in_sync(session, term, mark),
            Event::PeerLost { session, cause } => self.lose(now, session, cause),
            Event::PrimaryEnded { session, status } if self.session() == Some(session) => {
                self.stop(StopReason::Ended {
                    status: Some(status),
                });
            }
            // Said to primaries, or of a session that is over.
            Event::PrimaryEnded { .. }
            | Event::BackupJoined { .. }
            | Event::BackupSynced { .. }
            | Event::BackupCaughtUp { .. }
            | Event::PeerIsPrimary { .. }
            | Event::GuestEnded { .. }
            | Event::OutputsDrained => {}
        }
    }

    pub(super) fn handle_answer(&mut self, now: Moment, answer: ArbiterAnswer) {
        let outcome = self.claimant.handle(now, answer);
        if self.stopped.is_some() {
            return;
        }
        match (outcome, &self.stage) {
            (Outcome::Won(won), _) => self.promotion = Some(won),
            (Outcome::Current(current), &Stage::Claiming { term, .. }) => {
                self.judge_claim(now, term, current);
            }
            (Outcome::Current(current), Stage::Searching { lost: Some(_) }) => {
                self.judge_boot(now, current);
            }
            (Outcome::Nothing | Outcome::Current(_), _) => {}
        }
    }

    pub(super) fn handle_promote(&mut self, now: Moment) -> Result<(), PromoteRefused> {
        let undecided = matches!(self.stage, Stage::Claiming { .. }) && self.stopped.is_none();
        PromoteRefused::check(self.settings.settled_by, undecided, || {
            self.status().sentence
        })?;
        self.permit = true;
        self.claimant.hurry(now);
        Ok(())
    }

    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        self.claimant
            .poll_timeout()
            .filter(|_| self.stopped.is_none())
    }

    /// Asks what has become due, and hands out what is to be done.
    pub(super) fn advance(&mut self, now: Moment) -> &mut VecDeque<Action> {
        if self.stopped.is_none() && self.promotion.is_none() {
            self.ask(now);
        }
        &mut self.actions
    }

    fn ask(&mut self, now: Moment) {
        let wants = matches!(
            self.stage,
            Stage::Claiming { .. } | Stage::Searching { lost: Some(_) }
        );
        if wants || !self.claimant.is_settled() {
            self.claimant.start(now);
        } else {
            self.claimant.rest();
        }
        let claimed = match self.stage {
            Stage::Claiming { term, .. } => Some(term),
            _ => None,
        };
        let peer = &self.settings.peer;
        let told = || claimed.map(|term| Standing::new(term, peer.clone(), Phase::Running));
        if let Some(request) = self.claimant.poll(now, told) {
            self.actions.push_back(Action::Ask(request));
        }
    }

    fn stop(&mut self, reason: StopReason) {
        self.actions.push_back(Action::Stop(reason.clone()));
        self.stopped = Some(reason);
    }

    fn session(&self) -> Option<SessionId> {
        match self.stage {
            Stage::Syncing { session, .. } | Stage::InSync { session, .. } => Some(session),
            Stage::Searching { .. } | Stage::Claiming { .. } => None,
        }
    }

    // The primary's comings and goings.

    fn found(&mut self, now: Moment, session: SessionId, term: Term) {
        if let Some(before) = self.session() {
            self.lose(now, before, "it was connected to anew".to_owned());
        }
        if let Some(reason) = self.obstacle(now, term) {
            return self.actions.push_back(Action::Leave { session, reason });
        }
        // From here on, and before the primary hears of it, the right is gone.
        self.stage = Stage::Syncing { session, term };
        self.claimed = None;
        self.permit = false;
        self.note = None;
        self.claimant.rest();
        self.actions.push_back(Action::Join {
            session,
            gave_up: self.told,
        });
    }

    /// Why this host cannot join a primary of that term now.
    fn obstacle(&mut self, now: Moment, term: Term) -> Option<String> {
        if !self.claimant.is_settled() && !self.settings.broken(Fault::JoinUnsettled) {
            return Some("a claim of this host's may still count".to_owned());
        }
        let Stage::Claiming { term: held, .. } = self.stage else {
            return None;
        };
        if term < held {
            return Some(format!(
                "it is primary in term {term}, before term {held} protected here"
            ));
        }
        if term > held {
            // A guest started anew, or a term won against us. The arbiter knows; until it says so, what this host
            // holds may be all that is left of the guest.
            self.claimant.hurry(now);
            return Some(format!(
                "this host could carry on with the guest of term {held}, and has not heard from \
                 the arbiter that term {term} has replaced it"
            ));
        }
        None
    }

    fn in_sync(&mut self, by: SessionId, term: Term, mark: SyncMark) {
        if matches!(self.stage, Stage::Syncing { session, .. } if session == by) {
            self.stage = Stage::InSync { session: by, term };
            self.told = Some(GaveUp { term, mark });
        }
    }

    fn lose(&mut self, now: Moment, session: SessionId, cause: String) {
        if self.session() != Some(session) {
            return;
        }
        let right = match self.stage {
            Stage::InSync { term, .. } => Some(term),
            Stage::Syncing { term, .. } if self.settings.broken(Fault::GoLiveUnsynced) => {
                Some(term)
            }
            _ if self.settings.broken(Fault::KeepRight) => self.told.map(|told| told.term),
            _ => None,
        };
        if let Some(term) = right {
            self.stage = Stage::Claiming { term, cause };
            self.claimant.hurry(now);
        } else {
            self.stage = Stage::Searching {
                lost: Some(Loss { cause, at: now }),
            };
            self.claimant
                .start_at(now.plus_ms(self.settings.boot_after_ms));
        }
    }

    // The term.

    fn judge_claim(&mut self, now: Moment, term: Term, current: Option<Versioned<Standing>>) {
        let Some(current) = current else {
            let trouble = format!("the arbiter has no record, though {term} was the last term");
            return self.claimant.fail(now, format!("{trouble}: restore it"));
        };
        let (revision, standing) = (current.revision, &current.value);
        let ours = standing.holder == self.settings.host;
        let next_term = term.next();
        if standing.term < term {
            let trouble = format!("the arbiter's record ({standing}) is older than term {term}");
            self.claimant.fail(now, format!("{trouble}: restore it"));
        } else if standing.phase == Phase::Ended {
            self.stop(StopReason::Ended { status: None });
        } else if ours && Some(standing.term) == self.claimed {
            // A swap of this process counted, though its answer never came. One of an earlier process of this host
            // says nothing about what this one holds: that process may have carried the guest on, further.
            self.promotion = Some(current);
        } else if let (false, true, Some(next)) = (ours, standing.term == term, next_term) {
            self.claimed = Some(next);
            self.swap(revision, next, Phase::Running);
        } else {
            self.note = Some(format!("the arbiter says {standing}"));
            self.permit = false;
            self.stage = Stage::Searching { lost: None };
        }
    }

    /// A backup that is not in sync may start the guest only if nobody has seen anything of it.
    fn judge_boot(&mut self, now: Moment, current: Option<Versioned<Standing>>) {
        let Stage::Searching { lost: Some(loss) } = &self.stage else {
            return;
        };
        let due = loss.at.plus_ms(self.settings.boot_after_ms);
        if now < due {
            return self.claimant.start_at(due);
        }
        let standing = current.as_ref().map(|current| &current.value);
        let unseen = standing.is_some_and(|standing| {
            standing.phase == Phase::Starting
                || standing.phase == Phase::Running && self.settings.broken(Fault::BootRunningGuest)
        });
        match current {
            Some(current) if current.value.phase == Phase::Ended => {
                self.stop(StopReason::Ended { status: None });
            }
            Some(current) if unseen && self.settings.can_boot => match current.value.term.next() {
                Some(next) => self.swap(current.revision, next, Phase::Starting),
                None => self
                    .claimant
                    .fail(now, "the arbiter has no term left".to_owned()),
            },
            current => {
                let found = current.map_or("nothing".to_owned(), |found| found.value.to_string());
                self.note = Some(format!("{}; the arbiter says {found}", loss.cause));
                self.stage = Stage::Searching { lost: None };
            }
        }
    }

    fn swap(&mut self, revision: Revision, term: Term, phase: Phase) {
        let next = Standing::new(term, self.settings.host.clone(), phase);
        let request = self.claimant.swap(Some(revision), next, self.permit);
        self.actions.push_back(Action::Ask(request));
    }
}
