//! How far a vCPU got, by a counter that does not err: with it a chunk that was cut anywhere can be run again
//! to the very same place.

use std::time::Instant;

use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug};
use samsara_commitlog::Progress;

use super::exit::RawExit;
use super::host::KvmError;
use super::vcpu::Vcpu;

/// What counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterKind {
    /// The guest is stepped, instruction by instruction: exact on any host, and slow.
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

impl Vcpu {
    /// Counts progress from now on, if with anything.
    pub fn set_counter(&mut self, counter: Option<CounterKind>) -> Result<(), KvmError> {
        self.counter = counter;
        self.steps = 0;
        self.set_stepping(counter.is_some())
    }

    /// The count begins anew.
    pub fn start_count(&mut self) {
        self.steps = 0;
    }

    /// How far it got since the count began, if that is counted.
    pub fn progress(&self) -> Option<Progress> {
        self.counter.map(|CounterKind::SingleStep| Progress {
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
        if target.place.is_some() {
            return Err(KvmError::Missing("a counter of branches"));
        }
        let exit = self.step_until(Some(target.count), latest)?;
        self.finish(exit)
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
            // It is armed for one RIP only, and states are put back meanwhile.
            self.set_stepping(true)?;
            match self.run_until(latest)? {
                RawExit::Step => self.steps += 1,
                RawExit::Cut => {}
                exit => return Ok(exit),
            }
        }
    }

    fn set_stepping(&mut self, is_stepping: bool) -> Result<(), KvmError> {
        let control = if is_stepping {
            KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
        } else {
            0
        };
        let debug = kvm_guest_debug {
            control,
            ..Default::default()
        };
        let set = self.fd.set_guest_debug(&debug);
        set.map_err(KvmError::request("KVM_SET_GUEST_DEBUG"))
    }
}
