//! The native baseline: all vCPUs in one ordinary VM on the image, nothing recorded.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use samsara_commitlog::{CommitSeq, Exit, GuestTime, Input, VcpuIndex};
use samsara_machine::bare::{BareDevices, Effect, Operation, Seen, interpret};
use samsara_machine::kvm::{Host, Kicker, Privilege, RawExit, Restore, Vcpu, Vm};
use samsara_machine::memory::Image;
use samsara_machine::vcpu::VcpuState;
use samsara_machine::{Ended, Machine, Output};

use crate::EngineError;
use crate::outside::Outside;

struct Devices {
    page: BareDevices,
    ended: Option<Ended>,
    stopping: bool,
}

struct Shared {
    devices: Mutex<Devices>,
    changed: Condvar,
    image: Arc<Image>,
    outside: Arc<dyn Outside>,
    kickers: Vec<Arc<Kicker>>,
    started: Instant,
}

/// A machine that runs without being recorded.
pub struct NativeRun {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _vm: Vm,
}

impl NativeRun {
    /// Lets a machine run.
    pub fn start(
        host: &Host,
        machine: &Machine,
        outside: Arc<dyn Outside>,
    ) -> Result<Self, EngineError> {
        let vm = Vm::on_image(host, machine.image())?;
        let indices = (0..machine.shape().vcpu_count).map(VcpuIndex);
        let vcpus = indices
            .clone()
            .map(|index| vm.vcpu(host, index, Privilege::Kernel))
            .collect::<Result<Vec<_>, _>>()?;
        let devices = Devices {
            page: machine.devices().clone(),
            ended: None,
            stopping: false,
        };
        let shared = Arc::new(Shared {
            devices: Mutex::new(devices),
            changed: Condvar::new(),
            image: Arc::clone(machine.image()),
            outside,
            kickers: vcpus.iter().map(Vcpu::kicker).collect(),
            started: Instant::now(),
        });
        let run = Self {
            shared,
            threads: Mutex::default(),
            _vm: vm,
        };
        for (index, vcpu) in indices.zip(vcpus) {
            let (shared, state) = (Arc::clone(&run.shared), machine.vcpu(index).clone());
            let body = move || {
                if let Err(error) = run_vcpu(&shared, vcpu, index, state) {
                    shared.stop();
                    shared.outside.failed(error);
                }
            };
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(body);
            run.threads().push(thread.map_err(EngineError::Thread)?);
        }
        Ok(run)
    }

    /// The guest clock.
    pub fn time(&self) -> GuestTime {
        self.shared.now()
    }

    /// The last MARK.
    pub fn mark(&self) -> u64 {
        self.shared.lock().page.mark()
    }

    /// Hands the guest bytes typed at its console; gives how many it had room for.
    pub fn console_input(&self, bytes: &[u8]) -> usize {
        let mut state = self.shared.lock();
        let taken = bytes.len().min(state.page.console_room());
        let input = Input::Console(Bytes::copy_from_slice(&bytes[..taken]));
        let _ = state.page.input(&input, &self.shared.image);
        taken
    }

    /// Stops the vCPUs.
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

impl Drop for NativeRun {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
        self.kickers.iter().for_each(|kicker| kicker.kick());
    }

    fn now(&self) -> GuestTime {
        GuestTime(self.started.elapsed().as_nanos() as u64)
    }

    /// Does what a device asks of the world.
    fn carry_out(&self, state: &mut Devices, effect: Effect) -> Result<(), EngineError> {
        for (gpa, bytes) in &effect.dma {
            self.image.write(*gpa, bytes)?;
        }
        let mut outputs: Vec<Output> = effect.console.map(Output::Console).into_iter().collect();
        if let Some(ended) = effect.ended
            && state.ended.is_none()
        {
            state.ended = Some(ended.clone());
            state.stopping = true;
            outputs.push(Output::Ended(ended));
        }
        if !outputs.is_empty() {
            self.outside.committed(CommitSeq::BOOT, Vec::new(), outputs);
        }
        Ok(())
    }

    /// Moves the next bytes of a vCPU's operation; false when there is none.
    fn step(&self, state: &mut Devices, vcpu: VcpuIndex) -> Result<bool, EngineError> {
        let Some(pending) = state.page.pending(vcpu) else {
            return Ok(false);
        };
        let input = match pending.operation {
            Operation::Output => Input::OutputStep { vcpu },
            Operation::Input => {
                let offset = state.page.input_offset();
                let read = self.outside.read_input(offset, pending.step_bytes());
                let bytes = read.map_err(|source| EngineError::Input { offset, source })?;
                Input::File { vcpu, bytes }
            }
        };
        if let Ok(effect) = state.page.input(&input, &self.image) {
            self.carry_out(state, effect)?;
        }
        Ok(true)
    }
}

fn run_vcpu(
    shared: &Shared,
    mut vcpu: Vcpu,
    index: VcpuIndex,
    mut state: VcpuState,
) -> Result<(), EngineError> {
    vcpu.attach()?;
    vcpu.restore(&state, Restore::Whole)?;
    while !shared.lock().stopping {
        let raw = vcpu.run(None)?;
        if raw == RawExit::Cut {
            continue;
        }
        if !matches!(raw, RawExit::Read { .. }) {
            vcpu.capture_registers(&mut state)?;
        }
        let memory = Seen::Image(&shared.image);
        let exit = interpret(&raw, &state, memory, || shared.outside.random());
        handle_exit(shared, &mut vcpu, &mut state, index, exit)?;
    }
    shared.kickers.iter().for_each(|kicker| kicker.kick());
    Ok(())
}

fn handle_exit(
    shared: &Shared,
    vcpu: &mut Vcpu,
    registers: &mut VcpuState,
    index: VcpuIndex,
    mut exit: Exit,
) -> Result<(), EngineError> {
    shared.outside.wait_for_room();
    let mut state = shared.lock();
    if state.ended.is_some() {
        return Ok(());
    }
    if matches!(exit, Exit::Read { .. }) {
        let value = state.page.read_value(&exit, shared.now());
        if let RawExit::Fatal(reason) = vcpu.complete_read(value)? {
            vcpu.capture_registers(registers)?;
            exit = Exit::Fatal {
                rip: registers.regs().rip,
                reason,
            };
        }
    }
    let effect = state.page.exit(index, &exit, &shared.image);
    shared.carry_out(&mut state, effect)?;
    while !state.stopping && shared.step(&mut state, index)? {
        // Others may use the devices meanwhile; what leaves the host is bounded here too.
        drop(state);
        shared.outside.wait_for_room();
        state = shared.lock();
    }
    while state.page.is_halted(index) && !state.stopping {
        state = shared
            .changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner);
    }
    if state.stopping {
        shared.changed.notify_all();
    }
    Ok(())
}
