//! The primary's side of a session with its backup.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use samsara_commitlog::CommitSeq;

use super::events::{Events, Merge};
use super::heartbeat::Heart;
use super::{
    DigestQuestion, HeartbeatConfig, Message, MessageReader, PeerLeft, RangeDigests, Refusal,
    Right, Session, SessionError,
};
use crate::{LagTracker, Quantiles};

/// What the backup does, as the primary sees it. Each is a sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrimaryEvent {
    /// The backup lives; nothing else.
    SignOfLife,
    /// The backup has loaded the snapshot of this commit.
    SyncDone {
        /// The snapshot's commit.
        seq: CommitSeq,
    },
    /// The backup's positions; only the newest are reported.
    Ack {
        /// It has all commits up to here.
        received: CommitSeq,
        /// It has applied all up to here, and the digests agreed.
        verified: CommitSeq,
    },
    /// The answer to [`PrimaryCommand::AskDigests`]: about the ranges from the first that was asked for
    /// on, and not fewer than were asked for. It may name more ranges than the disk has.
    Digests(RangeDigests),
    /// The backup's digest differs.
    Diverged {
        /// The commit after which digests were compared.
        seq: CommitSeq,
        /// The primary's digest.
        expected: u128,
        /// The backup's digest.
        found: u128,
    },
}

impl Merge for PrimaryEvent {
    fn is_bare_sign(&self) -> bool {
        matches!(self, Self::SignOfLife)
    }

    fn merge(&mut self, next: Self) -> Result<(), Self> {
        match (&self, &next) {
            (Self::Ack { .. }, Self::Ack { .. }) => {
                *self = next;
                Ok(())
            }
            _ => Err(next),
        }
    }
}

/// What the primary tells its backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrimaryCommand {
    /// Outputs are guarded by this backup from now on.
    InSync(Right),
    /// The outputs of all commits up to this one have left. Only the newest travels.
    Released {
        /// The position.
        seq: CommitSeq,
    },
    /// What does the backup's disk have? Asked before the snapshot, one question at a time.
    AskDigests(DigestQuestion),
    /// The guest has ended.
    Ended {
        /// Its exit status.
        status: u8,
    },
    /// The backup cannot be brought in sync, and need not try again.
    Refuse(Refusal),
    /// The session ends on purpose.
    Goodbye {
        /// Why.
        reason: String,
    },
}

/// See [`Session`] for the call order.
#[derive(Debug)]
pub struct PrimarySession {
    reader: MessageReader,
    heart: Heart,
    lag: Arc<Mutex<LagTracker>>,
    events: Events<PrimaryEvent>,
    outbox: VecDeque<Message>,
    released: Option<CommitSeq>,
    joined: bool,
    /// The question that is not answered yet.
    asked: Option<DigestQuestion>,
    left: Option<PeerLeft>,
    leaving: bool,
}

impl PrimarySession {
    /// A session that begins; `lag` is told of each batch before the network is.
    pub fn new(heartbeat: HeartbeatConfig, lag: Arc<Mutex<LagTracker>>, now: Instant) -> Self {
        Self {
            reader: MessageReader::new(),
            heart: Heart::new(heartbeat.interval, now),
            lag,
            events: Events::new(),
            outbox: VecDeque::new(),
            released: None,
            joined: false,
            asked: None,
            left: None,
            leaving: false,
        }
    }

    fn handle_message(&mut self, message: Message, now: Instant) -> Result<(), SessionError> {
        let event = match message {
            // Of a link that was started without asking for it first.
            Message::Join { .. } if !self.joined => {
                self.joined = true;
                return Ok(());
            }
            Message::DiskDigests {
                disk,
                first,
                digests,
            } if self.asked.is_some_and(|asked| {
                (asked.disk, asked.first) == (disk, first) && digests.answers(&asked)
            }) =>
            {
                self.asked = None;
                PrimaryEvent::Digests(digests)
            }
            Message::SyncDone { seq } => {
                self.acknowledge(seq, CommitSeq::BOOT, now)?;
                PrimaryEvent::SyncDone { seq }
            }
            Message::Ack { received, verified } => {
                self.acknowledge(received, verified, now)?;
                PrimaryEvent::Ack { received, verified }
            }
            Message::Diverged {
                seq,
                expected,
                found,
            } => PrimaryEvent::Diverged {
                seq,
                expected,
                found,
            },
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
                    role: "backup",
                });
            }
        };
        self.events.push(event);
        Ok(())
    }

    fn acknowledge(
        &self,
        received: CommitSeq,
        verified: CommitSeq,
        now: Instant,
    ) -> Result<(), SessionError> {
        let mut lag = self.lag.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(lag.handle_ack(received, verified, now)?)
    }
}

impl Session for PrimarySession {
    type Event = PrimaryEvent;
    type Command = PrimaryCommand;

    fn handle_control(&mut self, bytes: &[u8], now: Instant) -> Result<(), SessionError> {
        self.reader.push(bytes);
        while let Some(message) = self.reader.poll()? {
            self.handle_message(message, now)?;
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
        self.events.push(PrimaryEvent::SignOfLife);
    }

    fn handle_command(&mut self, command: PrimaryCommand) {
        match command {
            PrimaryCommand::Released { seq } => self.released = self.released.max(Some(seq)),
            PrimaryCommand::InSync(right) => self.outbox.push_back(Message::InSync(right)),
            PrimaryCommand::AskDigests(question) => {
                assert!(
                    self.asked.is_none(),
                    "a question before the last is answered"
                );
                self.asked = Some(question);
                self.outbox.push_back(Message::AskDigests(question));
            }
            PrimaryCommand::Ended { status } => self.outbox.push_back(Message::Ended { status }),
            PrimaryCommand::Refuse(refusal) => {
                self.leaving = true;
                self.outbox.push_back(Message::Refuse(refusal));
            }
            PrimaryCommand::Goodbye { reason } => {
                self.leaving = true;
                self.outbox.push_back(Message::Goodbye { reason });
            }
        }
    }

    fn poll_transmit(&mut self) -> Option<Bytes> {
        let released = self.released.take().map(|seq| Message::Released { seq });
        released
            .or_else(|| self.outbox.pop_front())
            .map(|message| message.encode())
    }

    fn poll_datagram(&mut self, now: Instant) -> Option<Bytes> {
        let sent = self
            .lag
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .sent_seq();
        self.heart.handle_position(sent);
        self.heart.poll(now)
    }

    fn poll_event(&mut self) -> Option<PrimaryEvent> {
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
