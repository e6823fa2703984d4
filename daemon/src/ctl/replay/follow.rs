//! Following a log with the engine's consumer.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use samsara_commitlog::{Commit, CommitSeq, Frame, GuestTime, Record, StateDigest, Tail};
use samsara_engine::{ConsumeError, Consumer};
use samsara_machine::machine::SnapshotError;
use samsara_machine::pc::virtio::Blocks;
use samsara_machine::{ApplyError, Ended, Machine, Output, Platform};

use super::again::{Again, Orders, Reexecute};
use super::progress::Position;
use super::write_failure;
use crate::ctl::CtlError;
use crate::ctl::log::Series;
use crate::ctl::render::bytes;
use crate::exit::ExitCode;
use crate::failure::Failure;

/// Frames that are followed together where chunks are run again.
const TOGETHER: usize = 256;

/// What is to be replayed.
pub(super) struct Asked {
    pub(super) path: PathBuf,
    pub(super) begin: Begin,
    pub(super) until: Option<CommitSeq>,
    pub(super) digests_at: BTreeSet<CommitSeq>,
    pub(super) disks: Vec<Arc<dyn Blocks>>,
    /// How chunks are run again, if they are.
    pub(super) again: Option<Reexecute>,
}

/// Where a replay begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// With the first state that the log has.
    First,
    /// With the last one that is not after this commit.
    Checkpoint(CommitSeq),
}

/// What was replayed.
#[derive(Debug)]
pub(super) struct Followed {
    /// The commit that it began from.
    pub(super) from: CommitSeq,
    /// The state that it came to.
    pub(super) state: StateDigest,
    pub(super) guest_time: GuestTime,
    /// How the guest ended, if it had by then.
    pub(super) ended: Option<Ended>,
    pub(super) is_until_reached: bool,
    pub(super) digests: Vec<StateDigest>,
    pub(super) digests_compared: u64,
    pub(super) chunks: u64,
    /// Those of them that were run again.
    pub(super) chunks_run: u64,
    /// Those of them that came out differently, by cause.
    pub(super) divergences: BTreeMap<&'static str, u64>,
    pub(super) inputs: u64,
    pub(super) console_bytes: u64,
    pub(super) frames_sent: u64,
    /// How the log ends, if all of it was read.
    pub(super) tail: Option<Tail>,
}

/// Follows a log as far as asked. `console` gets the guest's output, `look` hears where the replay is.
pub(super) fn follow(
    asked: &Asked,
    console: &mut dyn Write,
    look: &mut dyn FnMut(Position),
) -> Result<Followed, CtlError> {
    let mut log = Series::open(&asked.path)?;
    if let Begin::Checkpoint(seq) = asked.begin {
        log.begin_at(seq);
    }
    let consumer = Consumer::with_disks(asked.disks.clone());
    let mut replay = Replay {
        asked,
        consumer,
        again: None,
        orders: Orders::default(),
        waiting: Vec::new(),
        counts: Counts::default(),
        console,
    };
    let mut is_until_reached = false;
    while let Some(frame) = log.next_frame()? {
        let Some(mut frame) = needed(frame, &log) else {
            continue;
        };
        if replay.is_beyond(&frame, &log)? {
            is_until_reached = true;
            break;
        }
        replay.run_again(&mut frame)?;
        replay.take(frame, &log)?;
        let at = replay
            .consumer
            .look(|machine| (machine.seq(), machine.guest_time()));
        if let Some((seq, guest_time)) = at {
            look(Position {
                seq,
                guest_time,
                read_bytes: log.valid_bytes(),
                file_bytes: log.file_bytes(),
            });
        }
    }
    replay.follow_waiting(&log)?;
    log.check_snapshot()?;
    let is_until_reached = is_until_reached || asked.until == replay.consumer.seq();
    replay.finish(is_until_reached, &log)
}

/// What a replay needs of a frame: of the snapshot of a segment that goes on from the one before it, the digest.
pub(super) fn needed(frame: Frame, log: &Series) -> Option<Frame> {
    match frame {
        frame if !log.is_continued() => Some(frame),
        Frame::SnapshotStart(_) | Frame::SnapshotPages(_) | Frame::DiskRange(_) => None,
        Frame::SnapshotEnd(digest) => Some(Frame::Digest(digest)),
        frame => Some(frame),
    }
}

#[derive(Debug, Default)]
struct Counts {
    from: CommitSeq,
    digests: Vec<StateDigest>,
    chunks: u64,
    chunks_run: u64,
    inputs: u64,
    console_bytes: u64,
    frames_sent: u64,
}

struct Replay<'a> {
    asked: &'a Asked,
    consumer: Consumer,
    again: Option<Again>,
    orders: Orders,
    /// Frames that are followed together.
    waiting: Vec<Frame>,
    counts: Counts,
    console: &'a mut dyn Write,
}

impl Replay<'_> {
    /// Whether a frame comes after all that was asked for.
    fn is_beyond(&self, frame: &Frame, log: &Series) -> Result<bool, CtlError> {
        let Some(until) = self.asked.until else {
            return Ok(false);
        };
        match frame {
            Frame::Record(record) => Ok(record.seq > until),
            Frame::SnapshotEnd(digest) if digest.seq > until => {
                Err(begins_late(log, digest.seq, "--until", until))
            }
            _ => Ok(false),
        }
    }

    /// Makes an order of a chunk, where chunks are run again and this one can be.
    fn run_again(&mut self, frame: &mut Frame) -> Result<(), CtlError> {
        if let (Frame::SnapshotStart(start), Some(asked), None) =
            (&*frame, self.asked.again, &self.again)
        {
            let again = Again::open(asked, start.shape)?;
            let consumer = std::mem::take(&mut self.consumer);
            self.consumer = consumer.with_rerun(again.rerun());
            self.again = Some(again);
        }
        if let Some(again) = &self.again {
            let is_bare = self.consumer.look(Machine::platform) == Some(Platform::Bare);
            self.orders.replace(frame, &again.effects, is_bare);
        }
        Ok(())
    }

    /// Takes the next frame. Chunks that are run again are taken together, so that they run beside each other.
    fn take(&mut self, frame: Frame, log: &Series) -> Result<(), CtlError> {
        let is_asked_for = frame
            .record()
            .is_some_and(|record| self.asked.digests_at.contains(&record.seq));
        let may_wait = matches!(frame, Frame::Record(_) | Frame::Digest(_)) && !is_asked_for;
        self.waiting.push(frame);
        if self.again.is_some() && may_wait && self.waiting.len() < TOGETHER {
            return Ok(());
        }
        self.follow_waiting(log)
    }

    fn follow_waiting(&mut self, log: &Series) -> Result<(), CtlError> {
        let frames = std::mem::take(&mut self.waiting);
        let mut emitted = Vec::new();
        let followed = self.consumer.frames(&frames, &mut emitted);
        let outputs = emitted.into_iter().flat_map(|(_, outputs)| outputs);
        self.emit(outputs.collect())?;
        if let Err(error) = followed {
            let has_disks = !self.asked.disks.is_empty();
            let at = self.consumer.seq().map(CommitSeq::next);
            let is_at = |frame: &&Frame| frame.record().map(|record| record.seq) == at;
            let frame = frames.iter().find(is_at).or(frames.last());
            return Err(failure(&error, frame, log, has_disks));
        }
        frames.iter().try_for_each(|frame| self.note(frame, log))
    }

    /// A frame was followed.
    fn note(&mut self, frame: &Frame, log: &Series) -> Result<(), CtlError> {
        match frame {
            Frame::SnapshotEnd(digest) => {
                if let Some(&early) = self.asked.digests_at.first()
                    && early < digest.seq
                {
                    return Err(begins_late(log, digest.seq, "--digest-at", early));
                }
                self.counts.from = digest.seq;
                self.note_digest(digest.seq);
            }
            Frame::Record(record) => {
                self.count(record);
                self.note_digest(record.seq);
            }
            Frame::SnapshotStart(_)
            | Frame::SnapshotPages(_)
            | Frame::DiskRange(_)
            | Frame::Digest(_) => {}
        }
        Ok(())
    }

    fn emit(&mut self, outputs: Vec<Output>) -> Result<(), CtlError> {
        for output in outputs {
            match output {
                Output::Console(bytes) => {
                    self.console
                        .write_all(&bytes)
                        .map_err(|error| write_failure(&error))?;
                    self.counts.console_bytes += bytes.len() as u64;
                }
                Output::Frame { .. } => self.counts.frames_sent += 1,
                Output::Ended(_) => {}
            }
        }
        Ok(())
    }

    fn count(&mut self, record: &Record) {
        match record.commit {
            Commit::Chunk(_) => self.counts.chunks += 1,
            Commit::Order(_) => {
                self.counts.chunks += 1;
                self.counts.chunks_run += 1;
            }
            Commit::Input(_) => self.counts.inputs += 1,
        }
    }

    fn note_digest(&mut self, seq: CommitSeq) {
        if self.asked.digests_at.contains(&seq) {
            self.counts.digests.extend(self.consumer.digest());
        }
    }

    fn finish(self, is_until_reached: bool, log: &Series) -> Result<Followed, CtlError> {
        self.console
            .flush()
            .map_err(|error| write_failure(&error))?;
        let digests_compared = self.consumer.digests_compared();
        let Some(machine) = self.consumer.into_machine() else {
            return Err(CtlError::NoSnapshot(log.path().to_owned()));
        };
        check_reached(self.asked, log, &machine)?;
        let Counts {
            from,
            digests,
            chunks,
            chunks_run,
            inputs,
            console_bytes,
            frames_sent,
        } = self.counts;
        let again = self.again.as_ref();
        Ok(Followed {
            from,
            state: machine.digest(),
            guest_time: machine.guest_time(),
            ended: machine.ended().cloned(),
            is_until_reached,
            digests,
            digests_compared,
            chunks,
            chunks_run,
            divergences: again.map(Again::divergences).unwrap_or_default(),
            inputs,
            console_bytes,
            frames_sent,
            tail: log.tail(),
        })
    }
}

/// Why a frame cannot be followed, and what to do.
pub(super) fn failure(
    error: &ConsumeError,
    frame: Option<&Frame>,
    log: &Series,
    has_disks: bool,
) -> CtlError {
    let path = log.current_path().display();
    let code = match error {
        _ if error.is_divergence() => ExitCode::Diverged,
        // What did not diverge could not be run.
        ConsumeError::Snapshot(SnapshotError::Memory(_))
        | ConsumeError::Engine(_)
        | ConsumeError::Diverged(_) => ExitCode::Kvm,
        ConsumeError::Snapshot(SnapshotError::Disks { expected, found }) => {
            let message = disks_text(log.current_path(), expected, found);
            return CtlError::Replay(Failure::text(ExitCode::Input, message));
        }
        ConsumeError::NoSuchDisk { .. } | ConsumeError::Disk { .. } => ExitCode::Input,
        ConsumeError::Apply(ApplyError::NotRun(seq)) => {
            let message = format!(
                "log file {path} says of commit {seq} only where its chunk ends: replay it with --reexecute, on a host with KVM"
            );
            return CtlError::Replay(Failure::text(ExitCode::LogFile, message));
        }
        _ => ExitCode::LogFile,
    };
    let why = Failure::new(code, error).message;
    let at = frame
        .and_then(Frame::record)
        .map_or(String::new(), |record| format!(" at commit {}", record.seq));
    let message = if code == ExitCode::Diverged {
        let images = if has_disks {
            " (are the images those of the moment at which the log begins?)"
        } else {
            ""
        };
        format!("log file {path} does not lead to the states that it has{images}: {why}")
    } else {
        format!("log file {path} cannot be followed{at}: {why}")
    };
    CtlError::Replay(Failure::text(code, message))
}

fn begins_late(log: &Series, first: CommitSeq, option: &str, seq: CommitSeq) -> CtlError {
    let path = log.current_path().display();
    CtlError::Usage(format!(
        "log file {path} begins at commit {first}, after {option} {seq}: ask for a later one"
    ))
}

/// That all that was asked for has come. A guest that ended before `--until` has come to its end all the same.
fn check_reached(asked: &Asked, log: &Series, machine: &Machine) -> Result<(), CtlError> {
    let is_missing = |seq: &CommitSeq| *seq > machine.seq();
    let until = asked.until.filter(|_| machine.ended().is_none());
    let latest = asked.digests_at.last().copied();
    let (option, seq) = match (until.filter(is_missing), latest.filter(is_missing)) {
        (Some(seq), _) => ("--until", seq),
        (None, Some(seq)) => ("--digest-at", seq),
        (None, None) => return Ok(()),
    };
    let message = format!(
        "log {} ends at commit {}, before {option} {seq}",
        log.path().display(),
        machine.seq()
    );
    Err(CtlError::Replay(Failure::text(ExitCode::LogEnds, message)))
}

/// What a log of a machine with disks needs.
fn disks_text(path: &Path, expected: &[u64], found: &[u64]) -> String {
    let sizes = |sizes: &[u64]| {
        let sizes: Vec<_> = sizes
            .iter()
            .map(|&size| format!("{size} bytes ({})", bytes(size)))
            .collect();
        match sizes.as_slice() {
            [] => "none".to_owned(),
            sizes => sizes.join(", "),
        }
    };
    format!(
        "log file {} is of a guest with these disks: {}; given: {}. A log has no contents of disks: name with --disk, for each \
         in this order, a copy of its image as it was when the log begins",
        path.display(),
        sizes(expected),
        sizes(found)
    )
}
