//! The place of the backup at a primary: one at most, and what is due when it is gone.

use super::event::SessionId;

/// A backup that joined while it was not settled who carries on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) session: SessionId,
    /// Every page has been sent.
    pub(super) synced: bool,
}

/// The place of the backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// No backup. The gate is open.
    Empty,
    /// It is being sent the machine. The gate is open.
    Syncing(SessionId),
    /// It gets every commit, but may lack one whose output left before. The gate is guarded.
    Covering {
        session: SessionId,
        /// It lacks none any more.
        caught_up: bool,
    },
    /// It was told that it is in sync, and holds the right in this term. The gate is guarded.
    Protected(SessionId),
    /// One that holds the right in this term is lost. The gate is held.
    Undecided {
        /// How it was lost.
        cause: String,
        /// The very process that holds the right said that it gave it up.
        gave_up: bool,
        /// A backup that joined since.
        joined: Option<Joined>,
    },
}

/// What the end of a session means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// It was not the backup's session, or not the current one.
    Nothing,
    /// A backup without a right.
    Unprotecting,
    /// A backup that holds the right.
    Rightful,
}

impl Slot {
    /// The session of the backup that is here.
    pub(super) fn session(&self) -> Option<SessionId> {
        match self {
            Self::Empty => None,
            Self::Syncing(session) | Self::Covering { session, .. } | Self::Protected(session) => {
                Some(*session)
            }
            Self::Undecided { joined, .. } => joined.map(|joined| joined.session),
        }
    }

    pub(super) fn is_undecided(&self) -> bool {
        matches!(self, Self::Undecided { .. })
    }

    pub(super) fn is_protected(&self) -> bool {
        matches!(self, Self::Protected(_))
    }

    /// A backup has joined a slot that has none.
    pub(super) fn join(&mut self, session: SessionId, said_so: bool) {
        match self {
            Self::Undecided {
                gave_up, joined, ..
            } => {
                *gave_up |= said_so;
                *joined = Some(Joined {
                    session,
                    synced: false,
                });
            }
            slot => *slot = Self::Syncing(session),
        }
    }

    /// The session is over.
    pub(super) fn lose(&mut self, session: SessionId, cause: String) -> Lost {
        if self.session() != Some(session) {
            return Lost::Nothing;
        }
        match self {
            Self::Protected(_) => {
                *self = Self::Undecided {
                    cause,
                    gave_up: false,
                    joined: None,
                };
                Lost::Rightful
            }
            Self::Undecided { joined, .. } => {
                *joined = None;
                Lost::Nothing
            }
            _ => {
                *self = Self::Empty;
                Lost::Unprotecting
            }
        }
    }

    /// Nobody else holds a right any more. Whether the backup that joined meanwhile has every page.
    pub(super) fn settle(&mut self) -> Option<Joined> {
        let Self::Undecided { joined, .. } = self else {
            return None;
        };
        let joined = *joined;
        *self = joined.map_or(Self::Empty, |joined| Self::Syncing(joined.session));
        joined
    }
}
