//! What the engine needs of a vCPU. Tests run the same engine on made-up ones.

use std::time::Duration;

use samsara_machine::kvm::{KvmError, RawExit, Restore, Vcpu};
use samsara_machine::memory::PageIndex;
use samsara_machine::vcpu::VcpuState;

/// A vCPU on a view.
pub trait Cpu: Send + 'static {
    /// Makes the calling thread the one that runs it.
    fn attach(&mut self) -> Result<(), KvmError>;
    /// What ends its runs from another thread.
    fn kicker(&self) -> Box<dyn Fn() + Send + Sync>;
    /// Forgets kicks that came before now.
    fn forget_kicks(&mut self);
    /// Runs until an exit, a kick, or until `limit` has passed. Stores to devices are complete;
    /// loads wait for [`Self::complete_read`].
    fn run(&mut self, limit: Duration) -> Result<RawExit, KvmError>;
    /// Answers the load that ended the last run.
    fn complete_read(&mut self, value: u64) -> Result<RawExit, KvmError>;
    /// Captures the whole state; no load may wait.
    fn capture(&mut self, state: &mut VcpuState) -> Result<(), KvmError>;
    /// Puts a state back; no load may wait.
    fn restore(&mut self, state: &VcpuState, what: Restore) -> Result<(), KvmError>;
    /// Takes the pages that became private since the last call; may repeat some.
    fn take_written(&mut self, page: &mut dyn FnMut(PageIndex)) -> Result<(), KvmError>;
    /// From now on the guest may run its own code at CPL 0: captures and restores are of everything.
    fn expect_privileged_code(&mut self);
    /// Makes room for more written pages, after [`RawExit::RingFull`].
    fn reset_ring(&mut self) -> Result<(), KvmError>;
}

impl Cpu for Vcpu {
    fn attach(&mut self) -> Result<(), KvmError> {
        Vcpu::attach(self)
    }

    fn kicker(&self) -> Box<dyn Fn() + Send + Sync> {
        let kicker = Vcpu::kicker(self);
        Box::new(move || kicker.kick())
    }

    fn forget_kicks(&mut self) {
        Vcpu::kicker(self).take();
    }

    fn run(&mut self, limit: Duration) -> Result<RawExit, KvmError> {
        Vcpu::run(self, Some(limit))
    }

    fn complete_read(&mut self, value: u64) -> Result<RawExit, KvmError> {
        Vcpu::complete_read(self, value)
    }

    fn capture(&mut self, state: &mut VcpuState) -> Result<(), KvmError> {
        Vcpu::capture(self, state)
    }

    fn restore(&mut self, state: &VcpuState, what: Restore) -> Result<(), KvmError> {
        Vcpu::restore(self, state, what)
    }

    fn take_written(&mut self, page: &mut dyn FnMut(PageIndex)) -> Result<(), KvmError> {
        Vcpu::take_written(self, page)
    }

    fn expect_privileged_code(&mut self) {
        Vcpu::expect_privileged_code(self);
    }

    fn reset_ring(&mut self) -> Result<(), KvmError> {
        Vcpu::reset_ring(self)
    }
}
