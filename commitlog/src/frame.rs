//! Frames: what a log file and the commit stream to a backup are made of.

use bytes::Bytes;

use crate::{ByteRuns, CommitSeq, GuestTime, Record, Shape};

/// One item of a log file or commit stream.
///
/// A stream starts with a snapshot (`SnapshotStart`, any number of `SnapshotPages`, `SnapshotEnd`),
/// then has records in commit order without gaps, with digests between them. A snapshot of a machine that
/// ran while it was taken starts again between its pages: the last `SnapshotStart` counts, and of
/// memory what came last. To a backup whose disks
/// are not those of the snapshot, `DiskRange`s travel before the snapshot or inside it.
///
/// A log file has no contents of disks: who carries on from it needs copies of the images as they were
/// at its snapshot. One that has them all the same (a stream to a backup that was kept) is one, too, if it has
/// no chunks in order form: those are encoded for one [`crate::Medium`] or the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A snapshot of the machine begins.
    SnapshotStart(SnapshotStart),
    /// Contents of a disk at the snapshot; what no frame mentions, its reader has.
    DiskRange(DiskRange),
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

/// A part of a disk. Where frames overlap the later one counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRange {
    /// The disk, in the order of the machine's block devices.
    pub disk: u8,
    /// Where on the disk: a multiple of [`Self::SECTOR_BYTES`].
    pub offset: u64,
    /// Its contents: sectors, at least one, at most [`Self::BYTES_MAX`] bytes.
    pub bytes: Bytes,
}

impl DiskRange {
    /// What offset and length are multiples of.
    pub const SECTOR_BYTES: u64 = 512;
    /// The most bytes in one frame: as for memory, commits do not wait long behind one.
    pub const BYTES_MAX: usize = 1 << 20;

    /// Where it ends; nothing if no disk reaches so far, or these are not whole sectors.
    pub fn end(&self) -> Option<u64> {
        let bytes = self.bytes.len() as u64;
        let is_whole = bytes > 0
            && bytes.is_multiple_of(Self::SECTOR_BYTES)
            && self.offset.is_multiple_of(Self::SECTOR_BYTES);
        let end = self.offset.checked_add(bytes)?;
        // Offsets of files are signed.
        (is_whole && i64::try_from(end).is_ok()).then_some(end)
    }
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
