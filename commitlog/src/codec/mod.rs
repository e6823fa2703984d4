//! The binary form of frames, in a log file and on the network: the same but for the check of compact frames.
//!
//! Little endian throughout. A stream is a header and then frames back to back:
//!
//! | stream header | |
//! |---|---|
//! | magic | 8 bytes, [`StreamHeader::MAGIC`] |
//! | version | `u32`, [`StreamHeader::VERSION`] |
//!
//! | frame | |
//! |---|---|
//! | kind | `u8`, [`FrameKind`] |
//! | length | `u32`, bytes of the body |
//! | header check | 24 bits of the xxh3-64 of kind, length and checksum |
//! | checksum | `u64`, xxh3-64 of the body |
//! | body | see `encode.rs` |
//!
//! A chunk in order form is a compact frame, without this header: see `compact.rs`. Its first
//! byte has the highest bit, which no kind has.
//!
//! The header has a check of its own so that a damaged length is known as one: without it, a flipped
//! bit that makes the last good frame reach past the end of a file would look like an unfinished
//! write, and commits after it would be lost without a word. A decoder checks magic, version, header
//! check, length and checksum, in that order, and only then looks into the body.

mod compact;
mod decode;
mod encode;
mod encoder;
mod error;
mod reader;

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use twox_hash::XxHash3_64;

pub use compact::{Medium, TIME_STEP, TSC_STEP};
pub(crate) use compact::{is_chain, is_compact};
pub use encoder::FrameEncoder;
pub use error::{DecodeError, Fault};
pub use reader::FrameReader;

use crate::limits::BODY_BYTES_MAX;
use crate::{Frame, Limits};

/// What a stream begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// The format of what follows.
    pub version: u32,
}

impl StreamHeader {
    /// A byte that is not text, the name, and line ends that a careless copy would change.
    pub const MAGIC: [u8; 8] = *b"\x93SMSR\r\n\x1a";
    /// The version of the format that this crate reads and writes.
    pub const VERSION: u32 = 4;
    /// Bytes of an encoded header.
    pub const BYTES: usize = 12;
    /// The header of this version.
    pub const CURRENT: Self = Self {
        version: Self::VERSION,
    };

    /// The binary form.
    pub fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(Self::BYTES);
        out.put_slice(&Self::MAGIC);
        out.put_u32_le(self.version);
        out.freeze()
    }

    /// Checks the first bytes of a stream, of which there are at least [`Self::BYTES`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let fail = |offset, fault| Err(DecodeError { offset, fault });
        let Some(([magic @ .., v0, v1, v2, v3], _)) = bytes.split_first_chunk::<{ Self::BYTES }>()
        else {
            return fail(0, Fault::EndsInsideFrame);
        };
        let found = u32::from_le_bytes([*v0, *v1, *v2, *v3]);
        if *magic != Self::MAGIC {
            return fail(0, Fault::NotALog);
        }
        if found != Self::VERSION {
            return fail(
                8,
                Fault::Version {
                    found,
                    supported: Self::VERSION,
                },
            );
        }
        Ok(Self { version: found })
    }
}

/// The kind of a frame, as encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// [`Frame::SnapshotStart`]
    SnapshotStart = 1,
    /// [`Frame::SnapshotPages`]
    SnapshotPages = 2,
    /// [`Frame::SnapshotEnd`]
    SnapshotEnd = 3,
    /// [`Frame::Record`]
    Record = 4,
    /// [`Frame::Digest`]
    Digest = 5,
    /// [`Frame::DiskRange`]
    DiskRange = 6,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::SnapshotStart,
            2 => Self::SnapshotPages,
            3 => Self::SnapshotEnd,
            4 => Self::Record,
            5 => Self::Digest,
            6 => Self::DiskRange,
            _ => return None,
        })
    }
}

impl fmt::Display for FrameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SnapshotStart => "snapshot start",
            Self::SnapshotPages => "snapshot pages",
            Self::SnapshotEnd => "snapshot end",
            Self::Record => "record",
            Self::Digest => "digest",
            Self::DiskRange => "disk range",
        })
    }
}

/// Bytes of a frame before its body.
pub(crate) const FRAME_HEADER_BYTES: usize = 16;
/// Bytes of the header's own check.
const HEADER_CHECK_BYTES: usize = 3;

/// A frame's header, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameHeader {
    pub(crate) kind: FrameKind,
    pub(crate) body_bytes: usize,
    checksum: u64,
}

impl FrameHeader {
    pub(crate) fn frame_bytes(self) -> usize {
        FRAME_HEADER_BYTES + self.body_bytes
    }

    /// Checks the header alone.
    pub(crate) fn decode(header: &[u8; FRAME_HEADER_BYTES]) -> Result<Self, Fault> {
        let mut fields = &header[..];
        let kind = fields.get_u8();
        let length = fields.get_u32_le();
        let found = fields.get_uint_le(HEADER_CHECK_BYTES);
        let checksum = fields.get_u64_le();
        if found != header_check(length, checksum, kind) {
            return Err(Fault::HeaderDamaged);
        }
        let known = FrameKind::from_byte(kind);
        let max = known.map_or(BODY_BYTES_MAX, FrameKind::body_bytes_max);
        let body_bytes = length as usize;
        if body_bytes > max {
            return Err(Fault::TooLong {
                bytes: u64::from(length),
                max,
            });
        }
        let kind = known.ok_or(Fault::UnknownKind(kind))?;
        Ok(Self {
            kind,
            body_bytes,
            checksum,
        })
    }

    /// Whether this could be the start of a header; cheaper than [`Self::decode`], which must agree.
    pub(crate) fn is_plausible(header: &[u8; FRAME_HEADER_BYTES]) -> bool {
        FrameKind::from_byte(header[0]).is_some()
    }

    /// Checks a whole frame that this is the header of, and decodes its body. `offset` is where the
    /// frame starts.
    fn decode_frame(
        self,
        frame: &Bytes,
        offset: u64,
        limits: Limits,
    ) -> Result<Frame, DecodeError> {
        if !self.matches(XxHash3_64::oneshot(&frame[FRAME_HEADER_BYTES..])) {
            let bytes = frame.len() as u64;
            return Err(DecodeError {
                offset,
                fault: Fault::ChecksumWrong { bytes },
            });
        }
        let body = frame.slice(FRAME_HEADER_BYTES..);
        decode::body(self.kind, body, offset + FRAME_HEADER_BYTES as u64, limits)
    }

    /// Whether `checksum`, of the body, is the one that the header names.
    pub(crate) fn matches(self, checksum: u64) -> bool {
        self.checksum == checksum
    }
}

/// The check of these fields of a header, in its low [`HEADER_CHECK_BYTES`].
fn header_check(length: u32, checksum: u64, kind: u8) -> u64 {
    let mut covered = [0; 13];
    let mut fields = &mut covered[..];
    fields.put_u32_le(length);
    fields.put_u64_le(checksum);
    fields.put_u8(kind);
    XxHash3_64::oneshot(&covered) & ((1 << (8 * HEADER_CHECK_BYTES)) - 1)
}

impl Frame {
    /// The frame's kind.
    pub fn kind(&self) -> FrameKind {
        match self {
            Self::SnapshotStart(_) => FrameKind::SnapshotStart,
            Self::SnapshotPages(_) => FrameKind::SnapshotPages,
            Self::SnapshotEnd(_) => FrameKind::SnapshotEnd,
            Self::Record(_) => FrameKind::Record,
            Self::Digest(_) => FrameKind::Digest,
            Self::DiskRange(_) => FrameKind::DiskRange,
        }
    }

    /// Bytes of the encoded frame with its header, without encoding it.
    pub fn encoded_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + encode::body_bytes(self)
    }

    /// The binary form, with its header: what goes into a file or on the network as it is. Copies
    /// every byte once.
    ///
    /// # Panics
    /// If the frame breaks a bound that its producer must keep: it is longer than
    /// [`FrameKind::body_bytes_max`] (see [`crate::Effects::PAGES_MAX`]), an access is not of 1 to 8
    /// bytes, a chunk starts after its own commit, or a part of a disk is not in whole sectors. Chunks in
    /// order form have an encoding only among others: see [`FrameEncoder`].
    pub fn encode(&self) -> Bytes {
        let kind = self.kind();
        let body_bytes = encode::body_bytes(self);
        let max = kind.body_bytes_max();
        assert!(
            body_bytes <= max,
            "a {kind} frame of {body_bytes} bytes is over its limit of {max}"
        );
        let mut out = BytesMut::with_capacity(FRAME_HEADER_BYTES + body_bytes);
        out.put_bytes(0, FRAME_HEADER_BYTES);
        encode::body(self, &mut out);
        let length = body_bytes as u32;
        let checksum = XxHash3_64::oneshot(&out[FRAME_HEADER_BYTES..]);
        let mut fields = &mut out[..FRAME_HEADER_BYTES];
        fields.put_u8(kind as u8);
        fields.put_u32_le(length);
        fields.put_uint_le(
            header_check(length, checksum, kind as u8),
            HEADER_CHECK_BYTES,
        );
        fields.put_u64_le(checksum);
        out.freeze()
    }

    /// Decodes exactly one frame as [`Self::encode`] made it. Byte runs and other bytes in the result
    /// are slices of `encoded`, and keep it alive.
    pub fn decode(encoded: &Bytes, limits: Limits) -> Result<Self, DecodeError> {
        let fail = |fault| Err(DecodeError { offset: 0, fault });
        let Some(header) = encoded.first_chunk() else {
            return fail(Fault::EndsInsideFrame);
        };
        let header =
            FrameHeader::decode(header).map_err(|fault| DecodeError { offset: 0, fault })?;
        match encoded.len().checked_sub(header.frame_bytes()) {
            None => fail(Fault::EndsInsideFrame),
            Some(0) => header.decode_frame(encoded, 0, limits),
            Some(follow) => fail(Fault::BytesFollow(follow as u64)),
        }
    }
}
