//! One chunk: settle, run, validate, commit or squash.

use std::sync::Arc;
use std::time::{Duration, Instant};

use samsara_commitlog::{Boundary, Chunk, ChunkResult, Commit, CommitSeq, Effects, Exit, Record};
use samsara_machine::bare::{Guarded, Seen};
use samsara_machine::kvm::{Harvest, RawExit, Restore};
use samsara_machine::memory::{MemoryError, PageIndex, Residency};
use samsara_machine::{Machine, Platform, Source, Touched};

use super::changes::{self, Changes};
use super::committer::{Isolation, Shared};
use super::contended::Contended;
use super::faults::Mistake;
use super::held::HeldPages;
use super::lane::{Lane, LaneIndex};
use super::pacing::{Company, is_wait};
use super::seat::Seat;
use crate::EngineError;
use crate::cpu::Cpu;
use crate::stats::{LaneStats, count};

/// Held pages that have not changed for so many chunks are cold.
const COLD_AGE: u32 = 256;
/// Chunks between two looks for cold pages.
const RELEASE_EVERY: u64 = 8;
/// Comparing so many pages is nothing beside a chunk.
const FEW_PAGES: usize = 512;
/// How many held pages are compared with the image at a chunk's start, where that is checked.
const CHECKED_PAGES: usize = 256;

/// How a chunk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    Squashed,
    /// The recorder is stopping; the chunk leaves no trace.
    Abandoned,
}

/// What a chunk found before it took the commit lock.
struct Found {
    started_after: CommitSeq,
    boundary: Boundary,
    exit: Exit,
    /// `None` for a load: its instruction stores only once it has its value.
    memory: Option<Changes>,
}

/// Runs chunks in one view: those of one vCPU, or of all in turn.
pub(super) struct ChunkRunner<C> {
    lane: LaneIndex,
    seat: Seat<C>,
    platform: Platform,
    shared: Arc<Shared>,
    held: HeldPages,
    /// Pages that keep the guest's code unprivileged.
    guarded: Guarded,
    contended: Contended,
    held_pages_max: usize,
    /// How large the last chunk's changes were: the next one's may be as large.
    runs_bytes: usize,
    /// Chunks run, lost ones too.
    chunks: u64,
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
            self.seat.take_over(machine.vcpu(index), touched)?;
        }
        Ok(true)
    }

    /// The vCPU whose chunk is next.
    pub(super) fn seat(&mut self) -> &mut Seat<C> {
        &mut self.seat
    }

    fn lane(&self) -> &Lane {
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
        let started_after = self.settle()?;
        if cfg!(debug_assertions) && !self.shared.settings.faults.unchecked {
            self.check_start();
        }
        self.seat.cpu.forget_kicks();
        if self.shared.is_stopping() {
            return Ok(Outcome::Abandoned);
        }
        let began = Instant::now();
        let limit = self.seat.pacing.limit();
        self.lane().begin_run();
        self.end_early_for_interrupt();
        let raw = self.execute(limit)?;
        self.lane().end_run();
        let ran = began.elapsed();
        let stale = self.stale_pages()?;
        let is_too_large = changes::are_too_many(&self.lane().view, &self.held);
        if is_too_large {
            self.seat.pacing.too_large();
        }
        if !stale.is_empty() || is_too_large || self.is_unwanted() {
            self.squash(&raw, &stale, None)?;
            self.lost(began.elapsed(), &stale);
            return Ok(Outcome::Squashed);
        }
        let result = self.result(&raw, started_after, ran >= limit)?;
        let outcome = self.commit(&raw, result, began, ran)?;
        if outcome == Outcome::Committed {
            self.seat.pacing.cost(began.elapsed().saturating_sub(ran));
        }
        Ok(outcome)
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
    fn execute(&mut self, limit: Duration) -> Result<RawExit, EngineError> {
        let raw = self.seat.run(self.platform, limit)?;
        self.harvest()?;
        if raw == RawExit::RingFull {
            self.seat.cpu.reset_ring()?;
        }
        self.held.end_chunk();
        self.chunks += 1;
        Ok(raw)
    }

    /// Adds the pages that have become private to the held ones.
    fn harvest(&mut self) -> Result<(), EngineError> {
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

    /// Invariant 4: a chunk starts on a view that shows committed memory. Held pages that others
    /// have overwritten since [`Self::settle`] are for validation to find.
    fn check_start(&self) {
        let lane = self.lane();
        let _machine = self.shared.machine();
        let incoming = lane.peek_incoming();
        let step = self.held.count() / CHECKED_PAGES + 1;
        for page in self
            .held
            .pages()
            .skip(self.chunks as usize % step)
            .step_by(step)
        {
            assert!(
                lane.view.equals_image(page) || incoming.binary_search(&page).is_ok(),
                "invariant 4: vCPU {} starts a chunk with a stale page, number {}",
                self.seat.index,
                page.0
            );
        }
    }

    /// The pages that others committed and that this view shows: the chunk may have read them.
    fn stale_pages(&mut self) -> Result<Vec<(PageIndex, Residency)>, MemoryError> {
        let incoming = self.lane().take_incoming();
        let faults = self.shared.settings.faults;
        let may_forget = !faults.makes(Mistake::SkipForgetTranslations);
        if !incoming.is_empty() && self.shared.isolation == Isolation::Parallel && may_forget {
            self.seat.cpu.forget_translations();
        }
        if incoming.iter().any(|&page| self.guarded.contains(page)) {
            self.seat.cpu.expect_privileged_code();
        }
        let lane = self.lane();
        let (held, others): (Vec<_>, Vec<_>) = incoming
            .into_iter()
            .partition(|&page| lane.held.contains(page));
        // Held pages are resident: no need to ask.
        let held = held.into_iter().map(|page| (page, Residency::Private));
        let mut stale: Vec<_> = held.filter(|&(_, found)| faults.counts(found)).collect();
        if !others.is_empty() {
            lane.view.residency(&others, |page, found| {
                if faults.counts(found) {
                    stale.push((page, found));
                }
            })?;
        }
        Ok(stale)
    }

    /// Makes sure that no page of the view is stale; gives the last commit that it then shows.
    fn settle(&mut self) -> Result<CommitSeq, MemoryError> {
        let published = self.shared.published();
        let mut stale = self.stale_pages()?;
        // The image's own pages always show the image.
        stale.retain(|&(_, found)| found == Residency::Private);
        self.settle_pages(&stale)?;
        Ok(published)
    }

    /// Brings stale pages, in any order, up to date. A held page is refreshed: a copy; dropping it
    /// would cost a hundred times that in faults when it is written again. Others are dropped.
    fn settle_pages(&mut self, stale: &[(PageIndex, Residency)]) -> Result<(), MemoryError> {
        if self.shared.settings.faults.makes(Mistake::SkipSettle) {
            return Ok(());
        }
        let mut dropped = Vec::new();
        for &(page, _) in stale {
            if self.lane().held.contains(page) {
                self.lane().view.refresh(page);
            } else {
                dropped.push(page);
            }
        }
        dropped.sort_unstable();
        self.drop_pages(&dropped)
    }

    fn drop_pages(&mut self, pages: &[PageIndex]) -> Result<(), MemoryError> {
        let lane = self.shared.lane(self.lane);
        lane.view.drop_pages(pages)?;
        self.held.remove(&lane.held, pages);
        Ok(())
    }

    /// Undoes the chunk. `changed` are the pages that it changed, where that is known.
    fn squash(
        &mut self,
        raw: &RawExit,
        stale: &[(PageIndex, Residency)],
        changed: Option<&[PageIndex]>,
    ) -> Result<(), EngineError> {
        if matches!(raw, RawExit::Read { .. }) {
            // KVM would finish the load inside the next run, on top of the restored state.
            self.seat.cpu.complete_read(0)?;
            self.harvest()?;
        }
        let faults = self.shared.settings.faults;
        if !faults.makes(Mistake::SkipRestoreState) {
            self.seat.cpu.restore(&self.seat.start, Restore::KeepTime)?;
            self.seat.apic = self.seat.start.apic();
        }
        if !faults.makes(Mistake::SkipRestoreMemory) {
            let view = &self.shared.lane(self.lane).view;
            match changed {
                Some(pages) => pages.iter().for_each(|&page| view.refresh(page)),
                None => self.held.pages().for_each(|page| view.refresh(page)),
            }
        }
        self.forget_translations()?;
        self.contended.squashed(stale.iter().map(|&(page, _)| page));
        self.settle_pages(stale)?;
        self.release()?;
        count(&self.stats().squashes, 1);
        Ok(())
    }

    /// A squash leaves no translation behind: the chunk may have changed page tables.
    fn forget_translations(&mut self) -> Result<(), MemoryError> {
        let faults = self.shared.settings.faults;
        if self.platform == Platform::Bare || faults.makes(Mistake::SkipForgetTranslations) {
            return Ok(());
        }
        self.seat.cpu.forget_translations();
        // Where the processor walks the tables itself, KVM flushes what it knows of a view that loses a
        // page.
        let any = self.held.pages().next();
        any.map_or(Ok(()), |page| self.drop_pages(&[page]))
    }

    /// Finds what the chunk did: the exit, the bytes it changed, all without the commit lock.
    fn result(
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
        let random = || self.shared.outside.random();
        let memory = Seen::View(&lane.view);
        let exit = self.platform.interpret(raw, &self.seat.end, memory, random);
        let boundary = match raw {
            RawExit::Cut if timed_out => Boundary::Timer,
            RawExit::Cut => Boundary::Kick,
            _ => Boundary::Exit,
        };
        let changes = (!is_load).then(|| self.changes(true));
        Ok(Found {
            started_after,
            boundary,
            exit,
            memory: changes,
        })
    }

    /// The memory that the chunk changed. Nobody is asked to help under the commit lock.
    fn changes(&mut self, may_share: bool) -> Changes {
        let shared = &self.shared;
        let view = &shared.lane(self.lane).view;
        let helpers = may_share.then_some(&shared.rotation);
        Changes::find(view, &mut self.held, &mut self.runs_bytes, helpers)
    }

    fn commit(
        &mut self,
        raw: &RawExit,
        result: Found,
        began: Instant,
        ran: Duration,
    ) -> Result<Outcome, EngineError> {
        let shared = Arc::clone(&self.shared);
        let mut machine = shared.machine();
        let locked = Instant::now();
        let stale = self.stale_pages()?;
        if !stale.is_empty() {
            drop(machine);
            let changed = result.memory.as_ref().map(|memory| memory.pages.as_slice());
            self.squash(raw, &stale, changed)?;
            self.lost(began.elapsed(), &stale);
            return Ok(Outcome::Squashed);
        }
        if shared.is_over(&machine) {
            return Ok(Outcome::Abandoned);
        }
        let boundary = result.boundary;
        let (record, pages) = self.record(&machine, result)?;
        let source = Source::View(&self.lane().view, &pages);
        let written = shared.commit(&mut machine, record, Some(self.lane), source)?;
        assert!(
            machine.touched(self.seat.index) != Touched::No
                || machine.vcpu(self.seat.index) == &self.seat.end,
            "invariant 2: the committed state of vCPU {} is not the one it has",
            self.seat.index
        );
        drop(machine);
        shared.stats.commit.add(locked.elapsed());
        std::mem::swap(&mut self.seat.start, &mut self.seat.end);
        shared.kick_stale(&written, Some(self.lane));
        self.after_commit(boundary, &pages, ran)?;
        Ok(Outcome::Committed)
    }

    /// Makes the chunk's record, under the commit lock, and gives the pages that it changes. Loads
    /// get their value here, from the devices as they are at this commit.
    fn record(
        &mut self,
        machine: &Machine,
        result: Found,
    ) -> Result<(Record, Vec<PageIndex>), EngineError> {
        let Found {
            started_after,
            boundary,
            mut exit,
            memory,
        } = result;
        let guest_time = self.shared.now(machine);
        if matches!(exit, Exit::Read { .. }) {
            let value = machine
                .devices()
                .read_value(self.seat.index, &exit, guest_time);
            let finished = self.seat.cpu.complete_read(value)?;
            self.seat.capture()?;
            if let RawExit::Fatal(reason) = finished {
                exit = Exit::Fatal {
                    rip: self.seat.end.regs().rip,
                    reason,
                };
            }
            self.harvest()?;
        }
        let Changes {
            runs: memory,
            pages,
            digest,
        } = memory.unwrap_or_else(|| self.changes(false));
        let vcpu = self.seat.end.changes_since(&self.seat.start);
        count(
            &self.shared.stats.effect_bytes,
            (memory.encoded().len() + vcpu.encoded().len()) as u64,
        );
        let chunk = Chunk {
            vcpu: self.seat.index,
            started_after,
            boundary,
            exit,
            result: ChunkResult::Effects(Effects { memory, vcpu }),
            digest: digest.finish(&self.seat.end),
        };
        let commit = Commit::Chunk(chunk);
        Ok((
            Record {
                seq: machine.seq().next(),
                guest_time,
                commit,
            },
            pages,
        ))
    }

    /// Bookkeeping of a committed chunk, outside the lock.
    fn after_commit(
        &mut self,
        boundary: Boundary,
        changed: &[PageIndex],
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
        let unused = self.contended.after_commit(changed);
        if self.company() == Company::All {
            self.drop_pages(&unused)?;
        }
        Ok(self.release()?)
    }

    /// Drops pages that have not changed for long: now and then once there are many, because each
    /// is compared at the end of every chunk, and at once when the view holds too many.
    fn release(&mut self) -> Result<(), MemoryError> {
        if self.held.count() > FEW_PAGES && self.chunks.is_multiple_of(RELEASE_EVERY) {
            let cold = self.held.colder_than(COLD_AGE);
            self.drop_pages(&cold)?;
        }
        let mut age = COLD_AGE;
        while self.held.count() > self.held_pages_max {
            let cold = self.held.colder_than(age);
            self.drop_pages(&cold)?;
            age /= 2;
        }
        Ok(())
    }
}
