//! The backup's side of a session with its primary.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use samsara_commitlog::CommitSeq;

use super::events::{Events, Merge};
use super::heartbeat::Heart;
use super::{
    DigestQuestion, HeartbeatConfig, Message, MessageReader, PeerLeft, RangeDigests, Refusal,
    Right, Session, SessionError,
};
use crate::Quantiles;

/// What the primary says. Each is a sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupEvent {
    /// The primary lives; nothing else.
    SignOfLife {
        /// The last commit it has sent, as far as known.
        committed: CommitSeq,
    },
    /// The primary guards its outputs by this backup.
    InSync(Right),
    /// The outputs of all commits up to here have left; only the newest is reported.
    Released {
        /// The position.
        seq: CommitSeq,
    },
    /// The primary asks what a disk has, and waits for [`BackupCommand::Digests`].
    DigestsAsked(DigestQuestion),
    /// The guest has ended.
    Ended {
        /// Its exit status.
        status: u8,
    },
}

impl Merge for BackupEvent {
    fn is_bare_sign(&self) -> bool {
        matches!(self, Self::SignOfLife { .. })
    }

    fn merge(&mut self, next: Self) -> Result<(), Self> {
        match (&self, &next) {
            (Self::Released { seq: old }, Self::Released { seq: new }) => {
                *self = Self::Released { seq: *old.max(new) };
                Ok(())
            }
            _ => Err(next),
        }
    }
}

/// What the backup tells its primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupCommand {
    /// The snapshot of this commit is loaded.
    SyncDone {
        /// The snapshot's commit.
        seq: CommitSeq,
    },
    /// Positions; only the newest travel.
    Report {
        /// All commits up to here are here.
        received: CommitSeq,
        /// All up to here are applied, and the digests agreed.
        verified: CommitSeq,
    },
    /// What was asked of a disk: the ranges from the first that was asked for on, not fewer than were
    /// asked for.
    Digests(RangeDigests),
    /// Digests differ.
    Diverged {
        /// The commit after which they were compared.
        seq: CommitSeq,
        /// The primary's digest.
        expected: u128,
        /// This host's.
        found: u128,
    },
    /// This host cannot be the backup of what it was offered.
    Refuse(Refusal),
    /// The session ends on purpose.
    Goodbye {
        /// Why.
        reason: String,
    },
}

/// See [`Session`] for the call order.
#[derive(Debug)]
pub struct BackupSession {
    reader: MessageReader,
    heart: Heart,
    events: Events<BackupEvent>,
    outbox: VecDeque<Message>,
    received: CommitSeq,
    verified: CommitSeq,
    report_due: bool,
    /// The primary's question that is not answered yet.
    asked: Option<DigestQuestion>,
    left: Option<PeerLeft>,
    leaving: bool,
}

impl BackupSession {
    /// A session that begins: the backup joins, and says which right it gave up.
    pub fn new(heartbeat: HeartbeatConfig, gave_up: Option<Right>, now: Instant) -> Self {
        Self {
            reader: MessageReader::new(),
            heart: Heart::new(heartbeat.interval, now),
            events: Events::new(),
            outbox: VecDeque::from([Message::Join { gave_up }]),
            received: CommitSeq::BOOT,
            verified: CommitSeq::BOOT,
            report_due: false,
            asked: None,
            left: None,
            leaving: false,
        }
    }

    fn handle_message(&mut self, message: Message) -> Result<(), SessionError> {
        let event = match message {
            Message::InSync(right) => BackupEvent::InSync(right),
            Message::Released { seq } => BackupEvent::Released { seq },
            // One question at a time: answers must not pile up.
            Message::AskDigests(question) if self.asked.is_none() => {
                self.asked = Some(question);
                BackupEvent::DigestsAsked(question)
            }
            Message::Ended { status } => BackupEvent::Ended { status },
            Message::Goodbye { reason } => {
                self.left = Some(PeerLeft::Goodbye(reason));
                return Ok(());
            }
            Message::Refuse(refusal) => {
                self.left = Some(PeerLeft::Refused(refusal));
                return Ok(());
            }
            other => {
                return Err(SessionError::Unexpected {
                    message: other.name(),
                    role: "primary",
                });
            }
        };
        self.events.push(event);
        Ok(())
    }

    fn report(&mut self, received: CommitSeq, verified: CommitSeq) {
        assert!(
            verified <= received,
            "verified {verified}, received only {received}"
        );
        self.report_due |= received > self.received || verified > self.verified;
        self.received = self.received.max(received);
        self.verified = self.verified.max(verified);
        self.heart.handle_position(self.verified);
    }
}

impl Session for BackupSession {
    type Event = BackupEvent;
    type Command = BackupCommand;

    fn handle_control(&mut self, bytes: &[u8], _now: Instant) -> Result<(), SessionError> {
        self.reader.push(bytes);
        while let Some(message) = self.reader.poll()? {
            self.handle_message(message)?;
        }
        Ok(())
    }

    fn handle_datagram(&mut self, bytes: &[u8], now: Instant) -> Result<(), SessionError> {
        if self.heart.handle(bytes, now)? {
            self.handle_sign();
        }
        Ok(())
    }

    fn handle_sign(&mut self) {
        self.events.push(BackupEvent::SignOfLife {
            committed: self.heart.peer_position(),
        });
    }

    fn handle_command(&mut self, command: BackupCommand) {
        let message = match command {
            BackupCommand::Report { received, verified } => return self.report(received, verified),
            BackupCommand::Digests(digests) => match self.asked.take() {
                Some(DigestQuestion { disk, first, .. }) => Message::DiskDigests {
                    disk,
                    first,
                    digests,
                },
                None => return,
            },
            BackupCommand::SyncDone { seq } => Message::SyncDone { seq },
            BackupCommand::Diverged {
                seq,
                expected,
                found,
            } => Message::Diverged {
                seq,
                expected,
                found,
            },
            BackupCommand::Refuse(refusal) => Message::Refuse(refusal),
            BackupCommand::Goodbye { reason } => Message::Goodbye { reason },
        };
        self.leaving |= matches!(message, Message::Refuse(_) | Message::Goodbye { .. });
        self.outbox.push_back(message);
    }

    /// Joining comes first. Positions that advance while the last message is being written travel in one `Ack`; one
    /// that advances on an idle stream travels at once.
    fn poll_transmit(&mut self) -> Option<Bytes> {
        let joins = matches!(self.outbox.front(), Some(Message::Join { .. }));
        if !joins && std::mem::take(&mut self.report_due) {
            let ack = Message::Ack {
                received: self.received,
                verified: self.verified,
            };
            return Some(ack.encode());
        }
        self.outbox.pop_front().map(|message| message.encode())
    }

    fn poll_datagram(&mut self, now: Instant) -> Option<Bytes> {
        self.heart.poll(now)
    }

    fn poll_event(&mut self) -> Option<BackupEvent> {
        self.events.pop()
    }

    fn events_waiting(&self) -> usize {
        self.events.len()
    }

    fn peer_left(&self) -> Option<&PeerLeft> {
        self.left.as_ref()
    }

    fn is_leaving(&self) -> bool {
        self.leaving
    }

    fn next_timeout(&self) -> Instant {
        self.heart.next_timeout()
    }

    fn round_trips(&self) -> &Quantiles {
        self.heart.round_trips()
    }
}
