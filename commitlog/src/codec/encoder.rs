//! Frames into a stream, one after the other.

use bytes::Bytes;

use super::compact::{self, Before, Medium};
use crate::{Commit, CommitSeq, Frame, GuestTime};

/// Encodes the frames of one stream, in their order: chunks in order form are coded against the record
/// before them.
#[derive(Clone, Copy, Debug)]
pub struct FrameEncoder {
    medium: Medium,
    before: Option<Before>,
}

impl FrameEncoder {
    /// For the frames of a stream from its start on.
    pub fn new(medium: Medium) -> Self {
        Self {
            medium,
            before: None,
        }
    }

    /// For the frames of a stream that come after a commit.
    pub fn after(medium: Medium, seq: CommitSeq, guest_time: GuestTime) -> Self {
        Self {
            medium,
            before: Some(Before { seq, guest_time }),
        }
    }

    /// The binary form of the stream's next frame.
    ///
    /// # Panics
    /// As [`Frame::encode`]; and for a chunk in order form that does not follow a snapshot or record, that was
    /// cut without progress, or that has what such a chunk cannot have.
    pub fn encode(&mut self, frame: &Frame) -> Bytes {
        let order = match frame {
            Frame::Record(record) => match &record.commit {
                Commit::Order(chunk) => Some((record, chunk)),
                _ => None,
            },
            _ => None,
        };
        let bytes = match (order, self.before) {
            (None, _) => frame.encode(),
            (Some((record, chunk)), Some(before)) => {
                compact::encode(before, record, chunk, self.medium)
            }
            (Some((record, _)), None) => panic!("chunk {} in order form comes first", record.seq),
        };
        self.pass(frame);
        bytes
    }

    /// The stream's next frame was encoded elsewhere.
    pub fn pass(&mut self, frame: &Frame) {
        self.before = Before::after(frame).or(self.before);
    }
}

impl Before {
    /// What the next frame follows, after this one.
    pub(super) fn after(frame: &Frame) -> Option<Self> {
        match frame {
            Frame::SnapshotStart(start) => Some(Self {
                seq: start.seq,
                guest_time: start.guest_time,
            }),
            Frame::Record(record) => Some(Self {
                seq: record.seq,
                guest_time: record.guest_time,
            }),
            _ => None,
        }
    }
}
