//! Heartbeats: datagrams both ways that show life and measure the round trip.

use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use samsara_commitlog::CommitSeq;

use super::ControlError;
use super::message::PROTOCOL_VERSIONS;
use crate::Quantiles;

const KIND: u16 = 0x0101;
const BYTES: usize = 2 + 2 + 5 * 8;

/// A heartbeat. Times are nanoseconds on the sender's clock of this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Counts the sender's heartbeats, from 1.
    pub counter: u64,
    /// The last commit of a primary; the last verified by a backup.
    pub position: CommitSeq,
    /// When it was sent.
    pub sent_at: u64,
    /// `sent_at` of the peer's last heartbeat; 0 before the first.
    pub echo: u64,
    /// How long ago that one arrived.
    pub echo_age: u64,
}

impl Heartbeat {
    /// The datagram.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(BYTES);
        out.put_u16_le(PROTOCOL_VERSIONS.max);
        out.put_u16_le(KIND);
        for field in [
            self.counter,
            self.position.0,
            self.sent_at,
            self.echo,
            self.echo_age,
        ] {
            out.put_u64_le(field);
        }
        out.freeze()
    }

    /// Reads a datagram; `None` when it is none of ours to read.
    pub fn decode(mut bytes: &[u8]) -> Result<Option<Self>, ControlError> {
        if bytes.len() < 4 {
            return Err(ControlError::Length {
                bytes: bytes.len() as u64,
            });
        }
        let version = bytes.get_u16_le();
        let kind = bytes.get_u16_le();
        if version < PROTOCOL_VERSIONS.min || version > PROTOCOL_VERSIONS.max || kind != KIND {
            return Ok(None);
        }
        if bytes.len() < BYTES - 4 {
            return Err(ControlError::Field {
                kind,
                field: "length",
            });
        }
        Ok(Some(Self {
            counter: bytes.get_u64_le(),
            position: CommitSeq(bytes.get_u64_le()),
            sent_at: bytes.get_u64_le(),
            echo: bytes.get_u64_le(),
            echo_age: bytes.get_u64_le(),
        }))
    }
}

/// Sends heartbeats in time and reads those of the peer.
#[derive(Debug)]
pub(super) struct Heart {
    interval: Duration,
    epoch: Instant,
    next: Instant,
    counter: u64,
    position: CommitSeq,
    peer: Option<(Heartbeat, Instant)>,
    round_trips: Quantiles,
}

impl Heart {
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            epoch: now,
            next: now,
            counter: 0,
            position: CommitSeq::BOOT,
            peer: None,
            round_trips: Quantiles::new(),
        }
    }

    pub(super) fn handle_position(&mut self, position: CommitSeq) {
        self.position = self.position.max(position);
    }

    /// Whether the datagram was a new heartbeat; late and repeated ones are no sign of life.
    pub(super) fn handle(&mut self, bytes: &[u8], now: Instant) -> Result<bool, ControlError> {
        let Some(beat) = Heartbeat::decode(bytes)? else {
            return Ok(false);
        };
        if self
            .peer
            .is_some_and(|(last, _)| beat.counter <= last.counter)
        {
            return Ok(false);
        }
        self.peer = Some((beat, now));
        let elapsed = self.clock(now).checked_sub(beat.echo);
        if let Some(trip) = elapsed.and_then(|since| since.checked_sub(beat.echo_age))
            && beat.echo != 0
        {
            self.round_trips.record(trip);
        }
        Ok(true)
    }

    pub(super) fn poll(&mut self, now: Instant) -> Option<Bytes> {
        if now < self.next {
            return None;
        }
        // After a pause one heartbeat is enough; the missed ones are not made up for.
        self.next = now + self.interval;
        self.counter += 1;
        let echo = self
            .peer
            .map(|(beat, at)| (beat.sent_at, now.saturating_duration_since(at)));
        let (echo, age) = echo.unwrap_or((0, Duration::ZERO));
        let beat = Heartbeat {
            counter: self.counter,
            position: self.position,
            sent_at: self.clock(now),
            echo,
            echo_age: nanos(age),
        };
        Some(beat.encode())
    }

    pub(super) fn next_timeout(&self) -> Instant {
        self.next
    }

    /// The position in the peer's last heartbeat.
    pub(super) fn peer_position(&self) -> CommitSeq {
        self.peer.map_or(CommitSeq::BOOT, |(beat, _)| beat.position)
    }

    pub(super) fn round_trips(&self) -> &Quantiles {
        &self.round_trips
    }

    /// Never 0, which means "none" in an echo.
    fn clock(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch)) + 1
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX - 1)
}
