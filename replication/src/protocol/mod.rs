//! The protocol as values in and values out: no sockets, clocks, threads or randomness.
//!
//! ```text
//!   backup                                   primary
//!     | -- control: Hello ------------------->  | admit(): vm, versions, shape, input, one backup
//!     | <------------ Welcome | Refuse -------- |
//!     | == lifeline with the session's token => |
//!     | -- Join{gave_up} ---------------------> |  any earlier right to go live is gone
//!     |                                         |
//!     | <-- AskDigests{disk, first, count} ---- |  where it is not known which parts of disks
//!     | --- DiskDigests ----------------------> |  differ: piece by piece
//!     | <= commit stream: disks, snapshot, ==== |
//!     |    records                              |
//!     | -- Ack{received, verified} -----------> |  as positions advance, newest only
//!     | -- SyncDone{seq} ---------------------> |  snapshot loaded
//!     | <------------- InSync{right} ---------- |  the gate guards from before this is sent
//!     | <------------- Released{seq} ---------- |  outputs up to here have left
//!     | <-- heartbeats, datagrams, both ways -> |
//!     | <------------- Ended{status} ---------- |
//!     | <------------- Goodbye{reason} -------> |
//! ```
//!
//! Call order of a [`Session`]: any `handle_*` as things arrive, then `poll_event`,
//! `poll_transmit` and `poll_datagram` until they are empty, again at the latest at
//! `next_timeout`. After an error the session is over.

mod admit;
mod backup;
mod codec;
mod disk;
mod events;
mod heartbeat;
mod message;
mod primary;

pub use admit::{Admission, PrimaryIdentity, admit};
pub use backup::{BackupCommand, BackupEvent, BackupSession};
pub use codec::{ControlError, MESSAGE_BYTES_MAX, MessageReader};
pub use disk::{
    DIGESTS_MAX, DISKS_MAX, DigestQuestion, DiskHistory, DiskPosition, DiskShape, KeptDisks,
    RangeDigests,
};
pub use heartbeat::Heartbeat;
pub use message::{
    Hello, Message, NAME_BYTES_MAX, PROTOCOL_VERSIONS, PeerRole, Refusal, RefuseReason, Right,
    SessionToken, TEXT_BYTES_MAX, TOKEN_BYTES, VersionRange, Welcome,
};
pub use primary::{PrimaryCommand, PrimaryEvent, PrimarySession};

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::Quantiles;
use crate::lag::AckError;

/// Events a session keeps for a driver that does not fetch them. A driver stops reading from the
/// peer at this number, so that a peer cannot make it grow.
pub const EVENTS_MAX: usize = 64;

/// What a peer does that ends its session.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Bytes that are no message.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// An acknowledgement that cannot be true.
    #[error(transparent)]
    Ack(#[from] AckError),
    /// A message that does not belong here.
    #[error("sent {message}, which a {role} does not send at this point")]
    Unexpected {
        /// The message's name.
        message: &'static str,
        /// The sender's role.
        role: &'static str,
    },
}

/// How a peer ended a session in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerLeft {
    /// It said goodbye, and why.
    Goodbye(String),
    /// It will not have this session after all.
    Refused(Refusal),
}

/// The part of both sessions that a driver needs.
pub trait Session {
    /// What comes out for the application.
    type Event;
    /// What the application asks for.
    type Command;

    /// Bytes of the control stream.
    fn handle_control(&mut self, bytes: &[u8], now: Instant) -> Result<(), SessionError>;
    /// A datagram.
    fn handle_datagram(&mut self, bytes: &[u8], now: Instant) -> Result<(), SessionError>;
    /// The peer showed life in another way (commit stream data).
    fn handle_sign(&mut self);
    /// The application asks.
    fn handle_command(&mut self, command: Self::Command);
    /// The next bytes for the control stream. Call it when the last ones are written, not before:
    /// positions that advance in between travel in one message.
    fn poll_transmit(&mut self) -> Option<Bytes>;
    /// A datagram that is due.
    fn poll_datagram(&mut self, now: Instant) -> Option<Bytes>;
    /// The next event.
    fn poll_event(&mut self) -> Option<Self::Event>;
    /// Events that wait; see [`EVENTS_MAX`].
    fn events_waiting(&self) -> usize;
    /// The peer has ended the session in words.
    fn peer_left(&self) -> Option<&PeerLeft>;
    /// The application has ended the session in words: it is over when they are transmitted.
    fn is_leaving(&self) -> bool;
    /// When `poll_datagram` has something next.
    fn next_timeout(&self) -> Instant;
    /// Round-trip times measured by heartbeats, in nanoseconds.
    fn round_trips(&self) -> &Quantiles;
}

/// How often heartbeats are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatConfig {
    /// Time between two heartbeats; a fraction of the time after which the peer counts as lost.
    pub interval: Duration,
}

#[cfg(test)]
mod tests;
