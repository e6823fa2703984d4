//! The ordered history of a machine: commit records, their binary codec, and the log file.
//!
//! A [`Record`] is one step of the replicated state machine `S(n+1) = apply(S(n), record n)`. The
//! same [`Frame`]s travel to a backup and into a log file: a snapshot of the machine, then records
//! in commit order, with digests of the whole state between them.

mod frame;
mod ids;
mod record;
mod runs;

pub use frame::{Frame, Shape, SnapshotStart, StateDigest};
pub use ids::{CommitSeq, Gpa, GuestTime, VcpuIndex, PAGE_BYTES};
pub use record::{Boundary, Chunk, ChunkResult, Commit, Effects, Exit, Input, Record, Space};
pub use runs::{ByteRuns, ByteRunsBuilder, RunsError};
