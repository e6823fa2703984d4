//! What a decoder accepts: sizes that are capped before anything is allocated.

use crate::{DiskRange, Effects, FrameKind, Shape};

/// The most bytes of one vCPU's state in its canonical byte form. Registers, MSRs and an XSAVE area
/// with every component known today take some 12 KiB.
pub const VCPU_STATE_BYTES_MAX: usize = 64 << 10;

/// The most bytes of the devices' state. It holds what devices have queued (DMA pieces of 1 MiB,
/// console input), not what the guest keeps in memory.
pub const DEVICES_BYTES_MAX: usize = 16 << 20;

/// How many bytes of memory a [`crate::Frame::SnapshotPages`] aims for: enough that framing costs
/// nothing, little enough that commits do not wait long behind one.
pub const SNAPSHOT_PAGES_BYTES: usize = 1 << 20;

/// What a frame of snapshot pages may take beyond [`SNAPSHOT_PAGES_BYTES`]: the headers of its runs
/// and the page that crossed the line.
const SNAPSHOT_PAGES_SLACK: usize = 64 << 10;

/// The most encoded bytes of a vCPU's changes: as for [`Effects::MEMORY_BYTES_MAX`], every other byte.
pub(crate) const VCPU_RUNS_BYTES_MAX: usize = VCPU_STATE_BYTES_MAX / 2 * 3 + 16;

/// The most bytes of a record besides its byte runs: numbers, tags, the exit and its text.
const RECORD_REST_BYTES_MAX: usize = 4096;

/// The most bytes of any frame's body, and so of what a reader collects before it can decode.
pub const BODY_BYTES_MAX: usize =
    Effects::MEMORY_BYTES_MAX + VCPU_RUNS_BYTES_MAX + RECORD_REST_BYTES_MAX;

impl FrameKind {
    /// The most bytes in the body of a frame of this kind.
    pub const fn body_bytes_max(self) -> usize {
        match self {
            Self::SnapshotStart => {
                DEVICES_BYTES_MAX + Shape::VCPUS_MAX as usize * (VCPU_STATE_BYTES_MAX + 8) + 64
            }
            Self::SnapshotPages => SNAPSHOT_PAGES_BYTES + SNAPSHOT_PAGES_SLACK,
            Self::DiskRange => DiskRange::BYTES_MAX + 16,
            Self::SnapshotEnd | Self::Digest => 32,
            Self::Record => BODY_BYTES_MAX,
        }
    }
}

/// What the decoder of a frame knows about the machine that the stream is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    shape: Option<Shape>,
}

impl Limits {
    /// Nothing is known yet: only a [`crate::Frame::SnapshotStart`] is accepted, and what no shape
    /// says anything about, a [`crate::Frame::DiskRange`].
    pub const BEFORE_SNAPSHOT: Self = Self { shape: None };

    /// The machine has this shape: frames name no other vCPUs and no other memory.
    pub const fn of(shape: Shape) -> Self {
        Self { shape: Some(shape) }
    }

    /// The machine's shape, if it is known.
    pub const fn shape(self) -> Option<Shape> {
        self.shape
    }
}
