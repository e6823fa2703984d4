//! A recorded machine that runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use samsara_commitlog::{Input, Shape, VcpuIndex};
use samsara_machine::Machine;
use samsara_machine::kvm::{Host, Vcpu, Vm};
use samsara_machine::memory::View;

use super::committer::{Settings, Shared};
use super::lane::Lane;
use super::worker;
use crate::EngineError;
use crate::cpu::Cpu;
use crate::outside::Outside;
use crate::stats::Stats;

/// A machine whose vCPUs run in chunks, each on its own thread.
pub struct Recorder {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Kept while the vCPUs run: their memory slots and rings belong to them.
    _vms: Vec<Vm>,
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
        let mut vms = Vec::new();
        let mut cpus: Vec<(Arc<View>, Vcpu)> = Vec::new();
        for index in (0..machine.shape().vcpu_count).map(VcpuIndex) {
            let view = Arc::new(View::new(machine.image())?);
            let vm = Vm::on_view(host, &view)?;
            cpus.push((view, vm.vcpu(host, index, privilege)?));
            vms.push(vm);
        }
        Self::start_on(cpus, vms, machine, outside, stats, settings)
    }

    /// Lets a machine run on vCPUs that are given, by index.
    pub fn start_on<C: Cpu>(
        cpus: Vec<(Arc<View>, C)>,
        vms: Vec<Vm>,
        machine: Machine,
        outside: Arc<dyn Outside>,
        stats: Arc<Stats>,
        settings: Settings,
    ) -> Result<Self, EngineError> {
        let (lanes, cpus): (Vec<_>, Vec<_>) = cpus
            .into_iter()
            .map(|(view, cpu)| (Lane::new(view, cpu.kicker()), cpu))
            .unzip();
        let shared = Arc::new(Shared::new(machine, lanes, outside, stats, settings));
        let recorder = Self {
            shared,
            threads: Mutex::default(),
            _vms: vms,
        };
        for (index, cpu) in cpus.into_iter().enumerate() {
            let shared = Arc::clone(&recorder.shared);
            let body = move || {
                let index = VcpuIndex(index as u8);
                let report = ReportPanic {
                    index,
                    shared: &shared,
                };
                if let Err(error) = worker::run(index, &shared, cpu) {
                    shared.stop();
                    shared.outside.failed(error);
                }
                drop(report);
            };
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(body);
            recorder
                .threads()
                .push(thread.map_err(EngineError::Thread)?);
        }
        Ok(recorder)
    }

    /// Hands the guest bytes typed at its console; gives how many it had room for.
    pub fn console_input(&self, bytes: &[u8]) -> Result<usize, EngineError> {
        let _turn = self.shared.turnstile.beside();
        let mut taken = 0;
        self.shared.commit_input(|machine| {
            let room = machine
                .devices()
                .console_room()
                .min(Input::CONSOLE_BYTES_MAX);
            taken = bytes.len().min(room);
            (taken > 0).then(|| Input::Console(Bytes::copy_from_slice(&bytes[..taken])))
        })?;
        Ok(taken)
    }

    /// Has all vCPUs stand still between commits while `look` sees the machine.
    pub fn paused<T>(&self, look: impl FnOnce(&mut Machine) -> T) -> T {
        self.shared.kick_all();
        let _alone = self.shared.turnstile.alone();
        look(&mut self.shared.machine())
    }

    /// What the machine is made of.
    pub fn shape(&self) -> Shape {
        self.peek(Machine::shape)
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

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops the machine when a vCPU's thread panics: it must not run on without that vCPU.
struct ReportPanic<'a> {
    index: VcpuIndex,
    shared: &'a Shared,
}

impl Drop for ReportPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.stop();
            self.shared
                .outside
                .failed(EngineError::Panicked(self.index));
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop();
    }
}
