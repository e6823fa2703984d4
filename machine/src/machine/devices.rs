//! The devices of a machine: a bare guest's page of registers, or a PC.

use bytes::{BufMut as _, Bytes, BytesMut};
use samsara_commitlog::{Exit, GuestTime, VcpuIndex};

use crate::bare::{BareDevices, DeviceError, Pending, Seen};
use crate::kvm::RawExit;
use crate::memory::Image;
use crate::pc::{Pc, Want};
use crate::vcpu::VcpuState;

/// What kind of machine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// Of a bare guest.
    Bare,
    /// A PC.
    Pc,
}

/// The state of all devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Of a bare guest.
    Bare(BareDevices),
    /// Of a PC.
    Pc(Box<Pc>),
}

mod platform_tag {
    pub(super) const BARE: u8 = 0;
    pub(super) const PC: u8 = 1;
}

impl Devices {
    /// Of what kind of machine they are.
    pub fn platform(&self) -> Platform {
        match self {
            Self::Bare(_) => Platform::Bare,
            Self::Pc(_) => Platform::Pc,
        }
    }

    /// The devices of a PC, if it is one.
    pub fn pc(&self) -> Option<&Pc> {
        match self {
            Self::Bare(_) => None,
            Self::Pc(pc) => Some(pc),
        }
    }

    /// The last MARK of a bare guest.
    pub fn mark(&self) -> u64 {
        match self {
            Self::Bare(bare) => bare.mark(),
            Self::Pc(_) => 0,
        }
    }

    /// Where the next INPUT of a bare guest reads the input file.
    pub fn input_offset(&self) -> u64 {
        match self {
            Self::Bare(bare) => bare.input_offset(),
            Self::Pc(_) => 0,
        }
    }

    /// Whether a vCPU neither runs nor ever will again.
    pub fn is_halted(&self, vcpu: VcpuIndex) -> bool {
        match self {
            Self::Bare(bare) => bare.is_halted(vcpu),
            Self::Pc(_) => false,
        }
    }

    /// Whether a vCPU has instructions to run now.
    pub fn can_run(&self, vcpu: VcpuIndex) -> bool {
        match self {
            Self::Bare(bare) => !bare.is_halted(vcpu) && bare.pending(vcpu).is_none(),
            Self::Pc(pc) => pc.can_run(vcpu),
        }
    }

    /// The operation that a vCPU of a bare guest waits for.
    pub fn pending(&self, vcpu: VcpuIndex) -> Option<&Pending> {
        match self {
            Self::Bare(bare) => bare.pending(vcpu),
            Self::Pc(_) => None,
        }
    }

    /// When the next timer fires.
    pub fn next_deadline(&self) -> Option<GuestTime> {
        self.pc()?.next_deadline()
    }

    /// What some device waits for from outside.
    pub fn wants(&self, image: &Image) -> impl Iterator<Item = Want> {
        self.pc().into_iter().flat_map(|pc| pc.wants(image))
    }

    /// Room for console input, in bytes.
    pub fn console_room(&self, image: &Image) -> usize {
        match self {
            Self::Bare(bare) => bare.console_room(),
            Self::Pc(pc) => pc.console_room(image),
        }
    }

    /// What a load from a device register gives. Changes nothing.
    pub fn read_value(&self, vcpu: VcpuIndex, exit: &Exit, time: GuestTime) -> u64 {
        match self {
            Self::Bare(bare) => bare.read_value(exit, time),
            Self::Pc(pc) => pc.read_value(vcpu, exit, time),
        }
    }

    /// The state as bytes, for snapshots and digests.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Bare(bare) => {
                out.put_u8(platform_tag::BARE);
                out.put_slice(&bare.encode());
            }
            Self::Pc(pc) => {
                out.put_u8(platform_tag::PC);
                out.put_slice(&pc.encode());
            }
        }
        out.freeze()
    }

    /// Reads [`Self::encode`]'s bytes back, checked against the machine they are for.
    pub fn decode(bytes: &Bytes, vcpu_count: u8, image: &Image) -> Result<Self, DeviceError> {
        let damaged = Err(DeviceError::Damaged(bytes.len()));
        let Some((&tag, _)) = bytes.split_first() else {
            return damaged;
        };
        let rest = bytes.slice(1..);
        match tag {
            platform_tag::BARE => BareDevices::decode(&rest, vcpu_count, image).map(Self::Bare),
            platform_tag::PC => {
                let pc = Pc::decode(&rest, vcpu_count);
                pc.map_or(damaged, |pc| Ok(Self::Pc(Box::new(pc))))
            }
            _ => damaged,
        }
    }
}

impl Platform {
    /// Turns a raw exit into the exit that a record has. `random` answers reads that need bits from
    /// outside. The state is that of the exit.
    pub fn interpret(
        self,
        raw: &RawExit,
        state: &VcpuState,
        memory: Seen<'_>,
        random: impl FnOnce() -> u64,
    ) -> Exit {
        match self {
            Self::Bare => crate::bare::interpret(raw, state, memory, random),
            Self::Pc => crate::pc::interpret(raw, state),
        }
    }
}
