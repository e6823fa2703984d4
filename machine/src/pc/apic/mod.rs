//! Interrupt controllers: a local APIC for each vCPU, and an IOAPIC.
//!
//! A local APIC has two parts. Its *own* part, [`LocalApic`], belongs to the vCPU's state: the vCPU
//! reads and changes it within its chunks, speculatively. Its *shared* part, [`SharedApic`], is
//! committed device state: the mailbox of what others sent, and the timer. A chunk begins with
//! [`LocalApic::accept`], which takes over what is in the mailbox; a store that acts on anything but the own
//! part ends its chunk, and [`Apics::write`] does it at the commit.
//!
//! ```text
//!   IOAPIC, timers, other vCPUs --send--> SharedApic --accept--> LocalApic --take--> the vCPU
//!                                         (commits)              (chunks)
//! ```
//!
//! Whether an APIC is enabled by software changes only at commits, so a sender knows whether its message is
//! accepted, and nothing that is accepted gets lost.

mod apics;
mod ioapic;
mod local;
mod message;
#[cfg(test)]
mod properties;
pub mod registers;
mod shared;
mod timer;
mod vectors;

use samsara_commitlog::VcpuIndex;

pub use apics::{ApicFault, Apics};
pub use local::{LocalApic, OwnRead, OwnWrite};
pub use shared::SharedApic;
pub use vectors::Vectors;

/// How a local APIC's registers are reached, and which it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// xAPIC: a page of memory, 8-bit ids.
    X,
    /// x2APIC: MSRs, 32-bit ids.
    X2,
}

/// The own parts of all local APICs, as committed.
pub trait Locals {
    /// A vCPU's own part.
    fn local(&self, vcpu: VcpuIndex) -> LocalApic;

    /// The mode that `IA32_APIC_BASE` says; none, if the APIC is disabled there.
    fn mode(&self, vcpu: VcpuIndex) -> Option<Mode>;

    /// Puts a changed own part in place.
    fn replace(&mut self, vcpu: VcpuIndex, local: LocalApic);
}
