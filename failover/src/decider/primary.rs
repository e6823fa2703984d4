//! The primary's side: takes a term, starts the guest, guards its outputs, and goes on alone only when it may.

mod start;
mod term;

use std::collections::VecDeque;

use super::backup::Promotion;
use super::claimant::{Claimant, Outcome};
use super::event::{
    Action, Event, GateMode, GaveUp, PromoteRefused, SessionId, StopReason, SyncMark,
};
use super::settings::{Fault, Settings, StartPolicy};
use super::slot::{Lost, Slot};
use crate::arbiter::ArbiterAnswer;
use crate::moment::Moment;
use crate::standing::{Phase, Revision, Standing, Term, Versioned};

/// How far the guest's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    NotYet,
    /// It has ended; its last outputs may still be held.
    Ended {
        status: u8,
    },
    /// Everything has left, since this moment.
    Drained {
        status: u8,
        since: Moment,
    },
}

/// The decider of a primary, from its start on, or from a promotion.
#[derive(Debug)]
pub(super) struct PrimaryDecider {
    pub(super) settings: Settings,
    /// What this host holds; none before its first term.
    pub(super) standing: Option<Versioned<Standing>>,
    /// The highest term that this process ever asked for.
    claimed: Term,
    pub(super) slot: Slot,
    mark: SyncMark,
    pub(super) end: End,
    /// While waiting for the backup's first right: the revision found, and until when.
    pub(super) reclaim: Option<(Option<Revision>, Moment)>,
    peer_term: Option<Term>,
    permit: bool,
    /// When to look again, while the guest has not started.
    next_look: Moment,
    pub(super) claimant: Claimant,
    pub(super) stopped: Option<StopReason>,
    actions: VecDeque<Action>,
}

impl PrimaryDecider {
    /// A host told to be the primary.
    pub(super) fn start(settings: Settings, now: Moment) -> Self {
        let mut primary = Self::holding(settings, None);
        primary.claimant.start(now);
        primary
    }

    /// A backup that has won the term: with the guest it holds, or with one to be made.
    pub(super) fn promoted(promotion: Promotion) -> Self {
        let Promotion { settings, won } = promotion;
        let (term, phase) = (won.value.term, won.value.phase);
        // A guest that this host starts in place of the one told to waits for nobody: the other host is gone.
        let settings = Settings {
            start: StartPolicy::Alone,
            ..settings
        };
        let mut primary = Self::holding(settings, Some(won));
        primary.act(Action::Gate(GateMode::Open));
        primary.act(match phase {
            Phase::Starting => Action::Boot,
            Phase::Running | Phase::Ended => Action::GoLive { term },
        });
        primary
    }

    fn holding(settings: Settings, standing: Option<Versioned<Standing>>) -> Self {
        let claimed = standing
            .as_ref()
            .map_or(Term::NONE, |standing| standing.value.term);
        Self {
            settings,
            standing,
            claimed,
            slot: Slot::Empty,
            mark: SyncMark::default(),
            end: End::NotYet,
            reclaim: None,
            peer_term: None,
            permit: false,
            next_look: Moment::default(),
            claimant: Claimant::new(),
            stopped: None,
            actions: VecDeque::new(),
        }
    }

    pub(super) fn handle(&mut self, now: Moment, event: Event) {
        if self.stopped.is_some() {
            return;
        }
        match event {
            Event::PeerLost { session, cause } => self.lose(now, session, cause),
            Event::BackupJoined { session, gave_up } => self.join(now, session, gave_up),
            Event::BackupSynced { session } => self.synced(session),
            Event::BackupCaughtUp { session } => self.caught_up(session),
            Event::PeerIsPrimary { term } => self.peer_is_primary(now, term),
            Event::GuestEnded { status } if self.end == End::NotYet => {
                self.end = End::Ended { status };
            }
            Event::OutputsDrained => {
                if let End::Ended { status } = self.end {
                    self.end = End::Drained { status, since: now };
                    self.claimant.hurry(now);
                }
            }
            // Of sessions that this host had as a backup, or said twice.
            Event::GuestEnded { .. }
            | Event::PrimaryFound { .. }
            | Event::InSync { .. }
            | Event::PrimaryEnded { .. } => {}
        }
    }

    pub(super) fn handle_answer(&mut self, now: Moment, answer: ArbiterAnswer) {
        let outcome = self.claimant.handle(now, answer);
        if self.stopped.is_some() {
            return;
        }
        match outcome {
            Outcome::Nothing => {}
            Outcome::Won(won) => self.adopt(won),
            Outcome::Current(current) if self.standing.is_none() => self.start_over(now, current),
            Outcome::Current(current) => self.judge(now, current),
        }
    }

    pub(super) fn handle_promote(&mut self, now: Moment) -> Result<(), PromoteRefused> {
        let undecided = self.slot.is_undecided() && self.stopped.is_none();
        PromoteRefused::check(self.settings.settled_by, undecided, || {
            self.status().sentence
        })?;
        self.permit = true;
        self.claimant.hurry(now);
        Ok(())
    }

    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        if self.stopped.is_some() {
            return None;
        }
        let patience = match self.end {
            End::Drained { since, .. } => Some(since.plus_ms(self.settings.end_patience_ms)),
            _ => None,
        };
        let look = self.is_starting().then_some(self.next_look);
        self.claimant
            .poll_timeout()
            .into_iter()
            .chain(patience)
            .chain(look)
            .min()
    }

    pub(super) fn reign(&self) -> Option<Term> {
        let open = self.stopped.is_none() && !matches!(self.end, End::Drained { .. });
        self.standing
            .as_ref()
            .filter(|_| open)
            .map(|standing| standing.value.term)
    }

    /// Does what has become due, and hands out what is to be done.
    pub(super) fn advance(&mut self, now: Moment) -> &mut VecDeque<Action> {
        if self.stopped.is_none() {
            self.accept_given_up_right();
            self.tell_in_sync();
            self.end_anyway(now);
        }
        if self.stopped.is_none() {
            self.ask(now);
        }
        &mut self.actions
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn stop(&mut self, reason: StopReason) {
        self.act(Action::Gate(GateMode::Held));
        self.act(Action::Stop(reason.clone()));
        self.stopped = Some(reason);
    }

    // The backup's comings and goings.

    fn join(&mut self, now: Moment, session: SessionId, gave_up: Option<GaveUp>) {
        if self.reign().is_none() {
            let reason = "this host has no guest to protect".to_owned();
            return self.act(Action::Leave { session, reason });
        }
        if let Some(before) = self.slot.session() {
            self.lose(now, before, "it connected anew".to_owned());
            self.act(Action::Leave {
                session: before,
                reason: "replaced by a new one".to_owned(),
            });
        }
        let right = self.standing.as_ref().map(|standing| GaveUp {
            term: standing.value.term,
            mark: self.mark,
        });
        let said_so = gave_up.is_some() && gave_up == right;
        self.slot.join(
            session,
            said_so || self.settings.broken(Fault::AnyoneGaveUp),
        );
        self.act(Action::StartSync { session });
    }

    fn lose(&mut self, now: Moment, session: SessionId, cause: String) {
        match self.slot.lose(session, cause) {
            Lost::Nothing => {}
            // It never had a right, so nobody but this host has.
            Lost::Unprotecting => self.act(Action::Gate(GateMode::Open)),
            Lost::Rightful if self.settings.broken(Fault::OpenWithoutTerm) => {
                self.slot = Slot::Empty;
                self.act(Action::Gate(GateMode::Open));
            }
            Lost::Rightful => {
                self.act(Action::Gate(GateMode::Held));
                self.claimant.hurry(now);
            }
        }
    }

    fn synced(&mut self, session: SessionId) {
        match &mut self.slot {
            Slot::Syncing(current) if *current == session => self.cover(session),
            Slot::Undecided {
                joined: Some(joined),
                ..
            } if joined.session == session => {
                joined.synced = true;
            }
            _ => {}
        }
    }

    fn cover(&mut self, session: SessionId) {
        let caught_up = self.settings.broken(Fault::TellBeforeCaughtUp);
        self.slot = Slot::Covering { session, caught_up };
        if !self.settings.broken(Fault::TellBeforeGuarding) {
            self.act(Action::Gate(GateMode::Guarded(session)));
        }
    }

    fn caught_up(&mut self, by: SessionId) {
        if let Slot::Covering { session, caught_up } = &mut self.slot
            && *session == by
        {
            *caught_up = true;
        }
    }

    /// Nobody else holds a right: on alone, or on to protection by whoever joined meanwhile.
    fn settle_slot(&mut self) {
        self.permit = false;
        if !self.slot.is_undecided() {
            return;
        }
        self.act(Action::Gate(GateMode::Open));
        if let Some(joined) = self.slot.settle()
            && joined.synced
        {
            self.cover(joined.session);
        }
    }

    fn accept_given_up_right(&mut self) {
        let settled = self.claimant.is_settled();
        if settled && matches!(self.slot, Slot::Undecided { gave_up: true, .. }) {
            self.settle_slot();
        }
    }

    fn tell_in_sync(&mut self) {
        let Slot::Covering {
            session,
            caught_up: true,
        } = self.slot
        else {
            return;
        };
        let Some(standing) = &self.standing else {
            return;
        };
        // A swap that may still count could end the very term in which the backup is to have its right.
        if self.claimant.is_settled() {
            let term = standing.value.term;
            self.mark = SyncMark(self.mark.0.saturating_add(1));
            self.slot = Slot::Protected(session);
            self.act(Action::TellInSync {
                session,
                term,
                mark: self.mark,
            });
        }
    }

    // The end.

    /// The arbiter is not heard of: everything has left, so the word of the end is a courtesy.
    fn end_anyway(&mut self, now: Moment) {
        if let End::Drained { since, .. } = self.end
            && now.ms_since(since) >= self.settings.end_patience_ms
        {
            self.finish();
        }
    }

    fn finish(&mut self) {
        let (End::Drained { status, .. } | End::Ended { status }) = self.end else {
            return self.stop(StopReason::Ended { status: None });
        };
        if let Some(session) = self.slot.session() {
            self.act(Action::TellEnded { session, status });
        }
        self.stop(StopReason::Ended {
            status: Some(status),
        });
    }
}
