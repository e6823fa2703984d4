//! A log as states that can be gone to, forward and backward.
//!
//! ```text
//! log        |--------------------------------------------------------------|
//! steps                         [ done ........ | ........ to come ]
//!                                               ^ the machine
//! ```
//!
//! The last commits are kept with what undoes or redoes them, up to a bound of bytes. What was before them is found again
//! from the checkpoint before it, which is as far as the log's checkpoints are from each other.

use std::collections::VecDeque;
use std::sync::Arc;

use samsara_commitlog::{CommitSeq, Frame, Record};
use samsara_engine::Consumer;
use samsara_machine::Machine;
use samsara_machine::machine::{Change, Shadow, SnapshotError};
use samsara_machine::memory::MemoryError;
use samsara_machine::pc::virtio::Blocks;

use super::Source;
use super::journal::{DiskChange, Journal};
use crate::ctl::CtlError;
use crate::ctl::log::Series;
use crate::ctl::replay::follow::{Begin, failure, needed};
use crate::ctl::replay::overlay;
use crate::ctl::replay::progress::Position;
use crate::exit::ExitCode;
use crate::failure::Failure;

/// A commit that is kept.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) record: Record,
    /// From the state on the one side of it to that on the other.
    pub(super) change: Change,
    /// By disk; nothing if that was too much to keep: this step cannot be undone.
    disks: Option<Vec<DiskChange>>,
    bytes: usize,
}

/// See the module's description.
pub(super) struct Timeline {
    source: Source,
    replay: Replay,
    steps: VecDeque<Step>,
    /// How many of the steps led to the present state; the others lead on from it.
    done: usize,
    step_bytes: usize,
    /// The commit that led to the state before the first step, if it is known.
    before: Option<Record>,
    /// The first state that there is.
    first: CommitSeq,
    end: Option<End>,
}

/// The last state that there is, and why.
struct End {
    seq: CommitSeq,
    why: String,
}

/// A machine at a place of the log.
struct Replay {
    log: Series,
    consumer: Consumer,
    shadow: Shadow,
    disks: Vec<Arc<Journal>>,
}

impl Timeline {
    /// At the state where the source says to begin.
    pub(super) fn open(source: Source) -> Result<Self, CtlError> {
        let whole = Series::open(&source.path)?;
        let named = whole.begins_after().filter(|_| source.disks.is_empty());
        let replay = Replay::begin(&source, whole, source.begin)?;
        Ok(Self {
            first: named.unwrap_or(replay.seq()),
            // A directory's newest run stays the one that was opened.
            source: Source {
                path: replay.log.path().to_owned(),
                ..source
            },
            replay,
            steps: VecDeque::new(),
            done: 0,
            step_bytes: 0,
            before: None,
            end: None,
        })
    }

    pub(super) fn machine(&self) -> &Machine {
        self.replay.machine()
    }

    /// Digest of the whole state.
    pub(super) fn digest(&mut self) -> u128 {
        let digest = self.replay.consumer.digest();
        digest.expect("there is a machine").digest
    }

    /// The last commit.
    pub(super) fn seq(&self) -> CommitSeq {
        self.replay.seq()
    }

    /// The first state that there is.
    pub(super) fn first(&self) -> CommitSeq {
        self.first
    }

    /// The last state that there is and why there are no more, once that is known.
    pub(super) fn end(&self) -> Option<(CommitSeq, &str)> {
        self.end.as_ref().map(|end| (end.seq, end.why.as_str()))
    }

    /// The record that led to the present state, if it is known: not at a checkpoint that was just begun from.
    pub(super) fn record(&self) -> Option<&Record> {
        match self.done.checked_sub(1) {
            Some(last) => Some(&self.steps[last].record),
            None => self.before.as_ref(),
        }
    }

    /// The step that led to the present state, if it is kept.
    pub(super) fn step(&self) -> Option<&Step> {
        self.steps.get(self.done.checked_sub(1)?)
    }

    /// The step that leads on from the present state, if it is kept.
    pub(super) fn undone(&self) -> Option<&Step> {
        self.steps.get(self.done)
    }

    pub(super) fn position(&self) -> Position {
        let machine = self.machine();
        Position {
            seq: machine.seq(),
            guest_time: machine.guest_time(),
            read_bytes: self.replay.log.valid_bytes(),
            file_bytes: self.replay.log.file_bytes(),
        }
    }

    /// Goes over the next commit, [`Self::step`] then. Gives whether there was one.
    pub(super) fn forward(&mut self) -> Result<bool, CtlError> {
        if self.done < self.steps.len() {
            self.replay.go(&mut self.steps[self.done])?;
            self.done += 1;
            return Ok(true);
        }
        let last = self.seq();
        if self.end.as_ref().is_some_and(|end| end.seq == last) {
            return Ok(false);
        }
        match self.replay.next() {
            Ok(Some(step)) => {
                self.keep(step);
                Ok(true)
            }
            Ok(None) => {
                let why = self.why_no_more();
                self.end = Some(End { seq: last, why });
                Ok(false)
            }
            Err(error) => {
                // What there is up to here can still be looked at.
                let why = error.line();
                self.end = Some(End { seq: last, why });
                self.begin_before(last)?;
                while self.seq() < last && self.forward()? {}
                Ok(false)
            }
        }
    }

    /// Goes back over a commit, [`Self::undone`] then, if it is kept. Gives whether it was.
    pub(super) fn back(&mut self) -> Result<bool, CtlError> {
        let last = self.done.checked_sub(1);
        let Some(last) = last.filter(|&last| self.steps[last].disks.is_some()) else {
            return Ok(false);
        };
        self.replay.go(&mut self.steps[last])?;
        self.done = last;
        Ok(true)
    }

    /// Begins anew at the last checkpoint that is not after this commit, or at the first one that there is.
    pub(super) fn begin_before(&mut self, seq: CommitSeq) -> Result<(), CtlError> {
        let begin = if self.source.disks.is_empty() {
            Begin::Checkpoint(seq)
        } else {
            self.source.begin
        };
        let log = Series::open(&self.source.path)?;
        self.replay = Replay::begin(&self.source, log, begin)?;
        self.forget();
        if self.seq() > seq {
            // A flight recorder has removed what was before.
            self.first = self.seq();
        }
        Ok(())
    }

    /// Goes to the state after a commit, or as near as there is one on the way.
    pub(super) fn goto(&mut self, seq: CommitSeq) -> Result<(), CtlError> {
        let seq = seq.max(self.first);
        let oldest = self.steps.front();
        if oldest.is_some_and(|step| step.record.seq <= seq.next()) {
            while self.seq() > seq && self.back()? {}
        }
        if self.seq() > seq || self.has_checkpoint_on_the_way(seq)? {
            self.begin_before(seq)?;
        }
        while self.seq() < seq && self.forward()? {}
        Ok(())
    }

    /// Goes back to a checkpoint, as what is before it cannot be followed to there.
    pub(super) fn give_up_before(&mut self, seq: CommitSeq) -> Result<(), CtlError> {
        self.begin_before(seq)?;
        self.first = self.seq();
        self.end = None;
        Ok(())
    }

    /// Whether a commit ahead is reached sooner by beginning anew.
    fn has_checkpoint_on_the_way(&self, seq: CommitSeq) -> Result<bool, CtlError> {
        let kept = self.steps.back().map_or(self.seq(), |step| step.record.seq);
        if seq <= kept || !self.source.disks.is_empty() {
            return Ok(false);
        }
        let nearest = Series::open(&self.source.path)?.checkpoint_before(seq);
        Ok(nearest.is_some_and(|nearest| nearest > kept))
    }

    fn keep(&mut self, step: Step) {
        self.step_bytes += step.bytes;
        self.steps.push_back(step);
        while self.step_bytes > self.source.kept_bytes && self.steps.len() > 1 {
            if let Some(oldest) = self.steps.pop_front() {
                self.step_bytes -= oldest.bytes;
                self.before = Some(oldest.record);
            }
        }
        self.done = self.steps.len();
    }

    fn forget(&mut self) {
        self.steps.clear();
        (self.done, self.step_bytes) = (0, 0);
        self.before = None;
    }

    fn why_no_more(&self) -> String {
        match self.machine().ended() {
            Some(_) => "the guest has ended".to_owned(),
            None => "the log ends before its guest does".to_owned(),
        }
    }
}

impl Replay {
    fn begin(source: &Source, mut log: Series, begin: Begin) -> Result<Self, CtlError> {
        if let Begin::Checkpoint(seq) = begin {
            log.begin_at(seq);
        }
        let disks = overlay::open(&source.disks)?.into_iter();
        let disks: Vec<_> = disks.map(|disk| Arc::new(Journal::new(disk))).collect();
        let blocks = disks.iter().map(|disk| Arc::clone(disk) as Arc<dyn Blocks>);
        let mut consumer = Consumer::with_disks(blocks.collect());
        let machine = loop {
            let Some(frame) = log.next_frame()? else {
                return Err(CtlError::NoSnapshot(log.path().to_owned()));
            };
            let applied = consumer.apply(&frame);
            applied.map_err(|error| failure(&error, Some(&frame), &log, !disks.is_empty()))?;
            if let Some(machine) = consumer.machine() {
                break machine;
            }
        };
        let shadow = Shadow::new(machine).map_err(|error| no_memory(&error))?;
        for disk in &disks {
            disk.take();
        }
        Ok(Self {
            log,
            consumer,
            shadow,
            disks,
        })
    }

    fn machine(&self) -> &Machine {
        let machine = self.consumer.machine();
        machine.expect("there is one since the snapshot, but for a failure that ends all")
    }

    fn seq(&self) -> CommitSeq {
        self.machine().seq()
    }

    /// Reads and follows the next commit.
    fn next(&mut self) -> Result<Option<Step>, CtlError> {
        while let Some(frame) = self.log.next_frame()? {
            let Some(frame) = needed(frame, &self.log) else {
                continue;
            };
            let applied = self.consumer.apply(&frame);
            let applied = applied.map_err(|error| {
                failure(&error, Some(&frame), &self.log, !self.disks.is_empty())
            })?;
            let Frame::Record(record) = frame else {
                continue;
            };
            let machine = self.consumer.machine();
            let machine = machine.expect("there is one that has just followed");
            let change = self.shadow.follow(machine, &applied.written);
            // Of each, even if one has too much.
            let disks: Vec<_> = self.disks.iter().map(|disk| disk.take()).collect();
            let disks: Option<Vec<_>> = disks.into_iter().collect();
            let disk_bytes = disks.iter().flatten().map(DiskChange::bytes).sum::<usize>();
            let bytes = size_of::<Step>() + change.bytes() + disk_bytes;
            return Ok(Some(Step {
                record,
                change,
                disks,
                bytes: bytes + self.log.frame_bytes() as usize,
            }));
        }
        Ok(None)
    }

    /// Goes over a step, from the one side of it to the other.
    fn go(&mut self, step: &mut Step) -> Result<(), CtlError> {
        let machine = self.consumer.machine_mut();
        let machine = machine.expect("there is one that the step is of");
        let gone = self.shadow.go(machine, &step.change);
        step.change = gone.map_err(|error| not_undone(&error))?;
        for (disk, change) in self.disks.iter().zip(step.disks.iter_mut().flatten()) {
            *change = disk.go(change).map_err(|error| {
                let message = format!("cannot go over what the guest wrote to its disks: {error}");
                CtlError::Replay(Failure::text(ExitCode::Output, message))
            })?;
        }
        Ok(())
    }
}

fn no_memory(error: &MemoryError) -> CtlError {
    CtlError::Replay(Failure::new(ExitCode::Kvm, error))
}

fn not_undone(error: &SnapshotError) -> CtlError {
    CtlError::Replay(Failure::new(ExitCode::Internal, error))
}

#[cfg(test)]
mod tests;
