//! The outside of the machine, as the engine sees it: the output gate, the ways of commits to the
//! backup and to the log file, the input file.
//!
//! vCPU threads come here under the commit lock, so nothing here waits but
//! [`Outside::wait_for_room`].

mod streams;

use std::fs::File;
use std::io;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use samsara_commitlog::{CommitSeq, Frame, GuestTime, Medium};
use samsara_config::RecordingForm;
use samsara_engine::{EngineError, Item, Outside};
use samsara_machine::{Ended, Output};
use samsara_replication::transport::PrimaryHandle;
use samsara_replication::{AckLevel, Behind, CommitQueue, OutputGate, Quantiles, Retained, Room};
use tokio::sync::mpsc::UnboundedSender;

use crate::exit::ExitCode;
use crate::form::FormChooser;
use crate::metrics::{DurationCounts, Durations};

use streams::{Backup, Encoded, Stream, as_order};

/// How long a vCPU waits for room before it looks whether it should stop.
const ROOM_LOOK: Duration = Duration::from_millis(50);
/// Outputs held before vCPUs wait.
const GATE_BYTES: u64 = 32 << 20;
/// Output bytes that are emitted before the backup hears of them.
const EMIT_BYTES: usize = 256 << 10;

/// What the machine's threads tell the daemon. A run sends few of them.
#[derive(Debug)]
pub enum Notice {
    /// The guest has ended; its last outputs may still be held.
    GuestEnded(Ended),
    /// Everything, the end of the guest as well, has left.
    Drained,
    /// A vCPU thread failed.
    EngineFailed(EngineError),
    /// Console output cannot be written.
    OutputFailed(io::Error),
}

/// An output and when it was made.
type Waiting = (Output, Instant);

struct State {
    gate: OutputGate<Waiting>,
    backup: Option<Backup>,
    log: Option<Stream>,
    committed: CommitSeq,
    /// What went to backups that are gone: bytes as [`World::sent_bytes`] has them, forms as [`World::forms`].
    past_bytes: [u64; 2],
    past_forms: [u64; 3],
    /// Committed minus received, and minus verified, in commits, at each acknowledgement.
    lag_commits: [Quantiles; 2],
    stopping: bool,
}

/// See the module's description.
pub struct World {
    state: Mutex<State>,
    changed: Condvar,
    input: Option<(File, u64)>,
    random: File,
    notices: UnboundedSender<Notice>,
    holds: Durations,
    form: RecordingForm,
    /// How far behind a backup may be that guards outputs.
    lag_max: Duration,
}

impl World {
    /// A world whose gate holds everything.
    pub fn new(
        ack: AckLevel,
        form: RecordingForm,
        lag_max: Duration,
        input: Option<(File, u64)>,
        notices: UnboundedSender<Notice>,
    ) -> io::Result<Self> {
        let state = State {
            gate: OutputGate::new(ack, GATE_BYTES),
            backup: None,
            log: None,
            committed: CommitSeq::BOOT,
            past_bytes: [0; 2],
            past_forms: [0; 3],
            lag_commits: Default::default(),
            stopping: false,
        };
        Ok(Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            input,
            random: File::open("/dev/urandom")?,
            notices,
            holds: Durations::default(),
            form,
            lag_max,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Outputs leave at once.
    pub fn open(&self) {
        self.change(|state| state.gate.open());
    }

    /// Nothing leaves.
    pub fn hold_all(&self) {
        self.change(|state| state.gate.hold_all());
    }

    /// Outputs leave when the attached backup has acknowledged their commit.
    pub fn guard(&self) {
        self.change(|state| {
            let State {
                gate,
                backup,
                committed,
                ..
            } = state;
            if let Some(backup) = backup {
                backup.guarded_after = Some(*committed);
                gate.guard(CommitSeq::BOOT);
                gate.handle_ack(backup.received, backup.verified);
            } else {
                gate.hold_all();
            }
        });
    }

    /// Whether the guarding backup has acknowledged all that left, or may have, before it guarded.
    pub fn is_caught_up(&self, level: AckLevel) -> bool {
        let state = self.lock();
        let Some(backup) = &state.backup else {
            return false;
        };
        let Some(target) = backup.guarded_after else {
            return false;
        };
        let acknowledged = match level {
            AckLevel::Received => backup.received,
            AckLevel::Verified => backup.verified,
        };
        acknowledged >= target
            && state
                .gate
                .oldest_held()
                .is_none_or(|oldest| oldest > target)
    }

    /// From the next commit on, commits go to this backup too. Nothing may commit meanwhile.
    pub fn attach(
        &self,
        session: u64,
        queue: Arc<CommitQueue>,
        handle: PrimaryHandle,
        from: (CommitSeq, GuestTime),
    ) {
        self.change(|state| {
            state.backup = Some(Backup {
                session,
                stream: Stream::new(Medium::Network, queue, from),
                form: FormChooser::new(self.form),
                handle,
                received: from.0,
                verified: CommitSeq::BOOT,
                guarded_after: None,
                behind: Behind::new(self.lag_max),
            });
        });
    }

    /// Commits no longer go to the backup of this session.
    pub fn detach(&self, session: u64) -> Option<PrimaryHandle> {
        self.change(|state| {
            let backup = state.backup.take_if(|backup| backup.session == session)?;
            backup.stream.queue.close();
            state.past_bytes = add(state.past_bytes, backup.stream.bytes);
            state.past_forms = add(state.past_forms, backup.forms());
            Some(backup.handle)
        })
    }

    /// Whether commits go to the backup of this session.
    pub fn is_attached(&self, session: u64) -> bool {
        let state = self.lock();
        let backup = state.backup.as_ref();
        backup.is_some_and(|backup| backup.session == session)
    }

    /// The link to the backup.
    pub fn backup(&self) -> Option<PrimaryHandle> {
        self.lock()
            .backup
            .as_ref()
            .map(|backup| backup.handle.clone())
    }

    /// The backup of this session acknowledges.
    pub fn acknowledge(&self, session: u64, received: CommitSeq, verified: CommitSeq) {
        self.change(|state| {
            let Some(backup) = state
                .backup
                .as_mut()
                .filter(|backup| backup.session == session)
            else {
                return;
            };
            backup.received = backup.received.max(received);
            backup.verified = backup.verified.max(verified);
            backup.handle.effects().verified(backup.verified);
            backup.behind.verified(backup.verified, Instant::now());
            let behind = [backup.received, backup.verified];
            for (lag, position) in state.lag_commits.iter_mut().zip(behind) {
                lag.record(state.committed.0.saturating_sub(position.0));
            }
            state.gate.handle_ack(received, verified);
        });
    }

    /// Lag behind the last commit at acknowledgements: received, verified.
    pub fn lag_commits(&self) -> [Quantiles; 2] {
        self.lock().lag_commits.clone()
    }

    /// From the next commit on, commits go to the log file too. Nothing may commit meanwhile.
    pub fn attach_log(&self, queue: Arc<CommitQueue>, from: (CommitSeq, GuestTime)) {
        self.lock().log = Some(Stream::new(Medium::File, queue, from));
    }

    /// Takes over, at promotion, what the old primary may not have emitted; `at` is the last
    /// commit of the machine that goes live.
    pub fn take_over(&self, retained: Retained<Output>, at: CommitSeq, ended: Option<&Ended>) {
        let now = Instant::now();
        if let Some(ended) = ended {
            self.notify(Notice::GuestEnded(ended.clone()));
        }
        self.change(|state| {
            state.committed = at;
            let mut says_end = false;
            for (seq, output) in retained.into_outputs() {
                says_end |= matches!(output, Output::Ended(_));
                let bytes = output.bytes() as u64;
                state.gate.hold(seq, (output, now), bytes, now);
            }
            if let Some(ended) = ended.filter(|_| !says_end) {
                state
                    .gate
                    .hold(at, (Output::Ended(ended.clone()), now), 0, now);
            }
        });
    }

    /// Waiters leave, the emitter ends when nothing more may leave.
    pub fn stop(&self) {
        self.change(|state| {
            state.stopping = true;
            if let Some(log) = &state.log {
                log.queue.finish();
            }
        });
    }

    /// Hands outputs that may leave to `emit`, until [`World::stop`]. Runs on a thread of its own.
    pub fn emit(&self, mut emit: impl FnMut(&Output) -> io::Result<()>) {
        while let Some(batch) = self.next_outputs() {
            let mut has_ended = false;
            for (output, since) in &batch {
                if let Err(error) = emit(output) {
                    self.notify(Notice::OutputFailed(error));
                    return;
                }
                self.holds.record(since.elapsed());
                has_ended |= matches!(output, Output::Ended(_));
            }
            let state = self.lock();
            let released = state.gate.released();
            if let Some(backup) = &state.backup {
                backup.handle.released(released);
            }
            drop(state);
            self.changed.notify_all();
            if has_ended {
                self.notify(Notice::Drained);
            }
        }
    }

    fn next_outputs(&self) -> Option<Vec<Waiting>> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let mut batch = Vec::new();
            let mut bytes = 0;
            while bytes < EMIT_BYTES
                && let Some((_, waiting)) = state.gate.poll_release(now)
            {
                bytes += waiting.0.bytes();
                batch.push(waiting);
            }
            if !batch.is_empty() {
                return Some(batch);
            }
            if state.stopping {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn notify(&self, notice: Notice) {
        // The daemon is on its way out when nobody listens.
        let _ = self.notices.send(notice);
    }

    /// How long outputs were held.
    pub fn holds(&self) -> DurationCounts {
        self.holds.counts()
    }

    /// Looks at the gate: its hold times, outputs held, bytes held.
    pub fn gate(&self) -> (Quantiles, u64, u64) {
        let state = self.lock();
        (
            state.gate.hold_times().clone(),
            state.gate.held_count() as u64,
            state.gate.held_bytes(),
        )
    }

    /// Committed, received and verified positions.
    pub fn positions(&self) -> [CommitSeq; 3] {
        let state = self.lock();
        let backup = state.backup.as_ref();
        [
            state.committed,
            backup.map_or(CommitSeq::BOOT, |backup| backup.received),
            backup.map_or(CommitSeq::BOOT, |backup| backup.verified),
        ]
    }

    /// Chunks that went to backups as orders, and as effects; and effects that they asked for.
    pub fn forms(&self) -> [u64; 3] {
        let state = self.lock();
        let present = state.backup.as_ref().map_or([0; 3], Backup::forms);
        add(state.past_forms, present)
    }

    /// Encoded bytes that went to backups, or if there was none, to the log: all of them, and those of chunks as orders.
    pub fn sent_bytes(&self) -> [u64; 2] {
        let state = self.lock();
        let of = |stream: &Stream| stream.bytes;
        let backup = state.backup.as_ref();
        let to_backups = add(
            state.past_bytes,
            backup.map_or([0; 2], |backup| of(&backup.stream)),
        );
        if to_backups[0] > 0 {
            return to_backups;
        }
        state.log.as_ref().map_or([0; 2], of)
    }
}

impl Outside for World {
    fn wait_for_room(&self) {
        loop {
            let state = self.lock();
            if state.stopping {
                return;
            }
            let backup = state.backup.as_ref();
            let must_wait = backup.is_some_and(|backup| backup.must_be_waited_for(Instant::now()));
            if state.gate.is_full() || must_wait {
                let wait = self.changed.wait_timeout(state, ROOM_LOOK);
                drop(wait.unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            let streams = [
                state.backup.as_ref().map(|backup| &backup.stream),
                state.log.as_ref(),
            ];
            let queues = streams.map(|stream| stream.map(|stream| stream.queue.clone()));
            drop(state);
            let deadline = Some(Instant::now() + ROOM_LOOK);
            let is_full =
                |queue: &Arc<CommitQueue>| queue.wait_for_room(deadline) == Room::TimedOut;
            if !queues.iter().flatten().any(is_full) {
                return;
            }
        }
    }

    fn committed(&self, seq: CommitSeq, items: Vec<Item>, outputs: Vec<Output>) {
        let now = Instant::now();
        let mut state = self.lock();
        state.committed = state.committed.max(seq);
        let has_outputs = !outputs.is_empty();
        // Before the record leaves: an acknowledgement must find them held.
        for output in outputs {
            if let Output::Ended(how) = &output {
                // Before the gate can let it out, so that nobody hears of the end after it.
                self.notify(Notice::GuestEnded(how.clone()));
            }
            let bytes = output.bytes() as u64;
            state.gate.hold(seq, (output, now), bytes, now);
        }
        for item in items {
            push(&mut state, self.form, seq, item, now);
        }
        drop(state);
        if has_outputs {
            self.changed.notify_all();
        }
    }

    fn has_readers(&self) -> bool {
        let state = self.lock();
        state.backup.is_some() || state.log.is_some()
    }

    fn read_input(&self, offset: u64, bytes: usize) -> io::Result<Bytes> {
        let Some((file, length)) = &self.input else {
            return Ok(Bytes::new());
        };
        let mut buffer = vec![0; bytes];
        let mut filled = 0;
        while filled < bytes {
            match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if offset + (filled as u64) < *length && filled < bytes {
            let short = "it is shorter than it was when this host started";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, short));
        }
        buffer.truncate(filled);
        Ok(buffer.into())
    }

    fn failed(&self, error: EngineError) {
        self.notify(Notice::EngineFailed(error));
    }

    fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        // The kernel's generator does not fail once it is open; if it did, zeros are still an
        // input that is equal on every replica.
        let _ = (&self.random).read_exact(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

fn push(state: &mut State, form: RecordingForm, seq: CommitSeq, item: Item, now: Instant) {
    let (frame, order) = match item {
        Item::Record(record, order) => (Frame::Record(record), order),
        Item::Digest(digest) => (Frame::Digest(digest), None),
    };
    let mut encoded = Encoded {
        frame: &frame,
        bytes: None,
    };
    if let Some(log) = &mut state.log {
        let order = order.filter(|_| form == RecordingForm::Order);
        match order.and_then(|order| as_order(&frame, order)) {
            Some(order) => log.push_order(seq, &order, now),
            None => log.push(seq, &mut encoded, now),
        }
    }
    if let Some(backup) = &mut state.backup {
        backup.push(seq, &mut encoded, order, now);
    }
}

fn add<const COUNT: usize>(left: [u64; COUNT], right: [u64; COUNT]) -> [u64; COUNT] {
    std::array::from_fn(|at| left[at] + right[at])
}

/// The exit status that a guest's end means for the process, and the end in words.
pub fn exit_status(ended: &Ended) -> (u8, String) {
    match ended {
        Ended::Exit { status } => (*status, format!("the guest exited with status {status}")),
        Ended::Halted => (0, "all vCPUs have halted".to_owned()),
        Ended::Reset => (
            ExitCode::GuestReset.code(),
            "the guest asked for a reset".to_owned(),
        ),
        Ended::Panicked => (
            ExitCode::GuestFault.code(),
            "the guest's kernel panicked".to_owned(),
        ),
        Ended::Fault { message } => (
            ExitCode::GuestFault.code(),
            format!("the guest was stopped: {message}"),
        ),
    }
}
