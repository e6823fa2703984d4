//! What comes into a decider and what goes out.

use std::fmt;

use super::settings::SettledBy;
use super::status::Situation;
use crate::arbiter::ArbiterRequest;
use crate::standing::{HostName, Phase, Term};

/// One connection between the hosts. The daemon numbers them; an event of one that was replaced says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// How many times a primary has told a backup that it is in sync: which telling a right comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncMark(pub u64);

/// A backup's word that it no longer holds the right it was told of, and will not use it. Only the process that was
/// told can say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GaveUp {
    /// The term of the right.
    pub term: Term,
    /// The telling that it came from.
    pub mark: SyncMark,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session is over: closed, or without a sign of life (see [`Detector`](crate::Detector)).
    PeerLost {
        /// The session.
        session: SessionId,
        /// Why, as the end of "backup beta lost: ...".
        cause: String,
    },
    /// At a primary: a backup, having been welcomed, joins.
    BackupJoined {
        /// The session.
        session: SessionId,
        /// What it said in joining.
        gave_up: Option<GaveUp>,
    },
    /// At a primary: every page has been sent; from here on the backup gets each commit.
    BackupSynced {
        /// The session.
        session: SessionId,
    },
    /// At a primary whose gate is guarded: the backup has acknowledged every commit whose outputs left before.
    BackupCaughtUp {
        /// The session.
        session: SessionId,
    },
    /// The peer says that it is primary, or that it knows of this term.
    PeerIsPrimary {
        /// The peer's term.
        term: Term,
    },
    /// At a primary: the guest has ended. Its last outputs may still be at the gate.
    GuestEnded {
        /// Its exit status.
        status: u8,
    },
    /// At a primary, after `GuestEnded`: everything, the exit status as well, has left through the gate.
    OutputsDrained,
    /// At a backup: a primary welcomed this session. Answered by [`Action::Join`] or [`Action::Leave`].
    PrimaryFound {
        /// The session.
        session: SessionId,
        /// The primary's term.
        term: Term,
    },
    /// At a backup: it is in sync.
    InSync {
        /// The session.
        session: SessionId,
        /// The term in which it is.
        term: Term,
        /// Which telling this is, to be repeated when the right is given up.
        mark: SyncMark,
    },
    /// At a backup: the guest has ended and everything has left.
    PrimaryEnded {
        /// The session.
        session: SessionId,
        /// The guest's exit status.
        status: u8,
    },
}

/// How outputs leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateMode {
    /// At once: this host may run alone.
    Open,
    /// When the backup of this session has acknowledged their commit.
    Guarded(SessionId),
    /// Not at all: it is not settled which host carries on.
    Held,
}

/// What the daemon is to do. Actions are carried out in the order in which they come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the arbiter, on a thread that may block, and hand the answer to
    /// [`Decider::handle_answer`](super::Decider::handle_answer).
    Ask(ArbiterRequest),
    /// Make the guest, from its program. Do not run it yet.
    Boot,
    /// Let the guest that was booted execute.
    Run,
    /// Backup, now primary: make the state of the last commit the guest's, release what was retained and not
    /// reported as released, and let it execute. An ended guest is reported by `GuestEnded` again.
    GoLive {
        /// The term that was won.
        term: Term,
    },
    /// Change how outputs leave, before any later action is carried out.
    Gate(GateMode),
    /// Begin the live sync of the backup that joined.
    StartSync {
        /// The session.
        session: SessionId,
    },
    /// Tell the backup that it is in sync.
    TellInSync {
        /// The session.
        session: SessionId,
        /// The term.
        term: Term,
        /// Which telling this is.
        mark: SyncMark,
    },
    /// Tell the backup that the guest has ended and everything has left.
    TellEnded {
        /// The session.
        session: SessionId,
        /// The guest's exit status.
        status: u8,
    },
    /// Join the primary of this session. What was held of an earlier session is dropped before.
    Join {
        /// The session.
        session: SessionId,
        /// What to say in joining.
        gave_up: Option<GaveUp>,
    },
    /// Close this session. A backup connects again, after the usual wait.
    Leave {
        /// The session.
        session: SessionId,
        /// Why, for the peer and the log.
        reason: String,
    },
    /// Where this host stands has changed: for the log, the metrics, and the list of role changes.
    Changed(Change),
    /// Stop the guest at once, release nothing more, and exit. No action follows.
    Stop(StopReason),
}

/// A change of where a host stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The new situation.
    pub situation: Situation,
    /// The term.
    pub term: Term,
    /// The same and its reason, for people.
    pub reason: String,
}

/// Why a daemon has to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The guest has ended: exit with its status (none: the one this host's machine knows, or 0).
    Ended {
        /// The guest's exit status.
        status: Option<u8>,
    },
    /// Another host carries on with the guest.
    LostTerm {
        /// Which host.
        winner: HostName,
        /// In which term.
        term: Term,
    },
    /// This host may not start the guest: another holds it.
    Refused {
        /// Which host.
        holder: HostName,
        /// In which term.
        term: Term,
        /// How far the guest has come there.
        phase: Phase,
    },
    /// An earlier process of this host ran the guest, and no backup has taken it over yet; one that is cut off
    /// may still hold its state.
    GuestLeftBehind {
        /// The other host.
        peer: HostName,
        /// The term in which the guest ran.
        term: Term,
    },
    /// This host was to start the guest, and the peer says that it is primary.
    TwoPrimaries {
        /// The peer.
        peer: HostName,
        /// The peer's term.
        term: Term,
    },
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended {
                status: Some(status),
            } => write!(f, "the guest ended with status {status}"),
            Self::Ended { status: None } => write!(f, "the guest has ended"),
            Self::LostTerm { winner, term } => write!(
                f,
                "{winner} carries on with the guest in term {term}: this host has stopped and \
                 released nothing since; start it again with --role backup"
            ),
            Self::Refused {
                holder,
                term,
                phase,
            } => write!(
                f,
                "{holder} holds term {term} ({phase}): start this host with --role backup, or, if \
                 {holder} is gone for good and its guest is given up, clear the arbiter's record"
            ),
            Self::GuestLeftBehind { peer, term } => write!(
                f,
                "an earlier process of this host ran the guest in term {term}, and {peer} may hold \
                 its state: start this host with --role backup, or, if {peer} has not been in sync \
                 and the guest may start anew, clear the arbiter's record"
            ),
            Self::TwoPrimaries { peer, term } => write!(
                f,
                "two primaries: {peer} says that it is primary in term {term}; start this host \
                 with --role backup"
            ),
        }
    }
}

/// Why a `promote` does nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromoteRefused {
    /// The arbiter decides, not the operator.
    #[error(
        "promote is for failover.arbiter = \"manual\"; here the arbiter settles who carries on"
    )]
    NotManual,
    /// There is no question to decide.
    #[error("there is nothing to promote: {0}")]
    NothingToDecide(String),
}

impl PromoteRefused {
    /// The answer where this is not a matter for the operator, or there is no question.
    pub(super) fn check(
        settled_by: SettledBy,
        undecided: bool,
        sentence: impl FnOnce() -> String,
    ) -> Result<(), Self> {
        match (settled_by, undecided) {
            (SettledBy::Arbiter, _) => Err(Self::NotManual),
            (SettledBy::Operator, false) => Err(Self::NothingToDecide(sentence())),
            (SettledBy::Operator, true) => Ok(()),
        }
    }
}
