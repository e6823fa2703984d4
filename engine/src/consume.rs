//! Following a log: a backup, or a reader of a log file.

use std::io;
use std::sync::Arc;

use samsara_commitlog::{CommitSeq, DiskRange, Frame, StateDigest};
use samsara_machine::machine::{SnapshotError, SnapshotLoader, Source};
use samsara_machine::pc::virtio::Blocks;
use samsara_machine::{Applied, ApplyError, Machine, Output};

/// Why a frame cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum ConsumeError {
    /// A frame is not where it belongs.
    #[error("{found} is not what follows {after}")]
    Unexpected {
        /// What came.
        found: &'static str,
        /// What came before it.
        after: &'static str,
    },
    /// The snapshot does not make a machine.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A record does not apply.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Contents of a disk that this host does not have, or not so far.
    #[error("the log has {bytes} bytes at {offset} of disk {disk}, which this host does not have")]
    NoSuchDisk {
        /// The disk.
        disk: u8,
        /// Where on it.
        offset: u64,
        /// How many bytes.
        bytes: usize,
    },
    /// This host's disk failed.
    #[error("disk {disk}")]
    Disk {
        /// The disk.
        disk: u8,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The whole state is not the producer's.
    #[error("state digest at commit {}: expected {:#034x}, found {:#034x}",
        expected.seq, expected.digest, found.digest)]
    Divergence {
        /// The producer's.
        expected: StateDigest,
        /// This machine's.
        found: StateDigest,
    },
}

impl ConsumeError {
    /// Whether state differs, as opposed to a log that is not one.
    pub fn is_divergence(&self) -> bool {
        matches!(
            self,
            Self::Divergence { .. } | Self::Apply(ApplyError::Divergence { .. })
        )
    }
}

/// Follows frames: `Empty -> Loading -> Following`.
#[derive(Debug, Default)]
pub struct Consumer {
    state: State,
    digests_compared: u64,
    /// This host's, by block device of the machine.
    disks: Vec<Arc<dyn Blocks>>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Empty,
    Loading(SnapshotLoader),
    Following(Box<Machine>),
    /// An error left nothing that could be used.
    Broken,
}

impl Consumer {
    /// Follows a machine whose disks are these, in the order of its block devices. What the log has of
    /// their contents is written to them; the snapshot is complete when that has reached the disks.
    pub fn with_disks(disks: Vec<Arc<dyn Blocks>>) -> Self {
        Self {
            disks,
            ..Self::default()
        }
    }

    /// Takes the next frame. Gives what the commit wants to emit.
    pub fn frame(&mut self, frame: &Frame) -> Result<Vec<Output>, ConsumeError> {
        self.apply(frame).map(|applied| applied.outputs)
    }

    /// Takes the next frame. Gives all that the commit did.
    pub fn apply(&mut self, frame: &Frame) -> Result<Applied, ConsumeError> {
        let state = std::mem::replace(&mut self.state, State::Broken);
        let (state, applied) = self.step(state, frame)?;
        self.state = state;
        Ok(applied)
    }

    fn step(&mut self, state: State, frame: &Frame) -> Result<(State, Applied), ConsumeError> {
        let state = match (state, frame) {
            (State::Empty, Frame::SnapshotStart(start)) => {
                State::Loading(SnapshotLoader::new(start.clone())?)
            }
            (State::Loading(loader), Frame::SnapshotStart(start)) => {
                State::Loading(loader.restart(start.clone())?)
            }
            (State::Loading(mut loader), Frame::SnapshotPages(runs)) => {
                loader.pages(runs)?;
                State::Loading(loader)
            }
            (state @ (State::Empty | State::Loading(_)), Frame::DiskRange(range)) => {
                self.write_disk(range)?;
                state
            }
            (State::Loading(loader), Frame::SnapshotEnd(digest)) => {
                self.flush_disks()?;
                State::Following(Box::new(loader.finish(*digest, self.disks.clone())?))
            }
            (State::Following(mut machine), Frame::Record(record)) => {
                let applied = machine.apply(record, Source::Record)?;
                return Ok((State::Following(machine), applied));
            }
            (State::Following(mut machine), Frame::Digest(expected)) => {
                let found = machine.digest();
                if found != *expected {
                    return Err(ConsumeError::Divergence {
                        expected: *expected,
                        found,
                    });
                }
                self.digests_compared += 1;
                State::Following(machine)
            }
            (state, frame) => {
                let (found, after) = (frame_name(frame), state.name());
                return Err(ConsumeError::Unexpected { found, after });
            }
        };
        Ok((state, Applied::default()))
    }

    fn write_disk(&self, range: &DiskRange) -> Result<(), ConsumeError> {
        let &DiskRange {
            disk,
            offset,
            ref bytes,
        } = range;
        let found = self.disks.get(usize::from(disk));
        let target = found.filter(|found| range.end().is_some_and(|end| end <= found.bytes()));
        let target = target.ok_or(ConsumeError::NoSuchDisk {
            disk,
            offset,
            bytes: bytes.len(),
        })?;
        let is_zero = bytes.iter().all(|&byte| byte == 0);
        let written = if is_zero {
            target.zero(offset, bytes.len() as u64)
        } else {
            target.write(offset, bytes)
        };
        written.map_err(|source| ConsumeError::Disk { disk, source })
    }

    fn flush_disks(&self) -> Result<(), ConsumeError> {
        for (disk, target) in (0..).zip(&self.disks) {
            let flushed = target.flush();
            flushed.map_err(|source| ConsumeError::Disk { disk, source })?;
        }
        Ok(())
    }

    /// The machine, once its snapshot is complete.
    pub fn machine(&self) -> Option<&Machine> {
        match &self.state {
            State::Following(machine) => Some(machine),
            _ => None,
        }
    }

    /// The machine, for whoever takes it to another state of its history: what is followed next follows that.
    pub fn machine_mut(&mut self) -> Option<&mut Machine> {
        match &mut self.state {
            State::Following(machine) => Some(machine),
            _ => None,
        }
    }

    /// The machine, to carry on from.
    pub fn into_machine(self) -> Option<Machine> {
        match self.state {
            State::Following(machine) => Some(*machine),
            _ => None,
        }
    }

    /// Digest of the machine's whole state as it is, once its snapshot is complete.
    pub fn digest(&mut self) -> Option<StateDigest> {
        self.machine_mut().map(Machine::digest)
    }

    /// The last commit applied.
    pub fn seq(&self) -> Option<CommitSeq> {
        self.machine().map(Machine::seq)
    }

    /// Whole-state digests that were compared and equal.
    pub fn digests_compared(&self) -> u64 {
        self.digests_compared
    }
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Empty => "the start of a log",
            Self::Loading(_) => "an incomplete snapshot",
            Self::Following(_) => "a snapshot or record",
            Self::Broken => "a frame that failed",
        }
    }
}

fn frame_name(frame: &Frame) -> &'static str {
    match frame {
        Frame::SnapshotStart(_) => "a snapshot",
        Frame::SnapshotPages(_) => "memory of a snapshot",
        Frame::DiskRange(_) => "a part of a disk",
        Frame::SnapshotEnd(_) => "the end of a snapshot",
        Frame::Record(_) => "a record",
        Frame::Digest(_) => "a digest",
    }
}
