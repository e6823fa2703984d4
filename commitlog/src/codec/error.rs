//! What can be wrong with encoded frames.

use crate::{FrameKind, RunsError, Shape, ShapeError, VcpuIndex};

/// Bytes that are not the commit stream they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at offset {offset}: {fault}")]
pub struct DecodeError {
    /// Where in the file or stream: the start of the damaged frame or, in a frame whose checksum is
    /// right, the field.
    pub offset: u64,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong at a place in a commit stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The stream does not begin as it must.
    #[error("this is not a samsara commit log")]
    NotALog,
    /// The stream is of another version of the format.
    #[error(
        "the commit log has format version {found}, this program reads version {supported}: use the \
         release that wrote it"
    )]
    Version {
        /// The stream's version.
        found: u32,
        /// This program's.
        supported: u32,
    },
    /// A frame's header fails its check.
    #[error("the header of a frame is damaged")]
    HeaderDamaged,
    /// A frame claims to be longer than any frame is.
    #[error("a frame claims {bytes} bytes, more than the {max} that it may have")]
    TooLong {
        /// The claim.
        bytes: u64,
        /// The cap for its kind.
        max: usize,
    },
    /// A frame's body fails its check.
    #[error("a frame of {bytes} bytes is damaged: its checksum is wrong")]
    ChecksumWrong {
        /// Bytes of the whole frame.
        bytes: u64,
    },
    /// A frame of a kind that this version does not have.
    #[error("frames of kind {0} are unknown")]
    UnknownKind(u8),
    /// The bytes end inside the stream's or a frame's header, or inside a frame.
    #[error("the stream ends inside a frame")]
    EndsInsideFrame,
    /// More bytes than the one frame.
    #[error("{0} bytes follow the frame")]
    BytesFollow(u64),
    /// A frame that only makes sense when the machine is known.
    #[error("a {0} frame comes before the start of a snapshot")]
    BeforeSnapshot(FrameKind),
    /// A chunk in order form that no record comes before.
    #[error("a chunk in order form comes before any record")]
    NothingBefore,
    /// A snapshot of a different machine than the one so far.
    #[error("the snapshot is of a machine with {} vCPUs and {} bytes of memory, so far it had {} and {}",
        found.vcpu_count, found.memory_bytes, expected.vcpu_count, expected.memory_bytes)]
    ShapeChanged {
        /// The snapshot's.
        found: Shape,
        /// The stream's so far.
        expected: Shape,
    },
    /// No machine has this shape.
    #[error("{0}")]
    Shape(ShapeError),
    /// The body ends before this field does, or the field is a varint that is not one.
    #[error("the frame ends inside its {0}, or that is not a number")]
    FieldBroken(&'static str),
    /// A number outside what its field may have.
    #[error("{field} {value} is not possible")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What it has.
        value: u64,
    },
    /// A vCPU that the machine does not have.
    #[error("the machine has no vCPU {0}")]
    NoSuchVcpu(VcpuIndex),
    /// Bad byte runs.
    #[error("{field}: {error}")]
    Runs {
        /// Whose runs.
        field: &'static str,
        /// What is wrong with them.
        error: RunsError,
    },
    /// Text that is not UTF-8.
    #[error("the {0} is not UTF-8 text")]
    NotText(&'static str),
}
