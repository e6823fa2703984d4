//! Virtio devices over MMIO (Virtio 1.2, register layout 2, split queues): block, network, console
//! and entropy.
//!
//! A device is a state machine that runs in `apply`, on every replica alike: what the guest does to
//! its registers ([`Device::write`]) and what the world gives it ([`Device::input`]) are all that
//! changes it, and guest memory. What the guest transmits leaves at once, in the [`Reaction`]. What
//! it waits for, [`Device::wants`] tells; the answer is a commit of its own.
//!
//! A driver that breaks the rules of its queues stops its own device, which then needs a reset; it
//! neither harms the host nor makes it work without bound.

mod block;
mod console;
mod entropy;
mod net;
mod queue;
pub mod register;
#[cfg(test)]
mod tests;
mod transport;

use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use block::{Block, Blocks};
pub use console::Console;
pub use entropy::Entropy;
pub use net::{FRAME_BYTES_MAX, Net};
pub use queue::QUEUE_SIZE_MAX;

use crate::memory::GuestMemory;
use queue::Malformed;
use transport::Transport;

/// Bytes of a device's registers: those of device n start at `BASE + n * WINDOW_BYTES`.
pub const WINDOW_BYTES: u64 = 0x1000;
/// Address of the first device's registers.
pub const BASE: u64 = 0xd000_0000;
/// Devices in a machine, at most.
pub const DEVICES_MAX: usize = 8;
/// IOAPIC pin of each device.
pub const LINES: [u8; DEVICES_MAX] = [5, 10, 11, 12, 6, 7, 14, 15];

/// What a device did to the world outside its own state and guest memory.
#[derive(Debug, Default)]
pub struct Reaction {
    /// The device's interrupt line pulses.
    pub interrupts: bool,
    /// Bytes for the console.
    pub console: Vec<u8>,
    /// Frames for the network, in order.
    pub frames: Vec<Bytes>,
}

/// What a device waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// An empty input: it has requests to serve.
    Step,
    /// At most this many random bytes, more than none.
    Random(usize),
}

/// This host cannot do what the device's state asks for. The machine must not be used further here.
#[derive(Debug, thiserror::Error)]
pub enum DeviceFault {
    /// The disk failed.
    #[error("disk")]
    Disk(#[source] io::Error),
    /// The device has a disk in the machine, but none on this host.
    #[error("this host has no disk for the block device")]
    NoDisk,
    /// The disk is smaller than the device, or cannot be written as the device can.
    #[error(
        "a disk of {found} bytes, writable: {is_writable}, does not fit a device of {expected}"
    )]
    WrongDisk {
        /// The device's size.
        expected: u64,
        /// The disk's size.
        found: u64,
        /// Whether the disk can be written.
        is_writable: bool,
    },
}

/// State that no device can have come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateFault {
    /// Not the number of queues of this kind of device.
    #[error("virtio device with {0} queues")]
    QueueCount(usize),
    /// A status that no order of steps leads to.
    #[error("virtio status {0:#04x}")]
    Status(u8),
    /// Features that are not offered, or too few.
    #[error("virtio features {0:#018x}")]
    Features(u64),
    /// A queue in use that cannot be.
    #[error("virtio queue is set up wrongly")]
    Queue,
    /// A disk that is not in whole sectors.
    #[error("block device of {0} bytes")]
    Capacity(u64),
}

/// What a device is, apart from what all devices have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A disk.
    Block(Block),
    /// A network interface.
    Net(Net),
    /// A console.
    Console(Console),
    /// A source of random bytes.
    Entropy(Entropy),
}

/// A virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    transport: Transport,
    kind: Kind,
}

/// What stops a device at work.
#[derive(Debug)]
enum Trouble {
    /// The driver's fault.
    Malformed,
    /// The host's.
    Host(DeviceFault),
}

impl From<Malformed> for Trouble {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<DeviceFault> for Trouble {
    fn from(fault: DeviceFault) -> Self {
        Self::Host(fault)
    }
}

impl Device {
    /// A disk of so many bytes; a last part of less than a sector is left out. The serial number is
    /// text, padded with zeros.
    pub fn block(bytes: u64, read_only: bool, serial: [u8; 20]) -> Self {
        Self::new(Kind::Block(Block::new(bytes, read_only, serial)))
    }

    /// A network interface.
    pub fn net(mac: [u8; 6]) -> Self {
        Self::new(Kind::Net(Net::new(mac)))
    }

    /// A console.
    pub fn console() -> Self {
        Self::new(Kind::Console(Console))
    }

    /// A source of random bytes.
    pub fn entropy() -> Self {
        Self::new(Kind::Entropy(Entropy))
    }

    fn new(kind: Kind) -> Self {
        Self {
            transport: Transport::new(kind.queue_count()),
            kind,
        }
    }

    /// What it is.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Back to the state at power-on.
    pub fn reset(&mut self) {
        self.transport.reset();
    }

    /// Whether a device can have come to this state: it may be from a peer or a file.
    pub fn check(&self) -> Result<(), StateFault> {
        if let Kind::Block(block) = &self.kind {
            block.check()?;
        }
        self.transport
            .check(self.kind.queue_count(), self.kind.features())
    }

    /// What a load of `size` bytes from the device's window gives. Changes nothing.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            return read_config(&self.kind.config(), offset, size);
        }
        if size != 4 {
            return 0;
        }
        let (id, features) = (self.kind.id(), self.kind.features());
        self.transport.read(offset, id, features).into()
    }

    /// A store to the device's window. No configuration space can be written.
    pub fn write(
        &mut self,
        offset: u64,
        size: u8,
        value: u64,
        memory: &GuestMemory,
        to: &mut Reaction,
    ) {
        if size != 4 {
            return;
        }
        let offered = self.kind.features();
        let written = self
            .transport
            .write(offset, value as u32, offered, memory)
            .and_then(|notified| match notified {
                Some(queue) => self.notify(queue, memory, to),
                None => Ok(()),
            });
        if written.is_err() {
            self.transport.fail(to);
        }
    }

    /// What is transmitted leaves at once. Requests of the other devices wait for [`Self::input`].
    fn notify(
        &mut self,
        queue: usize,
        memory: &GuestMemory,
        to: &mut Reaction,
    ) -> Result<(), Malformed> {
        match (&self.kind, queue) {
            (Kind::Net(_), net::TRANSMIT) => net::transmit(&mut self.transport, memory, to),
            (Kind::Console(_), console::TRANSMIT) => {
                console::transmit(&mut self.transport, memory, to)
            }
            _ => Ok(()),
        }
    }

    /// What the device waits for since the guest's last notification.
    ///
    /// A queue that is malformed counts as waiting: the input finds that out and stops the device.
    pub fn wants(&self, memory: &GuestMemory) -> Option<Want> {
        match &self.kind {
            Kind::Block(_) => block::wants(&self.transport, memory),
            Kind::Entropy(_) => entropy::wants(&self.transport, memory),
            Kind::Net(_) | Kind::Console(_) => None,
        }
    }

    /// What comes from outside. An input that the device does not wait for any more changes nothing.
    ///
    /// - Block: empty. Serves the requests that come next, a bounded number; [`Self::wants`] tells
    ///   whether there are more.
    /// - Entropy: random bytes, for the buffers that come next.
    /// - Net: a frame that was received. It is dropped if there is no room.
    /// - Console: typed bytes. Those for which there is no room are dropped.
    pub fn input(
        &mut self,
        bytes: &Bytes,
        memory: &GuestMemory,
        disk: Option<&dyn Blocks>,
        to: &mut Reaction,
    ) -> Result<(), DeviceFault> {
        let transport = &mut self.transport;
        let done = match &self.kind {
            Kind::Block(block) => block.serve(transport, memory, disk, to),
            Kind::Net(_) => net::receive(transport, bytes, memory, to).map_err(Trouble::from),
            Kind::Console(_) => {
                console::receive(transport, bytes, memory, to).map_err(Trouble::from)
            }
            Kind::Entropy(_) => entropy::fill(transport, bytes, memory, to).map_err(Trouble::from),
        };
        match done {
            Ok(()) => Ok(()),
            Err(Trouble::Malformed) => {
                self.transport.fail(to);
                Ok(())
            }
            Err(Trouble::Host(fault)) => Err(fault),
        }
    }

    /// Whether the guest's receive buffers have room. Net: for a frame of so many bytes, in the next
    /// buffer, which holds [`FRAME_BYTES_MAX`] if the driver follows the rules; console: for so many
    /// bytes, in all buffers together.
    ///
    /// A queue that is malformed counts as having room: the input finds that out and stops the
    /// device.
    pub fn has_room(&self, bytes: usize, memory: &GuestMemory) -> bool {
        let room = match &self.kind {
            Kind::Net(_) => net::has_room(&self.transport, bytes, memory),
            Kind::Console(_) => console::has_room(&self.transport, bytes, memory),
            Kind::Block(_) | Kind::Entropy(_) => Ok(false),
        };
        room.unwrap_or(true)
    }
}

impl Kind {
    fn id(&self) -> u32 {
        match self {
            Self::Block(_) => block::ID,
            Self::Net(_) => net::ID,
            Self::Console(_) => console::ID,
            Self::Entropy(_) => entropy::ID,
        }
    }

    fn queue_count(&self) -> usize {
        match self {
            Self::Block(_) | Self::Entropy(_) => 1,
            Self::Net(_) | Self::Console(_) => 2,
        }
    }

    fn features(&self) -> u64 {
        let own = match self {
            Self::Block(block) => block.features(),
            Self::Net(_) => net::FEATURES,
            Self::Console(_) | Self::Entropy(_) => 0,
        };
        own | transport::FEATURES
    }

    fn config(&self) -> Vec<u8> {
        match self {
            Self::Block(block) => block.config(),
            Self::Net(net) => net.config(),
            Self::Console(_) | Self::Entropy(_) => Vec::new(),
        }
    }
}

/// `size` bytes of a configuration space, which goes on in zeros.
fn read_config(config: &[u8], offset: u64, size: u8) -> u64 {
    if !matches!(size, 1 | 2 | 4 | 8) {
        return 0;
    }
    let mut value = [0; 8];
    let start = usize::try_from(offset).map_or(config.len(), |start| start.min(config.len()));
    let available = config[start..].iter().take(size.into());
    value
        .iter_mut()
        .zip(available)
        .for_each(|(to, &from)| *to = from);
    u64::from_le_bytes(value)
}
