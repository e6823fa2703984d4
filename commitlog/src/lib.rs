//! The ordered history of a machine: commit records, their binary codec, and the log file.
//!
//! A [`Record`] is one step of the replicated state machine `S(n+1) = apply(S(n), record n)`. The
//! same [`Frame`]s travel to a backup and into a log file: a snapshot of the machine, then records
//! in commit order, with digests of the whole state between them.
//!
//! [`Frame::encode`] gives a frame's bytes; a stream of them begins with a [`StreamHeader`].
//! [`FrameReader`] gets frames out of a stream, [`StreamOrder`] checks that they make a history.
//! [`LogWriter`], [`LogReader`], [`LogHistory`] and [`verify`] do the same with files.

mod codec;
mod frame;
mod ids;
mod limits;
mod log;
mod order;
mod record;
mod runs;
mod shape;
mod varint;

pub use codec::{
    DecodeError, Fault, FrameEncoder, FrameKind, FrameReader, Medium, StreamHeader, TIME_STEP,
    TSC_STEP,
};
pub use frame::{DiskRange, Frame, SnapshotStart, StateDigest};
pub use ids::{CommitSeq, DeviceIndex, Gpa, GuestTime, PAGE_BYTES, VcpuIndex};
pub use limits::{
    BODY_BYTES_MAX, DEVICES_BYTES_MAX, Limits, SNAPSHOT_PAGES_BYTES, VCPU_STATE_BYTES_MAX,
};
pub use log::{LogClaim, LogError, LogHistory, LogReader, LogSummary, LogWriter, Tail, verify};
pub use order::{OrderError, StreamOrder};
pub use record::{
    Boundary, Chunk, Commit, Effects, Exit, Input, OrderChunk, Place, Progress, Record, Space,
};
pub use runs::{ByteRuns, ByteRunsBuilder, RunsError};
pub use shape::{Shape, ShapeError};
