//! Roles: who runs the guest, who may release its outputs, and when that changes.
//!
//! A [`Decider`] is one host's half of the protocol. It does no I/O: the daemon calls [`Decider::handle`] with what
//! happened, [`Decider::handle_answer`] with what the arbiter said, [`Decider::handle_timeout`] when the moment of
//! [`Decider::poll_timeout`] has come, and after each of them takes every [`Action`] from [`Decider::poll_action`] and
//! carries them out **in that order**: the gate closes before a backup is told that it is in sync.
//!
//! ```text
//!  --role primary                                               --role backup
//!        |                                                            |
//!        v      held by the other, or peer is primary                 v         primary found: join
//!    Claiming ------------------------------------> Stopped       Searching ----------------------> Syncing
//!        | won {T+1, self, Starting}: boot             ^            ^   |  ^                           |   |
//!        v                                             |            |   |  +--- primary lost ----------+   | told in sync
//!    Starting -- alone, or backup in sync: --+         |            |   |                                  v
//!        ^       won {T, self, Running}: run |         |            |   | lost, still Starting,        InSync
//!        |                                   v         |            |   | won {T+1, self, Starting}        |
//!        |   +--> Alone (gate open) <--------+         |            |   |                                  | primary lost
//!        |   |       | backup joins                    |            |   |   primary back, same term:       v
//!        |   |       v                                 |            +---|--- gives up its right ------ Claiming
//!        |   |    Syncing (gate open)                  |            |   |                              |   |
//!        |   |       | every page sent                 |            +---|--- lost: another was first --+   |
//!        |   |       v                                 |                |                                  |
//!        |   |    Covering (gate guarded)              |                |                                  |
//!        |   |       | caught up: told in sync         |                |                                  |
//!        |   |       v                                 |                |                                  |
//!        |   |    Protected (gate guarded)             |                |                                  |
//!        |   |       | backup lost                     |                |                                  |
//!        |   |       v                    lost the term|                |                                  |
//!        |   +--- Undecided (gate held) ---------------+                |                                  |
//!        |   won {T+1, self, ..}, or the backup gave up its right       |                                  |
//!        +--------------------------------------------------------------+      won {T+1, self, Running}:   |
//!                    boots the guest anew                                      goes live, Alone <----------+
//! ```
//!
//! Why two hosts never release different histories:
//!
//! 1. Terms change by compare-and-swap only, so of the primary and the backup that lost each other in term T, one
//!    takes T+1 at most.
//! 2. A backup takes a running guest's term only while it holds the *right in T*: it was told that it is in sync
//!    in T, in the session that it joined last. The right ends when it joins another session.
//! 3. Whoever may hold the right in T has every commit whose output left in T: the gate is guarded before the
//!    backup is told, and the backup has acknowledged all that left before. Once it is lost, nothing leaves, until T+1 is
//!    won or the right is known to have ended.
//! 4. The primary knows that the right has ended when the very process that it told last says so
//!    ([`GaveUp`], compared with the mark of that telling, so that a delayed or an older word does not count), and
//!    no swap of its own is unsettled. So two healthy hosts become protected again while the arbiter is down.
//! 5. A guest whose standing is `Starting` has released nothing; it may be started anew by whoever wins the next
//!    term. It becomes `Running` by a swap, before its first instruction.
//!
//! One thing cannot be promised: a primary that was suspended, and wakes after its backup has taken over, may release
//! once more what the backup had acknowledged before, because a check and the release after it can be torn apart by
//! the suspension itself. It is the same bytes that its successor has released, never others.

mod backup;
mod claimant;
mod event;
mod primary;
mod settings;
mod slot;
mod status;

use std::collections::VecDeque;

pub use event::{
    Action, Change, Event, GateMode, GaveUp, PromoteRefused, SessionId, StopReason, SyncMark,
};
pub use settings::{Settings, SettledBy, StartPolicy};
pub use status::{Situation, Status};

use crate::arbiter::ArbiterAnswer;
use crate::moment::Moment;
use crate::standing::Term;
use backup::{BackupDecider, Promotion};
use primary::PrimaryDecider;

#[cfg(test)]
pub(crate) use settings::Fault;

/// One host's part in deciding who runs the guest. See the module's text for the order of calls.
#[derive(Debug)]
pub struct Decider {
    role: Role,
    /// What the last [`Action::Changed`] said.
    shown: Option<(Situation, Term)>,
    actions: VecDeque<Action>,
}

#[derive(Debug)]
enum Role {
    Primary(Box<PrimaryDecider>),
    Backup(Box<BackupDecider>),
}

impl Decider {
    /// A host that is to run the guest: takes a term for it first.
    pub fn primary(settings: Settings, now: Moment) -> Self {
        Self::new(
            Role::Primary(Box::new(PrimaryDecider::start(settings, now))),
            now,
        )
    }

    /// A host that is to protect a guest that runs elsewhere.
    pub fn backup(settings: Settings, now: Moment) -> Self {
        Self::new(Role::Backup(Box::new(BackupDecider::new(settings))), now)
    }

    fn new(role: Role, now: Moment) -> Self {
        let mut decider = Self {
            role,
            shown: None,
            actions: VecDeque::new(),
        };
        decider.settle(now);
        decider
    }

    /// Something happened.
    pub fn handle(&mut self, now: Moment, event: Event) {
        match &mut self.role {
            Role::Primary(primary) => primary.handle(now, event),
            Role::Backup(backup) => backup.handle(now, event),
        }
        self.settle(now);
    }

    /// The arbiter answered the [`Action::Ask`] that is out.
    pub fn handle_answer(&mut self, now: Moment, answer: ArbiterAnswer) {
        match &mut self.role {
            Role::Primary(primary) => primary.handle_answer(now, answer),
            Role::Backup(backup) => backup.handle_answer(now, answer),
        }
        self.settle(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        self.settle(now);
    }

    /// The operator said `samsaractl promote` on this host.
    pub fn handle_promote(&mut self, now: Moment) -> Result<(), PromoteRefused> {
        let result = match &mut self.role {
            Role::Primary(primary) => primary.handle_promote(now),
            Role::Backup(backup) => backup.handle_promote(now),
        };
        self.settle(now);
        result
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Moment> {
        match &self.role {
            Role::Primary(primary) => primary.poll_timeout(),
            Role::Backup(backup) => backup.poll_timeout(),
        }
    }

    /// The term in which this host is primary and may welcome a backup; none while it is not, or not yet.
    pub fn reign(&self) -> Option<Term> {
        match &self.role {
            Role::Primary(primary) => primary.reign(),
            Role::Backup(_) => None,
        }
    }

    /// Where this host stands, and why, for people.
    pub fn status(&self) -> Status {
        match &self.role {
            Role::Primary(primary) => primary.status(),
            Role::Backup(backup) => backup.status(),
        }
    }

    /// Lets the role do what is due, follows a promotion, and says what changed.
    fn settle(&mut self, now: Moment) {
        self.advance(now);
        if let Role::Backup(backup) = &mut self.role
            && let Some(promotion) = backup.take_promotion()
        {
            self.promote(now, promotion);
        }
        let status = self.status();
        if self.shown != Some((status.situation, status.term)) {
            self.shown = Some((status.situation, status.term));
            self.actions.push_back(Action::Changed(Change {
                situation: status.situation,
                term: status.term,
                reason: status.sentence,
            }));
        }
    }

    fn advance(&mut self, now: Moment) {
        let actions = match &mut self.role {
            Role::Primary(primary) => primary.advance(now),
            Role::Backup(backup) => backup.advance(now),
        };
        self.actions.extend(actions.drain(..));
    }

    fn promote(&mut self, now: Moment, promotion: Promotion) {
        self.role = Role::Primary(Box::new(PrimaryDecider::promoted(promotion)));
        self.advance(now);
    }
}

#[cfg(test)]
mod tests;
