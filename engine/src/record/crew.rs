//! A vCPU's thread of a machine that is run again.
//!
//! What it runs counts for nothing until its digest is the recorded one. So whatever fails before that, KVM or an assertion,
//! costs the machine nothing: the thread runs no chunk any more, and takes the effects of all that come.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use samsara_commitlog::{CommitSeq, OrderChunk, Record, VcpuIndex};
use samsara_machine::Source;

use super::again::{Again, Divergence, DivergenceCause};
use super::chunk::ChunkRunner;
use super::committer::{Shared, Step};
use super::lane::{By, LaneIndex};
use super::permits::Permits;
use super::replayer::{Collected, Fetch};
use super::worker::seat;
use crate::cpu::Cpu;
use crate::stats::count;
use crate::{ConsumeError, EngineError};

/// What the thread has.
pub(super) struct Crew {
    pub(super) index: VcpuIndex,
    pub(super) shared: Arc<Shared>,
    pub(super) collected: Arc<Collected>,
    pub(super) permits: Arc<Permits>,
    pub(super) fetch: Arc<dyn Fetch>,
}

impl Crew {
    pub(super) fn thread_name(&self) -> String {
        format!("replay{}", self.index)
    }

    /// Tells once whether the vCPU can be run here, and then runs its orders as they come.
    pub(super) fn run<C: Cpu>(
        &self,
        cpu: C,
        ready: Sender<Result<(), EngineError>>,
        orders: &Receiver<(Record, OrderChunk)>,
    ) {
        let stop = StopAtEnd(&self.shared);
        let (told, runner) = match self.catch(|| self.runner(cpu)) {
            Ok(runner) => (Ok(()), Some(runner)),
            Err(error) => (Err(error), None),
        };
        // Who does not listen any more has heard of another's failure.
        let _ = ready.send(told);
        drop(ready);
        let followed = runner.map_or(Ok(()), |runner| self.follow(runner, orders));
        match followed {
            Ok(()) => std::mem::forget(stop),
            Err(error) => self.collected.failed_by(error),
        }
    }

    fn runner<C: Cpu>(&self, cpu: C) -> Result<ChunkRunner<C>, EngineError> {
        let seat = seat(self.index, &self.shared, cpu)?;
        let mut runner = ChunkRunner::new(self.lane(), Arc::clone(&self.shared), seat);
        runner.try_out(&self.permits)?;
        self.shared.lane(self.lane()).retire();
        Ok(runner)
    }

    fn lane(&self) -> LaneIndex {
        LaneIndex(self.index.0.into())
    }

    /// A panic is an error as any other.
    fn catch<T>(&self, work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
        let panicked = |_| Err(EngineError::Panicked(self.thread_name()));
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked)
    }

    fn follow<C: Cpu>(
        &self,
        runner: ChunkRunner<C>,
        orders: &Receiver<(Record, OrderChunk)>,
    ) -> Result<(), ConsumeError> {
        let mut runner = Some(runner);
        for (record, order) in orders {
            if self.shared.is_stopping() {
                return Ok(());
            }
            let again = match &mut runner {
                Some(runner) => self.catch(|| runner.run_again(&record, order, &self.permits)),
                None => Ok(self.failed(&record)),
            };
            let again = match again {
                Ok(again) => again,
                Err(error) => {
                    runner = None;
                    self.give_up(&record, error)?
                }
            };
            match again {
                Again::Committed => {}
                Again::Abandoned => return Ok(()),
                Again::Diverged(diverged) => self.apply_effects(&diverged, &order)?,
            }
        }
        Ok(())
    }

    /// From here on, from this record's chunk or the one after it, the vCPU runs nothing.
    fn give_up(&self, record: &Record, error: EngineError) -> Result<Again, ConsumeError> {
        if !self.shared.is_whole() {
            return Err(error.into());
        }
        self.shared.lane(self.lane()).retire();
        self.fetch.gave_up(self.index, &error);
        let is_committed = self.shared.machine().seq() >= record.seq;
        Ok(if is_committed {
            Again::Committed
        } else {
            self.failed(record)
        })
    }

    fn failed(&self, record: &Record) -> Again {
        let rip = self.shared.machine().vcpu(self.index).regs().rip;
        Again::Diverged(Divergence {
            seq: record.seq,
            vcpu: self.index,
            cause: DivergenceCause::Failed,
            rip: [rip; 2],
        })
    }

    fn apply_effects(&self, diverged: &Divergence, order: &OrderChunk) -> Result<(), ConsumeError> {
        let Divergence { seq, cause, .. } = *diverged;
        count(self.shared.stats.divergences(cause), 1);
        let gone = || ConsumeError::Diverged(*diverged);
        let record = self.fetch.effects(diverged).ok_or_else(gone)?;
        let is_it = record
            .chunk()
            .is_some_and(|chunk| chunk.vcpu == order.vcpu && chunk.digest == order.digest);
        if record.seq != seq || !is_it {
            return Err(gone());
        }
        let before = CommitSeq(seq.0 - 1);
        let Some(mut machine) = self.shared.wait_for(before) else {
            return Ok(());
        };
        let step = Step::of(record);
        self.shared
            .commit(&mut machine, step, By::Input, Source::Record)?;
        self.shared.notify();
        Ok(())
    }
}

/// Stops the others when a thread ends by an error or a panic.
struct StopAtEnd<'a>(&'a Shared);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}
