//! The thread that takes checkpoints of the running machine, and keeps the log within its bounds.
//!
//! A checkpoint is written by this thread into a file of its own, so commits wait neither for memory to be copied nor for
//! the disk; see [`Recorder::snapshot`] for what they do wait for.

use std::fs;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use samsara_commitlog::{Frame, LogError, LogWriter, StateDigest};
use samsara_engine::{Recorder, SnapshotBounds, Waiting};
use samsara_machine::Machine;
use samsara_machine::memory::MemoryError;

use super::folder::Folder;
use super::handoff::Handoff;

/// How often it looks: seldom enough to cost nothing, and a guest that writes a gigabyte a second does not get far between.
const LOOK: Duration = Duration::from_millis(100);

/// See the module's description.
pub(super) struct Keeper {
    thread: JoinHandle<Work>,
    stop: Arc<Stop>,
}

#[derive(Default)]
struct Stop {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Keeper {
    /// Starts the thread. It does not keep the machine.
    pub(super) fn start(
        folder: Folder,
        handoff: Arc<Handoff>,
        recorder: Weak<Recorder>,
    ) -> io::Result<Self> {
        let stop = Arc::new(Stop::default());
        let mut work = Work {
            folder,
            handoff,
            recorder,
            stop: Arc::clone(&stop),
            last: Instant::now(),
            checkpoint_bytes: 0,
        };
        let thread = std::thread::Builder::new()
            .name("checkpoints".into())
            .spawn(move || {
                work.run();
                work
            })?;
        Ok(Self { thread, stop })
    }

    /// Ends the thread; a checkpoint that is being taken is given up. To be settled once the log's writer has ended.
    pub(super) fn stop(self) -> Option<Work> {
        *self
            .stop
            .is_set
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.changed.notify_all();
        let work = self.thread.join();
        work.inspect_err(|_| {
            tracing::error!("the thread that takes checkpoints of the log panicked");
        })
        .ok()
    }
}

impl Stop {
    fn is_set(&self) -> bool {
        *self.is_set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits; gives whether it is time to stop.
    fn wait(&self, time: Duration) -> bool {
        let is_set = self.is_set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .changed
            .wait_timeout_while(is_set, time, |is_set| !*is_set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
enum CheckpointError {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("it is not needed any more")]
    Stopped,
}

/// Gone, even by a panic, it leaves nobody waiting for a segment.
pub(super) struct Work {
    folder: Folder,
    handoff: Arc<Handoff>,
    recorder: Weak<Recorder>,
    stop: Arc<Stop>,
    /// When the last checkpoint was complete, or given up.
    last: Instant,
    /// What the newest segment has of its checkpoint; 0 of the first one, which the log's writer wrote.
    checkpoint_bytes: u64,
}

impl Work {
    fn run(&mut self) {
        while !self.stop.wait(LOOK) && !self.handoff.is_closed() {
            self.settle();
            let Some(recorder) = self.recorder.upgrade() else {
                break;
            };
            if !self.is_due(&recorder) {
                continue;
            }
            match self.checkpoint(&recorder) {
                Ok(()) | Err(CheckpointError::Stopped) => {}
                Err(error) => tracing::warn!("no checkpoint of the log: {error}"),
            }
            self.last = Instant::now();
        }
        self.settle();
    }

    /// Whether it is time for a checkpoint, and the newest one is not of this very state.
    fn is_due(&self, recorder: &Recorder) -> bool {
        if self.handoff.is_pending() {
            return false;
        }
        let is_time = self.last.elapsed() >= self.folder.checkpoint_every();
        let record_bytes = self.handoff.bytes().saturating_sub(self.checkpoint_bytes);
        (is_time || self.folder.is_long(record_bytes))
            && recorder.peek(Machine::seq) > self.folder.newest()
    }

    /// Finishes segments that the writer has left, and removes those that are too many.
    pub(super) fn settle(&mut self) {
        for mut segment in self.handoff.take_retired() {
            if let Err(error) = segment.sync() {
                tracing::warn!(
                    "a segment of the log may not survive the loss of this host: {error}"
                );
            }
            self.folder.retire(segment.path(), segment.log_bytes());
        }
        self.folder.trim(self.handoff.bytes());
    }

    /// Nor may those be too many while a checkpoint is written, which takes as long as the guest's memory is large.
    fn trim_beside(&mut self, checkpoint_bytes: u64) {
        self.folder.trim(self.handoff.bytes() + checkpoint_bytes);
    }

    /// Begins a segment with the machine as it is.
    fn checkpoint(&mut self, recorder: &Recorder) -> Result<(), CheckpointError> {
        let part = self.folder.part();
        let result = self.write_checkpoint(recorder);
        if result.is_err() {
            self.handoff.fail();
            // Gone already if it was complete.
            let _ = fs::remove_file(part);
        }
        result
    }

    fn write_checkpoint(&mut self, recorder: &Recorder) -> Result<(), CheckpointError> {
        let mut segment = LogWriter::create(self.folder.part())?;
        let handoff = Arc::clone(&self.handoff);
        let mut take = |frame: Frame, waiting| {
            self.write_frame(&mut segment, &frame, waiting)?;
            self.trim_beside(segment.log_bytes());
            Ok::<_, CheckpointError>(())
        };
        let mut at = |digest: StateDigest| handoff.promise(digest.seq);
        let taken = recorder.snapshot(SnapshotBounds::default(), &mut take, &mut at)?;
        let digest = taken.ok_or(CheckpointError::Stopped)?;
        self.folder.add(&mut segment, digest.seq)?;
        tracing::debug!("checkpoint of the log at commit {}", digest.seq);
        self.checkpoint_bytes = segment.log_bytes();
        self.handoff.ready(segment);
        Ok(())
    }

    /// Takes as long a rest as writing took, so that the guest's own log has half of the disk.
    fn write_frame(
        &self,
        segment: &mut LogWriter,
        frame: &Frame,
        waiting: Waiting,
    ) -> Result<(), CheckpointError> {
        let started = Instant::now();
        segment.append(frame)?;
        segment.flush()?;
        let is_over = match waiting {
            Waiting::Nobody => self.stop.wait(started.elapsed()),
            Waiting::Guest => self.stop.is_set(),
        };
        if is_over {
            return Err(CheckpointError::Stopped);
        }
        Ok(())
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.handoff.fail();
    }
}
