//! What the engine needs of a vCPU. Tests run the same engine on made-up ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use samsara_commitlog::{Progress, VcpuIndex};
use samsara_machine::kvm::{
    Harvest, Host, KvmError, Paging, Privilege, RawExit, Restore, Stepper, Vcpu, Vm,
};
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
    /// Begins to count the vCPU's progress anew, where it is counted.
    fn start_count(&mut self) {}
    /// How far it got since then.
    fn progress(&self) -> Option<Progress> {
        None
    }
    /// Runs until it got so far, or until an exit, a kick, or that moment.
    fn run_to(&mut self, progress: Progress, latest: Instant) -> Result<RawExit, KvmError>;
    /// Answers the load that ended the last run.
    fn complete_read(&mut self, value: u64) -> Result<RawExit, KvmError>;
    /// Where it stands in the guest's code, without a system call where that can be.
    fn rip(&self) -> u64;
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
    /// run, of this vCPU or another in its view, holds no longer.
    fn forget_translations(&mut self);
    /// Makes room for more written pages, after [`RawExit::RingFull`].
    fn reset_ring(&mut self) -> Result<(), KvmError>;
}

/// A VM on a view, for its vCPUs: one, or all in turn on one thread.
#[derive(Debug)]
pub(crate) struct ViewVm {
    vm: Vm,
    /// KVM follows changes of page tables only where the guest itself makes them.
    paging: Paging,
    /// What KVM translated, for whichever of the vCPUs, holds no longer.
    must_rebuild: AtomicBool,
}

impl ViewVm {
    pub(crate) fn new(vm: Vm, paging: Paging) -> Self {
        Self {
            vm,
            paging,
            must_rebuild: AtomicBool::new(false),
        }
    }

    /// Creates a vCPU.
    pub(crate) fn vcpu(
        self: &Arc<Self>,
        host: &Host,
        index: VcpuIndex,
        privilege: Privilege,
        stepper: Option<Stepper>,
    ) -> Result<ViewCpu, KvmError> {
        let mut vcpu = self.vm.vcpu(host, index, privilege)?;
        if let Some(stepper) = stepper {
            vcpu.set_stepper(stepper);
        }
        Ok(ViewCpu {
            vcpu,
            vm: Arc::clone(self),
        })
    }
}

/// A vCPU on a view, in its VM.
#[derive(Debug)]
pub(crate) struct ViewCpu {
    vcpu: Vcpu,
    vm: Arc<ViewVm>,
}

impl ViewCpu {
    fn follow_page_tables(&self) -> Result<(), KvmError> {
        if self.vm.must_rebuild.swap(false, Ordering::Relaxed) {
            self.vm.vm.rebuild_slots()?;
        }
        Ok(())
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
        self.follow_page_tables()?;
        self.vcpu.run(Some(limit))
    }

    fn start_count(&mut self) {
        self.vcpu.start_count();
    }

    fn progress(&self) -> Option<Progress> {
        self.vcpu.progress()
    }

    fn run_to(&mut self, progress: Progress, latest: Instant) -> Result<RawExit, KvmError> {
        self.follow_page_tables()?;
        self.vcpu.run_to(progress, Some(latest))
    }

    fn complete_read(&mut self, value: u64) -> Result<RawExit, KvmError> {
        self.vcpu.complete_read(value)
    }

    fn rip(&self) -> u64 {
        self.vcpu.rip()
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
        if self.vm.paging == Paging::Shadow && self.vcpu.may_run_kernel() {
            self.vm.must_rebuild.store(true, Ordering::Relaxed);
        }
    }

    fn reset_ring(&mut self) -> Result<(), KvmError> {
        self.vcpu.reset_ring()
    }
}
