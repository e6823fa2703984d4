//! What a chunk did, as a record: its exit, the bytes it changed, its digest.

use samsara_commitlog::{
    Boundary, ByteRuns, Chunk, Commit, CommitSeq, Effects, Exit, GuestTime, OrderChunk, Progress,
    Record,
};
use samsara_machine::bare::Seen;
use samsara_machine::kvm::RawExit;
use samsara_machine::machine::Changed;
use samsara_machine::{Machine, Platform};

use super::changes::{Changes, Search, whole_pages};
use super::chunk::ChunkRunner;
use super::committer::Step;
use crate::EngineError;
use crate::cpu::Cpu;
use crate::stats::count;

/// What a chunk found before it took the commit lock.
pub(super) struct Found {
    started_after: CommitSeq,
    pub(super) boundary: Boundary,
    /// How far the vCPU got, if its own exit did not end the chunk and that is counted.
    progress: Option<Progress>,
    exit: Exit,
    /// `None` for a load: its instruction stores only once it has its value.
    pub(super) memory: Option<Changes>,
}

impl<C: Cpu> ChunkRunner<C> {
    /// Finds what the chunk did: the exit, the bytes it changed, all without the commit lock.
    pub(super) fn result(
        &mut self,
        raw: &RawExit,
        started_after: CommitSeq,
        timed_out: bool,
    ) -> Result<Found, EngineError> {
        let is_load = matches!(raw, RawExit::Read { .. });
        if !is_load {
            self.seat.capture()?;
        }
        let lane = self.shared.lane(self.lane);
        let random = || match self.seat.again {
            Some(order) => order.input.unwrap_or_default(),
            None => self.shared.outside.random(),
        };
        let memory = Seen::View(&lane.view);
        let exit = self.platform.interpret(raw, &self.seat.end, memory, random);
        let boundary = match raw {
            cut if cut.is_cut() && timed_out => Boundary::Timer,
            cut if cut.is_cut() => Boundary::Kick,
            _ => Boundary::Exit,
        };
        let progress = match boundary {
            Boundary::Exit => None,
            Boundary::Timer | Boundary::Kick => self.seat.cpu.progress(),
        };
        let changes = (!is_load).then(|| self.changes(true));
        Ok(Found {
            started_after,
            boundary,
            progress,
            exit,
            memory: changes,
        })
    }

    /// The memory that the chunk changed. Nobody is asked to help under the commit lock.
    pub(super) fn changes(&mut self, may_share: bool) -> Changes {
        let shared = &self.shared;
        let search = Search {
            view: &shared.lane(self.lane).view,
            helpers: may_share.then_some(&shared.rotation),
            may_be_tables: self.keeps_translations(),
            encode_in: shared.outside.has_readers().then_some(&shared.buffers),
            room: self.runs_bytes,
        };
        let changes = search.changes(&mut self.held);
        if let Some(runs) = &changes.runs {
            self.runs_bytes = runs.encoded().len();
        }
        changes
    }

    /// Makes the chunk's record, under the commit lock, and gives the pages that it changes. Loads
    /// get their value here, from the devices as they are at this commit.
    pub(super) fn record(
        &mut self,
        machine: &Machine,
        result: Found,
        guest_time: GuestTime,
    ) -> Result<(Step, Vec<Changed>), EngineError> {
        let Found {
            started_after,
            boundary,
            progress,
            mut exit,
            memory,
        } = result;
        if matches!(exit, Exit::Read { .. }) {
            let value = machine
                .devices()
                .read_value(self.seat.index, &exit, guest_time);
            let finished = self.seat.cpu.complete_read(value)?;
            self.seat.capture()?;
            if let Some(reason) = finished.fatal() {
                exit = Exit::Fatal {
                    rip: self.seat.end.regs().rip,
                    reason: reason.to_owned(),
                };
            }
            self.harvest()?;
        }
        let Changes {
            runs,
            pages,
            digest,
            bytes,
            rewritten,
            voids_translations,
        } = memory.unwrap_or_else(|| self.changes(false));
        let memory = match runs {
            Some(runs) => runs,
            // Somebody has begun to read since the changes were looked for.
            None if self.shared.outside.has_readers() => {
                whole_pages(&self.shared.lane(self.lane).view, &pages)
            }
            None => ByteRuns::default(),
        };
        let vcpu = self.seat.end.changes_since(&self.seat.start);
        let bytes = bytes + vcpu.run_bytes();
        count(&self.shared.stats.effect_bytes, bytes);
        count(&self.shared.stats.faults_avoided, rewritten as u64);
        let chunk = Chunk {
            vcpu: self.seat.index,
            started_after,
            boundary,
            exit,
            effects: Effects { memory, vcpu },
            digest: digest.finish(&self.seat.end),
        };
        let order = self.order(&chunk, progress);
        let record = Record {
            seq: machine.seq().next(),
            guest_time,
            commit: Commit::Chunk(chunk),
        };
        let step = Step {
            record,
            order,
            voids_translations,
        };
        Ok((step, pages))
    }

    /// The order to run a chunk again, if its end can be found.
    fn order(&self, chunk: &Chunk, progress: Option<Progress>) -> Option<OrderChunk> {
        let has_end = progress.is_some() || chunk.boundary == Boundary::Exit;
        let is_fatal = matches!(chunk.exit, Exit::Fatal { .. });
        // A PC's state has clocks of its own in it, which no order names.
        if !has_end || is_fatal || self.platform != Platform::Bare {
            return None;
        }
        let input = match chunk.exit {
            Exit::Read { input, .. } => input,
            _ => None,
        };
        Some(OrderChunk {
            vcpu: chunk.vcpu,
            started_after: chunk.started_after,
            boundary: chunk.boundary,
            progress,
            tsc_gain: self.seat.tsc_gain(),
            input,
            digest: chunk.digest,
        })
    }
}
