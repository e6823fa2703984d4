//! The state of a PC's devices.

use bytes::Bytes;
use samsara_commitlog::{DeviceIndex, Exit, GuestTime, Space, VcpuIndex};
use serde::{Deserialize, Serialize};

use super::apic::{Apics, Mode};
use super::legacy::Legacy;
use super::virtio::{self, Device, Kind};
use crate::memory::Image;
use crate::vcpu::VcpuState;

/// Version of everything in [`Pc`].
const VERSION: u32 = 2;

pub(super) const LOCAL_APIC: u64 = 0xfee0_0000;
pub(super) const IOAPIC: u64 = 0xfec0_0000;
pub(super) const CONTROLLER_BYTES: u64 = 0x1000;
/// The first MSR of the local APIC.
const APIC_MSRS: u64 = 0x800;
const APIC_MSR_COUNT: u64 = 0x100;

/// When interrupts reach a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delivery {
    /// At its own commits, and while it has halted: another vCPU may commit while it runs a chunk.
    OwnCommits,
    /// At every commit: chunks run one at a time.
    AllCommits,
}

/// Where typed bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleDevice {
    /// The serial port.
    Serial,
    /// The virtio console, which is this device.
    Virtio(u8),
}

/// What a vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Activity {
    Runs,
    /// Until an interrupt that it takes.
    Halted,
    /// Since INIT, or boot.
    WaitsForStart,
}

/// What a device waits for from outside: an [`samsara_commitlog::Input::Device`] for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The device.
    pub device: DeviceIndex,
    /// What its input has.
    pub what: virtio::Want,
}

/// Encoded devices are not those of a PC of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the devices' state is damaged, or of another version than {VERSION}")]
pub struct PcFault;

/// All devices of a PC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pc {
    version: u32,
    pub(super) delivery: Delivery,
    pub(super) console: ConsoleDevice,
    /// By vCPU.
    pub(super) activity: Vec<Activity>,
    /// Guest nanoseconds at the end of each vCPU's last chunk.
    pub(super) ran_until_ns: Vec<u64>,
    pub(super) apics: Apics,
    pub(super) legacy: Legacy,
    pub(super) virtio: Vec<Device>,
}

/// A device register, as far as the address says.
pub(super) enum Register {
    LocalApic(Mode, u16),
    IoApic(u64),
    /// A register of a virtio device that there is.
    Virtio(usize, u64),
    Port(u16),
    Nothing,
}

impl Pc {
    /// Devices at boot: vCPU 0 runs, the others wait for it to start them. The time of day is input.
    pub fn new(
        vcpu_count: u8,
        unix_time_ns: u64,
        virtio: Vec<Device>,
        console: ConsoleDevice,
    ) -> Self {
        assert!(virtio.len() <= virtio::DEVICES_MAX);
        let activity = |index| match index {
            0 => Activity::Runs,
            _ => Activity::WaitsForStart,
        };
        Self {
            version: VERSION,
            delivery: Delivery::OwnCommits,
            console,
            activity: (0..vcpu_count).map(activity).collect(),
            ran_until_ns: vec![0; vcpu_count.into()],
            apics: Apics::new(vcpu_count),
            legacy: Legacy::new(unix_time_ns),
            virtio,
        }
    }

    pub(crate) fn set_delivery(&mut self, delivery: Delivery) {
        self.delivery = delivery;
    }

    pub(crate) fn can_run(&self, vcpu: VcpuIndex) -> bool {
        self.activity.get(usize::from(vcpu.0)) == Some(&Activity::Runs)
    }

    /// When a vCPU's last chunk ended.
    pub(crate) fn ran_until(&self, vcpu: VcpuIndex) -> GuestTime {
        GuestTime(self.ran_until_ns[usize::from(vcpu.0)])
    }

    /// Whether something waits for a vCPU that it takes as soon as its chunk ends. What it cannot take yet
    /// must not end its chunks: it would not get to where it can.
    pub(crate) fn has_interrupt_for(&self, vcpu: VcpuIndex, state: &VcpuState) -> bool {
        self.apics.shared(vcpu).has_work(state.accepts_nmi())
    }

    pub(crate) fn next_deadline(&self) -> Option<GuestTime> {
        let deadlines = [self.apics.next_deadline(), self.legacy.next_deadline()];
        deadlines.into_iter().flatten().min()
    }

    pub(crate) fn wants(&self, image: &Image) -> impl Iterator<Item = Want> {
        let devices = (0..).map(DeviceIndex).zip(&self.virtio);
        devices.filter_map(|(device, state)| {
            let what = state.wants(image.guest_memory())?;
            Some(Want { device, what })
        })
    }

    /// Whether a network device can take a frame of so many bytes.
    pub fn has_room(&self, device: DeviceIndex, bytes: usize, image: &Image) -> bool {
        let device = self.virtio.get(usize::from(device.0));
        device.is_some_and(|device| device.has_room(bytes, image.guest_memory()))
    }

    pub(crate) fn console_room(&self, image: &Image) -> usize {
        match self.console {
            ConsoleDevice::Serial => self.legacy.console_room(),
            ConsoleDevice::Virtio(device) => {
                usize::from(self.has_room(DeviceIndex(device), 1, image))
            }
        }
    }

    /// How many virtio devices there are.
    pub fn device_count(&self) -> usize {
        self.virtio.len()
    }

    /// Sizes of the disks, by block device.
    pub fn disk_bytes(&self) -> impl Iterator<Item = u64> {
        self.virtio.iter().filter_map(disk_bytes)
    }

    /// The number of a block device among the disks.
    pub(super) fn disk_of(&self, device: usize) -> Option<usize> {
        self.virtio.get(device).and_then(disk_bytes)?;
        let before = self.virtio[..device].iter();
        Some(before.filter_map(disk_bytes).count())
    }

    pub(super) fn register(&self, space: Space, address: u64) -> Register {
        let within = |base: u64, bytes| {
            let offset = address.wrapping_sub(base);
            (offset < bytes).then_some(offset)
        };
        match space {
            Space::Port => Register::Port(address as u16),
            Space::Msr => within(APIC_MSRS, APIC_MSR_COUNT).map_or(Register::Nothing, |offset| {
                Register::LocalApic(Mode::X2, offset as u16 * 16)
            }),
            Space::Mmio => {
                let windows = virtio::WINDOW_BYTES * self.virtio.len() as u64;
                if let Some(offset) = within(LOCAL_APIC, CONTROLLER_BYTES) {
                    Register::LocalApic(Mode::X, offset as u16)
                } else if let Some(offset) = within(IOAPIC, CONTROLLER_BYTES) {
                    Register::IoApic(offset)
                } else if let Some(offset) = within(virtio::BASE, windows) {
                    let device = (offset / virtio::WINDOW_BYTES) as usize;
                    Register::Virtio(device, offset % virtio::WINDOW_BYTES)
                } else {
                    Register::Nothing
                }
            }
        }
    }

    pub(crate) fn read_value(&self, vcpu: VcpuIndex, exit: &Exit, now: GuestTime) -> u64 {
        let &Exit::Read {
            space,
            address,
            size,
            ..
        } = exit
        else {
            return 0;
        };
        match self.register(space, address) {
            Register::LocalApic(_, register) => self.apics.read(vcpu, register, now),
            Register::IoApic(offset) => self.apics.ioapic_read(offset).into(),
            Register::Virtio(device, offset) => self.virtio[device].read(offset, size),
            Register::Port(port) => self.legacy.read(port, size, now),
            Register::Nothing => u64::MAX,
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        postcard::to_stdvec(self)
            .map(Bytes::from)
            .expect("plain data in memory has an encoding")
    }

    pub(crate) fn decode(bytes: &Bytes, vcpu_count: u8) -> Result<Self, PcFault> {
        let (pc, rest): (Self, _) = postcard::take_from_bytes(bytes).map_err(|_| PcFault)?;
        let fits = rest.is_empty()
            && pc.version == VERSION
            && pc.activity.len() == usize::from(vcpu_count)
            && pc.ran_until_ns.len() == usize::from(vcpu_count)
            && pc.virtio.len() <= virtio::DEVICES_MAX;
        let fits = fits
            && pc.apics.check(vcpu_count).is_ok()
            && pc.legacy.check().is_ok()
            && pc.virtio.iter().all(|device| device.check().is_ok());
        if fits { Ok(pc) } else { Err(PcFault) }
    }
}

fn disk_bytes(device: &Device) -> Option<u64> {
    match device.kind() {
        Kind::Block(block) => Some(block.bytes()),
        _ => None,
    }
}
