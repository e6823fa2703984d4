//! The machine as a replicated state machine: `S(n+1) = apply(S(n), record n)`.
//!
//! There is one [`Machine::apply`], used by the primary, a backup, and a reader of a log file.

mod apply;
mod digest;
mod snapshot;

use std::sync::Arc;

use bytes::Bytes;
use samsara_commitlog::{CommitSeq, DeviceIndex, GuestTime, Shape, VcpuIndex};

use crate::bare::{BareDevices, Guarded, are_confined};
use crate::kvm::Privilege;
use crate::memory::{Image, MemoryDigest, MemoryError};
use crate::vcpu::VcpuState;

pub use apply::{Applied, ApplyError, Source};
pub use digest::ChunkDigest;
pub use snapshot::{SnapshotError, SnapshotLoader};

/// What a commit wants to leave the host: held until the commit is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Bytes for the console.
    Console(Bytes),
    /// A network frame, without any header of a device's own.
    Frame {
        /// The network device that sends it.
        device: DeviceIndex,
        /// The frame.
        bytes: Bytes,
    },
    /// The machine has stopped.
    Ended(Ended),
}

/// How a machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest said so, with a status.
    Exit {
        /// The status.
        status: u8,
    },
    /// All its vCPUs have halted.
    Halted,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel said that it panicked.
    Panicked,
    /// The guest did something that it cannot go on from.
    Fault {
        /// What, with vCPU and addresses.
        message: String,
    },
}

/// Committed state: everything the guest can ever observe.
#[derive(Debug)]
pub struct Machine {
    shape: Shape,
    seq: CommitSeq,
    guest_time: GuestTime,
    image: Arc<Image>,
    vcpus: Vec<VcpuState>,
    devices: BareDevices,
    ended: Option<Ended>,
    digest: MemoryDigest,
}

impl Machine {
    /// A machine as booted.
    pub fn new(shape: Shape, image: Arc<Image>, vcpus: Vec<VcpuState>) -> Self {
        assert_eq!(vcpus.len(), usize::from(shape.vcpu_count));
        Self {
            shape,
            seq: CommitSeq::BOOT,
            guest_time: GuestTime::default(),
            digest: MemoryDigest::new(&image),
            image,
            vcpus,
            devices: BareDevices::new(shape.vcpu_count),
            ended: None,
        }
    }

    /// What the machine is made of.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The last commit.
    pub fn seq(&self) -> CommitSeq {
        self.seq
    }

    /// The guest clock at the last commit.
    pub fn guest_time(&self) -> GuestTime {
        self.guest_time
    }

    /// Committed memory.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// A vCPU's state at its last commit.
    pub fn vcpu(&self, index: VcpuIndex) -> &VcpuState {
        &self.vcpus[usize::from(index.0)]
    }

    /// The pages whose contents keep the guest's code at CPL 3.
    pub fn guarded(&self) -> Guarded {
        Guarded::new(self.image.layout(), self.shape().vcpu_count)
    }

    /// What the guest's code may change of its vCPUs: little, as long as it is kept at CPL 3 and leaves
    /// the guarded pages alone.
    pub fn privilege(&self) -> Result<Privilege, MemoryError> {
        let is_confined = are_confined(&self.vcpus, self.image.layout())
            && self.guarded().are_intact(&self.image, self.shape())?;
        Ok(if is_confined {
            Privilege::User
        } else {
            Privilege::Kernel
        })
    }

    /// The devices.
    pub fn devices(&self) -> &BareDevices {
        &self.devices
    }

    /// How the machine stopped, if it has.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }
}
