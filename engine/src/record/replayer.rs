//! Following a history whose chunks are in order form: vCPUs run them again, beside each other as far as they
//! did when they were recorded.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use samsara_commitlog::{Commit, CommitSeq, Frame, OrderChunk, Record, StateDigest, VcpuIndex};
use samsara_machine::kvm::{Host, Stepping, Vm};
use samsara_machine::memory::View;
use samsara_machine::{ApplyError, Machine, Output, Source};

use super::again::Divergence;
use super::committer::{Settings, Shared, Step};
use super::crew::Crew;
use super::lane::{By, Lane};
use super::permits::Permits;
use crate::cpu::{Cpu, ViewVm};
use crate::outside::{Item, Outside};
use crate::stats::Stats;
use crate::{ConsumeError, EngineError};

/// Where the effects of a chunk come from that cannot be run again.
pub trait Fetch: Send + Sync + 'static {
    /// The record in effects form; nothing if nobody has it any more. May wait, but not for ever.
    fn effects(&self, diverged: &Divergence) -> Option<Record>;
    /// A vCPU runs no chunk any more: from here on the effects of all of them are asked for.
    fn gave_up(&self, vcpu: VcpuIndex, error: &EngineError);
}

/// How chunks are run again.
#[derive(Clone)]
pub struct Rerun {
    /// This host's KVM; nothing where vCPUs are given.
    pub host: Option<Arc<Host>>,
    /// How vCPUs run.
    pub settings: Settings,
    /// How many vCPUs may run at the same time.
    pub threads: usize,
    /// For chunks that come out differently.
    pub fetch: Arc<dyn Fetch>,
    /// What is counted.
    pub stats: Arc<Stats>,
}

impl std::fmt::Debug for Rerun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rerun").finish_non_exhaustive()
    }
}

/// A commit's outputs.
pub type Emitted = (CommitSeq, Vec<Output>);

/// A machine that follows a history by running it again.
pub struct Replayer {
    shared: Arc<Shared>,
    collected: Arc<Collected>,
    lanes: Vec<Sender<(Record, OrderChunk)>>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Replayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replayer").finish_non_exhaustive()
    }
}

impl Replayer {
    /// Goes on from a machine's state. Each vCPU has run for a moment when this returns, if it can run at all.
    pub fn start(machine: Machine, rerun: &Rerun) -> Result<Self, EngineError> {
        let privilege = machine.privilege()?;
        let host = rerun.host.as_deref().ok_or(EngineError::NoVcpus)?;
        let paging = rerun.settings.paging;
        let cpus = (0..machine.shape().vcpu_count).map(VcpuIndex).map(|index| {
            let view = Arc::new(View::new(machine.image())?);
            let vm = Arc::new(ViewVm::new(Vm::on_view(host, &view)?, paging));
            // Only to find the ends of chunks that were stepped when they were recorded.
            let stepper = machine.stepper(index, &view, Stepping::OnDemand);
            Ok((view, vm.vcpu(host, index, privilege, stepper)?))
        });
        let cpus = cpus.collect::<Result<Vec<_>, EngineError>>()?;
        Self::start_on(cpus, machine, rerun)
    }

    /// The same on vCPUs that are given, by index, each in its view.
    pub fn start_on<C: Cpu>(
        cpus: Vec<(Arc<View>, C)>,
        machine: Machine,
        rerun: &Rerun,
    ) -> Result<Self, EngineError> {
        let (lanes, cpus): (Vec<_>, Vec<_>) = cpus
            .into_iter()
            .map(|(view, cpu)| (Lane::new(view, cpu.kicker()), cpu))
            .unzip();
        let collected = Arc::new(Collected::default());
        let outside = Arc::clone(&collected) as Arc<dyn Outside>;
        let settings = Settings {
            digest_every: 0,
            ..rerun.settings
        };
        let stats = Arc::clone(&rerun.stats);
        let shared = Arc::new(Shared::new(machine, lanes, outside, stats, settings));
        let mut replayer = Self {
            shared,
            collected,
            lanes: Vec::new(),
            threads: Vec::new(),
        };
        let permits = Arc::new(Permits::new(rerun.threads));
        let (ready, told) = mpsc::channel();
        for (index, cpu) in (0..).map(VcpuIndex).zip(cpus) {
            let (sender, orders) = mpsc::channel();
            let crew = Crew {
                index,
                shared: Arc::clone(&replayer.shared),
                collected: Arc::clone(&replayer.collected),
                permits: Arc::clone(&permits),
                fetch: Arc::clone(&rerun.fetch),
            };
            let ready = ready.clone();
            let thread = std::thread::Builder::new()
                .name(crew.thread_name())
                .spawn(move || crew.run(cpu, ready, &orders))
                .map_err(EngineError::Thread)?;
            replayer.lanes.push(sender);
            replayer.threads.push(thread);
        }
        drop(ready);
        told.iter().collect::<Result<(), _>>()?;
        Ok(replayer)
    }

    /// Follows frames to the last of them; adds what their commits want to emit, in order, also of those before an
    /// error. After [`ConsumeError::Diverged`] the machine is at its last commit, as if what follows had not come.
    pub fn frames(
        &mut self,
        frames: &[Frame],
        emitted: &mut Vec<Emitted>,
    ) -> Result<(), ConsumeError> {
        let followed = self.follow(frames);
        if followed.is_err() {
            self.stop();
        }
        emitted.append(&mut self.collected.take());
        followed
    }

    fn follow(&self, frames: &[Frame]) -> Result<(), ConsumeError> {
        // Nobody would ever commit what a gap leaves out: it must not be waited for.
        let mut last = self.look(Machine::seq);
        for frame in frames {
            match frame {
                Frame::Record(record) => {
                    if record.seq != last.next() {
                        let (after, found) = (last, record.seq);
                        return Err(ApplyError::OutOfOrder { after, found }.into());
                    }
                    last = record.seq;
                    self.record(record)?;
                }
                Frame::Digest(digest) if digest.seq != last => {
                    return Err(ConsumeError::Unexpected {
                        found: "a digest of another commit",
                        after: "a record",
                    });
                }
                Frame::Digest(digest) => self.digest(digest)?,
                _ => {
                    return Err(ConsumeError::Unexpected {
                        found: "a snapshot",
                        after: "a snapshot or record",
                    });
                }
            }
        }
        drop(self.wait_for(last)?);
        Ok(())
    }

    fn record(&self, record: &Record) -> Result<(), ConsumeError> {
        if let Commit::Order(order) = record.commit {
            let lane = self.lanes.get(usize::from(order.vcpu.0));
            let lane = lane.ok_or(ApplyError::NoSuchVcpu {
                seq: record.seq,
                vcpu: order.vcpu,
            })?;
            // One that has ended has said why.
            let _ = lane.send((record.clone(), order));
            return Ok(());
        }
        let mut machine = self.wait_for(CommitSeq(record.seq.0.saturating_sub(1)))?;
        let step = Step::of(record.clone());
        self.shared
            .commit(&mut machine, step, By::Input, Source::Record)?;
        self.shared.notify();
        Ok(())
    }

    fn digest(&self, expected: &StateDigest) -> Result<(), ConsumeError> {
        let found = self.wait_for(expected.seq)?.digest();
        if found != *expected {
            return Err(ConsumeError::Divergence {
                expected: *expected,
                found,
            });
        }
        Ok(())
    }

    fn wait_for(&self, seq: CommitSeq) -> Result<MutexGuard<'_, Machine>, ConsumeError> {
        if let Some(machine) = self.shared.wait_for(seq) {
            return Ok(machine);
        }
        let error = self.collected.lock().error.take();
        Err(error.unwrap_or_else(|| {
            let next = self.shared.machine().seq().next();
            ApplyError::AfterEnd(next).into()
        }))
    }

    /// Looks at the committed machine.
    pub fn look<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        look(&self.shared.machine())
    }

    /// The same, for what the machine keeps for itself.
    pub(crate) fn look_mut<T>(&self, look: impl FnOnce(&mut Machine) -> T) -> T {
        look(&mut self.shared.machine())
    }

    /// The machine at its last commit; nothing if one of the threads died.
    pub fn into_machine(mut self) -> Option<Machine> {
        self.stop();
        let shared = Arc::clone(&self.shared);
        drop(self);
        Arc::into_inner(shared)?.into_whole_machine()
    }

    fn stop(&mut self) {
        self.lanes.clear();
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // What made it panic has been said.
            let _ = thread.join();
        }
    }
}

impl Drop for Replayer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the commits gave.
#[derive(Default)]
pub(super) struct Collected(Mutex<Gathered>);

#[derive(Default)]
struct Gathered {
    applied: Vec<Emitted>,
    error: Option<ConsumeError>,
}

impl Collected {
    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first error is the one that counts.
    pub(super) fn failed_by(&self, error: ConsumeError) {
        self.lock().error.get_or_insert(error);
    }

    fn take(&self) -> Vec<Emitted> {
        std::mem::take(&mut self.lock().applied)
    }
}

impl Outside for Collected {
    fn wait_for_room(&self) {}

    fn committed(&self, seq: CommitSeq, _: Vec<Item>, outputs: Vec<Output>) {
        if !outputs.is_empty() {
            self.lock().applied.push((seq, outputs));
        }
    }

    fn has_readers(&self) -> bool {
        false
    }

    fn read_input(&self, _: u64, _: usize) -> std::io::Result<Bytes> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn failed(&self, error: EngineError) {
        self.failed_by(error.into());
    }

    fn random(&self) -> u64 {
        0
    }
}
