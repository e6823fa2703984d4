//! A vCPU that follows a script.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use samsara_commitlog::{Gpa, PAGE_BYTES, Progress, Space};
use samsara_engine::Cpu;
use samsara_machine::kvm::{Harvest, KvmError, RawExit, Restore};
use samsara_machine::memory::{PageIndex, View};
use samsara_machine::vcpu::VcpuState;

/// Where a local APIC's registers are.
const APIC: u64 = 0xfee0_0000;
/// In the APIC base MSR: the APIC is on.
const APIC_ENABLED: u64 = 1 << 11;
/// Interrupts are on; bit 1 is always set.
const RFLAGS: u64 = 0x202;
/// What a step takes that ends no run.
const STEP: Duration = Duration::from_micros(20);

/// What a vCPU does at each step, and the exit, if any, that the step ends in.
pub(crate) type Script = fn(u64, &mut Memory) -> Option<RawExit>;

/// Guest memory, as a script stores to it.
pub(crate) struct Memory {
    view: Arc<View>,
    written: Vec<PageIndex>,
}

impl Memory {
    pub(crate) fn store(&mut self, address: u64, value: u64) {
        self.view.store(Gpa(address), value).unwrap();
        let page = address / PAGE_BYTES as u64;
        self.written.push(PageIndex(page as u32));
    }
}

/// A store to a device.
pub(crate) fn write(address: u64, value: u64) -> RawExit {
    RawExit::Write {
        space: Space::Mmio,
        address,
        size: 4,
        value,
    }
}

/// A store to a register of the vCPU's own APIC.
pub(crate) fn write_apic(register: u16, value: u64) -> RawExit {
    write(APIC + u64::from(register), value)
}

/// The state in which a scripted vCPU starts: at step 0, in real mode, with its APIC on.
pub(crate) fn start_state() -> VcpuState {
    let mut state = VcpuState::zeroed(&[]);
    let mut sregs = state.sregs();
    sregs.apic_base = APIC | APIC_ENABLED;
    state.set_sregs(&sregs);
    state
}

/// The vCPU. Its RIP is the number of its next step, so a squash takes it back in its script.
pub(crate) struct ScriptedCpu {
    script: Script,
    memory: Memory,
    rip: u64,
    kicked: Arc<AtomicBool>,
}

impl ScriptedCpu {
    pub(crate) fn new(script: Script, view: &Arc<View>) -> Self {
        let memory = Memory {
            view: Arc::clone(view),
            written: Vec::new(),
        };
        Self {
            script,
            memory,
            rip: 0,
            kicked: Arc::default(),
        }
    }
}

impl Cpu for ScriptedCpu {
    fn attach(&mut self) -> Result<(), KvmError> {
        Ok(())
    }

    fn kicker(&self) -> Box<dyn Fn() + Send + Sync> {
        let kicked = Arc::clone(&self.kicked);
        Box::new(move || kicked.store(true, Ordering::SeqCst))
    }

    fn forget_kicks(&mut self) {
        self.kicked.store(false, Ordering::SeqCst);
    }

    fn run(&mut self, limit: Duration) -> Result<RawExit, KvmError> {
        let end = Instant::now() + limit;
        while !self.kicked.load(Ordering::SeqCst) && Instant::now() < end {
            let step = self.rip;
            self.rip += 1;
            if let Some(exit) = (self.script)(step, &mut self.memory) {
                return Ok(exit);
            }
            std::thread::sleep(STEP);
        }
        Ok(RawExit::Cut)
    }

    fn run_to(&mut self, _: Progress, _: Instant) -> Result<RawExit, KvmError> {
        panic!("nothing is run again")
    }

    fn complete_read(&mut self, _: u64) -> Result<RawExit, KvmError> {
        Ok(RawExit::Cut)
    }

    fn rip(&self) -> u64 {
        self.rip
    }

    fn capture(&mut self, state: &mut VcpuState) -> Result<(), KvmError> {
        *state = start_state();
        let mut regs = state.regs();
        regs.rip = self.rip;
        regs.rflags = RFLAGS;
        state.set_regs(&regs);
        Ok(())
    }

    fn restore(&mut self, state: &VcpuState, _: Restore) -> Result<(), KvmError> {
        self.rip = state.regs().rip;
        Ok(())
    }

    fn take_written(&mut self, page: &mut dyn FnMut(PageIndex)) -> Result<Harvest, KvmError> {
        self.memory.written.drain(..).for_each(page);
        Ok(Harvest::Complete)
    }

    fn expect_privileged_code(&mut self) {}

    fn want_window(&mut self, _: bool) {}

    fn set_events(&mut self, _: &VcpuState) -> Result<(), KvmError> {
        Ok(())
    }

    fn forget_translations(&mut self) {}

    fn reset_ring(&mut self) -> Result<(), KvmError> {
        Ok(())
    }
}
