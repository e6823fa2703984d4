//! `--record FILE`: the commit log in a file, written by a thread of its own.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use samsara_commitlog::{LogClaim, LogError, LogWriter};
use samsara_machine::Machine;
use samsara_replication::{CommitQueue, QueueLimits};

use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::snapshot;

const BATCH_BYTES: usize = 1 << 20;

/// A log file that is about to get a machine's history, or gets it.
pub struct LogFile {
    state: State,
    limits: QueueLimits,
}

enum State {
    Claimed(LogClaim),
    Writing(JoinHandle<Result<(), LogError>>),
    Done,
}

impl LogFile {
    /// Opens the file. What is in it stays until a machine begins.
    pub fn create(path: &Path, limits: QueueLimits) -> Result<Self, Failure> {
        let claim = LogClaim::new(path).map_err(|error| Failure::new(ExitCode::LogFile, &error))?;
        Ok(Self {
            state: State::Claimed(claim),
            limits,
        })
    }

    /// Starts the writer with the machine as it is; gives the queue for its next commits.
    pub fn begin(&mut self, machine: &mut Machine) -> Result<Arc<CommitQueue>, Failure> {
        let queue = Arc::new(CommitQueue::new(self.limits, machine.seq()));
        if let State::Claimed(claim) = std::mem::replace(&mut self.state, State::Done) {
            let writer = claim.start();
            let writer = writer.map_err(|error| Failure::new(ExitCode::LogFile, &error))?;
            let source = Arc::clone(&queue);
            let body = move || write(writer, &source);
            let thread = std::thread::Builder::new().name("log".into()).spawn(body);
            let thread = thread.map_err(|error| Failure::new(ExitCode::Internal, &error))?;
            self.state = State::Writing(thread);
        }
        // The file has its stream header already.
        snapshot::push_machine(machine, &queue)?;
        Ok(queue)
    }

    /// Waits until everything is written; the queue must be finished.
    pub fn end(self) -> Result<(), Failure> {
        match self.state {
            State::Writing(thread) => match thread.join() {
                Ok(result) => result.map_err(|error| Failure::new(ExitCode::LogFile, &error)),
                Err(_) => Err(Failure::text(ExitCode::Internal, "the log writer panicked")),
            },
            State::Claimed(_) | State::Done => Ok(()),
        }
    }
}

fn write(mut writer: LogWriter, queue: &CommitQueue) -> Result<(), LogError> {
    let result = (|| {
        while let Some(batch) = queue.pop_batch_blocking(BATCH_BYTES, None) {
            for frame in batch {
                writer.append_encoded(&frame.bytes)?;
            }
            writer.flush()?;
        }
        writer.sync()
    })();
    if let Err(error) = &result {
        tracing::error!("the log file gets nothing more, the guest goes on: {error}");
        // Nobody waits for room in a log that is not written any more.
        queue.close();
    }
    result
}
