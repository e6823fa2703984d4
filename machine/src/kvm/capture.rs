//! Capturing and restoring a vCPU's whole state.
//!
//! Order of a capture, after a run that left no access unfinished ([`Vcpu::run`] and
//! [`Vcpu::complete_read`] see to that):
//!
//! 1. Registers, segment and control registers, events: from the run page, as the last run left
//!    them. Queued interrupts and exceptions are in the events.
//! 2. XSAVE area, debug registers, XCRs, MSRs, in any order: reading changes nothing.
//!
//! Order of a restore:
//!
//! 1. CPUID was set when the vCPU was made: it decides which bits the rest may have.
//! 2. XCRs before the XSAVE area: XCR0 decides which components are loaded.
//! 3. Segment and control registers before MSRs: EFER and the APIC base are among them, and some
//!    MSRs are only accepted in the mode that they set up.
//! 4. General registers before events: setting them drops a pending exception.
//! 5. Events last: nothing after them may drop a queued interrupt or exception.
//!
//! Each request is a system call, and a chunk may be no longer than a few of them. So what only
//! privileged code can change is not read and written for every chunk of a guest that has none, see
//! [`Privilege`].

use kvm_bindings::{Msrs, kvm_debugregs, kvm_msr_entry};
use kvm_ioctls::SyncReg;
use samsara_commitlog::TSC_STEP;

use super::host::KvmError;
use super::vcpu::Vcpu;
use crate::vcpu::{VcpuState, XsaveArea};

/// The time stamp counter.
pub(crate) const TSC: u32 = 0x10;
/// It, and what would set it as a side effect.
const RUNNING_MSRS: [u32; 3] = [TSC, 0x3b, 0x6e0];

/// What the run page shows after every run, and takes before one. KVM takes them in this order.
const SYNC_REGISTERS: [SyncReg; 3] = [
    SyncReg::Register,
    SyncReg::SystemRegister,
    SyncReg::VcpuEvents,
];

/// What the code of a guest may change of its vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// It never runs at CPL 0, but for handlers that end the machine: debug registers, XCRs and MSRs
    /// keep the values that were restored; only the TSC goes on, and DR6, which such code cannot read,
    /// may tell of an exception on its way.
    User,
    /// Everything.
    Kernel,
}

/// How much of a state is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restore {
    /// All of it: the vCPU continues on this host what ran elsewhere.
    Whole,
    /// All but time: a squashed chunk starts again, and the TSC goes on.
    KeepTime,
}

impl Vcpu {
    pub(super) fn request_sync_registers(&mut self) {
        for register in SYNC_REGISTERS {
            self.fd.set_sync_valid_reg(register);
        }
    }

    /// From now on the guest may run its own code at CPL 0.
    pub fn expect_privileged_code(&mut self) {
        self.privilege = Privilege::Kernel;
    }

    /// Captures the state into `state`, which must have this vCPU's MSRs, and for a guest of
    /// [`Privilege::User`] an earlier state's privileged part.
    pub fn capture(&mut self, state: &mut VcpuState) -> Result<(), KvmError> {
        self.capture_registers(state)?;
        let xsave = self
            .fd
            .get_xsave()
            .map_err(KvmError::request("KVM_GET_XSAVE"))?;
        state.set_xsave(&XsaveArea::from_kvm(&xsave));
        if self.privilege == Privilege::Kernel {
            self.capture_privileged(state)?;
            if let (Some(tsc), true) = (state.tsc(), self.stepper.is_some()) {
                state.set_tsc(in_steps(tsc));
            }
            return Ok(());
        }
        if cfg!(debug_assertions) {
            self.check_privileged(state)?;
        }
        self.capture_tsc(state)
    }

    /// Captures general, segment and control registers and events only.
    pub fn capture_registers(&self, state: &mut VcpuState) -> Result<(), KvmError> {
        if self.restored {
            state.set_regs(
                &self
                    .fd
                    .get_regs()
                    .map_err(KvmError::request("KVM_GET_REGS"))?,
            );
            state.set_sregs(
                &self
                    .fd
                    .get_sregs()
                    .map_err(KvmError::request("KVM_GET_SREGS"))?,
            );
            let events = self.fd.get_vcpu_events();
            state.set_events(&events.map_err(KvmError::request("KVM_GET_VCPU_EVENTS"))?);
        } else {
            let sync = self.fd.sync_regs();
            state.set_regs(&sync.regs);
            state.set_sregs(&sync.sregs);
            state.set_events(&sync.events);
        }
        Ok(())
    }

    /// RIP: without a system call as a run left it, by one where the registers were changed after it, as a step does.
    pub fn rip(&self) -> u64 {
        let shown = self.fd.sync_regs().regs.rip;
        if !self.restored {
            return shown;
        }
        self.fd.get_regs().map_or(shown, |regs| regs.rip)
    }

    fn capture_privileged(&self, state: &mut VcpuState) -> Result<(), KvmError> {
        let debug = self
            .fd
            .get_debug_regs()
            .map_err(KvmError::request("KVM_GET_DEBUGREGS"))?;
        state.set_debug_regs(&debug);
        let xcrs = self
            .fd
            .get_xcrs()
            .map_err(KvmError::request("KVM_GET_XCRS"))?;
        state.set_xcrs(&xcrs);
        self.capture_msrs(state)
    }

    /// A guest without code at CPL 0 has not changed what only such code can.
    fn check_privileged(&self, state: &VcpuState) -> Result<(), KvmError> {
        if state.sregs().cs.dpl != 3 {
            return Ok(());
        }
        let mut whole = state.clone();
        self.capture_privileged(&mut whole)?;
        whole.set_debug_regs(&kvm_debugregs {
            dr6: state.debug_regs().dr6,
            ..whole.debug_regs()
        });
        for index in RUNNING_MSRS {
            whole.set_msr(index, state.msr(index).unwrap_or_default());
        }
        assert!(
            &whole == state,
            "a guest without privileged code has changed privileged state"
        );
        Ok(())
    }

    fn ask_tsc_ahead(&self) -> Result<u64, KvmError> {
        let before = host_tsc();
        let entry = kvm_msr_entry {
            index: TSC,
            ..Default::default()
        };
        let mut msrs = entries(&[entry])?;
        let read = self.fd.get_msrs(&mut msrs);
        read.map_err(KvmError::request("KVM_GET_MSRS"))?;
        Ok(msrs.as_slice()[0].data.wrapping_sub(before))
    }

    /// Reads the TSC without a system call. Between two whole restores the guest's is the host's plus
    /// a constant, which is rounded up here, and once more to what records have it in: time may jump ahead a
    /// little, never back.
    fn capture_tsc(&mut self, state: &mut VcpuState) -> Result<(), KvmError> {
        if !self.msr_indices.contains(&TSC) {
            return Ok(());
        }
        let ahead = match self.tsc_ahead {
            Some(ahead) => ahead,
            None => *self.tsc_ahead.insert(self.ask_tsc_ahead()?),
        };
        let tsc = host_tsc().wrapping_add(ahead);
        state.set_msr(TSC, in_steps(tsc));
        Ok(())
    }

    fn capture_msrs(&self, state: &mut VcpuState) -> Result<(), KvmError> {
        // What this host does not have keeps the value it came with.
        let mut all = state.msrs();
        let is_here = |entry: &&mut kvm_msr_entry| self.msr_indices.contains(&entry.index);
        let mut here: Vec<&mut kvm_msr_entry> = all.iter_mut().filter(is_here).collect();
        let mut msrs = entries(&here.iter().map(|entry| **entry).collect::<Vec<_>>())?;
        let read = self
            .fd
            .get_msrs(&mut msrs)
            .map_err(KvmError::request("KVM_GET_MSRS"))?;
        if read != here.len() {
            return Err(KvmError::Missing(
                "an MSR that it had when the vCPU was made",
            ));
        }
        for (entry, value) in here.iter_mut().zip(msrs.as_slice()) {
            **entry = *value;
        }
        state.set_msrs(&all);
        Ok(())
    }

    /// Restores a state.
    pub fn restore(&mut self, state: &VcpuState, what: Restore) -> Result<(), KvmError> {
        // A guest that is stepped has its registers changed by requests.
        let through_page = self.privilege == Privilege::User && self.stepper.is_none();
        if what == Restore::KeepTime && through_page {
            return self.restore_user(state);
        }
        self.tsc_ahead = None;
        // Each run takes it from here, whatever the registers say.
        self.fd.get_kvm_run().cr8 = state.sregs().cr8;
        self.fd
            .set_xcrs(&state.xcrs())
            .map_err(KvmError::request("KVM_SET_XCRS"))?;
        let xsave = state.xsave().to_kvm();
        // SAFETY: the area has the 4096 bytes that KVM reads; features with larger states are not
        // offered to guests.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(KvmError::request("KVM_SET_XSAVE"))?;
        self.fd
            .set_sregs(&state.sregs())
            .map_err(KvmError::request("KVM_SET_SREGS"))?;
        self.restore_msrs(state, what)?;
        let debug = state.debug_regs();
        self.fd
            .set_debug_regs(&debug)
            .map_err(KvmError::request("KVM_SET_DEBUGREGS"))?;
        self.fd
            .set_regs(&state.regs())
            .map_err(KvmError::request("KVM_SET_REGS"))?;
        let events = state.events();
        self.fd
            .set_vcpu_events(&events)
            .map_err(KvmError::request("KVM_SET_VCPU_EVENTS"))?;
        self.restored = true;
        Ok(())
    }

    /// Puts the unprivileged part back: through the run page, and the XSAVE area.
    fn restore_user(&mut self, state: &VcpuState) -> Result<(), KvmError> {
        let xsave = state.xsave().to_kvm();
        // SAFETY: as in `restore`.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(KvmError::request("KVM_SET_XSAVE"))?;
        self.fd.get_kvm_run().cr8 = state.sregs().cr8;
        let sync = self.fd.sync_regs_mut();
        sync.regs = state.regs();
        sync.sregs = state.sregs();
        sync.events = state.events();
        for register in SYNC_REGISTERS {
            self.fd.set_sync_dirty_reg(register);
        }
        self.restored = false;
        Ok(())
    }

    /// Takes over the events of a state: an interrupt that was delivered to it since it was captured or
    /// restored.
    pub fn set_events(&mut self, state: &VcpuState) -> Result<(), KvmError> {
        let events = state.events();
        self.fd
            .set_vcpu_events(&events)
            .map_err(KvmError::request("KVM_SET_VCPU_EVENTS"))
    }

    fn restore_msrs(&self, state: &VcpuState, what: Restore) -> Result<(), KvmError> {
        let wanted: Vec<kvm_msr_entry> = state
            .msrs()
            .into_iter()
            .filter(|entry| what == Restore::Whole || !RUNNING_MSRS.contains(&entry.index))
            .filter(|entry| self.msr_indices.contains(&entry.index))
            .collect();
        let mut rest = wanted.as_slice();
        while !rest.is_empty() {
            let msrs = entries(rest)?;
            let set = self
                .fd
                .set_msrs(&msrs)
                .map_err(KvmError::request("KVM_SET_MSRS"))?;
            // KVM stops at one that it does not take; that one keeps this host's value.
            rest = &rest[(set + 1).min(rest.len())..];
        }
        Ok(())
    }
}

/// Rounded up to what orders have it in.
fn in_steps(tsc: u64) -> u64 {
    tsc.checked_next_multiple_of(TSC_STEP).unwrap_or(tsc)
}

fn entries(entries: &[kvm_msr_entry]) -> Result<Msrs, KvmError> {
    let too_many = |_| KvmError::Missing("room for the machine's MSRs");
    Msrs::from_entries(entries).map_err(too_many)
}

/// This host's time stamp counter.
pub fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor that runs KVM has the instruction.
    unsafe { std::arch::x86_64::_rdtsc() }
}
