//! The canonical byte form of a vCPU's state.
//!
//! Fixed offsets, so that two states differ exactly where their bytes do: a header, the structures
//! of the KVM API, the vCPU's own part of its local APIC, then `(index, value)` pairs of MSRs. The set of MSRs
//! is fixed when the machine boots and travels with the state.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, kvm_debugregs, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_vcpu_events__bindgen_ty_1, kvm_xcrs,
};
use samsara_commitlog::{ByteRuns, ByteRunsBuilder};

use super::layout::{XsaveArea, load, store};
use crate::kvm::TSC;
use crate::pc::apic::{LocalApic, Mode};

/// Version of this layout and of the devices' layouts.
pub const STATE_VERSION: u32 = 2;

const REGS: usize = 0;
const SREGS: usize = REGS + size_of::<kvm_regs>();
const EVENTS: usize = SREGS + size_of::<kvm_sregs>();
const DEBUG: usize = EVENTS + size_of::<kvm_vcpu_events>();
const XCRS: usize = DEBUG + size_of::<kvm_debugregs>();
const XSAVE: usize = XCRS + size_of::<kvm_xcrs>();
const APIC: usize = XSAVE + size_of::<XsaveArea>();
const MSRS: usize = APIC + size_of::<LocalApic>();
const MSR_BYTES: usize = 16;
/// More than KVM has; a bound for states from outside.
const MSRS_MAX: usize = 256;

/// What is wrong with a vCPU state from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a vCPU state of {bytes} bytes does not fit layout version {STATE_VERSION}")]
pub struct StateError {
    bytes: usize,
}

/// A vCPU's whole state: general, segment, control and debug registers, events and pending
/// interrupts, XCRs, x87/SSE/AVX state, MSRs.
#[derive(Clone, PartialEq, Eq)]
pub struct VcpuState {
    bytes: Box<[u8]>,
}

impl std::fmt::Debug for VcpuState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let regs = self.regs();
        write!(
            f,
            "VcpuState {{ rip: {:#x}, rsp: {:#x}, .. }}",
            regs.rip, regs.rsp
        )
    }
}

impl VcpuState {
    /// A state of zeros for these MSRs.
    pub fn zeroed(msr_indices: &[u32]) -> Self {
        let count = msr_indices.len().min(MSRS_MAX);
        let mut state = Self {
            bytes: vec![0; MSRS + count * MSR_BYTES].into(),
        };
        for (place, &index) in msr_indices.iter().take(count).enumerate() {
            let entry = kvm_msr_entry {
                index,
                ..Default::default()
            };
            store(&entry, &mut state.bytes[MSRS + place * MSR_BYTES..]);
        }
        state
    }

    /// Takes a state from outside.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let fits = bytes
            .len()
            .checked_sub(MSRS)
            .is_some_and(|msrs| msrs.is_multiple_of(MSR_BYTES) && msrs / MSR_BYTES <= MSRS_MAX);
        if !fits {
            return Err(StateError { bytes: bytes.len() });
        }
        Ok(Self {
            bytes: bytes.into(),
        })
    }

    /// The canonical byte form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The byte runs that turn `base` into this state.
    pub fn changes_since(&self, base: &Self) -> ByteRuns {
        assert_eq!(
            self.bytes.len(),
            base.bytes.len(),
            "states of one vCPU have one layout"
        );
        let mut runs = ByteRunsBuilder::default();
        let mut at = 0;
        for (old, new) in base.bytes.chunks(8).zip(self.bytes.chunks(8)) {
            if old != new {
                runs.push(at, new);
            }
            at += new.len() as u64;
        }
        runs.finish()
    }

    /// Writes byte runs into the state. They must come from [`Self::changes_since`] or have been
    /// checked against [`Self::as_bytes`]'s length.
    pub fn apply(&mut self, runs: &ByteRuns) -> Result<(), StateError> {
        for (at, bytes) in runs.iter() {
            let size = self.bytes.len();
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let target = self.bytes.get_mut(at..at.saturating_add(bytes.len()));
            target
                .ok_or(StateError { bytes: size })?
                .copy_from_slice(bytes);
        }
        Ok(())
    }

    /// General registers.
    pub fn regs(&self) -> kvm_regs {
        load(&self.bytes[REGS..])
    }

    /// Sets the general registers.
    pub fn set_regs(&mut self, regs: &kvm_regs) {
        store(regs, &mut self.bytes[REGS..]);
    }

    /// Segment and control registers, and the bitmap of queued interrupts.
    pub fn sregs(&self) -> kvm_sregs {
        load(&self.bytes[SREGS..])
    }

    /// Whether it is in long mode, with paging then.
    pub fn is_in_long_mode(&self) -> bool {
        const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
        self.sregs().efer & EFER_LONG_MODE_ACTIVE != 0
    }

    /// Sets the segment and control registers.
    pub fn set_sregs(&mut self, sregs: &kvm_sregs) {
        store(sregs, &mut self.bytes[SREGS..]);
    }

    pub(crate) fn events(&self) -> kvm_vcpu_events {
        load(&self.bytes[EVENTS..])
    }

    /// Sets the events. What KVM leaves of past ones is not part of the state: whoever runs the same code again
    /// may have had others.
    pub(crate) fn set_events(&mut self, events: &kvm_vcpu_events) {
        let mut events = *events;
        if events.exception.injected == 0 && events.exception.pending == 0 {
            events.exception = kvm_vcpu_events__bindgen_ty_1::default();
            events.exception_has_payload = 0;
            events.exception_payload = 0;
        }
        if events.interrupt.injected == 0 {
            events.interrupt.nr = 0;
            events.interrupt.soft = 0;
        }
        store(&events, &mut self.bytes[EVENTS..]);
    }

    pub(crate) fn debug_regs(&self) -> kvm_debugregs {
        load(&self.bytes[DEBUG..])
    }

    pub(crate) fn set_debug_regs(&mut self, regs: &kvm_debugregs) {
        store(regs, &mut self.bytes[DEBUG..]);
    }

    pub(crate) fn xcrs(&self) -> kvm_xcrs {
        load(&self.bytes[XCRS..])
    }

    pub(crate) fn set_xcrs(&mut self, xcrs: &kvm_xcrs) {
        store(xcrs, &mut self.bytes[XCRS..]);
    }

    pub(crate) fn xsave(&self) -> XsaveArea {
        load(&self.bytes[XSAVE..])
    }

    /// x87 and SSE registers, as FXSAVE64 stores them.
    pub fn fxsave(&self) -> [u8; 512] {
        load::<[u8; 512]>(&self.bytes[XSAVE..])
    }

    pub(crate) fn set_xsave(&mut self, xsave: &XsaveArea) {
        store(xsave, &mut self.bytes[XSAVE..]);
    }

    /// The vCPU's own part of its local APIC; zeros in a bare guest.
    pub fn apic(&self) -> LocalApic {
        load(&self.bytes[APIC..])
    }

    /// Sets the vCPU's own part of its local APIC.
    pub fn set_apic(&mut self, apic: &LocalApic) {
        store(apic, &mut self.bytes[APIC..]);
    }

    /// How the vCPU reaches its local APIC; not at all, if `IA32_APIC_BASE` disables it.
    pub(crate) fn apic_mode(&self) -> Option<Mode> {
        const ENABLED: u64 = 1 << 11;
        const X2: u64 = 1 << 10;
        match self.sregs().apic_base {
            base if base & ENABLED == 0 => None,
            base if base & X2 != 0 => Some(Mode::X2),
            _ => Some(Mode::X),
        }
    }

    /// Whether an interrupt can be delivered before the next instruction.
    pub(crate) fn accepts_interrupt(&self) -> bool {
        const INTERRUPTS: u64 = 1 << 9;
        let events = self.events();
        self.regs().rflags & INTERRUPTS != 0
            && events.interrupt.shadow == 0
            && events.nmi.injected == 0
            && !has_event_under_way(&events)
    }

    /// Delivers an interrupt.
    pub(crate) fn set_interrupt(&mut self, vector: u8) {
        let mut events = self.events();
        events.interrupt.injected = 1;
        events.interrupt.nr = vector;
        events.interrupt.soft = 0;
        self.set_events(&events);
    }

    /// Whether a non-maskable interrupt waits with the vCPU: there is room for one.
    pub(crate) fn has_pending_nmi(&self) -> bool {
        self.events().nmi.pending != 0
    }

    /// Whether a non-maskable interrupt can be left with the vCPU.
    pub(crate) fn accepts_nmi(&self) -> bool {
        let events = self.events();
        events.nmi.pending == 0 && !has_event_under_way(&events)
    }

    /// Leaves a non-maskable interrupt with the vCPU, which takes it when it can.
    pub(crate) fn set_pending_nmi(&mut self) {
        let mut events = self.events();
        events.nmi.pending = 1;
        events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
        self.set_events(&events);
    }

    pub(crate) fn msrs(&self) -> Vec<kvm_msr_entry> {
        self.bytes[MSRS..]
            .chunks_exact(MSR_BYTES)
            .map(load)
            .collect()
    }

    /// The value of an MSR, if the machine has it.
    pub fn msr(&self, index: u32) -> Option<u64> {
        let entry = self.msrs().into_iter().find(|entry| entry.index == index)?;
        Some(entry.data)
    }

    /// The time stamp counter; none where the state has none.
    pub fn tsc(&self) -> Option<u64> {
        self.msr(TSC)
    }

    /// Sets the time stamp counter, where the state has one.
    pub fn set_tsc(&mut self, value: u64) {
        self.set_msr(TSC, value);
    }

    pub(crate) fn set_msr(&mut self, index: u32, data: u64) {
        for bytes in self.bytes[MSRS..].chunks_exact_mut(MSR_BYTES) {
            let entry: kvm_msr_entry = load(bytes);
            if entry.index == index {
                store(&kvm_msr_entry { data, ..entry }, bytes);
            }
        }
    }

    pub(crate) fn set_msrs(&mut self, msrs: &[kvm_msr_entry]) {
        for (place, entry) in msrs.iter().enumerate() {
            store(
                entry,
                &mut self.bytes[MSRS + place * MSR_BYTES..][..MSR_BYTES],
            );
        }
    }
}

/// Whether KVM is to deliver something else first.
fn has_event_under_way(events: &kvm_vcpu_events) -> bool {
    events.interrupt.injected != 0
        || events.exception.injected != 0
        || events.exception.pending != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_turn_one_state_into_the_other() {
        let base = VcpuState::zeroed(&[0x10, 0xc000_0080]);
        let mut next = base.clone();
        next.set_regs(&kvm_regs {
            rip: 0x20_0000,
            rsp: 0x1234,
            ..Default::default()
        });
        let entry = kvm_msr_entry {
            index: 0xc000_0080,
            data: 7,
            ..Default::default()
        };
        next.set_msrs(&[
            kvm_msr_entry {
                index: 0x10,
                ..Default::default()
            },
            entry,
        ]);
        let runs = next.changes_since(&base);
        let mut copy = base.clone();
        copy.apply(&runs).unwrap();
        assert_eq!(copy, next);
        assert!(runs.encoded().len() < 64);
    }

    #[test]
    fn states_and_runs_from_outside_are_checked() {
        assert!(VcpuState::from_bytes(&[0; 17]).is_err());
        let mut state = VcpuState::zeroed(&[]);
        let mut runs = ByteRunsBuilder::default();
        runs.push(state.as_bytes().len() as u64 - 1, &[1, 2]);
        assert!(state.apply(&runs.finish()).is_err());
    }
}
