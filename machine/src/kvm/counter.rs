//! How far a vCPU got, by a counter that does not err: with it a chunk that was cut anywhere can be run again
//! to the very same place.
//!
//! The one counter so far steps the guest, instruction by instruction: exact on any host, and slow. The processor's
//! trap flag does it, and the guest's own handler of debug exceptions, which tells us; what both leave behind is taken
//! back after each step. (Not every KVM keeps its promise to step code at CPL 3 itself.)

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_debugregs, kvm_regs, kvm_sregs, kvm_vcpu_events__bindgen_ty_1};
use samsara_commitlog::{Gpa, Progress, Space};

use super::exit::RawExit;
use super::host::KvmError;
use super::vcpu::Vcpu;
use crate::memory::View;

const TRAP_FLAG: u64 = 1 << 8;
/// It, and the resume flag that an interrupted delivery leaves.
const STEPPING_FLAGS: u64 = TRAP_FLAG | 1 << 16;
const DEBUG_VECTOR: u8 = 1;
/// The handler has a few instructions. A guest that changed it has so much time until it counts as cut there.
const HANDLER_TIME: Duration = Duration::from_millis(10);
const HANDLER_RUNS: usize = 20;

/// What counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterKind {
    /// The guest is stepped.
    SingleStep,
}

impl CounterKind {
    /// The word for it, as in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SingleStep => "single-step",
        }
    }
}

/// When a guest is stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepping {
    /// In every run: its progress is known wherever it ends.
    Always,
    /// Only in runs to a place that was counted before.
    OnDemand,
}

/// Steps a guest whose exception handlers push the error code, or 0, and the vector, and write to a port.
#[derive(Debug)]
pub struct Stepper {
    pub(crate) view: Arc<View>,
    pub(crate) stepping: Stepping,
    /// The port.
    pub(crate) port: u16,
    /// Where the exception stack ends.
    pub(crate) stack_top: Gpa,
    /// What the guest has in its debug registers.
    pub(crate) debug: kvm_debugregs,
}

/// What is on the exception stack when the handler writes to the port, from the stack pointer up.
#[derive(Clone, Copy)]
struct ExceptionFrame([u64; 7]);

impl ExceptionFrame {
    const VECTOR: usize = 0;
    const RIP: usize = 2;
    const RFLAGS: usize = 4;
    const RSP: usize = 5;

    fn address(stepper: &Stepper, word: usize) -> Gpa {
        Gpa(stepper.stack_top.0 - 8 * (7 - word as u64))
    }

    fn load(stepper: &Stepper) -> Result<Self, KvmError> {
        let mut frame = Self([0; 7]);
        for (word, value) in frame.0.iter_mut().enumerate() {
            let loaded = stepper.view.load(Self::address(stepper, word));
            *value = loaded.map_err(|_| KvmError::Missing("the exception stack"))?;
        }
        Ok(frame)
    }

    fn store(self, stepper: &Stepper) -> Result<(), KvmError> {
        for (word, value) in self.0.into_iter().enumerate() {
            let stored = stepper.view.store(Self::address(stepper, word), value);
            stored.map_err(|_| KvmError::Missing("the exception stack"))?;
        }
        Ok(())
    }
}

impl Vcpu {
    /// Counts progress from now on.
    pub fn set_stepper(&mut self, stepper: Stepper) {
        self.stepper = Some(stepper);
    }

    /// The count begins anew.
    pub fn start_count(&mut self) {
        self.steps = 0;
    }

    /// How far it got since the count began, if that is counted.
    pub fn progress(&self) -> Option<Progress> {
        self.stepper.as_ref().map(|_| Progress {
            count: self.steps,
            place: None,
        })
    }

    /// Runs until the count is that of `target`, or something else ends the run: an exit, a kick, or the limit.
    pub fn run_to(
        &mut self,
        target: Progress,
        latest: Option<Instant>,
    ) -> Result<RawExit, KvmError> {
        if self.stepper.is_none() || target.place.is_some() {
            return Err(KvmError::Missing("the counter that the chunk was cut by"));
        }
        self.step_until(Some(target.count), latest)
    }

    /// Steps until an exit, a kick, the latest moment, or as many steps as `last` says.
    pub(super) fn step_until(
        &mut self,
        last: Option<u64>,
        latest: Option<Instant>,
    ) -> Result<RawExit, KvmError> {
        loop {
            let is_there = last.is_some_and(|last| self.steps >= last);
            let is_late = latest.is_some_and(|latest| Instant::now() >= latest);
            if is_there || is_late || self.kicker().is_requested() {
                return Ok(RawExit::Cut);
            }
            let before = self.registers()?;
            match self.step(latest)? {
                // A run may be cut before its instruction, or past it without a word. One that jumps to itself
                // changes nothing, and counts for nothing.
                RawExit::Cut if self.registers()? == before => {}
                RawExit::Cut => self.steps += 1,
                exit => return Ok(exit),
            }
        }
    }

    /// One instruction, or none, unless something else comes first.
    fn step(&mut self, latest: Option<Instant>) -> Result<RawExit, KvmError> {
        let Some(mut stepper) = self.stepper.take() else {
            return Err(KvmError::Missing("a stepper"));
        };
        let debug = self.fd.get_debug_regs();
        stepper.debug = debug.map_err(KvmError::request("KVM_GET_DEBUGREGS"))?;
        let exit = self.step_by(&stepper, latest);
        self.stepper = Some(stepper);
        exit
    }

    fn step_by(&mut self, stepper: &Stepper, latest: Option<Instant>) -> Result<RawExit, KvmError> {
        let stack = ExceptionFrame::load(stepper)?;
        let sregs = self.fd.get_sregs();
        let before = sregs.map_err(KvmError::request("KVM_GET_SREGS"))?;
        self.change_regs(|regs| regs.rflags |= TRAP_FLAG)?;
        let mut exit = self.run_until(latest)?;
        for _ in 0..HANDLER_RUNS {
            if exit != RawExit::Cut || !self.is_in_handler(&before)? {
                break;
            }
            exit = self.run_on()?;
        }
        let is_told = matches!(exit, RawExit::Write { space: Space::Port, address, .. }
            if address == u64::from(stepper.port));
        let exit = self.finish(exit)?;
        if !is_told {
            // A load has to be finished first.
            if !matches!(exit, RawExit::Read { .. }) {
                self.end_stepping(stepper)?;
            }
            return Ok(exit);
        }
        let mut frame = ExceptionFrame::load(stepper)?;
        if frame.0[ExceptionFrame::VECTOR] != u64::from(DEBUG_VECTOR) {
            frame.0[ExceptionFrame::RFLAGS] &= !STEPPING_FLAGS;
            frame.store(stepper)?;
            self.end_stepping(stepper)?;
            return Ok(exit);
        }
        stack.store(stepper)?;
        let sregs = self.fd.get_sregs();
        let mut sregs = sregs.map_err(KvmError::request("KVM_GET_SREGS"))?;
        (sregs.cs, sregs.ss) = (before.cs, before.ss);
        let set = self.fd.set_sregs(&sregs);
        set.map_err(KvmError::request("KVM_SET_SREGS"))?;
        self.restore_debug(stepper)?;
        self.change_regs(|regs| {
            regs.rip = frame.0[ExceptionFrame::RIP];
            regs.rsp = frame.0[ExceptionFrame::RSP];
            regs.rflags = frame.0[ExceptionFrame::RFLAGS] & !STEPPING_FLAGS;
        })?;
        Ok(RawExit::Cut)
    }

    /// Whether a run that was cut left it inside the handler, on its way to tell us.
    fn is_in_handler(&self, before: &kvm_sregs) -> Result<bool, KvmError> {
        let sregs = self.fd.get_sregs();
        let sregs = sregs.map_err(KvmError::request("KVM_GET_SREGS"))?;
        Ok(sregs.cs.dpl < before.cs.dpl)
    }

    /// Runs a little further, whoever wants it to stop.
    fn run_on(&mut self) -> Result<RawExit, KvmError> {
        let kicker = self.kicker();
        let was_kicked = kicker.take();
        let exit = self.run_until(Some(Instant::now() + HANDLER_TIME));
        if was_kicked {
            kicker.kick();
        }
        exit
    }

    /// The value that a load waited for is there: its instruction is done.
    pub(super) fn end_stepped_load(&mut self) -> Result<(), KvmError> {
        let Some(stepper) = self.stepper.take() else {
            return Ok(());
        };
        let ended = self.end_stepping(&stepper);
        self.stepper = Some(stepper);
        ended
    }

    fn registers(&self) -> Result<kvm_regs, KvmError> {
        self.fd
            .get_regs()
            .map_err(KvmError::request("KVM_GET_REGS"))
    }

    fn restore_debug(&self, stepper: &Stepper) -> Result<(), KvmError> {
        let set = self.fd.set_debug_regs(&stepper.debug);
        set.map_err(KvmError::request("KVM_SET_DEBUGREGS"))
    }

    /// Takes back what the trap flag left when the handler does not tell of a step.
    fn end_stepping(&mut self, stepper: &Stepper) -> Result<(), KvmError> {
        self.change_regs(|regs| regs.rflags &= !STEPPING_FLAGS)?;
        let events = self.fd.get_vcpu_events();
        let mut events = events.map_err(KvmError::request("KVM_GET_VCPU_EVENTS"))?;
        let is_debug = events.exception.nr == DEBUG_VECTOR;
        if is_debug && (events.exception.pending != 0 || events.exception.injected != 0) {
            events.exception = kvm_vcpu_events__bindgen_ty_1::default();
            let set = self.fd.set_vcpu_events(&events);
            set.map_err(KvmError::request("KVM_SET_VCPU_EVENTS"))?;
        }
        self.restore_debug(stepper)
    }

    fn change_regs(&mut self, change: impl FnOnce(&mut kvm_regs)) -> Result<(), KvmError> {
        let mut regs = self.registers()?;
        change(&mut regs);
        let set = self.fd.set_regs(&regs);
        set.map_err(KvmError::request("KVM_SET_REGS"))?;
        self.restored = true;
        Ok(())
    }
}
