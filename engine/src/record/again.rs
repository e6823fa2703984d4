//! A chunk in order form: its vCPU runs it again, and what that changed is committed, if its digest is the recorded one.
//!
//! Chunks that overlapped when they were recorded may run beside each other here, because what one of them read none
//! of the others wrote. So pages that others commit meanwhile are no conflict: they are brought up to date
//! before the chunk's changes are looked for. If that spoils the chunk, its digest tells.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use samsara_commitlog::{Boundary, CommitSeq, OrderChunk, Record, VcpuIndex};
use samsara_machine::Source;
use samsara_machine::kvm::{Privilege, RawExit};
use samsara_machine::memory::{PageIndex, Residency};

use super::changes;
use super::chunk::ChunkRunner;
use super::found::Found;
use super::lane::By;
use super::patience::Patience;
use super::permits::Permits;
use crate::EngineError;
use crate::cpu::Cpu;
use crate::stats::count;

/// A chunk that came out differently when it was run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Its commit.
    pub seq: CommitSeq,
    /// Its vCPU.
    pub vcpu: VcpuIndex,
    /// What was different.
    pub cause: DivergenceCause,
    /// Where the vCPU was at the chunk's start and when it was given up.
    pub rip: [u64; 2],
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seq,
            vcpu,
            cause,
            rip: [from, to],
        } = self;
        if *cause == DivergenceCause::Failed {
            return write!(
                f,
                "commit {seq} of vCPU {vcpu} could not be run again on this host"
            );
        }
        let cause = cause.as_str();
        write!(
            f,
            "commit {seq} of vCPU {vcpu} came out differently when it was run again ({cause}), between RIP {from:#x} and {to:#x}"
        )
    }
}

/// How a chunk came out differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DivergenceCause {
    /// The vCPU cannot run in that state.
    Halted,
    /// What its chunk was cut by cannot be counted here.
    NoCounter,
    /// It did not come to the chunk's end.
    Late,
    /// Something else than the chunk's end came first.
    Exit,
    /// It came there in another state, or with other memory.
    State,
    /// This host could not run it.
    Failed,
}

impl DivergenceCause {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Halted,
        Self::NoCounter,
        Self::Late,
        Self::Exit,
        Self::State,
        Self::Failed,
    ];

    /// A word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Halted => "halted",
            Self::NoCounter => "no-counter",
            Self::Late => "late",
            Self::Exit => "exit",
            Self::State => "state",
            Self::Failed => "failed",
        }
    }
}

/// What became of a chunk that was run again.
pub(super) enum Again {
    Committed,
    /// It left no trace.
    Diverged(Divergence),
    /// The machine stops.
    Abandoned,
}

impl<C: Cpu> ChunkRunner<C> {
    /// Runs the vCPU for a moment, to see whether this host can, and takes that back. Nothing may commit meanwhile.
    pub(super) fn try_out(&mut self, permits: &Permits) -> Result<(), EngineError> {
        if !self.get_ready()? {
            return Ok(());
        }
        let raw = {
            let _permit = permits.take();
            self.execute(self.shared.settings.chunk_min)?
        };
        self.squash(&raw, &[], None)?;
        let held: Vec<_> = self.held.pages().collect();
        self.drop_pages(&held)?;
        let vcpu = self.seat.index;
        match raw {
            RawExit::Refused(reason) => Err(EngineError::Refused { vcpu, reason }),
            _ => Ok(()),
        }
    }

    /// Runs the chunk of a record again, from the state that it started in, and commits it when all before it
    /// are committed.
    pub(super) fn run_again(
        &mut self,
        record: &Record,
        order: OrderChunk,
        permits: &Permits,
    ) -> Result<Again, EngineError> {
        let shared = Arc::clone(&self.shared);
        let before = CommitSeq(record.seq.0 - 1);
        if shared.wait_for(order.started_after).is_none() {
            return Ok(Again::Abandoned);
        }
        self.take_part()?;
        if !self.get_ready()? {
            return Ok(self.diverged(record, DivergenceCause::Halted));
        }
        if order.progress.is_some() && self.seat.cpu.progress().is_none() {
            return Ok(self.diverged(record, DivergenceCause::NoCounter));
        }
        self.settle()?;
        self.seat.again = Some(order);
        let ended = {
            let _permit = permits.take();
            self.run_to_end(&order)?
        };
        let raw = match ended {
            Ended::There(raw) => raw,
            Ended::Elsewhere(raw, cause) => {
                if !matches!(raw, RawExit::Read { .. }) {
                    self.seat.capture()?;
                }
                let diverged = self.diverged(record, cause);
                self.squash(&raw, &[], None)?;
                return Ok(diverged);
            }
            Ended::Stopped => {
                self.squash(&RawExit::Cut, &[], None)?;
                return Ok(Again::Abandoned);
            }
        };
        self.settle()?;
        let timed_out = order.boundary == Boundary::Timer;
        let mut found = self.result(&raw, order.started_after, timed_out)?;
        let Some(mut machine) = shared.wait_for(before) else {
            self.squash(&raw, &[], None)?;
            return Ok(Again::Abandoned);
        };
        self.bring_up_to_date(&mut found)?;
        let (step, pages) = self.record(&machine, found, record.guest_time)?;
        let is_same = step.order == Some(order) && machine.seq() == before;
        if !is_same || self.is_spoilt_on_purpose() {
            drop(machine);
            let diverged = self.diverged(record, DivergenceCause::State);
            // A load has its value by now.
            self.squash(&RawExit::Cut, &[], Some(&pages))?;
            return Ok(diverged);
        }
        let by = By::Chunk {
            lane: self.lane,
            vcpu: self.seat.index,
            rip: self.seat.end.regs().rip,
        };
        let source = Source::View(&self.lane().view, &pages);
        shared.commit(&mut machine, step, by, source)?;
        shared.notify();
        drop(machine);
        std::mem::swap(&mut self.seat.start, &mut self.seat.end);
        count(&self.stats().chunks, 1);
        let unused = self
            .contended
            .after_commit(|page| changes::has(&pages, page));
        self.drop_pages(&unused)?;
        self.release()?;
        Ok(Again::Committed)
    }

    /// From the first order on the lane hears of commits. Those before may have changed what keeps the guest unprivileged.
    fn take_part(&mut self) -> Result<(), EngineError> {
        if self.lane().enlist() && self.shared.machine().privilege()? == Privilege::Kernel {
            self.seat.cpu.expect_privileged_code();
        }
        Ok(())
    }

    /// Runs the vCPU to where the chunk ended.
    fn run_to_end(&mut self, order: &OrderChunk) -> Result<Ended, EngineError> {
        let mut patience = Patience::new();
        self.seat.cpu.forget_kicks();
        self.seat.cpu.start_count();
        while let Some(limit) = patience.next_run() {
            let raw = match order.progress {
                None => self.execute(limit)?,
                Some(progress) => {
                    let raw = self.seat.cpu.run_to(progress, Instant::now() + limit)?;
                    self.harvested(raw)?
                }
            };
            if !raw.is_cut() {
                return Ok(match (&raw, order.boundary) {
                    (RawExit::Refused(_), _) => Ended::Elsewhere(raw, DivergenceCause::Failed),
                    (_, Boundary::Exit) => Ended::There(raw),
                    _ => Ended::Elsewhere(raw, DivergenceCause::Exit),
                });
            }
            if order.progress.is_some() && self.seat.cpu.progress() == order.progress {
                return Ok(Ended::There(RawExit::Cut));
            }
            if self.shared.is_stopping() {
                return Ok(Ended::Stopped);
            }
            self.seat.cpu.forget_kicks();
        }
        Ok(Ended::Elsewhere(RawExit::Cut, DivergenceCause::Late))
    }

    /// What others committed since the changes were looked for is not the chunk's doing.
    fn bring_up_to_date(&mut self, found: &mut Found) -> Result<(), EngineError> {
        let mut stale = self.stale_pages()?.pages;
        stale.retain(|&(_, found)| found == Residency::Private);
        if stale.is_empty() {
            return Ok(());
        }
        let was_changed = |page: &PageIndex| stale.iter().any(|(other, _)| other == page);
        let is_spoilt = found.memory.as_ref().is_some_and(|memory| {
            memory
                .pages
                .iter()
                .any(|changed| was_changed(&changed.page))
        });
        self.settle_pages(&stale)?;
        if is_spoilt {
            found.memory = Some(self.changes(false));
        }
        Ok(())
    }

    fn diverged(&self, record: &Record, cause: DivergenceCause) -> Again {
        Again::Diverged(Divergence {
            seq: record.seq,
            vcpu: self.seat.index,
            cause,
            rip: [self.seat.start.regs().rip, self.seat.end.regs().rip],
        })
    }

    /// Whether a test wants the chunk to diverge.
    fn is_spoilt_on_purpose(&self) -> bool {
        self.shared.settings.faults.squashes(self.chunks)
    }
}

/// How a run that was to come to a chunk's end ended.
enum Ended {
    There(RawExit),
    Elsewhere(RawExit, DivergenceCause),
    Stopped,
}
