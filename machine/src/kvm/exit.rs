//! Why a vCPU stopped running.

use samsara_commitlog::Space;

/// What ended a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawExit {
    /// The timer or a kick.
    Cut,
    /// A store to an address or port without memory.
    Write {
        /// Address space.
        space: Space,
        /// Address or port.
        address: u64,
        /// Bytes, 1 to 8.
        size: u8,
        /// Zero-extended.
        value: u64,
    },
    /// A load from an address or port without memory; it waits for its value.
    Read {
        /// Address space.
        space: Space,
        /// Address or port.
        address: u64,
        /// Bytes, 1 to 8.
        size: u8,
    },
    /// The ring of written pages must be emptied before the vCPU can go on.
    RingFull,
    /// HLT with no interrupt controller in the kernel.
    Halt,
    /// The vCPU can take an interrupt, and [`super::Vcpu::want_window`] asked for that.
    Window,
    /// The vCPU cannot go on.
    Fatal(String),
    /// KVM does not run it, whatever its code is.
    Refused(String),
}

impl RawExit {
    /// Whether the vCPU stopped where nothing of its own made it stop.
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::Cut | Self::RingFull)
    }

    /// Why the vCPU cannot go on, if it cannot.
    pub fn fatal(&self) -> Option<&str> {
        match self {
            Self::Fatal(reason) | Self::Refused(reason) => Some(reason),
            _ => None,
        }
    }
}
