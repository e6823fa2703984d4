//! Control messages as bytes, little endian:
//!
//! ```text
//!   length u32 (of what follows) | version u16 | kind u16 | body
//! ```
//!
//! Length, version and kind are checked, in that order, before the body is looked at. There is no
//! checksum: the stream is authenticated.

mod fields;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::disk::{DIGESTS_MAX, DISKS_MAX, DigestQuestion, RangeDigests};
use super::message::{
    Hello, Message, NAME_BYTES_MAX, PROTOCOL_VERSIONS, PeerRole, Refusal, RefuseReason, Right,
    SessionToken, TEXT_BYTES_MAX, TOKEN_BYTES, VersionRange, Welcome,
};
use fields::{Fields, put_history, put_option, put_text};

/// Bytes in a control message, length field included. Four times what the largest one needs.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;

const LENGTH_BYTES: usize = 4;
const HEAD_BYTES: usize = 4;
/// Kinds from here on may be skipped by who does not know them.
const FIRST_OPTIONAL_KIND: u16 = 0x8000;

/// Bytes on the control stream that are no message this host understands.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Outside the bounds.
    #[error("control message of {bytes} bytes; 4 to {} are allowed", MESSAGE_BYTES_MAX - LENGTH_BYTES)]
    Length {
        /// Its length as announced.
        bytes: u64,
    },
    /// A version this host does not speak.
    #[error(
        "speaks protocol version {theirs}, this host speaks {PROTOCOL_VERSIONS}: run the same release on both hosts"
    )]
    Version {
        /// The message's version.
        theirs: u16,
    },
    /// A kind this host does not know and may not skip.
    #[error("control message of unknown kind {kind:#06x}")]
    Kind {
        /// The kind.
        kind: u16,
    },
    /// The body ends early, or a field has a value it cannot have.
    #[error("control message of kind {kind:#06x} with a bad {field}")]
    Field {
        /// The message's kind.
        kind: u16,
        /// The field.
        field: &'static str,
    },
}

mod kind {
    pub(super) const HELLO: u16 = 1;
    pub(super) const WELCOME: u16 = 2;
    pub(super) const REFUSE: u16 = 3;
    pub(super) const SYNC_DONE: u16 = 4;
    pub(super) const IN_SYNC: u16 = 5;
    pub(super) const ACK: u16 = 6;
    pub(super) const RELEASED: u16 = 7;
    pub(super) const DIVERGED: u16 = 8;
    pub(super) const ENDED: u16 = 9;
    pub(super) const GOODBYE: u16 = 10;
    pub(super) const JOIN: u16 = 11;
    // Only between hosts with disks, which both know of them.
    pub(super) const ASK_DIGESTS: u16 = 0x8001;
    pub(super) const DISK_DIGESTS: u16 = 0x8002;
}

impl Message {
    /// The message as it goes on the control stream.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_u32_le(0);
        out.put_u16_le(self.version());
        out.put_u16_le(self.kind());
        self.encode_body(&mut out);
        let length = (out.len() - LENGTH_BYTES) as u32;
        out[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        out.freeze()
    }

    /// Before a version is agreed on, messages go out in the oldest one.
    fn version(&self) -> u16 {
        match self {
            Self::Hello(_) | Self::Welcome(_) | Self::Refuse(_) => PROTOCOL_VERSIONS.min,
            _ => PROTOCOL_VERSIONS.max,
        }
    }

    fn kind(&self) -> u16 {
        match self {
            Self::Hello(_) => kind::HELLO,
            Self::Welcome(_) => kind::WELCOME,
            Self::Refuse(_) => kind::REFUSE,
            Self::SyncDone { .. } => kind::SYNC_DONE,
            Self::Join { .. } => kind::JOIN,
            Self::InSync(_) => kind::IN_SYNC,
            Self::Ack { .. } => kind::ACK,
            Self::Released { .. } => kind::RELEASED,
            Self::Diverged { .. } => kind::DIVERGED,
            Self::AskDigests(_) => kind::ASK_DIGESTS,
            Self::DiskDigests { .. } => kind::DISK_DIGESTS,
            Self::Ended { .. } => kind::ENDED,
            Self::Goodbye { .. } => kind::GOODBYE,
        }
    }

    fn encode_body(&self, out: &mut BytesMut) {
        match self {
            Self::Hello(hello) => hello.encode(out),
            Self::Welcome(welcome) => welcome.encode(out),
            Self::Refuse(refusal) => refusal.encode(out),
            Self::SyncDone { seq } | Self::Released { seq } => out.put_u64_le(seq.0),
            Self::Join { gave_up } => {
                put_option(out, gave_up.map(|right| right.term));
                put_option(out, gave_up.map(|right| right.mark));
            }
            Self::InSync(right) => {
                out.put_u64_le(right.term);
                out.put_u64_le(right.mark);
            }
            Self::Ack { received, verified } => {
                out.put_u64_le(received.0);
                out.put_u64_le(verified.0);
            }
            Self::Diverged {
                seq,
                expected,
                found,
            } => {
                out.put_u64_le(seq.0);
                out.put_u128_le(*expected);
                out.put_u128_le(*found);
            }
            Self::AskDigests(question) => {
                out.put_u8(question.disk);
                out.put_u32_le(question.first);
                out.put_u32_le(question.count);
            }
            Self::DiskDigests {
                disk,
                first,
                digests,
            } => {
                out.put_u8(*disk);
                out.put_u32_le(*first);
                digests.encode(out);
            }
            Self::Ended { status } => out.put_u8(*status),
            Self::Goodbye { reason } => put_text(out, reason, TEXT_BYTES_MAX),
        }
    }

    /// Decodes what follows the length field. `None` is a message to skip.
    fn decode(mut bytes: &[u8]) -> Result<Option<Self>, ControlError> {
        let version = bytes.get_u16_le();
        let kind = bytes.get_u16_le();
        let known = version >= PROTOCOL_VERSIONS.min && version <= PROTOCOL_VERSIONS.max;
        if !known && kind != kind::REFUSE {
            return Err(ControlError::Version { theirs: version });
        }
        let mut fields = Fields { kind, rest: bytes };
        let message = match kind {
            kind::HELLO => Self::Hello(Hello::decode(&mut fields)?),
            kind::WELCOME => Self::Welcome(Welcome::decode(&mut fields)?),
            kind::REFUSE => Self::Refuse(Refusal::decode(&mut fields)?),
            kind::SYNC_DONE => Self::SyncDone {
                seq: fields.seq("seq")?,
            },
            kind::JOIN => {
                let (term, mark) = (fields.option("term")?, fields.option("mark")?);
                let gave_up = term.zip(mark).map(|(term, mark)| Right { term, mark });
                Self::Join { gave_up }
            }
            kind::IN_SYNC => Self::InSync(Right {
                term: fields.u64("term")?,
                mark: fields.u64("mark")?,
            }),
            kind::ACK => Self::Ack {
                received: fields.seq("received")?,
                verified: fields.seq("verified")?,
            },
            kind::RELEASED => Self::Released {
                seq: fields.seq("seq")?,
            },
            kind::DIVERGED => Self::Diverged {
                seq: fields.seq("seq")?,
                expected: fields.u128("expected digest")?,
                found: fields.u128("found digest")?,
            },
            kind::ASK_DIGESTS => Self::AskDigests(DigestQuestion {
                disk: fields.u8("disk")?,
                first: fields.u32("first range")?,
                count: fields.range_count(DIGESTS_MAX)?,
            }),
            kind::DISK_DIGESTS => Self::DiskDigests {
                disk: fields.u8("disk")?,
                first: fields.u32("first range")?,
                digests: RangeDigests::decode(&mut fields)?,
            },
            kind::ENDED => Self::Ended {
                status: fields.u8("status")?,
            },
            kind::GOODBYE => Self::Goodbye {
                reason: fields.text("reason", TEXT_BYTES_MAX)?,
            },
            FIRST_OPTIONAL_KIND.. => return Ok(None),
            _ => return Err(ControlError::Kind { kind }),
        };
        Ok(Some(message))
    }
}

impl Hello {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u16_le(self.protocol.min);
        out.put_u16_le(self.protocol.max);
        out.put_u32_le(self.log_version);
        out.put_u8(match self.role {
            PeerRole::Backup => 0,
            PeerRole::Primary => 1,
        });
        put_text(out, &self.vm, NAME_BYTES_MAX);
        put_text(out, &self.host, NAME_BYTES_MAX);
        out.put_u64_le(self.term);
        out.put_u8(u8::from(self.can_boot));
        out.put_u8(self.vcpu_max);
        out.put_u64_le(self.memory_bytes_max);
        put_option(out, self.input_bytes);
        let disks = &self.disks[..self.disks.len().min(DISKS_MAX)];
        out.put_u8(disks.len() as u8);
        for disk in disks {
            out.put_u64_le(disk.bytes);
            out.put_u8(u8::from(disk.read_only));
        }
        put_history(out, self.disk_position.map(|position| position.history));
        put_option(out, self.disk_position.map(|position| position.commit.0));
        put_option(out, self.cpu_digest);
        put_option(out, self.tsc_khz);
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, ControlError> {
        Ok(Self {
            protocol: VersionRange {
                min: fields.u16("oldest version")?,
                max: fields.u16("newest version")?,
            },
            log_version: fields.u32("log version")?,
            role: match fields.u8("role")? {
                0 => PeerRole::Backup,
                1 => PeerRole::Primary,
                _ => return Err(fields.bad("role")),
            },
            vm: fields.text("vm name", NAME_BYTES_MAX)?,
            host: fields.text("host name", NAME_BYTES_MAX)?,
            term: fields.u64("term")?,
            can_boot: fields.bool("can_boot")?,
            vcpu_max: fields.u8("vcpu_max")?,
            memory_bytes_max: fields.u64("memory_bytes_max")?,
            input_bytes: fields.option("input_bytes")?,
            disks: fields.appended(Fields::disks)?,
            disk_position: fields.appended(Fields::position)?,
            cpu_digest: fields.appended(|fields| fields.option("cpu digest"))?,
            tsc_khz: fields.appended(|fields| fields.option("tsc rate"))?,
        })
    }
}

impl Welcome {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u16_le(self.protocol);
        put_text(out, &self.host, NAME_BYTES_MAX);
        out.put_u64_le(self.term);
        out.put_u8(self.vcpu_count);
        out.put_u64_le(self.memory_bytes);
        put_option(out, self.input_bytes);
        out.put_slice(&self.token.0);
        put_history(out, self.disk_history);
        out.put_u8(u8::from(self.effects_only));
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, ControlError> {
        Ok(Self {
            protocol: fields.u16("version")?,
            host: fields.text("host name", NAME_BYTES_MAX)?,
            term: fields.u64("term")?,
            vcpu_count: fields.u8("vcpu_count")?,
            memory_bytes: fields.u64("memory_bytes")?,
            input_bytes: fields.option("input_bytes")?,
            token: SessionToken(fields.array::<TOKEN_BYTES>("token")?),
            disk_history: fields.appended(Fields::history)?,
            effects_only: fields.appended(|fields| fields.bool("effects_only"))?,
        })
    }
}

impl RangeDigests {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Zero(count) => {
                out.put_u8(0);
                out.put_u32_le(*count);
            }
            Self::Each(digests) => {
                let digests = &digests[..digests.len().min(DIGESTS_MAX as usize)];
                out.put_u8(1);
                out.put_u32_le(digests.len() as u32);
                for &digest in digests {
                    out.put_u128_le(digest);
                }
            }
        }
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, ControlError> {
        if !fields.bool("kind of digests")? {
            return fields.range_count(u32::MAX).map(Self::Zero);
        }
        let count = fields.range_count(DIGESTS_MAX)?;
        let digests = (0..count).map(|_| fields.u128("digest"));
        digests.collect::<Result<_, _>>().map(Self::Each)
    }
}

impl Refusal {
    fn encode(&self, out: &mut BytesMut) {
        out.put_u16_le(match self.reason {
            RefuseReason::WrongVersion => 1,
            RefuseReason::WrongVm => 2,
            RefuseReason::AlsoPrimary => 3,
            RefuseReason::NotPrimary => 4,
            RefuseReason::Busy => 5,
            RefuseReason::ShapeNotSupported => 6,
            RefuseReason::InputMismatch => 7,
            RefuseReason::SameName => 8,
            RefuseReason::DiskMismatch => 9,
            RefuseReason::NewerDisk => 10,
            RefuseReason::CpuMismatch => 11,
            RefuseReason::TscMismatch => 12,
            RefuseReason::Other(code) => code,
        });
        out.put_u64_le(self.term);
        put_text(out, &self.text, TEXT_BYTES_MAX);
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, ControlError> {
        Ok(Self {
            reason: match fields.u16("reason")? {
                1 => RefuseReason::WrongVersion,
                2 => RefuseReason::WrongVm,
                3 => RefuseReason::AlsoPrimary,
                4 => RefuseReason::NotPrimary,
                5 => RefuseReason::Busy,
                6 => RefuseReason::ShapeNotSupported,
                7 => RefuseReason::InputMismatch,
                8 => RefuseReason::SameName,
                9 => RefuseReason::DiskMismatch,
                10 => RefuseReason::NewerDisk,
                11 => RefuseReason::CpuMismatch,
                12 => RefuseReason::TscMismatch,
                code => RefuseReason::Other(code),
            },
            term: fields.u64("term")?,
            text: fields.text("text", TEXT_BYTES_MAX)?,
        })
    }
}

/// Cuts the control stream into messages.
#[derive(Debug, Default)]
pub struct MessageReader {
    buffer: BytesMut,
}

impl MessageReader {
    /// A reader at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes of the stream. Poll until `None` before the next ones, and the reader never
    /// keeps more than a message and what was pushed last.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// What was pushed and not polled.
    pub(crate) fn into_rest(self) -> BytesMut {
        self.buffer
    }

    /// The next message, once all of it is there.
    pub fn poll(&mut self) -> Result<Option<Message>, ControlError> {
        while let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() {
            let length = u32::from_le_bytes(*length) as usize;
            if !(HEAD_BYTES..=MESSAGE_BYTES_MAX - LENGTH_BYTES).contains(&length) {
                return Err(ControlError::Length {
                    bytes: length as u64,
                });
            }
            let Some(body) = self.buffer.get(LENGTH_BYTES..LENGTH_BYTES + length) else {
                return Ok(None);
            };
            let message = Message::decode(body);
            self.buffer.advance(LENGTH_BYTES + length);
            if let Some(message) = message? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }
}
