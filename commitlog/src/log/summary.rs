//! What is in a log file.

use std::path::Path;

use super::{LogError, LogHistory, Tail};
use crate::{CommitSeq, Frame, Record, Shape, StateDigest};

/// What a log file has in it, every frame checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSummary {
    /// The machine's shape; `None` if the log ends before its snapshot starts.
    pub shape: Option<Shape>,
    /// The last commit that the snapshot includes; `None` if the log ends inside its snapshot.
    pub snapshot_seq: Option<CommitSeq>,
    /// The last commit that the log gives the state of; `None` if the log ends inside its snapshot.
    pub last_seq: Option<CommitSeq>,
    /// The last digest of the whole state, that of the snapshot included.
    pub last_digest: Option<StateDigest>,
    /// How many records of chunks.
    pub chunk_count: u64,
    /// How many records of inputs.
    pub input_count: u64,
    /// How many digests of the whole state.
    pub digest_count: u64,
    /// Bytes of encoded effects.
    pub effect_bytes: u64,
    /// Bytes of disks; none in a log file that was recorded, see [`Frame::DiskRange`].
    pub disk_bytes: u64,
    /// Bytes of the file up to the end of its last whole frame.
    pub valid_bytes: u64,
    /// How the file ends.
    pub tail: Tail,
}

/// Reads all of a log file and checks it: every frame whole, and all of them one history.
pub fn verify(path: impl AsRef<Path>) -> Result<LogSummary, LogError> {
    summarize(&mut LogHistory::open(path)?)
}

pub(super) fn summarize(history: &mut LogHistory) -> Result<LogSummary, LogError> {
    let mut summary = LogSummary::EMPTY;
    while let Some(frame) = history.next_frame()? {
        summary.count(&frame);
    }
    summary.shape = history.shape();
    summary.last_seq = history.seq();
    summary.valid_bytes = history.reader().valid_bytes();
    if let Some(tail) = history.reader().tail() {
        summary.tail = tail;
    }
    Ok(summary)
}

impl LogSummary {
    const EMPTY: Self = Self {
        shape: None,
        snapshot_seq: None,
        last_seq: None,
        last_digest: None,
        chunk_count: 0,
        input_count: 0,
        digest_count: 0,
        effect_bytes: 0,
        disk_bytes: 0,
        valid_bytes: 0,
        tail: Tail::Clean,
    };

    fn count(&mut self, frame: &Frame) {
        match frame {
            Frame::SnapshotStart(_) | Frame::SnapshotPages(_) => {}
            Frame::DiskRange(range) => self.disk_bytes += range.bytes.len() as u64,
            Frame::SnapshotEnd(digest) => {
                self.snapshot_seq = Some(digest.seq);
                self.last_digest = Some(*digest);
            }
            Frame::Digest(digest) => {
                self.digest_count += 1;
                self.last_digest = Some(*digest);
            }
            Frame::Record(record) => self.count_record(record),
        }
    }

    fn count_record(&mut self, record: &Record) {
        if record.chunk_vcpu().is_some() {
            self.chunk_count += 1;
        } else {
            self.input_count += 1;
        }
        self.effect_bytes += record.effect_bytes() as u64;
    }
}
