//! Capturing and restoring a vCPU's whole state.
//!
//! Order of a capture, after a run that left no access unfinished ([`Vcpu::run`] and
//! [`Vcpu::complete_read`] see to that):
//!
//! 1. Registers, segment and control registers, events: from the run page, as the last run left
//!    them. Queued interrupts and exceptions are in the events.
//! 2. Debug registers, XCRs, XSAVE area, MSRs, in any order: reading changes nothing.
//!
//! Order of a restore:
//!
//! 1. CPUID was set when the vCPU was made: it decides which bits the rest may have.
//! 2. XCRs before the XSAVE area: XCR0 decides which components are loaded.
//! 3. Segment and control registers before MSRs: EFER and the APIC base are among them, and some
//!    MSRs are only accepted in the mode that they set up.
//! 4. General registers before events: setting them drops a pending exception.
//! 5. Events last: nothing after them may drop a queued interrupt or exception.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::SyncReg;

use super::host::KvmError;
use super::vcpu::Vcpu;
use crate::vcpu::{VcpuState, XsaveArea};

/// The time stamp counter, and what would set it as a side effect.
const RUNNING_MSRS: [u32; 3] = [0x10, 0x3b, 0x6e0];

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
        for register in [
            SyncReg::Register,
            SyncReg::SystemRegister,
            SyncReg::VcpuEvents,
        ] {
            self.fd.set_sync_valid_reg(register);
        }
    }

    /// Captures the state into `state`, which must have this vCPU's MSRs.
    pub fn capture(&self, state: &mut VcpuState) -> Result<(), KvmError> {
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
        let xsave = self
            .fd
            .get_xsave()
            .map_err(KvmError::request("KVM_GET_XSAVE"))?;
        state.set_xsave(&XsaveArea::from_kvm(&xsave));
        self.capture_msrs(state)
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

fn entries(entries: &[kvm_msr_entry]) -> Result<Msrs, KvmError> {
    let too_many = |_| KvmError::Missing("room for the machine's MSRs");
    Msrs::from_entries(entries).map_err(too_many)
}
