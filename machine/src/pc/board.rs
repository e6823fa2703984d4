//! A PC at one commit: its devices act, with everything that they may reach.

use std::sync::Arc;

use bytes::Bytes;
use samsara_commitlog::{Exit, GuestTime, Input, Space, VcpuIndex};

use super::Signals;
use super::apic::{LocalApic, Mode, OwnRead, OwnWrite, SharedApic};
use super::state::{Activity, CONTROLLER_BYTES, ConsoleDevice, Delivery, LOCAL_APIC, Pc, Register};
use super::virtio::{self, Blocks, DeviceFault, Reaction};
use crate::kvm::RawExit;
use crate::linux;
use crate::machine::{Ended, Output, Touched};
use crate::memory::Image;
use crate::vcpu::VcpuState;

#[cfg(test)]
mod tests;

const RFLAGS_IF: u64 = 1 << 9;

/// An input that the devices cannot take.
pub(crate) enum InputFault {
    /// There is no device that takes it; the log that has it is wrong.
    NoSuchDevice,
    /// This host fails the device.
    Device(DeviceFault),
}

impl From<DeviceFault> for InputFault {
    fn from(fault: DeviceFault) -> Self {
        Self::Device(fault)
    }
}

/// See the module's description.
pub(crate) struct Board<'a> {
    pub(crate) pc: &'a mut Pc,
    pub(crate) vcpus: &'a mut [VcpuState],
    pub(crate) touched: &'a mut [Touched],
    pub(crate) disks: &'a [Arc<dyn Blocks>],
    pub(crate) image: &'a Image,
    pub(crate) now: GuestTime,
    pub(crate) signals: &'a mut Signals,
}

impl Board<'_> {
    /// Timers that are due fire.
    pub(crate) fn advance(&mut self) {
        self.pc.apics.advance(self.now);
        self.pc.legacy.advance(self.now, self.signals);
        self.raise_lines();
    }

    /// Acts on the exit that ended a chunk.
    pub(crate) fn exit(&mut self, vcpu: VcpuIndex, exit: &Exit) {
        self.pc.ran_until_ns[usize::from(vcpu.0)] = self.now.0;
        match *exit {
            Exit::Halt => self.pc.activity[usize::from(vcpu.0)] = Activity::Halted,
            Exit::Write {
                space,
                address,
                size,
                value,
            } => self.write(vcpu, space, address, size, value),
            Exit::Read {
                space: Space::Port,
                address,
                size,
                ..
            } => {
                let legacy = &mut self.pc.legacy;
                legacy.finish_read(address as u16, size, self.now, self.signals);
            }
            Exit::Cut | Exit::Window | Exit::Read { .. } => {}
            Exit::Exception { rip, vector, .. } => {
                self.fault(format!("vCPU {vcpu}: exception {vector} at RIP {rip:#x}"));
            }
            Exit::Fatal { rip, ref reason } => {
                self.fault(format!(
                    "vCPU {vcpu}: cannot go on at RIP {rip:#x}: {reason}"
                ));
            }
        }
        self.raise_lines();
    }

    fn fault(&mut self, message: String) {
        self.signals.ended = Some(Ended::Fault { message });
    }

    fn write(&mut self, vcpu: VcpuIndex, space: Space, address: u64, size: u8, value: u64) {
        match self.pc.register(space, address) {
            Register::LocalApic(mode, register) => {
                let mut locals = Locals(self.vcpus);
                let apics = &mut self.pc.apics;
                apics.write(vcpu, mode, register, value, self.now, &mut locals);
                let touched = &mut self.touched[usize::from(vcpu.0)];
                *touched = Touched::Apic.max(*touched);
            }
            Register::IoApic(offset) => {
                let locals = Locals(self.vcpus);
                self.pc.apics.ioapic_write(offset, value as u32, &locals);
            }
            Register::Virtio(device, offset) => {
                let mut reaction = Reaction::default();
                let memory = self.image.guest_memory();
                self.pc.virtio[device].write(offset, size, value, memory, &mut reaction);
                self.react(device, reaction);
            }
            Register::Port(port) => {
                let legacy = &mut self.pc.legacy;
                legacy.write(port, size, value, self.now, self.signals);
            }
            Register::Nothing => {}
        }
    }

    /// Takes an input.
    pub(crate) fn input(&mut self, input: &Input) -> Result<(), InputFault> {
        match input {
            Input::Clock => {}
            Input::Console(bytes) => match self.pc.console {
                ConsoleDevice::Serial => self.pc.legacy.type_in(bytes, self.signals),
                ConsoleDevice::Virtio(device) => self.device(usize::from(device), bytes)?,
            },
            Input::Device { device, bytes } => self.device(usize::from(device.0), bytes)?,
            Input::File { .. } | Input::OutputStep { .. } => return Err(InputFault::NoSuchDevice),
        }
        self.raise_lines();
        Ok(())
    }

    fn device(&mut self, index: usize, bytes: &Bytes) -> Result<(), InputFault> {
        let disk = self.pc.disk_of(index).and_then(|disk| self.disks.get(disk));
        let device = self.pc.virtio.get_mut(index);
        let device = device.ok_or(InputFault::NoSuchDevice)?;
        let mut reaction = Reaction::default();
        let memory = self.image.guest_memory();
        device.input(bytes, memory, disk.map(AsRef::as_ref), &mut reaction)?;
        self.react(index, reaction);
        Ok(())
    }

    fn react(&mut self, device: usize, reaction: Reaction) {
        if reaction.interrupts {
            self.signals.pulses |= 1 << virtio::LINES[device];
        }
        if !reaction.console.is_empty() {
            let bytes = reaction.console.into();
            self.signals.outputs.push(Output::Console(bytes));
        }
        let device = samsara_commitlog::DeviceIndex(device as u8);
        let frames = reaction.frames.into_iter();
        let outputs = frames.map(|bytes| Output::Frame { device, bytes });
        self.signals.outputs.extend(outputs);
    }

    fn raise_lines(&mut self) {
        let pulses = std::mem::take(&mut self.signals.pulses);
        for pin in (0..24).filter(|pin| pulses & 1 << pin != 0) {
            self.pc.apics.pulse(pin, &Locals(self.vcpus));
        }
    }

    /// Gives vCPUs that stand between two chunks what waits for them. `own` is the one whose chunk has
    /// just ended. When none will ever run again, the machine has ended.
    pub(crate) fn deliver(&mut self, own: Option<VcpuIndex>) {
        for index in 0..self.vcpus.len() {
            let stands = self.pc.delivery == Delivery::AllCommits
                || own == Some(VcpuIndex(index as u8))
                || self.pc.activity[index] != Activity::Runs;
            if stands {
                self.deliver_to(index);
            }
        }
        let is_stuck = |(activity, state): (&Activity, &VcpuState)| match activity {
            Activity::Runs => false,
            Activity::Halted => state.regs().rflags & RFLAGS_IF == 0,
            Activity::WaitsForStart => true,
        };
        let mut all = self.pc.activity.iter().zip(self.vcpus.iter());
        if self.signals.ended.is_none() && all.all(is_stuck) {
            self.signals.ended = Some(Ended::Halted);
        }
    }

    fn deliver_to(&mut self, index: usize) {
        let (state, activity) = (&mut self.vcpus[index], &mut self.pc.activity[index]);
        let mailbox = self.pc.apics.shared_mut(VcpuIndex(index as u8));
        let mut touched = Touched::No;
        if mailbox.init {
            *state = linux::after_init(state);
            state.set_apic(&LocalApic::at_reset(index as u8));
            mailbox.finish_init();
            *activity = Activity::WaitsForStart;
            touched = Touched::Whole;
        }
        // One that does not wait for its start takes no notice of it.
        let start = mailbox.sipi.take();
        if *activity == Activity::WaitsForStart
            && let Some(vector) = start
        {
            *state = linux::after_sipi(state, vector);
            *activity = Activity::Runs;
            touched = Touched::Whole;
        }
        if *activity != Activity::WaitsForStart {
            let mut local = state.apic();
            touched = touched.max(interrupt(state, &mut local, mailbox, activity));
            if state.apic() != local {
                state.set_apic(&local);
                touched = touched.max(Touched::Apic);
            }
        }
        self.touched[index] = self.touched[index].max(touched);
    }
}

/// Takes over what is in the mailbox, and gives the vCPU what it is ready for.
fn interrupt(
    state: &mut VcpuState,
    local: &mut LocalApic,
    mailbox: &mut SharedApic,
    activity: &mut Activity,
) -> Touched {
    let mut touched = Touched::No;
    if mailbox.nmi && state.has_pending_nmi() {
        // The two become one, as in a processor.
        mailbox.nmi = false;
    }
    if mailbox.nmi && state.accepts_nmi() {
        mailbox.nmi = false;
        state.set_pending_nmi();
        *activity = Activity::Runs;
        touched = Touched::Events;
    }
    local.accept(mailbox);
    if local.deliverable().is_none() || !state.accepts_interrupt() {
        return touched;
    }
    *activity = Activity::Runs;
    if let Some(vector) = local.take() {
        state.set_interrupt(vector);
        touched = Touched::Events;
    }
    touched
}

/// The vCPUs' own parts of their local APICs, as committed.
struct Locals<'a>(&'a mut [VcpuState]);

impl super::apic::Locals for Locals<'_> {
    fn local(&self, vcpu: VcpuIndex) -> LocalApic {
        self.0[usize::from(vcpu.0)].apic()
    }

    fn mode(&self, vcpu: VcpuIndex) -> Option<Mode> {
        self.0[usize::from(vcpu.0)].apic_mode()
    }

    fn replace(&mut self, vcpu: VcpuIndex, local: LocalApic) {
        self.0[usize::from(vcpu.0)].set_apic(&local);
    }
}

/// What an exit inside a chunk of a PC's vCPU is.
pub enum Own {
    /// A load that the vCPU's own APIC answers: it waits for this value.
    Value(u64),
    /// A store that the vCPU's own APIC has taken.
    Done,
    /// Everything else: it ends the chunk.
    Other,
}

/// Has a vCPU's own APIC deal with an exit, if it concerns nobody else.
pub fn own_access(local: &mut LocalApic, raw: &RawExit) -> Own {
    let place = |space, address: u64| match space {
        Space::Mmio if address.wrapping_sub(LOCAL_APIC) < CONTROLLER_BYTES => {
            Some((Mode::X, (address - LOCAL_APIC) as u16))
        }
        Space::Msr => Some((Mode::X2, (address.wrapping_sub(0x800) & 0xff) as u16 * 16)),
        _ => None,
    };
    match *raw {
        RawExit::Read { space, address, .. } => match place(space, address) {
            None => Own::Other,
            Some((mode, register)) => match local.read(mode, register) {
                OwnRead::Value(value) => Own::Value(value),
                OwnRead::Bad => Own::Value(0),
                OwnRead::Shared => Own::Other,
            },
        },
        RawExit::Write {
            space,
            address,
            value,
            ..
        } => match place(space, address) {
            None => Own::Other,
            Some((mode, register)) => match local.write(mode, register, value) {
                OwnWrite::Done | OwnWrite::Bad => Own::Done,
                OwnWrite::Shared => Own::Other,
            },
        },
        _ => Own::Other,
    }
}
