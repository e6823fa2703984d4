//! Following a log: a backup, or a reader of a log file.

use std::io;
use std::sync::Arc;

use samsara_commitlog::{CommitSeq, DiskRange, Frame, Record, StateDigest};
use samsara_machine::machine::{SnapshotError, SnapshotLoader, Source};
use samsara_machine::pc::virtio::Blocks;
use samsara_machine::{Applied, ApplyError, Machine, Output, Platform};

use crate::EngineError;
use crate::record::{Divergence, DivergenceCause, Emitted, Replayer, Rerun};

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
    /// A chunk cannot be run again on this host.
    #[error(transparent)]
    Engine(Box<EngineError>),
    /// A chunk came out differently when it was run again, and its effects are not to be had.
    #[error("{0}; its effects are not there")]
    Diverged(Divergence),
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

impl From<EngineError> for ConsumeError {
    fn from(error: EngineError) -> Self {
        Self::Engine(Box::new(error))
    }
}

impl ConsumeError {
    /// Whether state differs, as opposed to a log that is not one.
    pub fn is_divergence(&self) -> bool {
        matches!(
            self,
            Self::Divergence { .. } | Self::Apply(ApplyError::Divergence { .. })
        ) || matches!(self, Self::Diverged(chunk) if chunk.cause != DivergenceCause::Failed)
    }
}

/// Follows frames: `Empty -> Loading -> Following`.
#[derive(Debug, Default)]
pub struct Consumer {
    state: State,
    digests_compared: u64,
    /// This host's, by block device of the machine.
    disks: Vec<Arc<dyn Blocks>>,
    /// How chunks in order form are run, if this host runs any.
    rerun: Option<Rerun>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Empty,
    Loading(SnapshotLoader),
    Following(Box<Machine>),
    /// From the first chunk in order form on, or since this was prepared.
    Replaying(Box<Replayer>),
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

    /// Runs chunks in order form again.
    #[must_use]
    pub fn with_rerun(mut self, rerun: Rerun) -> Self {
        self.rerun = Some(rerun);
        self
    }

    /// Takes the next frame. Gives what the commit wants to emit.
    pub fn frame(&mut self, frame: &Frame) -> Result<Vec<Output>, ConsumeError> {
        let mut emitted = Vec::new();
        self.frames(std::slice::from_ref(frame), &mut emitted)?;
        Ok(emitted
            .into_iter()
            .flat_map(|(_, outputs)| outputs)
            .collect())
    }

    /// Takes the next frames. Adds what the commits want to emit, in order, also of those before an error. Chunks in
    /// order form among them run beside each other as far as they did when they were recorded.
    ///
    /// After [`ConsumeError::Diverged`] the machine is at its last commit, as if what follows had not come; after any
    /// other error it is gone.
    pub fn frames(
        &mut self,
        frames: &[Frame],
        emitted: &mut Vec<Emitted>,
    ) -> Result<(), ConsumeError> {
        for (index, frame) in frames.iter().enumerate() {
            let state = std::mem::replace(&mut self.state, State::Broken);
            match self.run_orders(state, frame)? {
                State::Replaying(mut replayer) => {
                    let rest = &frames[index..];
                    let followed = replayer.frames(rest, emitted);
                    if matches!(followed, Ok(()) | Err(ConsumeError::Diverged(_))) {
                        self.state = State::Replaying(replayer);
                    }
                    followed?;
                    let is_digest = |frame: &&Frame| matches!(frame, Frame::Digest(_));
                    self.digests_compared += rest.iter().filter(is_digest).count() as u64;
                    break;
                }
                state => {
                    let (state, Applied { outputs, .. }) = self.step(state, frame)?;
                    self.state = state;
                    if let (Frame::Record(record), false) = (frame, outputs.is_empty()) {
                        emitted.push((record.seq, outputs));
                    }
                }
            }
        }
        Ok(())
    }

    /// Begins to run chunks again when the first of them comes.
    fn run_orders(&self, state: State, frame: &Frame) -> Result<State, ConsumeError> {
        let is_order = frame.record().is_some_and(Record::is_order);
        if is_order {
            Ok(self.start_replayer(state)?)
        } else {
            Ok(state)
        }
    }

    fn start_replayer(&self, state: State) -> Result<State, EngineError> {
        match (state, &self.rerun) {
            (State::Following(machine), Some(rerun)) => {
                let replayer = Replayer::start(*machine, rerun)?;
                Ok(State::Replaying(Box::new(replayer)))
            }
            (state, _) => Ok(state),
        }
    }

    /// Makes all that running chunks again takes, and tries it, instead of when the first order comes. Nothing is to be done for
    /// a machine whose chunks cannot be run again. After an error the machine is gone.
    pub fn prepare_orders(&mut self) -> Result<(), EngineError> {
        if self.look(Machine::platform) == Some(Platform::Bare) {
            let state = std::mem::replace(&mut self.state, State::Broken);
            self.state = self.start_replayer(state)?;
        }
        Ok(())
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
            (State::Following(machine), Frame::Digest(expected)) => {
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

    /// The machine, once its snapshot is complete, and as long as nothing was made to run chunks again.
    pub fn machine(&self) -> Option<&Machine> {
        match &self.state {
            State::Following(machine) => Some(machine),
            _ => None,
        }
    }

    /// Looks at the machine, once its snapshot is complete.
    pub fn look<T>(&self, look: impl FnOnce(&Machine) -> T) -> Option<T> {
        match &self.state {
            State::Following(machine) => Some(look(machine)),
            State::Replaying(replayer) => Some(replayer.look(look)),
            _ => None,
        }
    }

    /// The same, for what the machine keeps for itself: the pages that it tracks.
    pub fn look_mut<T>(&mut self, look: impl FnOnce(&mut Machine) -> T) -> Option<T> {
        match &mut self.state {
            State::Following(machine) => Some(look(machine)),
            State::Replaying(replayer) => Some(replayer.look_mut(look)),
            _ => None,
        }
    }

    /// The machine, to carry on from.
    pub fn into_machine(self) -> Option<Machine> {
        match self.state {
            State::Following(machine) => Some(*machine),
            State::Replaying(replayer) => replayer.into_machine(),
            _ => None,
        }
    }

    /// Digest of the machine's whole state as it is, once its snapshot is complete.
    pub fn digest(&self) -> Option<StateDigest> {
        self.look(Machine::digest)
    }

    /// The last commit applied.
    pub fn seq(&self) -> Option<CommitSeq> {
        self.look(Machine::seq)
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
            Self::Following(_) | Self::Replaying(_) => "a snapshot or record",
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
