//! The native baseline: all vCPUs in one ordinary VM on the image, nothing recorded.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use samsara_commitlog::{CommitSeq, DeviceIndex, Exit, GuestTime, Input, VcpuIndex};
use samsara_machine::bare::{Operation, Seen};
use samsara_machine::kvm::{Host, Kicker, Privilege, RawExit, Restore, Vcpu, Vm};
use samsara_machine::pc::{Delivery, Own, own_access};
use samsara_machine::{Applied, Machine, Platform, Touched};

use crate::EngineError;
use crate::outside::{CLOCK_PAUSE, Outside, answer, next_want};
use crate::record::Taken;

struct State {
    machine: Machine,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
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
        mut machine: Machine,
        outside: Arc<dyn Outside>,
    ) -> Result<Self, EngineError> {
        let vm = Vm::on_image(host, machine.image())?;
        let indices = (0..machine.shape().vcpu_count).map(VcpuIndex);
        let vcpus = indices
            .clone()
            .map(|index| vm.vcpu(host, index, Privilege::Kernel))
            .collect::<Result<Vec<_>, _>>()?;
        machine.set_delivery(Delivery::OwnCommits);
        let platform = machine.platform();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                machine,
                stopping: false,
            }),
            changed: Condvar::new(),
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
            run.spawn(format!("vcpu{index}"), move |shared| {
                run_vcpu(shared, vcpu, index)
            })?;
        }
        if platform == Platform::Pc {
            run.spawn("devices".to_owned(), |shared| serve(shared))?;
        }
        Ok(run)
    }

    fn spawn(
        &self,
        name: String,
        run: impl FnOnce(&Arc<Shared>) -> Result<(), EngineError> + Send + 'static,
    ) -> Result<(), EngineError> {
        let shared = Arc::clone(&self.shared);
        let shown = name.clone();
        let body = move || {
            // A machine without one of its threads must not run on.
            let ended = catch_unwind(AssertUnwindSafe(|| run(&shared)));
            let ended = ended.unwrap_or_else(|_| Err(EngineError::Panicked(shown)));
            if let Err(error) = ended {
                shared.stop();
                shared.outside.failed(error);
            }
        };
        let thread = std::thread::Builder::new().name(name).spawn(body);
        self.threads().push(thread.map_err(EngineError::Thread)?);
        Ok(())
    }

    /// The guest clock; it stands still once the guest has ended.
    pub fn time(&self) -> GuestTime {
        let state = self.shared.lock();
        match state.machine.ended() {
            Some(_) => state.machine.guest_time(),
            None => self.shared.now(),
        }
    }

    /// The last MARK.
    pub fn mark(&self) -> u64 {
        self.shared.lock().machine.devices().mark()
    }

    /// Hands the guest bytes typed at its console; gives how many it had room for, or nothing when that
    /// has failed.
    pub fn console_input(&self, bytes: &[u8]) -> Option<usize> {
        let state = self.shared.lock();
        let room = state.machine.console_room().min(Input::CONSOLE_BYTES_MAX);
        let taken = bytes.len().min(room);
        if taken > 0 {
            let input = Input::Console(Bytes::copy_from_slice(&bytes[..taken]));
            self.input_from_outside(state, &input)?;
        }
        Some(taken)
    }

    /// Hands a network device of the guest a received frame.
    pub fn frame_input(&self, device: DeviceIndex, frame: &Bytes) -> Taken {
        let state = self.shared.lock();
        if state.stopping {
            return Taken::Gone;
        }
        let machine = &state.machine;
        let pc = machine.devices().pc();
        if !pc.is_some_and(|pc| pc.has_room(device, frame.len(), machine.image())) {
            return Taken::NoRoom;
        }
        let input = Input::Device {
            device,
            bytes: frame.clone(),
        };
        match self.input_from_outside(state, &input) {
            Some(()) => Taken::Yes,
            None => Taken::Gone,
        }
    }

    /// Takes an input on a thread that is not the machine's own. What goes wrong stops the machine and is told.
    fn input_from_outside(&self, mut state: MutexGuard<'_, State>, input: &Input) -> Option<()> {
        let taken = self.shared.input(&mut state, input);
        drop(state);
        taken
            .inspect_err(|_| self.shared.stop())
            .map_err(|error| self.shared.outside.failed(error))
            .ok()
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
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        timeout: Option<Duration>,
    ) -> MutexGuard<'a, State> {
        match timeout {
            None => self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => {
                let waited = self.changed.wait_timeout(state, timeout);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
        self.kickers.iter().for_each(|kicker| kicker.kick());
    }

    fn now(&self) -> GuestTime {
        GuestTime(self.started.elapsed().as_nanos() as u64)
    }

    fn input(&self, state: &mut State, input: &Input) -> Result<(), EngineError> {
        let applied = state.machine.input_natively(input, self.now())?;
        self.carry_out(state, applied);
        Ok(())
    }

    /// Does what devices ask of the world, and wakes whom they have something for.
    fn carry_out(&self, state: &mut State, applied: Applied) {
        if state.machine.ended().is_some() {
            state.stopping = true;
        }
        if !applied.outputs.is_empty() {
            let outputs = applied.outputs;
            self.outside.committed(CommitSeq::BOOT, Vec::new(), outputs);
        }
        if state.stopping {
            self.kickers.iter().for_each(|kicker| kicker.kick());
        } else {
            for (index, kicker) in (0..).map(VcpuIndex).zip(&self.kickers) {
                if state.machine.has_interrupt_for(index) {
                    kicker.kick();
                }
            }
        }
        self.changed.notify_all();
    }

    /// Moves the next bytes of a vCPU's operation; false when there is none.
    fn step(&self, state: &mut State, vcpu: VcpuIndex) -> Result<bool, EngineError> {
        let Some(pending) = state.machine.devices().pending(vcpu) else {
            return Ok(false);
        };
        let input = match pending.operation {
            Operation::Output => Input::OutputStep { vcpu },
            Operation::Input => {
                let offset = state.machine.devices().input_offset();
                let read = self.outside.read_input(offset, pending.step_bytes());
                let bytes = read.map_err(|source| EngineError::Input { offset, source })?;
                Input::File { vcpu, bytes }
            }
        };
        self.input(state, &input)?;
        Ok(true)
    }
}

fn run_vcpu(shared: &Shared, mut vcpu: Vcpu, index: VcpuIndex) -> Result<(), EngineError> {
    vcpu.attach()?;
    let start = {
        let mut state = shared.lock();
        state.machine.take_touched(index);
        state.machine.vcpu(index).clone()
    };
    vcpu.restore(&start, Restore::Whole)?;
    while get_ready(shared, &mut vcpu, index)? {
        let raw = vcpu.run(None)?;
        vcpu.kicker().take();
        handle_exit(shared, &mut vcpu, index, &raw)?;
    }
    Ok(())
}

/// Waits until the vCPU can run, and brings it up to date; false when it shall end.
fn get_ready(shared: &Shared, vcpu: &mut Vcpu, index: VcpuIndex) -> Result<bool, EngineError> {
    let mut state = shared.lock();
    loop {
        if state.stopping {
            return Ok(false);
        }
        if state.machine.devices().can_run(index) {
            break;
        }
        if shared.step(&mut state, index)? {
            // Others may use the devices meanwhile; what leaves the host is bounded here too.
            drop(state);
            shared.outside.wait_for_room();
            state = shared.lock();
        } else {
            state = shared.wait(state, None);
        }
    }
    let touched = state.machine.take_touched(index);
    let now = state.machine.vcpu(index);
    match touched {
        Touched::No | Touched::Apic => {}
        Touched::Events => vcpu.set_events(now)?,
        Touched::Whole => vcpu.restore(now, Restore::KeepTime)?,
    }
    vcpu.want_window(now.apic().deliverable().is_some());
    Ok(true)
}

fn handle_exit(
    shared: &Shared,
    vcpu: &mut Vcpu,
    index: VcpuIndex,
    raw: &RawExit,
) -> Result<(), EngineError> {
    shared.outside.wait_for_room();
    let mut state = shared.lock();
    if state.stopping {
        return Ok(());
    }
    let platform = state.machine.platform();
    let mut raw = raw;
    let answered;
    if platform == Platform::Pc
        && let Some(after) = answer_own(&mut state.machine, vcpu, index, raw)?
    {
        // The kick for what waits in the mailbox may be the one that this run has taken.
        if after.fatal().is_none() && !state.machine.has_interrupt_for(index) {
            return Ok(());
        }
        answered = after;
        raw = &answered;
    }
    if !matches!(raw, RawExit::Read { .. }) {
        vcpu.capture_registers(state.machine.vcpu_mut(index))?;
    }
    let memory = Seen::Image(state.machine.image());
    let random = || shared.outside.random();
    let mut exit = platform.interpret(raw, state.machine.vcpu(index), memory, random);
    if matches!(exit, Exit::Read { .. }) {
        let devices = state.machine.devices();
        let value = devices.read_value(index, &exit, shared.now());
        let finished = vcpu.complete_read(value)?;
        vcpu.capture_registers(state.machine.vcpu_mut(index))?;
        if let Some(reason) = finished.fatal() {
            exit = Exit::Fatal {
                rip: state.machine.vcpu(index).regs().rip,
                reason: reason.to_owned(),
            };
        }
    }
    let applied = state.machine.exit_natively(index, &exit, shared.now())?;
    shared.carry_out(&mut state, applied);
    Ok(())
}

/// Has the vCPU's own APIC deal with an exit, if it concerns nobody else; gives how the instruction ended.
fn answer_own(
    machine: &mut Machine,
    vcpu: &mut Vcpu,
    index: VcpuIndex,
    raw: &RawExit,
) -> Result<Option<RawExit>, EngineError> {
    let state = machine.vcpu_mut(index);
    let mut local = state.apic();
    let after = match own_access(&mut local, raw) {
        Own::Other => return Ok(None),
        Own::Done => RawExit::Cut,
        Own::Value(value) => vcpu.complete_read(value)?,
    };
    state.set_apic(&local);
    Ok(Some(after))
}

/// Serves the devices until the machine ends or is stopped.
fn serve(shared: &Shared) -> Result<(), EngineError> {
    let mut state = shared.lock();
    let mut last_served = None;
    while !state.stopping {
        let deadline = state.machine.devices().next_deadline();
        let now = shared.now();
        if let Some(want) = next_want(&state.machine, last_served) {
            last_served = Some(want.device);
            let input = answer(shared.outside.as_ref(), want);
            shared.input(&mut state, &input)?;
            drop(state);
            shared.outside.wait_for_room();
            state = shared.lock();
        } else if deadline.is_some_and(|deadline| deadline <= now) {
            shared.input(&mut state, &Input::Clock)?;
            drop(state);
            std::thread::sleep(CLOCK_PAUSE);
            state = shared.lock();
        } else {
            let rest = deadline.map(|deadline| Duration::from_nanos(deadline.0 - now.0));
            state = shared.wait(state, rest);
        }
    }
    Ok(())
}
