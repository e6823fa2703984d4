//! The PC that Linux guests run on: interrupt controllers, timers, legacy and virtio devices, in user
//! space, with state that changes only in `apply`, on every replica alike.
//!
//! Who owns what decides when interrupts can arrive. A vCPU's local APIC proper ([`apic::LocalApic`]) is
//! part of the vCPU's state: the vCPU reads and writes it inside its chunks. What others send it, and
//! its timer, wait in a mailbox that belongs to the devices; [`Board::deliver`] empties it into the
//! local APIC between two chunks of the vCPU, and gives the vCPU the interrupt that it is ready for.

pub mod apic;
mod board;
pub mod legacy;
mod state;
pub mod virtio;

pub(crate) use board::{Board, InputFault};
pub use board::{Own, own_access};
pub use state::{ConsoleDevice, Delivery, Pc, PcFault, Want};

use samsara_commitlog::Exit;

use crate::kvm::RawExit;
use crate::machine::{Ended, Output};
use crate::vcpu::VcpuState;

/// What devices do to the rest of the machine and to the world outside, in order.
#[derive(Debug, Default)]
pub struct Signals {
    /// Interrupt lines (IOAPIC pins, by bit) that went up and down again.
    pub pulses: u32,
    /// What wants to leave the host.
    pub outputs: Vec<Output>,
    /// The machine stops.
    pub ended: Option<Ended>,
}

/// Turns a raw exit into the exit that a record has. The state is that of the exit.
pub(crate) fn interpret(raw: &RawExit, state: &VcpuState) -> Exit {
    match *raw {
        RawExit::Cut | RawExit::RingFull => Exit::Cut,
        RawExit::Window => Exit::Window,
        RawExit::Halt => Exit::Halt,
        RawExit::Write {
            space,
            address,
            size,
            value,
        } => Exit::Write {
            space,
            address,
            size,
            value,
        },
        RawExit::Read {
            space,
            address,
            size,
        } => Exit::Read {
            space,
            address,
            size,
            input: None,
        },
        RawExit::Fatal(ref reason) | RawExit::Refused(ref reason) => Exit::Fatal {
            rip: state.regs().rip,
            reason: reason.clone(),
        },
    }
}
