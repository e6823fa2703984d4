//! A vCPU's own part of its local APIC: what the vCPU itself changes, within its chunks.

use super::registers::{
    APR, CURRENT_COUNT, DFR, DIVIDE, EOI, ESR, ICR, ICR_HIGH, ID, ILLEGAL_REGISTER, INITIAL_COUNT,
    IRR, IRR_LAST, ISR, ISR_LAST, LDR, LVT_ERROR, LVT_LINT0, LVT_LINT1, LVT_PERFORMANCE,
    LVT_READ_ONLY, LVT_THERMAL, LVT_TIMER, MASKED, PPR, RECEIVE_ILLEGAL_VECTOR, RRD, SELF_IPI, SVR,
    SVR_ENABLE, TMR, TMR_LAST, TPR, VECTOR_MIN, VERSION,
};
use super::shared::SharedApic;
use super::{Mode, vectors::Vectors};

/// Version 0x14, six local vectors, no suppression of EOI broadcasts.
const VERSION_VALUE: u32 = 5 << 16 | 0x14;
/// Bits of [`SVR`] that can be written: vector, enable, focus checking (which does nothing).
const SVR_BITS: u32 = 0x3ff;
/// Bits of the timer's local vector that can be written; its mode has two.
const LVT_TIMER_BITS: u32 = 0x7_00ff;
/// Bits of an interrupt command that can be written.
const ICR_BITS: u32 = 0x000c_cfff;
/// The delivery status of an interrupt command, which is always idle: commands act at once.
const ICR_STATUS: u32 = 1 << 12;

/// What a load from a register gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnRead {
    /// The value.
    Value(u64),
    /// A register of the shared part: it can be read only at a commit.
    Shared,
    /// No such register. x2APIC: `#GP`; xAPIC: reads as 0.
    Bad,
}

/// What a store to a register did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnWrite {
    /// All that there was to do.
    Done,
    /// Nothing yet: the store acts on others, or on the shared part. The chunk ends here, and
    /// [`super::Apics::write`] does it at the commit.
    Shared,
    /// No such register, or no such value. x2APIC: `#GP`, and nothing has changed; xAPIC: the store
    /// is ignored, and the error is noted in the error status register.
    Bad,
}

/// A vCPU's own part of its local APIC. Plain integers without padding: it is a section of the vCPU's
/// state bytes. Every bit pattern is valid; all zero is a disabled APIC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalApic {
    isr: Vectors,
    tmr: Vectors,
    irr: Vectors,
    /// Low, high.
    icr: [u32; 2],
    id: u32,
    tpr: u32,
    ldr: u32,
    dfr: u32,
    svr: u32,
    esr: u32,
    /// Errors since the last write of the error status register.
    errors: u32,
    /// Thermal, performance, LINT0, LINT1, error: the order of their registers.
    lvt: [u32; 5],
}

impl LocalApic {
    /// The state after power-up or INIT.
    pub fn at_reset(id: u8) -> Self {
        Self {
            id: id.into(),
            dfr: u32::MAX,
            svr: 0xff,
            lvt: [MASKED; 5],
            ..Self::default()
        }
    }

    /// The APIC's id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The task priority register: CR8 is its upper four bits.
    pub fn tpr(&self) -> u8 {
        self.tpr as u8
    }

    /// Sets the task priority register.
    pub fn set_tpr(&mut self, value: u8) {
        self.tpr = value.into();
    }

    /// Whether software has enabled it. It changes only at commits.
    pub fn is_enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0
    }

    pub(super) fn logical(&self) -> (u32, u32) {
        (self.ldr, self.dfr)
    }

    pub(super) fn icr_high(&self) -> u32 {
        self.icr[1]
    }

    /// What a load gives. `register` is an offset in the xAPIC page; for MSR 0x800 + n, n * 16.
    pub fn read(&self, mode: Mode, register: u16) -> OwnRead {
        let value = match (register, mode) {
            (LVT_TIMER | INITIAL_COUNT | CURRENT_COUNT | DIVIDE, _) => return OwnRead::Shared,
            (ICR, Mode::X2) => u64::from(self.icr[1]) << 32 | u64::from(self.icr[0]),
            _ => match self.register(mode, register) {
                Some(value) => value.into(),
                None => return OwnRead::Bad,
            },
        };
        OwnRead::Value(value)
    }

    fn register(&self, mode: Mode, register: u16) -> Option<u32> {
        let word = usize::from((register & 0x7f) >> 4);
        Some(match (register, mode) {
            _ if !register.is_multiple_of(16) => return None,
            (ID, Mode::X) => self.id << 24,
            (ID, Mode::X2) => self.id,
            (VERSION, _) => VERSION_VALUE,
            (TPR, _) => self.tpr,
            (APR | RRD | EOI, Mode::X) => 0,
            (PPR, _) => self.ppr().into(),
            (LDR, Mode::X) => self.ldr,
            (LDR, Mode::X2) => x2_logical_id(self.id),
            (DFR, Mode::X) => self.dfr,
            (SVR, _) => self.svr,
            (ISR..=ISR_LAST, _) => self.isr.word(word),
            (TMR..=TMR_LAST, _) => self.tmr.word(word),
            (IRR..=IRR_LAST, _) => self.irr.word(word),
            (ESR, _) => self.esr,
            (ICR, _) => self.icr[0],
            (ICR_HIGH, Mode::X) => self.icr[1],
            (LVT_THERMAL..=LVT_ERROR, _) => self.lvt[lvt_index(register)],
            _ => return None,
        })
    }

    /// Acts on a store. `register` is as for [`Self::read`].
    pub fn write(&mut self, mode: Mode, register: u16, value: u64) -> OwnWrite {
        let Some(value) = checked_value(mode, register, value) else {
            return self.refuse(mode, register);
        };
        if self.is_shared_write(register, value as u32) {
            return OwnWrite::Shared;
        }
        self.store(register, value as u32);
        OwnWrite::Done
    }

    /// A store to what cannot be written. xAPIC: nothing happens if it can be read at least.
    fn refuse(&mut self, mode: Mode, register: u16) -> OwnWrite {
        let is_known = self.read(mode, register) != OwnRead::Bad;
        if mode == Mode::X && is_known {
            return OwnWrite::Done;
        }
        if mode == Mode::X {
            self.raise(ILLEGAL_REGISTER);
        }
        OwnWrite::Bad
    }

    fn is_shared_write(&self, register: u16, value: u32) -> bool {
        match register {
            ICR | SELF_IPI | LVT_TIMER | INITIAL_COUNT | DIVIDE => true,
            EOI => self.isr.highest().is_some_and(|top| self.tmr.contains(top)),
            // Who sends must see whether the APIC accepts, and the timer's vector gets masked.
            SVR => (value ^ self.svr) & SVR_ENABLE != 0,
            _ => false,
        }
    }

    /// Stores bits that can be written.
    pub(super) fn store(&mut self, register: u16, value: u32) {
        match register {
            TPR => self.tpr = value,
            EOI => {
                self.end_of_interrupt();
            }
            LDR => self.ldr = value,
            DFR => self.dfr = value | 0x0fff_ffff,
            SVR => self.store_svr(value),
            ESR => self.esr = std::mem::take(&mut self.errors),
            ICR_HIGH => self.icr[1] = value,
            LVT_THERMAL..=LVT_ERROR => {
                let forced = if self.is_enabled() { 0 } else { MASKED };
                self.lvt[lvt_index(register)] = value & !LVT_READ_ONLY | forced;
            }
            _ => {}
        }
    }

    fn store_svr(&mut self, value: u32) {
        self.svr = value;
        if !self.is_enabled() {
            for entry in &mut self.lvt {
                *entry |= MASKED;
            }
        }
    }

    /// Keeps a command that has been acted on.
    pub(super) fn store_icr(&mut self, low: u32, high: u32) {
        self.icr = [low & !ICR_STATUS, high];
    }

    /// Ends the interrupt of the highest priority in service: its vector, and whether it was
    /// level-triggered.
    pub(super) fn end_of_interrupt(&mut self) -> Option<(u8, bool)> {
        let vector = self.isr.highest()?;
        self.isr.remove(vector);
        Some((vector, self.tmr.contains(vector)))
    }

    /// Notes errors, and requests the error interrupt for the first since the last write of the
    /// error status register.
    pub(super) fn raise(&mut self, errors: u32) {
        let is_armed = self.errors == 0 && errors != 0;
        self.errors |= errors;
        let entry = self.lvt[lvt_index(LVT_ERROR)];
        if !is_armed || entry & MASKED != 0 || !self.is_enabled() {
            return;
        }
        let vector = entry as u8;
        if vector < VECTOR_MIN {
            self.errors |= RECEIVE_ILLEGAL_VECTOR;
        } else {
            self.irr.insert(vector);
            self.tmr.remove(vector);
        }
    }

    /// Takes over the interrupts and errors of the mailbox; NMI, INIT and SIPI stay there. An APIC that
    /// is disabled by software drops the interrupts.
    pub fn accept(&mut self, mailbox: &mut SharedApic) {
        let (requests, level, errors) = mailbox.take_interrupts();
        if self.is_enabled() {
            self.irr.merge(&requests);
            self.tmr.replace(&level, &requests);
        }
        self.raise(errors);
    }

    /// Processor priority: what only an interrupt of a higher class interrupts.
    fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        let task = self.tpr();
        if task & 0xf0 >= in_service {
            task
        } else {
            in_service
        }
    }

    /// The vector that the vCPU would take now.
    pub fn deliverable(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (self.is_enabled() && vector & 0xf0 > self.ppr() & 0xf0).then_some(vector)
    }

    /// The vCPU takes the deliverable vector: from now on that is in service.
    pub fn take(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.irr.remove(vector);
        self.isr.insert(vector);
        Some(vector)
    }
}

/// The logical id that x2APIC derives: a cluster of 16 in the upper half, a bit in the lower.
pub(super) fn x2_logical_id(id: u32) -> u32 {
    id >> 4 << 16 | 1 << (id & 0xf)
}

fn lvt_index(register: u16) -> usize {
    usize::from((register - LVT_THERMAL) >> 4)
}

/// The part of `value` that a store keeps; none, if there can be no such store.
pub(super) fn checked_value(mode: Mode, register: u16, value: u64) -> Option<u64> {
    let bits = writable_bits(mode, register)?;
    let is_refused = mode == Mode::X2 && value & !bits != 0;
    (!is_refused).then_some(value & bits)
}

/// The bits of a register that can be written; none, if it cannot.
fn writable_bits(mode: Mode, register: u16) -> Option<u64> {
    let bits: u32 = match (register, mode) {
        (TPR, _) | (SELF_IPI, Mode::X2) => 0xff,
        (EOI | ESR, Mode::X2) => 0,
        (EOI | ESR | ICR_HIGH, Mode::X) | (INITIAL_COUNT, _) => u32::MAX,
        (LDR, Mode::X) => 0xff00_0000,
        (DFR, Mode::X) => 0xf000_0000,
        (SVR, _) => SVR_BITS,
        (ICR, Mode::X) => ICR_BITS | ICR_STATUS,
        (ICR, Mode::X2) => {
            return Some(u64::from(u32::MAX) << 32 | u64::from(ICR_BITS | ICR_STATUS));
        }
        (LVT_TIMER, _) => LVT_TIMER_BITS | LVT_READ_ONLY,
        (LVT_THERMAL | LVT_PERFORMANCE, _) => 0x1_07ff | LVT_READ_ONLY,
        (LVT_LINT0 | LVT_LINT1, _) => 0x1_a7ff | LVT_READ_ONLY,
        (LVT_ERROR, _) => 0x1_00ff | LVT_READ_ONLY,
        (DIVIDE, _) => 0xb,
        _ => return None,
    };
    Some(bits.into())
}

#[cfg(test)]
impl LocalApic {
    /// Any bit pattern there is.
    pub(super) fn from_words(words: [u32; 38]) -> Self {
        let set = |at: usize| Vectors(std::array::from_fn(|index| words[at + index]));
        Self {
            isr: set(0),
            tmr: set(8),
            irr: set(16),
            icr: [words[24], words[25]],
            id: words[26],
            tpr: words[27],
            ldr: words[28],
            dfr: words[29],
            svr: words[30],
            esr: words[31],
            errors: words[32],
            lvt: std::array::from_fn(|index| words[33 + index]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enabled() -> LocalApic {
        let mut local = LocalApic::at_reset(3);
        local.store(SVR, SVR_ENABLE | 0xff);
        local
    }

    fn value(local: &LocalApic, mode: Mode, register: u16) -> u64 {
        match local.read(mode, register) {
            OwnRead::Value(value) => value,
            other => panic!("{register:#x}: {other:?}"),
        }
    }

    #[test]
    fn reset_state_is_the_architecture_s() {
        let local = LocalApic::at_reset(3);
        assert_eq!(value(&local, Mode::X, ID), 3 << 24);
        assert_eq!(value(&local, Mode::X2, ID), 3);
        assert_eq!(value(&local, Mode::X, SVR), 0xff);
        assert_eq!(value(&local, Mode::X, DFR), 0xffff_ffff);
        assert_eq!(value(&local, Mode::X2, LDR), 1 << 3);
        assert_eq!(value(&local, Mode::X, LVT_LINT0), 1 << 16);
        assert_eq!(value(&local, Mode::X, VERSION), 0x5_0014);
        assert_eq!(size_of::<LocalApic>(), 3 * 32 + 14 * 4);
    }

    #[test]
    fn what_acts_on_others_ends_the_chunk() {
        let mut local = enabled();
        for register in [ICR, LVT_TIMER, INITIAL_COUNT, DIVIDE] {
            assert_eq!(local.write(Mode::X, register, 0), OwnWrite::Shared);
        }
        assert_eq!(local.write(Mode::X2, SELF_IPI, 0x40), OwnWrite::Shared);
        assert_eq!(local.write(Mode::X, SVR, 0xff), OwnWrite::Shared);
        assert_eq!(local.write(Mode::X, SVR, 0x1f0), OwnWrite::Done);
        assert_eq!(local.read(Mode::X, CURRENT_COUNT), OwnRead::Shared);
        assert_eq!(local.write(Mode::X, CURRENT_COUNT, 1), OwnWrite::Done);
    }

    #[test]
    fn x2apic_refuses_reserved_bits_and_registers() {
        let mut local = enabled();
        let before = local;
        for (register, value) in [
            (EOI, 1),
            (TPR, 0x100),
            (ID, 0),
            (LDR, 0),
            (DFR, 0),
            (ICR_HIGH, 0),
            (ESR, 1),
            (SELF_IPI, 0x100),
            (SVR, 1 << 32),
            (0x2f0, 0),
            (0x3f8, 0),
            (0xfff, 0),
        ] {
            assert_eq!(local.write(Mode::X2, register, value), OwnWrite::Bad);
        }
        assert_eq!(local.read(Mode::X2, EOI), OwnRead::Bad);
        assert_eq!(local.read(Mode::X2, DFR), OwnRead::Bad);
        assert_eq!(local.read(Mode::X2, SELF_IPI), OwnRead::Bad);
        assert_eq!(local, before);
    }

    #[test]
    fn xapic_notes_reserved_registers_and_requests_the_error_interrupt_once() {
        let mut local = enabled();
        local.write(Mode::X, LVT_ERROR, 0xfe);
        assert_eq!(local.write(Mode::X, 0x40, 1), OwnWrite::Bad);
        assert_eq!(local.take(), Some(0xfe));
        assert_eq!(local.write(Mode::X, 0x44, 1), OwnWrite::Bad);
        local.write(Mode::X, EOI, 0);
        assert_eq!(local.deliverable(), None);
        assert_eq!(value(&local, Mode::X, ESR), 0);
        local.write(Mode::X, ESR, 0);
        assert_eq!(value(&local, Mode::X, ESR), 1 << 7);
        local.write(Mode::X, ESR, 0);
        assert_eq!(value(&local, Mode::X, ESR), 0);
    }

    #[test]
    fn priority_follows_class_of_task_and_of_what_is_in_service() {
        let mut local = enabled();
        for vector in [0x31, 0x35, 0x41] {
            local.irr.insert(vector);
        }
        local.write(Mode::X, TPR, 0x45);
        assert_eq!(local.deliverable(), None);
        assert_eq!(value(&local, Mode::X, PPR), 0x45);
        local.write(Mode::X, TPR, 0x30);
        assert_eq!(local.take(), Some(0x41));
        assert_eq!(value(&local, Mode::X, PPR), 0x40);
        assert_eq!(local.take(), None);
        local.set_tpr(0);
        assert_eq!(local.write(Mode::X, EOI, 0), OwnWrite::Done);
        assert_eq!(local.take(), Some(0x35));
        // The same class waits.
        assert_eq!(local.take(), None);
        local.write(Mode::X, EOI, 0);
        assert_eq!(local.take(), Some(0x31));
    }

    #[test]
    fn a_disabled_apic_masks_its_vectors_and_delivers_nothing() {
        let mut local = enabled();
        local.write(Mode::X, LVT_LINT1, 0x400);
        local.irr.insert(0x50);
        local.store(SVR, 0xff);
        assert_eq!(value(&local, Mode::X, LVT_LINT1), 0x1_0400);
        local.write(Mode::X, LVT_LINT1, 0x400);
        assert_eq!(value(&local, Mode::X, LVT_LINT1), 0x1_0400);
        assert_eq!(local.deliverable(), None);
        assert_eq!(LocalApic::default().deliverable(), None);
    }
}
