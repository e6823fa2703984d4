use std::sync::Arc;

use samsara_commitlog::{Exit, GuestTime, Input, Shape, Space, VcpuIndex};

use super::super::apic::registers::{ICR, SVR};
use super::super::state::LOCAL_APIC;
use crate::Machine;
use crate::machine::Devices;
use crate::memory::Image;
use crate::pc::{ConsoleDevice, Pc};
use crate::vcpu::VcpuState;

const SELF: VcpuIndex = VcpuIndex(0);
const NMI: u64 = 0x400;
/// An interrupt with vector 0x40.
const INTERRUPT: u64 = 0x4_0040;
const APIC_ENABLED: u64 = 1 << 11;
const RFLAGS: u64 = 0x202;

/// A PC of one vCPU, whose APIC and interrupts are on.
fn machine() -> Machine {
    let shape = Shape::new(1, 16 << 20).unwrap();
    let mut state = VcpuState::zeroed(&[]);
    let mut sregs = state.sregs();
    sregs.apic_base = LOCAL_APIC | APIC_ENABLED;
    state.set_sregs(&sregs);
    let mut regs = state.regs();
    regs.rflags = RFLAGS;
    state.set_regs(&regs);
    let pc = Pc::new(1, 0, Vec::new(), ConsoleDevice::Serial);
    let image = Arc::new(Image::new(shape).unwrap());
    let mut machine = Machine::new_pc(shape, image, vec![state], pc, Vec::new());
    store(&mut machine, SVR, 0x1ff);
    machine
}

/// The vCPU's chunk ends in a store to its APIC.
fn store(machine: &mut Machine, register: u16, value: u64) {
    let exit = Exit::Write {
        space: Space::Mmio,
        address: LOCAL_APIC + u64::from(register),
        size: 4,
        value,
    };
    machine.exit_natively(SELF, &exit, GuestTime(1)).unwrap();
}

/// The vCPU has taken the event that was under way, and its chunk has ended.
fn take_event(machine: &mut Machine) {
    let state = machine.vcpu_mut(SELF);
    let mut events = state.events();
    events.interrupt.injected = 0;
    state.set_events(&events);
    let cut = Exit::Cut;
    machine.exit_natively(SELF, &cut, GuestTime(1)).unwrap();
}

/// Otherwise each of its chunks would be ended before it has begun, and none would take the interrupt.
#[test]
fn an_nmi_that_a_vcpu_cannot_take_yet_does_not_end_its_chunks() {
    let mut machine = machine();
    store(&mut machine, ICR, INTERRUPT);
    assert_eq!(machine.vcpu(SELF).events().interrupt.injected, 1);
    store(&mut machine, ICR, NMI);
    assert_eq!(machine.vcpu(SELF).events().nmi.pending, 0);
    assert!(!machine.has_interrupt_for(SELF));
    take_event(&mut machine);
    assert_eq!(machine.vcpu(SELF).events().nmi.pending, 1);
    assert!(!machine.has_interrupt_for(SELF));
}

#[test]
fn nmis_that_wait_are_one() {
    let mut machine = machine();
    for _ in 0..3 {
        store(&mut machine, ICR, NMI);
        assert_eq!(machine.vcpu(SELF).events().nmi.pending, 1);
        assert!(!machine.has_interrupt_for(SELF));
    }
    // The first is taken, and none of the others comes after it.
    let state = machine.vcpu_mut(SELF);
    let mut events = state.events();
    events.nmi.pending = 0;
    state.set_events(&events);
    let cut = Exit::Cut;
    machine.exit_natively(SELF, &cut, GuestTime(1)).unwrap();
    assert_eq!(machine.vcpu(SELF).events().nmi.pending, 0);
}

/// Its TSC is that of then, however long the vCPU has halted since.
#[test]
fn it_is_kept_when_each_vcpu_ran_last() {
    let mut machine = machine();
    machine
        .exit_natively(SELF, &Exit::Halt, GuestTime(500))
        .unwrap();
    machine
        .input_natively(&Input::Clock, GuestTime(9000))
        .unwrap();
    assert_eq!(machine.ran_until(SELF), GuestTime(500));
    let encoded = machine.devices().encode();
    let devices = Devices::decode(&encoded, 1, machine.image()).unwrap();
    assert_eq!(devices.pc().unwrap().ran_until(SELF), GuestTime(500));
}
