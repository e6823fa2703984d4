//! A recorded machine that runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use samsara_commitlog::{DeviceIndex, GuestTime, Input, Shape, VcpuIndex};
use samsara_machine::kvm::{CounterKind, Host, Stepper, Stepping, Vm};
use samsara_machine::memory::View;
use samsara_machine::{Machine, Platform};

use super::committer::{Isolation, Settings, Shared};
use super::lane::Lane;
use super::{service, worker};
use crate::EngineError;
use crate::cpu::{Cpu, ViewVm};
use crate::outside::Outside;
use crate::stats::Stats;

/// A machine whose vCPUs run in chunks.
pub struct Recorder {
    shared: Arc<Shared>,
    shape: Shape,
    platform: Platform,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Held while a snapshot is taken: one at a time.
    pub(super) snapshots: Mutex<()>,
}

/// What became of a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The guest has it.
    Yes,
    /// The guest has no buffer for it now.
    NoRoom,
    /// The machine takes nothing any more.
    Gone,
}

/// What runs the vCPUs of a recorder: a thread for each, or one for all.
enum Crew<C> {
    Each(Vec<C>),
    Together(Vec<C>),
}

impl Recorder {
    /// Lets a machine run on this host's KVM.
    pub fn start(
        host: &Host,
        machine: Machine,
        outside: Arc<dyn Outside>,
        stats: Arc<Stats>,
        settings: Settings,
    ) -> Result<Self, EngineError> {
        let privilege = machine.privilege()?;
        let paging = settings.paging;
        let indices = (0..machine.shape().vcpu_count).map(VcpuIndex);
        let new_view = || -> Result<_, EngineError> {
            let view = Arc::new(View::new(machine.image())?);
            let vm = Arc::new(ViewVm::new(Vm::on_view(host, &view)?, paging));
            Ok((view, vm))
        };
        match settings.isolation {
            Isolation::Parallel => {
                let cpus = indices.map(|index| {
                    let (view, vm) = new_view()?;
                    let stepper = stepper(&machine, settings.counter, index, &view)?;
                    Ok((view, vm.vcpu(host, index, privilege, stepper)?))
                });
                let cpus = cpus.collect::<Result<Vec<_>, EngineError>>()?;
                Self::start_on(cpus, machine, outside, stats, settings)
            }
            Isolation::Serial => {
                let (view, vm) = new_view()?;
                let cpus = indices.map(|index| {
                    let stepper = stepper(&machine, settings.counter, index, &view)?;
                    Ok(vm.vcpu(host, index, privilege, stepper)?)
                });
                let cpus = cpus.collect::<Result<Vec<_>, EngineError>>()?;
                Self::start_together(view, cpus, machine, outside, stats, settings)
            }
        }
    }

    /// Lets a machine run on vCPUs that are given, by index, each in its view.
    pub fn start_on<C: Cpu>(
        cpus: Vec<(Arc<View>, C)>,
        mut machine: Machine,
        outside: Arc<dyn Outside>,
        stats: Arc<Stats>,
        settings: Settings,
    ) -> Result<Self, EngineError> {
        machine.set_delivery(Isolation::Parallel.delivery());
        let (lanes, cpus): (Vec<_>, Vec<_>) = cpus
            .into_iter()
            .map(|(view, cpu)| (Lane::new(view, cpu.kicker()), cpu))
            .unzip();
        let shared = Shared::new(machine, lanes, outside, stats, settings);
        Self::start_threads(shared, Crew::Each(cpus))
    }

    /// Lets a machine run on vCPUs that are given, by index, all in one view.
    pub fn start_together<C: Cpu>(
        view: Arc<View>,
        cpus: Vec<C>,
        mut machine: Machine,
        outside: Arc<dyn Outside>,
        stats: Arc<Stats>,
        settings: Settings,
    ) -> Result<Self, EngineError> {
        machine.set_delivery(Isolation::Serial.delivery());
        let kickers: Vec<_> = cpus.iter().map(Cpu::kicker).collect();
        let kick = Box::new(move || kickers.iter().for_each(|kick| kick()));
        let lanes = vec![Lane::new(view, kick)];
        let shared = Shared::new(machine, lanes, outside, stats, settings);
        Self::start_threads(shared, Crew::Together(cpus))
    }

    fn start_threads<C: Cpu>(shared: Shared, crew: Crew<C>) -> Result<Self, EngineError> {
        let (shape, platform) = {
            let machine = shared.machine();
            (machine.shape(), machine.platform())
        };
        let recorder = Self {
            shared: Arc::new(shared),
            shape,
            platform,
            threads: Mutex::default(),
            snapshots: Mutex::default(),
        };
        match crew {
            Crew::Each(cpus) => {
                for (index, cpu) in (0..).map(VcpuIndex).zip(cpus) {
                    let run = move |shared: &Arc<Shared>| worker::run(index, shared, cpu);
                    recorder.spawn(format!("vcpu{index}"), run)?;
                }
            }
            Crew::Together(cpus) => {
                let run = move |shared: &Arc<Shared>| worker::run_all(shared, cpus);
                recorder.spawn("vcpus".to_owned(), run)?;
            }
        }
        if platform == Platform::Pc {
            recorder.spawn("devices".to_owned(), |shared| service::run(shared))?;
        }
        Ok(recorder)
    }

    fn spawn(
        &self,
        name: String,
        run: impl FnOnce(&Arc<Shared>) -> Result<(), EngineError> + Send + 'static,
    ) -> Result<(), EngineError> {
        let shared = Arc::clone(&self.shared);
        let shown = name.clone();
        let body = move || {
            let report = ReportPanic {
                name: &shown,
                shared: &shared,
            };
            if let Err(error) = run(&shared) {
                shared.stop();
                shared.outside.failed(error);
            }
            drop(report);
        };
        let thread = std::thread::Builder::new().name(name).spawn(body);
        self.threads().push(thread.map_err(EngineError::Thread)?);
        Ok(())
    }

    /// Hands the guest bytes typed at its console; gives how many it had room for, or
    /// nothing when that has failed.
    pub fn console_input(&self, bytes: &[u8]) -> Option<usize> {
        self.act_from_outside("console", |shared| {
            let _floor = shared.floor();
            let mut taken = 0;
            shared.commit_input(|machine| {
                let room = machine.console_room().min(Input::CONSOLE_BYTES_MAX);
                taken = bytes.len().min(room);
                (taken > 0).then(|| Input::Console(Bytes::copy_from_slice(&bytes[..taken])))
            })?;
            Ok(taken)
        })
    }

    /// Hands a network device of the guest a received frame.
    pub fn frame_input(&self, device: DeviceIndex, frame: &Bytes) -> Taken {
        let taken = self.act_from_outside("network", |shared| shared.frame_input(device, frame));
        taken.unwrap_or(Taken::Gone)
    }

    /// Has a thread that is not the recorder's own do something to the machine. What goes wrong stops the
    /// machine and is told, as on those: nothing else would tell of it.
    fn act_from_outside<T>(
        &self,
        name: &str,
        act: impl FnOnce(&Shared) -> Result<T, EngineError>,
    ) -> Option<T> {
        let _report = ReportPanic {
            name,
            shared: &self.shared,
        };
        match act(&self.shared) {
            Ok(done) => Some(done),
            Err(error) => {
                self.shared.stop();
                self.shared.outside.failed(error);
                None
            }
        }
    }

    /// Has all vCPUs stand still between commits while `look` sees the machine. That may take long: whoever
    /// must not wait so long uses neither this nor [`Self::peek`] meanwhile.
    pub fn paused<T>(&self, look: impl FnOnce(&mut Machine) -> T) -> T {
        self.shared.kick_all();
        let _alone = self.shared.turnstile.alone();
        look(&mut self.shared.machine())
    }

    /// What the machine is made of. Never waits.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Which devices it has. Never waits.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// Guest clock and mark at the last commit. Never waits.
    pub fn shown(&self) -> (GuestTime, u64) {
        self.shared.shown()
    }

    /// Looks at the committed machine between two commits. Commits wait meanwhile.
    pub fn peek<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        look(&self.shared.machine())
    }

    /// Stops the vCPUs at their last commits. [`Self::peek`] and [`Self::paused`] still work.
    pub fn stop(&self) {
        self.shared.stop();
        for thread in std::mem::take(&mut *self.threads()) {
            // A vCPU thread that panicked has reported it; the others have stopped by now.
            let _ = thread.join();
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn frame_input(&self, device: DeviceIndex, frame: &Bytes) -> Result<Taken, EngineError> {
        let has_room = |machine: &Machine| {
            let pc = machine.devices().pc();
            pc.is_some_and(|pc| pc.has_room(device, frame.len(), machine.image()))
        };
        {
            let machine = self.machine();
            if self.is_over(&machine) {
                return Ok(Taken::Gone);
            }
            if !has_room(&machine) {
                return Ok(Taken::NoRoom);
            }
        }
        self.outside.wait_for_room();
        let _floor = self.floor();
        let mut taken = Taken::NoRoom;
        self.commit_input(|machine| {
            let input = has_room(machine).then(|| Input::Device {
                device,
                bytes: frame.clone(),
            });
            if input.is_some() {
                taken = Taken::Yes;
            }
            input
        })?;
        Ok(taken)
    }
}

/// What counts a vCPU's progress in its view, if anything is to.
pub(super) fn stepper(
    machine: &Machine,
    counter: Option<CounterKind>,
    index: VcpuIndex,
    view: &Arc<View>,
) -> Result<Option<Stepper>, EngineError> {
    let Some(CounterKind::SingleStep) = counter else {
        return Ok(None);
    };
    let stepper = machine
        .stepper(index, view, Stepping::Always)
        .ok_or(EngineError::NoCounter)?;
    Ok(Some(stepper))
}

/// Stops the machine when one of its threads panics: it must not run on without it.
struct ReportPanic<'a> {
    name: &'a str,
    shared: &'a Shared,
}

impl Drop for ReportPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.stop();
            self.shared
                .outside
                .failed(EngineError::Panicked(self.name.to_owned()));
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop();
    }
}
