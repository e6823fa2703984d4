//! One chunk: settle, run, validate, commit or squash.
//!
//! How its view is kept in step with committed memory is in [`super::upkeep`], how what it did becomes a record in
//! [`super::found`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use samsara_commitlog::Boundary;
use samsara_machine::bare::{Guarded, is_yield};
use samsara_machine::kvm::{Harvest, RawExit};
use samsara_machine::machine::Changed;
use samsara_machine::memory::{PageIndex, Residency};
use samsara_machine::{Platform, Source, Touched};

use super::changes;
use super::committer::Shared;
use super::contended::Contended;
use super::found::Found;
use super::held::HeldPages;
use super::lane::{By, Lane, LaneIndex};
use super::pacing::{Company, Rest, is_look, is_wait};
use super::seat::Seat;
use super::stale::Stale;
use super::upkeep::affordable;
use super::yields::Seen;
use crate::EngineError;
use crate::cpu::Cpu;
use crate::spent::{Laps, Phase};
use crate::stats::{LaneStats, count};

/// How a chunk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    Squashed,
    /// The recorder is stopping; the chunk leaves no trace.
    Abandoned,
}

/// Runs chunks in one view: those of one vCPU, or of all in turn.
pub(super) struct ChunkRunner<C> {
    pub(super) lane: LaneIndex,
    pub(super) seat: Seat<C>,
    pub(super) platform: Platform,
    pub(super) shared: Arc<Shared>,
    pub(super) held: HeldPages,
    /// Pages that keep the guest's code unprivileged.
    pub(super) guarded: Guarded,
    pub(super) contended: Contended,
    pub(super) held_pages_max: usize,
    /// How large the last chunk's changes were: the next one's may be as large.
    pub(super) runs_bytes: usize,
    /// Chunks run, lost ones too.
    pub(super) chunks: u64,
    /// How long to wait for others before the next chunk, which will otherwise only find that it must.
    pub(super) rest: Option<Rest>,
    pub(super) laps: Laps,
    /// Others have committed since this vCPU last did.
    pub(super) had_news: bool,
    /// Others have committed since translations were last forgotten.
    pub(super) has_overlooked: bool,
}

impl<C: Cpu> ChunkRunner<C> {
    pub(super) fn new(lane: LaneIndex, shared: Arc<Shared>, seat: Seat<C>) -> Self {
        let settings = shared.settings;
        let layout = shared.lane(lane).view.layout();
        let (platform, guarded) = {
            let machine = shared.machine();
            (machine.platform(), machine.guarded())
        };
        let pages = layout.page_count() as usize;
        let held_pages_max = match settings.held_pages_max {
            // All views together hold at most as much again as the guest has, or 16 MiB each.
            0 => (pages / shared.lanes.len()).max(4096),
            count => count,
        };
        Self {
            lane,
            seat,
            platform,
            shared,
            guarded,
            held: HeldPages::default(),
            contended: Contended::default(),
            held_pages_max,
            runs_bytes: 0,
            chunks: 0,
            rest: None,
            laps: Laps::start(),
            had_news: false,
            has_overlooked: false,
        }
    }

    /// Brings the vCPU whose chunk is next up to date with what happened to its state between its chunks.
    /// Whoever calls it keeps out inputs that could change that state. False if it cannot run any more.
    pub(super) fn get_ready(&mut self) -> Result<bool, EngineError> {
        let index = self.seat.index;
        let mut machine = self.shared.machine();
        if !machine.devices().can_run(index) {
            return Ok(false);
        }
        let touched = machine.take_touched(index);
        if touched != Touched::No {
            let state = machine.vcpu(index);
            if touched == Touched::Whole && !self.guarded.confine(index, state) {
                self.seat.cpu.expect_privileged_code();
            }
            self.seat.take_over(state, touched)?;
        }
        Ok(true)
    }

    /// The vCPU whose chunk is next.
    pub(super) fn seat(&mut self) -> &mut Seat<C> {
        &mut self.seat
    }

    pub(super) fn lane(&self) -> &Lane {
        self.shared.lane(self.lane)
    }

    pub(super) fn stats(&self) -> &LaneStats {
        &self.shared.stats.lanes[usize::from(self.seat.index.0)]
    }

    /// Whether the vCPU keeps its turn for its next chunk.
    pub(super) fn keeps_turn(&self) -> bool {
        self.seat.pacing.keeps_turn()
    }

    pub(super) fn company(&self) -> Company {
        self.seat.pacing.company()
    }

    /// Beside whom the next chunk runs, now that others may have asked for turns.
    pub(super) fn next_company(&mut self) -> Company {
        let asked = self.lane().take_turns_asked();
        self.seat.pacing.take_turns(asked);
        match self.company() {
            Company::Turns if self.shared.settings.faults.side_by_side => Company::All,
            company => company,
        }
    }

    /// Runs one chunk to its commit or squash.
    pub(super) fn run_chunk(&mut self) -> Result<Outcome, EngineError> {
        self.rest = None;
        let started_after = self.settle()?;
        if cfg!(debug_assertions) && !self.shared.settings.faults.unchecked {
            self.check_start();
        }
        self.seat.cpu.forget_kicks();
        self.seat.cpu.start_count();
        if self.shared.is_stopping() {
            return Ok(Outcome::Abandoned);
        }
        let began = Instant::now();
        let limit = self.seat.pacing.limit();
        self.laps.lap(Phase::Upkeep);
        self.lane().begin_run();
        self.end_early_for_interrupt();
        let raw = self.execute(limit)?;
        self.lane().end_run();
        self.laps.lap(Phase::Guest);
        let ran = began.elapsed();
        let stale = self.stale_pages()?;
        let is_too_large = changes::are_too_many(&self.lane().view, &self.held);
        if is_too_large {
            self.seat.pacing.too_large();
            count(&self.stats().too_large, 1);
        }
        if !stale.is_empty() || is_too_large || self.is_unwanted() {
            return self.lose(&raw, &stale, None, began);
        }
        let result = self.result(&raw, started_after, ran >= limit)?;
        self.laps.lap(Phase::Find);
        let outcome = self.commit(&raw, result, began, ran)?;
        if outcome == Outcome::Committed {
            self.seat.pacing.cost(began.elapsed().saturating_sub(ran));
            let yielded_at = is_yield(&raw).then(|| self.seat.cpu.rip());
            self.rest = self.rest_after(yielded_at, ran);
        }
        Ok(outcome)
    }

    /// How long to wait for others after a chunk that committed, if it ended where the vCPU waits for them.
    fn rest_after(&mut self, yielded_at: Option<u64>, ran: Duration) -> Option<Rest> {
        let Seat { pacing, yields, .. } = &mut self.seat;
        yields.committed(&Seen {
            yielded_at,
            was_in_vain: yielded_at.is_some() && pacing.has_waited() && is_look(ran),
            had_news: std::mem::take(&mut self.had_news),
        });
        let rests = yields.rests(yielded_at?);
        let mut others = self.shared.others(self.lane);
        (rests && others.any(|lane| !lane.is_retired())).then(|| pacing.rest())
    }

    /// What came for the vCPU since it was brought up to date found no running chunk to end.
    fn end_early_for_interrupt(&self) {
        if self.platform == Platform::Pc {
            let machine = self.shared.machine();
            if machine.has_interrupt_for(self.seat.index) {
                self.lane().kick();
            }
        }
    }

    /// Squashes a chunk that began then. `changed` are the pages that it changed, where that is known.
    fn lose(
        &mut self,
        raw: &RawExit,
        stale: &Stale,
        changed: Option<&[Changed]>,
        began: Instant,
    ) -> Result<Outcome, EngineError> {
        let stood_at = self.seat.cpu.rip();
        let squashes = self.stats().squashes.load(Ordering::Relaxed);
        let pages = stale.pages.iter().map(|&(page, _)| page);
        self.contended.squashed(pages);
        let dealt_with = affordable(&stale.pages, began.elapsed(), squashes);
        self.squash(raw, &dealt_with, changed)?;
        let time = began.elapsed();
        self.account(stale, stood_at, time);
        self.laps.lap(Phase::Lost);
        self.laps
            .lost(&self.shared.stats.lanes[usize::from(self.seat.index.0)].spent);
        self.lost(time, &stale.pages);
        Ok(Outcome::Squashed)
    }

    /// Keeps account of what a squash cost, and whose doing it was.
    fn account(&self, stale: &Stale, stood_at: u64, time: Duration) {
        let stats = self.stats();
        if stale.is_empty() || self.shared.settings.faults.unaccounted {
            return;
        }
        let layout = self.lane().view.layout();
        stale.note(&mut stats.conflicts(), layout, stood_at, time);
    }

    /// A chunk has taken this long for nothing, because of these pages. If that makes the vCPU take
    /// turns, so shall those that write them.
    fn lost(&mut self, time: Duration, stale: &[(PageIndex, Residency)]) {
        self.seat.pacing.squashed(time);
        let turns = self.seat.pacing.turns_left();
        if turns == 0 {
            return;
        }
        let pages: Vec<_> = stale.iter().map(|&(page, _)| page).collect();
        let others = self.shared.others(self.lane);
        others.for_each(|lane| lane.ask_for_turns(turns, &pages));
    }

    /// Runs the vCPU until something ends the chunk, and notes the pages that it made private.
    pub(super) fn execute(&mut self, limit: Duration) -> Result<RawExit, EngineError> {
        let raw = self.seat.run(self.platform, limit)?;
        self.harvested(raw)
    }

    /// Notes the pages that the last run made private.
    pub(super) fn harvested(&mut self, raw: RawExit) -> Result<RawExit, EngineError> {
        self.harvest()?;
        if raw == RawExit::RingFull {
            self.seat.cpu.reset_ring()?;
        }
        self.held.end_chunk();
        self.chunks += 1;
        Ok(raw)
    }

    /// Adds the pages that have become private to the held ones.
    pub(super) fn harvest(&mut self) -> Result<(), EngineError> {
        let Self {
            seat: Seat { cpu, .. },
            held,
            guarded,
            shared,
            lane,
            ..
        } = self;
        let set = &shared.lane(*lane).held;
        let mut may_be_privileged = false;
        let mut note = |page| {
            may_be_privileged |= guarded.contains(page);
            held.insert(set, page);
        };
        if cpu.take_written(&mut note)? == Harvest::Incomplete {
            shared.lane(*lane).view.private_pages(note)?;
        }
        held.sort_in();
        if may_be_privileged {
            cpu.expect_privileged_code();
        }
        Ok(())
    }

    /// Whether a test wants the chunk squashed.
    fn is_unwanted(&self) -> bool {
        let is_exclusive = self.company() == Company::None;
        !is_exclusive && self.shared.settings.faults.squashes(self.chunks)
    }

    fn commit(
        &mut self,
        raw: &RawExit,
        result: Found,
        began: Instant,
        ran: Duration,
    ) -> Result<Outcome, EngineError> {
        let shared = Arc::clone(&self.shared);
        let by = By::Chunk {
            lane: self.lane,
            vcpu: self.seat.index,
            rip: self.seat.cpu.rip(),
        };
        let mut machine = shared.machine();
        self.laps.lap(Phase::Lock);
        let locked = Instant::now();
        let stale = self.stale_pages()?;
        if !stale.is_empty() {
            drop(machine);
            let changed = result.memory.as_ref().map(|memory| memory.pages.as_slice());
            return self.lose(raw, &stale, changed, began);
        }
        if shared.is_over(&machine) {
            return Ok(Outcome::Abandoned);
        }
        let boundary = result.boundary;
        let guest_time = shared.chunk_time(&machine);
        let (step, pages) = self.record(&machine, result, guest_time)?;
        let source = Source::View(&self.lane().view, &pages);
        let written = shared.commit(&mut machine, step, by, source)?;
        assert!(
            machine.touched(self.seat.index) != Touched::No
                || machine.vcpu(self.seat.index) == &self.seat.end,
            "invariant 2: the committed state of vCPU {} is not the one it has",
            self.seat.index
        );
        drop(machine);
        self.laps.lap(Phase::Commit);
        shared.stats.commit.add(locked.elapsed());
        std::mem::swap(&mut self.seat.start, &mut self.seat.end);
        shared.tell(&written, Some(self.lane));
        self.after_commit(boundary, &pages, ran)?;
        self.laps.lap(Phase::Upkeep);
        self.laps
            .committed(&shared.stats.lanes[usize::from(self.seat.index.0)].spent);
        Ok(Outcome::Committed)
    }

    /// Bookkeeping of a committed chunk, outside the lock.
    fn after_commit(
        &mut self,
        boundary: Boundary,
        changed: &[Changed],
        ran: Duration,
    ) -> Result<(), EngineError> {
        count(&self.stats().chunks, 1);
        self.shared.stats.chunk.add(ran);
        let has_moved =
            boundary == Boundary::Exit || self.seat.start.regs() != self.seat.end.regs();
        self.seat.pacing.moved(has_moved);
        let has_waited = is_wait(boundary, changed.len());
        self.seat.pacing.committed(ran, boundary, has_waited);
        if has_waited {
            let least = self.seat.pacing.patience();
            let others = self.shared.others(self.lane);
            others.for_each(|lane| lane.kick_if_running_for(least));
        }
        let unused = self
            .contended
            .after_commit(|page| changes::has(changed, page));
        if self.company() == Company::All {
            self.drop_pages(&unused)?;
        }
        Ok(self.release()?)
    }
}
