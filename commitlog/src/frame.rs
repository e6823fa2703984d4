//! Frames: what a log file and the commit stream to a backup are made of.

use bytes::Bytes;

use crate::{ByteRuns, CommitSeq, GuestTime, Record, Shape};

/// One item of a log file or commit stream.
///
/// A stream starts with a snapshot (`SnapshotStart`, any number of `SnapshotPages`, `SnapshotEnd`),
/// then has records in commit order without gaps, with digests between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A snapshot of the machine begins.
    SnapshotStart(SnapshotStart),
    /// Memory of the snapshot; memory that no frame mentions is zero. At most 1 MiB a frame.
    SnapshotPages(ByteRuns),
    /// The snapshot is complete.
    SnapshotEnd(StateDigest),
    /// A commit.
    Record(Record),
    /// Digest of the whole committed state, after the record before it.
    Digest(StateDigest),
}

/// Everything of a snapshot but its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotStart {
    /// The machine's shape.
    pub shape: Shape,
    /// The last commit that is part of the snapshot.
    pub seq: CommitSeq,
    /// The guest clock at that commit.
    pub guest_time: GuestTime,
    /// Version of the vCPU and device state layouts.
    pub state_version: u32,
    /// Each vCPU's state in its canonical byte form, by index.
    pub vcpus: Vec<Bytes>,
    /// The devices' state.
    pub devices: Bytes,
}

/// Digest of the whole committed state: memory, vCPUs, devices, clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateDigest {
    /// The state after this commit.
    pub seq: CommitSeq,
    /// xxh3-128 based.
    pub digest: u128,
}

impl Frame {
    /// The record, if the frame is one.
    pub fn record(&self) -> Option<&Record> {
        match self {
            Self::Record(record) => Some(record),
            _ => None,
        }
    }
}
