//! Interrupt messages: from a local APIC's command register or from the IOAPIC, to local APICs.

use samsara_commitlog::VcpuIndex;

use super::local::x2_logical_id;
use super::shared::{SharedApic, Trigger};
use super::{LocalApic, Locals, Mode};

/// What a message does to those whom it reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Requests an interrupt.
    Fixed,
    /// Requests an interrupt of one of them: here always the first.
    LowestPriority,
    Nmi,
    Init,
    StartUp,
}

impl Delivery {
    /// From the delivery mode field that commands and redirection entries have. SMI, `ExtINT` and
    /// reserved modes have nothing behind them.
    pub(super) fn from_bits(low: u32) -> Option<Self> {
        Some(match low >> 8 & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => return None,
        })
    }

    /// Whether it requests interrupts by vector.
    pub(super) fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// An address on the interrupt bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// From an xAPIC or the IOAPIC.
    Narrow(u8),
    /// From an x2APIC.
    Wide(u32),
}

impl Address {
    fn is_broadcast(self) -> bool {
        matches!(self, Self::Narrow(u8::MAX) | Self::Wide(u32::MAX))
    }

    fn bits(self) -> u32 {
        match self {
            Self::Narrow(bits) => bits.into(),
            Self::Wide(bits) => bits,
        }
    }
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    Physical(Address),
    Logical(Address),
    One(VcpuIndex),
    All,
    AllBut(VcpuIndex),
}

impl Destination {
    /// From an address and the destination mode bit of commands and redirection entries.
    pub(super) fn from_bits(low: u32, address: Address) -> Self {
        if low & 1 << 11 == 0 {
            Self::Physical(address)
        } else {
            Self::Logical(address)
        }
    }

    fn includes(self, vcpu: VcpuIndex, mode: Mode, local: &LocalApic) -> bool {
        match self {
            Self::Physical(address) => address.is_broadcast() || address.bits() == local.id(),
            Self::Logical(address) => {
                address.is_broadcast() || is_logical_match(address.bits(), mode, local)
            }
            Self::One(one) => vcpu == one,
            Self::All => true,
            Self::AllBut(one) => vcpu != one,
        }
    }
}

fn is_logical_match(bits: u32, mode: Mode, local: &LocalApic) -> bool {
    if mode == Mode::X2 {
        let id = x2_logical_id(local.id());
        return bits >> 16 == id >> 16 && bits & id & 0xffff != 0;
    }
    let (ldr, dfr) = local.logical();
    let id = ldr >> 24;
    match dfr >> 28 {
        _ if bits > 0xff => false,
        // Flat.
        0xf => bits & id != 0,
        // Clusters of four; 0xf is every cluster.
        0 => (bits >> 4 == 0xf || bits >> 4 == id >> 4) && bits & id & 0xf != 0,
        _ => false,
    }
}

/// An interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) delivery: Delivery,
    pub(super) vector: u8,
    pub(super) trigger: Trigger,
    pub(super) destination: Destination,
}

impl Message {
    /// Puts the message into the mailboxes of those it is for. Whether any accepted it.
    pub(super) fn send(&self, shared: &mut [SharedApic], locals: &dyn Locals) -> bool {
        let mut is_accepted = false;
        for (index, mailbox) in (0..=u8::MAX).zip(shared) {
            let vcpu = VcpuIndex(index);
            let Some(mode) = locals.mode(vcpu) else {
                continue;
            };
            let local = locals.local(vcpu);
            if self.destination.includes(vcpu, mode, &local) {
                is_accepted |= self.deliver(mailbox, &local);
            }
            if is_accepted && self.delivery == Delivery::LowestPriority {
                break;
            }
        }
        is_accepted
    }

    fn deliver(&self, mailbox: &mut SharedApic, local: &LocalApic) -> bool {
        match self.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                return local.is_enabled() && mailbox.post(self.vector, self.trigger);
            }
            Delivery::Nmi => mailbox.nmi = true,
            Delivery::Init => mailbox.post_init(),
            Delivery::StartUp => {
                mailbox.sipi.get_or_insert(self.vector);
            }
        }
        true
    }
}
