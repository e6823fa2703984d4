//! The machine as a replicated state machine: `S(n+1) = apply(S(n), record n)`.
//!
//! There is one [`Machine::apply`], used by the primary, a backup, and a reader of a log file.

mod apply;
mod devices;
mod digest;
mod paging;
mod rewind;
mod snapshot;

use std::sync::Arc;

use bytes::Bytes;
use samsara_commitlog::{CommitSeq, DeviceIndex, GuestTime, Shape, VcpuIndex};

use crate::bare::{self, BareDevices, Guarded};
use crate::kvm::{Privilege, Stepper, Stepping};
use crate::memory::{Image, MemoryDigest, MemoryError, PageIndex, PageSet, View};
use crate::pc::apic::LocalApic;
use crate::pc::virtio::Blocks;
use crate::pc::{Delivery, Pc, Want};
use crate::vcpu::VcpuState;

pub use apply::{Applied, ApplyError, Changed, Source};
pub use devices::{Devices, Platform};
pub use digest::ChunkDigest;
pub use rewind::{Change, Rewindable};
pub use snapshot::{SnapshotError, SnapshotLoader, Zeros, page_runs};

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
    devices: Devices,
    /// By block device. Not part of the state: equal on all replicas, because the same commits write them.
    disks: Vec<Arc<dyn Blocks>>,
    /// By vCPU, what happened to its state besides what its chunks did, until somebody takes it.
    touched: Vec<Touched>,
    ended: Option<Ended>,
    digest: MemoryDigest,
    /// Pages that commits wrote, while somebody copies memory. Not part of the state.
    tracked: Option<PageSet>,
}

/// What happened to a vCPU's state besides what its chunks did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    /// Nothing.
    #[default]
    No,
    /// Its local APIC changed.
    Apic,
    /// An interrupt was delivered to it.
    Events,
    /// Everything: it was reset or started.
    Whole,
}

impl Machine {
    /// A machine as booted.
    pub fn new(shape: Shape, image: Arc<Image>, vcpus: Vec<VcpuState>) -> Self {
        let devices = Devices::Bare(BareDevices::new(shape.vcpu_count));
        Self::with_devices(shape, image, vcpus, devices, Vec::new())
    }

    /// A PC as booted. `disks` are those of its block devices, in their order.
    pub fn new_pc(
        shape: Shape,
        image: Arc<Image>,
        mut vcpus: Vec<VcpuState>,
        pc: Pc,
        disks: Vec<Arc<dyn Blocks>>,
    ) -> Self {
        for (index, state) in (0..).zip(&mut vcpus) {
            state.set_apic(&LocalApic::at_reset(index));
        }
        Self::with_devices(shape, image, vcpus, Devices::Pc(Box::new(pc)), disks)
    }

    fn with_devices(
        shape: Shape,
        image: Arc<Image>,
        vcpus: Vec<VcpuState>,
        devices: Devices,
        disks: Vec<Arc<dyn Blocks>>,
    ) -> Self {
        assert_eq!(vcpus.len(), usize::from(shape.vcpu_count));
        // What a loader wrote is no device's doing.
        image.take_dma(&mut Vec::new());
        Self {
            shape,
            seq: CommitSeq::BOOT,
            guest_time: GuestTime::default(),
            digest: MemoryDigest::new(&image),
            image,
            vcpus,
            devices,
            disks,
            touched: vec![Touched::No; shape.vcpu_count.into()],
            ended: None,
            tracked: None,
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
        if self.devices.platform() == Platform::Pc {
            return Ok(Privilege::Kernel);
        }
        let guarded = self.guarded();
        let mut vcpus = (0..).map(VcpuIndex).zip(&self.vcpus);
        let is_confined = vcpus.all(|(index, state)| guarded.confine(index, state))
            && guarded.are_intact(&self.image, self.shape())?;
        Ok(if is_confined {
            Privilege::User
        } else {
            Privilege::Kernel
        })
    }

    /// What steps a vCPU in a view; nothing for a machine whose exception handlers are the guest's own.
    pub fn stepper(
        &self,
        vcpu: VcpuIndex,
        view: &Arc<View>,
        stepping: Stepping,
    ) -> Option<Stepper> {
        let is_bare = self.platform() == Platform::Bare;
        is_bare.then(|| bare::stepper(vcpu, view, stepping))
    }

    /// The devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// What kind of machine it is.
    pub fn platform(&self) -> Platform {
        self.devices.platform()
    }

    /// Whether something waits for a vCPU that can only reach it between two of its chunks.
    pub fn has_interrupt_for(&self, vcpu: VcpuIndex) -> bool {
        let pc = self.devices.pc();
        pc.is_some_and(|pc| pc.has_interrupt_for(vcpu, self.vcpu(vcpu)))
    }

    /// When a vCPU's state was taken: its TSC was that then.
    pub fn ran_until(&self, vcpu: VcpuIndex) -> GuestTime {
        let pc = self.devices.pc();
        pc.map_or(self.guest_time, |pc| pc.ran_until(vcpu))
    }

    /// What devices wait for from outside, by device.
    pub fn wants(&self) -> impl Iterator<Item = Want> {
        self.devices.wants(&self.image)
    }

    /// Room for console input, in bytes.
    pub fn console_room(&self) -> usize {
        self.devices.console_room(&self.image)
    }

    /// When interrupts reach a vCPU, from the next commit on. To be said before a machine runs, and
    /// before anybody takes a snapshot of it.
    pub fn set_delivery(&mut self, delivery: Delivery) {
        if let Devices::Pc(pc) = &mut self.devices {
            pc.set_delivery(delivery);
        }
    }

    /// Takes what happened to a vCPU's state besides what its chunks did.
    pub fn take_touched(&mut self, vcpu: VcpuIndex) -> Touched {
        std::mem::take(&mut self.touched[usize::from(vcpu.0)])
    }

    /// What [`Self::take_touched`] would give.
    pub fn touched(&self, vcpu: VcpuIndex) -> Touched {
        self.touched[usize::from(vcpu.0)]
    }

    /// From here on, notes which pages commits write: for who copies memory while the machine runs.
    pub fn track_pages(&mut self) {
        self.tracked = Some(PageSet::new(self.image.layout()));
    }

    /// The pages written since they were last taken, rising; none if nobody tracks them.
    pub fn take_tracked(&mut self) -> Vec<PageIndex> {
        self.tracked.as_mut().map_or_else(Vec::new, PageSet::take)
    }

    /// Ends [`Self::track_pages`].
    pub fn untrack_pages(&mut self) {
        self.tracked = None;
    }

    /// How the machine stopped, if it has.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }
}
