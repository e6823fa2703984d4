//! `--record PATH`: the commit log, written by a thread of its own.
//!
//! A file gets the whole history. A directory gets *segments*: logs that each begin with a snapshot of the running machine, a
//! *checkpoint*, and go on to where the next one begins. So whoever looks for a commit begins at the checkpoint
//! before it, and the oldest segments can be removed.
//!
//! - [`folder`]: the directory: where segments are, which are removed.
//! - [`keeper`]: the thread that takes checkpoints and removes segments.
//! - [`handoff`]: how the next segment reaches the writer, at the right commit.

mod folder;
mod handoff;
mod keeper;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use samsara_commitlog::{LogClaim, LogError, LogWriter};
use samsara_config::LogConfig;
use samsara_engine::Recorder;
use samsara_machine::Machine;
use samsara_replication::{CommitQueue, QueueLimits};

use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::snapshot;
use folder::Folder;
pub(crate) use folder::{runs, segments_of};
use handoff::Handoff;
use keeper::Keeper;

const BATCH_BYTES: usize = 1 << 20;

/// A log that is about to get a machine's history, or gets it.
pub struct LogFile {
    state: State,
    limits: QueueLimits,
}

enum State {
    File(LogClaim),
    Folder(Folder),
    /// The first segment is being written; the keeper starts when the machine runs.
    Waiting(JoinHandle<Result<(), LogError>>, Folder, Arc<Handoff>),
    Writing(JoinHandle<Result<(), LogError>>, Option<Keeper>),
    Done,
}

impl LogFile {
    /// Opens the file or directory. What is in it stays until a machine begins.
    pub fn create(path: &Path, config: &LogConfig, limits: QueueLimits) -> Result<Self, Failure> {
        let state = if path.is_dir() {
            Folder::claim(path, config).map(State::Folder)
        } else {
            LogClaim::new(path).map(State::File)
        };
        let state = state.map_err(|error| Failure::new(ExitCode::LogFile, &error))?;
        Ok(Self { state, limits })
    }

    /// Starts the writer with the machine as it is; gives the queue for its next commits.
    pub fn begin(&mut self, machine: &mut Machine) -> Result<Arc<CommitQueue>, Failure> {
        let queue = Arc::new(CommitQueue::new(self.limits, machine.seq()));
        let failed = |error: LogError| Failure::new(ExitCode::LogFile, &error);
        self.state = match std::mem::replace(&mut self.state, State::Done) {
            State::File(claim) => {
                let writer = claim.start().map_err(failed)?;
                State::Writing(spawn(writer, &queue, None)?, None)
            }
            State::Folder(mut folder) => {
                warn_of_disks(machine);
                let writer = folder.begin(machine.seq()).map_err(failed)?;
                let handoff = Arc::new(Handoff::default());
                let thread = spawn(writer, &queue, Some(Arc::clone(&handoff)))?;
                State::Waiting(thread, folder, handoff)
            }
            other => other,
        };
        // The file has its stream header already.
        snapshot::push_machine(machine, &queue)?;
        Ok(queue)
    }

    /// The machine runs: checkpoints can be taken of it.
    pub fn follow(&mut self, recorder: &Arc<Recorder>) -> Result<(), Failure> {
        self.state = match std::mem::replace(&mut self.state, State::Done) {
            State::Waiting(thread, folder, handoff) => {
                let keeper = Keeper::start(folder, handoff, Arc::downgrade(recorder));
                let keeper = keeper.map_err(|error| Failure::new(ExitCode::Internal, &error))?;
                State::Writing(thread, Some(keeper))
            }
            other => other,
        };
        Ok(())
    }

    /// Waits until everything is written; the queue must be finished.
    pub fn end(self) -> Result<(), Failure> {
        let (thread, work) = match self.state {
            // The keeper ends first: the writer may wait for the segment that it prepares.
            State::Writing(thread, keeper) => (thread, keeper.and_then(Keeper::stop)),
            State::Waiting(thread, ..) => (thread, None),
            State::File(_) | State::Folder(_) | State::Done => return Ok(()),
        };
        let written = thread.join();
        if let Some(mut work) = work {
            work.settle();
        }
        match written {
            Ok(result) => result.map_err(|error| Failure::new(ExitCode::LogFile, &error)),
            Err(_) => Err(Failure::text(ExitCode::Internal, "the log writer panicked")),
        }
    }
}

/// Checkpoints of a machine have no contents of its disks.
fn warn_of_disks(machine: &Machine) {
    let has_disks = machine
        .devices()
        .pc()
        .is_some_and(|pc| pc.disk_bytes().next().is_some());
    if has_disks {
        tracing::warn!(
            "checkpoints of the log have no contents of disks: with copies of the images from before the start it can be \
             replayed from its first segment only, so remove none (log.keep_minutes, log.max_bytes)"
        );
    }
}

fn spawn(
    writer: LogWriter,
    queue: &Arc<CommitQueue>,
    handoff: Option<Arc<Handoff>>,
) -> Result<JoinHandle<Result<(), LogError>>, Failure> {
    let source = Arc::clone(queue);
    let body = move || write(writer, &source, handoff.as_deref());
    let thread = std::thread::Builder::new().name("log".into()).spawn(body);
    thread.map_err(|error| Failure::new(ExitCode::Internal, &error))
}

fn write(
    mut writer: LogWriter,
    queue: &CommitQueue,
    handoff: Option<&Handoff>,
) -> Result<(), LogError> {
    let result = (|| {
        while let Some(batch) = queue.pop_batch_blocking(BATCH_BYTES, None) {
            for frame in batch {
                if let Some(handoff) = handoff
                    && let Some(next) = handoff.next_for(frame.seq)
                {
                    writer.flush()?;
                    handoff.retire(std::mem::replace(&mut writer, next));
                }
                writer.append_encoded(&frame.bytes)?;
            }
            writer.flush()?;
            if let Some(handoff) = handoff {
                handoff.note_bytes(writer.log_bytes());
            }
        }
        writer.sync()
    })();
    if let Err(error) = &result {
        tracing::error!("the log gets nothing more, the guest goes on: {error}");
        // Nobody waits for room in a log that is not written any more.
        queue.close();
        if let Some(handoff) = handoff {
            handoff.close();
        }
    }
    result
}
