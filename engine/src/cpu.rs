//! What the engine needs of a vCPU. Tests run the same engine on made-up ones.

use std::sync::Arc;
use std::time::Duration;

use samsara_machine::kvm::{Harvest, KvmError, Paging, RawExit, Restore, Vcpu, Vm};
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
    /// Takes the pages that became private since the last call; may repeat some. If it could not tell of
    /// all, others are to be looked for in the view.
    fn take_written(&mut self, page: &mut dyn FnMut(PageIndex)) -> Result<Harvest, KvmError>;
    /// From now on the guest may run its own code at CPL 0: captures and restores are of everything.
    fn expect_privileged_code(&mut self);
    /// Whether runs end as soon as the vCPU can take an interrupt.
    fn want_window(&mut self, wanted: bool);
    /// Takes over the events of a state: an interrupt was delivered to it.
    fn set_events(&mut self, state: &VcpuState) -> Result<(), KvmError>;
    /// Memory has changed from outside, page tables perhaps too: what was translated before the next
    /// run holds no longer.
    fn forget_translations(&mut self);
    /// Makes room for more written pages, after [`RawExit::RingFull`].
    fn reset_ring(&mut self) -> Result<(), KvmError>;
}

/// A vCPU on a view, in its VM.
#[derive(Debug)]
pub(crate) struct ViewCpu {
    vcpu: Vcpu,
    vm: Arc<Vm>,
    /// KVM follows changes of page tables only where the guest itself makes them.
    paging: Paging,
    must_rebuild: bool,
}

impl ViewCpu {
    pub(crate) fn new(vcpu: Vcpu, vm: Arc<Vm>, paging: Paging) -> Self {
        Self {
            vcpu,
            vm,
            paging,
            must_rebuild: false,
        }
    }
}

impl Cpu for ViewCpu {
    fn attach(&mut self) -> Result<(), KvmError> {
        self.vcpu.attach()
    }

    fn kicker(&self) -> Box<dyn Fn() + Send + Sync> {
        let kicker = self.vcpu.kicker();
        Box::new(move || kicker.kick())
    }

    fn forget_kicks(&mut self) {
        self.vcpu.kicker().take();
    }

    fn run(&mut self, limit: Duration) -> Result<RawExit, KvmError> {
        if std::mem::take(&mut self.must_rebuild) {
            self.vm.rebuild_slots()?;
        }
        self.vcpu.run(Some(limit))
    }

    fn complete_read(&mut self, value: u64) -> Result<RawExit, KvmError> {
        self.vcpu.complete_read(value)
    }

    fn capture(&mut self, state: &mut VcpuState) -> Result<(), KvmError> {
        self.vcpu.capture(state)
    }

    fn restore(&mut self, state: &VcpuState, what: Restore) -> Result<(), KvmError> {
        self.vcpu.restore(state, what)
    }

    fn take_written(&mut self, page: &mut dyn FnMut(PageIndex)) -> Result<Harvest, KvmError> {
        self.vcpu.take_written(page)
    }

    fn expect_privileged_code(&mut self) {
        self.vcpu.expect_privileged_code();
    }

    fn want_window(&mut self, wanted: bool) {
        self.vcpu.want_window(wanted);
    }

    fn set_events(&mut self, state: &VcpuState) -> Result<(), KvmError> {
        self.vcpu.set_events(state)
    }

    fn forget_translations(&mut self) {
        self.must_rebuild = self.paging == Paging::Shadow && self.vcpu.may_run_kernel();
    }

    fn reset_ring(&mut self) -> Result<(), KvmError> {
        self.vcpu.reset_ring()
    }
}
