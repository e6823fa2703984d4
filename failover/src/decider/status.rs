//! Where a host stands, and why, for people, metrics, and the list of role changes.

use super::backup::{BackupDecider, Stage};
use super::primary::{End, PrimaryDecider};
use super::slot::Slot;
use crate::standing::{Phase, Term};

/// Where a host stands. Those from `Claiming` to `Ending` are a primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Situation {
    /// Primary, on the way to its first term.
    Claiming,
    /// Primary, the guest has not executed its first instruction.
    Starting,
    /// Primary, unprotected: outputs leave at once.
    Alone,
    /// Primary, unprotected, bringing a backup in sync.
    Syncing,
    /// Primary, protected by a backup in sync.
    Protected,
    /// Primary, its backup lost, outputs held until it is settled who carries on.
    Held,
    /// Primary whose guest has ended.
    Ending,
    /// Backup without a primary.
    Searching,
    /// Backup, not in sync.
    BackupSyncing,
    /// Backup in sync.
    InSync,
    /// Backup in sync whose primary is lost, asking for the term.
    BackupClaiming,
    /// Neither any more: the daemon is to exit.
    Stopped,
}

impl Situation {
    /// Whether the host is primary.
    pub fn is_primary(self) -> bool {
        matches!(
            self,
            Self::Claiming
                | Self::Starting
                | Self::Alone
                | Self::Syncing
                | Self::Protected
                | Self::Held
                | Self::Ending
        )
    }

    /// Whether the loss of the other host, or of this one, would lose nothing.
    pub fn is_protected(self) -> bool {
        matches!(self, Self::Protected | Self::InSync)
    }
}

/// Where a host stands, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where it stands.
    pub situation: Situation,
    /// The term it stands in; [`Term::NONE`] if it knows none.
    pub term: Term,
    /// The same and its reason, in one line.
    pub sentence: String,
}

impl PrimaryDecider {
    pub(super) fn status(&self) -> Status {
        let term = self
            .standing
            .as_ref()
            .map_or(Term::NONE, |standing| standing.value.term);
        let (situation, mut sentence) = self.situation(term);
        if situation != Situation::Stopped
            && let Some(trouble) = self.claimant.trouble()
        {
            sentence = format!("{sentence}; {trouble}");
        }
        Status {
            situation,
            term,
            sentence,
        }
    }

    fn situation(&self, term: Term) -> (Situation, String) {
        let peer = &self.settings.peer;
        if let Some(reason) = &self.stopped {
            return (Situation::Stopped, reason.to_string());
        }
        let Some(standing) = &self.standing else {
            let sentence = if self.reclaim.is_some() {
                format!(
                    "an earlier process of this host ran the guest: {peer} has {} ms to carry on \
                     with it, then this one gives up",
                    self.settings.reclaim_after_ms
                )
            } else {
                "asking the arbiter for a term".to_owned()
            };
            return (Situation::Claiming, sentence);
        };
        match self.end {
            End::NotYet => {}
            End::Ended { .. } if self.slot.is_undecided() => {}
            End::Ended { status } => {
                let sentence = format!("guest ended with status {status}: its last outputs leave");
                return (Situation::Ending, sentence);
            }
            End::Drained { status, .. } => {
                let sentence = format!("guest ended with status {status}: recording that");
                return (Situation::Ending, sentence);
            }
        }
        match (&self.slot, standing.value.phase) {
            (Slot::Undecided { cause, joined, .. }, _) => {
                let back = if joined.is_some() {
                    "; it is back, but not its right"
                } else {
                    ""
                };
                let held = format!("outputs held: backup {peer} lost ({cause}){back}");
                (
                    Situation::Held,
                    format!(
                        "{held}; asking for term {} to go on alone",
                        term.number().saturating_add(1)
                    ),
                )
            }
            (Slot::Empty, Phase::Starting) => (Situation::Starting, self.starting()),
            (_, Phase::Starting) => (
                Situation::Starting,
                format!("guest not started: backup {peer} is being brought in sync"),
            ),
            (Slot::Empty, _) => (
                Situation::Alone,
                format!("running alone, unprotected: no backup, waiting for {peer}"),
            ),
            (Slot::Syncing(_), _) => (
                Situation::Syncing,
                format!("running unprotected: backup {peer} is being sent the machine"),
            ),
            (Slot::Covering { .. }, _) => (
                Situation::Syncing,
                format!("backup {peer} has the machine and is catching up"),
            ),
            (Slot::Protected(_), _) => {
                (Situation::Protected, format!("protected by backup {peer}"))
            }
        }
    }

    fn starting(&self) -> String {
        match self.settings.start {
            super::StartPolicy::Protected => {
                format!(
                    "guest not started: waiting for a backup in sync ({})",
                    self.settings.peer
                )
            }
            super::StartPolicy::Alone => "guest about to start".to_owned(),
        }
    }
}

impl BackupDecider {
    pub(super) fn status(&self) -> Status {
        let (situation, term, mut sentence) = self.situation();
        if situation != Situation::Stopped
            && let Some(trouble) = self.claimant.trouble()
        {
            sentence = format!("{sentence}; {trouble}");
        }
        Status {
            situation,
            term,
            sentence,
        }
    }

    fn situation(&self) -> (Situation, Term, String) {
        let peer = &self.settings.peer;
        if let Some(reason) = &self.stopped {
            return (Situation::Stopped, Term::NONE, reason.to_string());
        }
        match &self.stage {
            Stage::Searching { lost: Some(loss) } => {
                let sentence = format!(
                    "not in sync when primary {peer} was lost ({}): waiting for a primary",
                    loss.cause
                );
                (Situation::Searching, Term::NONE, sentence)
            }
            Stage::Searching { lost: None } => {
                let note = self
                    .note
                    .as_ref()
                    .map(|note| format!(" ({note})"))
                    .unwrap_or_default();
                (
                    Situation::Searching,
                    Term::NONE,
                    format!("waiting for a primary{note}"),
                )
            }
            Stage::Syncing { term, .. } => (
                Situation::BackupSyncing,
                *term,
                format!("receiving the machine of primary {peer}"),
            ),
            Stage::InSync { term, .. } => (
                Situation::InSync,
                *term,
                format!("in sync with primary {peer}"),
            ),
            Stage::Claiming { term, cause } => {
                let sentence = format!(
                    "primary {peer} lost ({cause}): asking for term {} to carry on",
                    term.number().saturating_add(1)
                );
                (Situation::BackupClaiming, *term, sentence)
            }
        }
    }
}
