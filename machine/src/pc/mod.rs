//! The PC that Linux guests run on: interrupt controllers, timers, legacy and virtio devices, in user
//! space, with state that changes only in `apply`, on every replica alike.

pub mod apic;
pub mod legacy;
pub mod virtio;

use crate::machine::{Ended, Output};

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
