//! The commit lock, and what happens under it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use samsara_commitlog::{
    Commit, CommitSeq, GuestTime, Input, OrderChunk, Record, TIME_STEP, VcpuIndex,
};
use samsara_machine::kvm::{CounterKind, Paging, TscControl, host_tsc};
use samsara_machine::memory::PageIndex;
use samsara_machine::pc::Delivery;
use samsara_machine::{Applied, ApplyError, Machine, Platform, Source, Touched};

use super::buffers::Buffers;
use super::faults::Faults;
use super::lane::{By, Lane, LaneIndex, Published};
use super::pacing::Rest;
use super::rotation::Rotation;
use super::tsc::Tsc;
use super::turnstile::{Alone, Beside, Turnstile};
use crate::outside::{Item, Outside};
use crate::stats::{Stats, count};

/// How chunks are kept from seeing each other's unfinished work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Each vCPU runs in a view and a VM of its own, beside the others.
    Parallel,
    /// All vCPUs run in one view and one VM, one chunk at a time: nothing conflicts, and KVM sees every
    /// store to page tables itself.
    Serial,
}

impl Isolation {
    /// The word for it, as in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Parallel => "parallel",
            Self::Serial => "serial",
        }
    }

    /// When interrupts reach a vCPU.
    pub fn delivery(self) -> Delivery {
        match self {
            Self::Parallel => Delivery::OwnCommits,
            Self::Serial => Delivery::AllCommits,
        }
    }
}

/// How chunks are recorded.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How chunks are isolated.
    pub isolation: Isolation,
    /// Who walks page tables on this host.
    pub paging: Paging,
    /// Whether vCPUs' TSCs can be set on this host.
    pub tsc: TscControl,
    /// Their rate in kHz, where it is steady.
    pub tsc_khz: Option<u64>,
    /// What counts vCPUs' progress, so that chunks that were cut can be run again. It is slow.
    pub counter: Option<CounterKind>,
    /// Shortest chunk.
    pub chunk_min: Duration,
    /// Longest chunk.
    pub chunk_max: Duration,
    /// Commits between digests of the whole state; 0 for none.
    pub digest_every: u64,
    /// Pages that a view may hold; 0 to let memory size decide.
    pub held_pages_max: usize,
    /// Squashes in a row after which a chunk runs alone.
    pub squashes_before_exclusive: u32,
    /// Mistakes to make on purpose; none outside tests.
    #[doc(hidden)]
    pub faults: Faults,
}

/// The next step of the history.
pub(super) struct Step {
    pub(super) record: Record,
    /// A chunk that can be run again, as the order to do so.
    pub(super) order: Option<OrderChunk>,
    /// What others translated by the pages that a chunk changes may be wrong then.
    pub(super) voids_translations: bool,
}

impl Step {
    /// One that no view made: nobody has looked at what it writes over.
    pub(super) fn of(record: Record) -> Self {
        Self {
            record,
            order: None,
            voids_translations: true,
        }
    }
}

/// Keeps chunks out, as far as an input needs that, until dropped.
#[expect(dead_code, reason = "held, not used")]
pub(super) enum Floor<'a> {
    Beside(Beside<'a>),
    Alone(Alone<'a>),
}

/// What all lanes share.
pub(super) struct Shared {
    machine: Mutex<Machine>,
    /// Chunks pass it beside each other, whoever must have the vCPUs stand still alone.
    pub(super) turnstile: Turnstile,
    /// Among vCPUs that keep conflicting.
    pub(super) rotation: Rotation,
    pub(super) lanes: Vec<Lane>,
    pub(super) outside: Arc<dyn Outside>,
    /// What effects are encoded into.
    pub(super) buffers: Buffers,
    pub(super) stats: Arc<Stats>,
    pub(super) settings: Settings,
    pub(super) isolation: Isolation,
    /// What the vCPUs' TSCs are when they start.
    pub(super) tsc: Tsc,
    /// The last commit whose pages are in all `incoming` lists.
    published: AtomicU64,
    /// Guest clock and mark at the last commit, for those who must not wait for the commit lock.
    shown: [AtomicU64; 2],
    stopping: AtomicBool,
    /// A commit failed: the machine is not at one.
    is_half_changed: AtomicBool,
    /// Serialises INPUT operations: each reads on where the one before it stopped.
    pub(super) input_file: Mutex<()>,
    /// Somebody who waits may have something to do.
    changed: Condvar,
    sleepers: AtomicUsize,
    /// The moment in guest time at which whoever serves the devices wakes by itself.
    alarm: AtomicU64,
    /// Guest clock at `started`.
    clock_base: GuestTime,
    started: Instant,
}

impl Shared {
    pub(super) fn new(
        machine: Machine,
        lanes: Vec<Lane>,
        outside: Arc<dyn Outside>,
        stats: Arc<Stats>,
        settings: Settings,
    ) -> Self {
        Self {
            published: AtomicU64::new(machine.seq().0),
            shown: [machine.guest_time().0, machine.devices().mark()].map(AtomicU64::new),
            clock_base: machine.guest_time(),
            tsc: Tsc::of(&machine, &settings, host_tsc()),
            machine: Mutex::new(machine),
            turnstile: Turnstile::default(),
            rotation: Rotation::default(),
            buffers: Buffers::new(2 * lanes.len()),
            lanes,
            outside,
            stats,
            isolation: settings.isolation,
            settings,
            stopping: AtomicBool::new(false),
            is_half_changed: AtomicBool::new(false),
            input_file: Mutex::new(()),
            changed: Condvar::new(),
            sleepers: AtomicUsize::new(0),
            alarm: AtomicU64::new(u64::MAX),
            started: Instant::now(),
        }
    }

    pub(super) fn lane(&self, index: LaneIndex) -> &Lane {
        &self.lanes[index.0]
    }

    /// The lane in which a vCPU runs.
    fn lane_of(&self, vcpu: VcpuIndex) -> LaneIndex {
        match self.isolation {
            Isolation::Parallel => LaneIndex(vcpu.0.into()),
            Isolation::Serial => LaneIndex(0),
        }
    }

    /// The other lanes.
    pub(super) fn others(&self, own: LaneIndex) -> impl Iterator<Item = &Lane> {
        let lanes = self.lanes.iter().enumerate();
        lanes
            .filter(move |(index, _)| *index != own.0)
            .map(|(_, lane)| lane)
    }

    /// Takes the commit lock. After a panic under it the machine may be half changed: it can be
    /// looked at, and nothing commits any more.
    pub(super) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(|poisoned| {
            self.stopping.store(true, Ordering::SeqCst);
            poisoned.into_inner()
        })
    }

    /// Whether nothing more may commit: the machine has ended, or the recorder stops.
    pub(super) fn is_over(&self, machine: &Machine) -> bool {
        machine.ended().is_some() || self.is_stopping()
    }

    pub(super) fn published(&self) -> CommitSeq {
        CommitSeq(self.published.load(Ordering::Acquire))
    }

    /// Guest clock and mark at the last commit, without a wait.
    pub(super) fn shown(&self) -> (GuestTime, u64) {
        let [time, mark] = &self.shown;
        let time = GuestTime(time.load(Ordering::Relaxed));
        (time, mark.load(Ordering::Relaxed))
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.kick_all();
        // Under the lock, so that nobody who is about to park misses it.
        let _machine = self.machine();
        self.changed.notify_all();
        self.rotation.tell();
    }

    pub(super) fn kick_all(&self) {
        self.lanes.iter().for_each(Lane::kick);
    }

    /// Waits until the recorder stops.
    pub(super) fn park_until_stop(&self) {
        let mut machine = self.machine();
        while !self.is_stopping() {
            machine = self.wait(machine, None);
        }
    }

    /// Waits until so much is committed; nothing if it never will be.
    pub(super) fn wait_for(&self, seq: CommitSeq) -> Option<MutexGuard<'_, Machine>> {
        let mut machine = self.machine();
        while machine.seq() < seq {
            if self.is_stopping() {
                return None;
            }
            machine = self.wait(machine, None);
        }
        Some(machine)
    }

    /// Waits until others have committed something that a lane does not show yet. Now and then asks them to.
    /// Says whether they have.
    pub(super) fn rest(&self, lane: LaneIndex, Rest { patience, most }: Rest) -> bool {
        let end = Instant::now() + most;
        let mut patience = patience;
        let has_news = || self.is_stopping() || self.lane(lane).has_incoming();
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if self.rotation.rest(patience.min(left), has_news) {
                return true;
            }
            let others = self.others(lane);
            others.for_each(|lane| lane.kick_if_running_for(patience));
            patience *= 2;
        }
        false
    }

    /// Wakes all that wait.
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Whether the machine is at a commit: none failed, and nobody died in one.
    pub(super) fn is_whole(&self) -> bool {
        !self.is_half_changed.load(Ordering::SeqCst) && !self.machine.is_poisoned()
    }

    /// The machine, once nobody else has any part of this, if it is whole.
    pub(super) fn into_whole_machine(self) -> Option<Machine> {
        let is_whole = self.is_whole();
        self.machine.into_inner().ok().filter(|_| is_whole)
    }

    /// Waits until the machine may have something new for a vCPU or device that has nothing to do, or
    /// until its guest clock shows `until`.
    pub(super) fn wait<'a>(
        &'a self,
        machine: MutexGuard<'a, Machine>,
        until: Option<GuestTime>,
    ) -> MutexGuard<'a, Machine> {
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        let machine = match until {
            None => self
                .changed
                .wait(machine)
                .unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                self.alarm.store(until.0, Ordering::Relaxed);
                let rest = until.0.saturating_sub(self.now(&machine).0);
                let waited = self
                    .changed
                    .wait_timeout(machine, Duration::from_nanos(rest));
                self.alarm.store(u64::MAX, Ordering::Relaxed);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
        machine
    }

    /// Keeps out chunks that an input must not come between: in serial isolation all, so that KVM and
    /// the guest never see memory change inside one.
    pub(super) fn floor(&self) -> Floor<'_> {
        match self.isolation {
            Isolation::Parallel => Floor::Beside(self.turnstile.beside()),
            Isolation::Serial => {
                self.kick_all();
                Floor::Alone(self.turnstile.alone())
            }
        }
    }

    /// Tells those that the state after a commit gives something to do: vCPUs that wait, vCPUs that run
    /// and have an interrupt waiting, and whoever serves the devices.
    fn wake(&self, machine: &Machine, by: Option<LaneIndex>) {
        if machine.platform() == Platform::Bare {
            return;
        }
        let mut has_news = machine.wants().next().is_some();
        for vcpu in (0..machine.shape().vcpu_count).map(VcpuIndex) {
            has_news |= machine.touched(vcpu) != Touched::No;
            let lane = self.lane_of(vcpu);
            if machine.has_interrupt_for(vcpu) && by != Some(lane) {
                self.lane(lane).kick_if_running_for(Duration::ZERO);
            }
        }
        let deadline = machine.devices().next_deadline();
        has_news |= deadline.is_some_and(|at| at.0 < self.alarm.load(Ordering::Relaxed));
        if has_news && self.sleepers.load(Ordering::Relaxed) > 0 {
            self.changed.notify_all();
        }
    }

    /// The guest clock now. It stands still while nothing commits, and never goes back.
    pub(super) fn now(&self, machine: &Machine) -> GuestTime {
        let now = self.clock_base.0 + self.started.elapsed().as_nanos() as u64;
        GuestTime(now.max(machine.guest_time().0))
    }

    /// The guest clock for a chunk that commits now. A bare guest's may be as coarse as orders have it: nothing but
    /// CLOCK shows it.
    pub(super) fn chunk_time(&self, machine: &Machine) -> GuestTime {
        let now = self.now(machine);
        match machine.platform() {
            Platform::Bare => {
                let step = now.0 / TIME_STEP * TIME_STEP;
                GuestTime(step).max(machine.guest_time())
            }
            Platform::Pc => now,
        }
    }

    /// Commits under the lock: applies, tells the lanes, hands over to the log.
    pub(super) fn commit(
        &self,
        machine: &mut Machine,
        Step {
            record,
            order,
            voids_translations,
        }: Step,
        by: By,
        source: Source<'_>,
    ) -> Result<Arc<[PageIndex]>, ApplyError> {
        let seq = record.seq;
        let applied = machine.apply(&record, source);
        if applied.is_err() {
            // Nobody who waits for the lock may commit to it.
            self.is_half_changed.store(true, Ordering::SeqCst);
            self.stopping.store(true, Ordering::SeqCst);
        }
        let Applied {
            written,
            by_devices,
            outputs,
        } = applied?;
        let told = |pages: &[PageIndex]| Published {
            pages: self.settings.faults.told(pages).into(),
            by: Some(by),
            voids_translations: voids_translations || !by_devices.is_empty(),
        };
        let commit = told(&written);
        for (index, lane) in self.lanes.iter().enumerate() {
            if by.lane() != Some(LaneIndex(index)) {
                lane.publish(commit.clone());
            } else if !by_devices.is_empty() {
                // They wrote to the image, after the chunk's own pages were copied to it: the view shows
                // what was before, and the next chunk would commit that as its own.
                lane.publish(told(&by_devices));
            }
        }
        self.published.store(seq.0, Ordering::Release);
        let [time, mark] = &self.shown;
        time.store(machine.guest_time().0, Ordering::Relaxed);
        mark.store(machine.devices().mark(), Ordering::Relaxed);
        let mut items = vec![Item::Record(record, order)];
        let every = self.settings.digest_every;
        if every != 0 && seq.0.is_multiple_of(every) {
            items.push(Item::Digest(machine.digest()));
            count(&self.stats.digests, 1);
        }
        let has_ended = machine.ended().is_some();
        self.outside.committed(seq, items, outputs);
        count(&self.stats.commits, 1);
        self.wake(machine, by.lane());
        if has_ended {
            self.stopping.store(true, Ordering::SeqCst);
            self.kick_all();
            self.changed.notify_all();
            self.rotation.tell();
        }
        Ok(commit.pages)
    }

    /// Commits an input: something from outside, or a device's next step. `make` says what, from
    /// the machine as it is at this commit.
    pub(super) fn commit_input(
        &self,
        make: impl FnOnce(&Machine) -> Option<Input>,
    ) -> Result<(), ApplyError> {
        let written = {
            let mut machine = self.machine();
            if self.is_over(&machine) {
                return Ok(());
            }
            let Some(input) = make(&machine) else {
                return Ok(());
            };
            let seq = machine.seq().next();
            let guest_time = self.now(&machine);
            let record = Record {
                seq,
                guest_time,
                commit: Commit::Input(input),
            };
            self.commit(&mut machine, Step::of(record), By::Input, Source::Record)?
        };
        self.tell(&written, None);
        Ok(())
    }

    /// Ends the chunks of others that a commit has made void, and wakes those that rest. Without the commit lock: who is
    /// woken takes it.
    pub(super) fn tell(&self, written: &[PageIndex], by: Option<LaneIndex>) {
        if written.is_empty() {
            return;
        }
        self.rotation.tell();
        for (index, lane) in self.lanes.iter().enumerate() {
            if by != Some(LaneIndex(index)) {
                lane.kick_if_stale(written);
            }
        }
    }
}
