//! A small driver in guest memory, and a disk in this process's memory.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use samsara_commitlog::Shape;
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes as _, GuestAddress};

use crate::memory::{GuestMemory, Image, PageIndex};
use crate::pc::virtio::transport::{EVENT_IDX, FEATURES, VERSION_1, status};
use crate::pc::virtio::{Blocks, Device, DeviceFault, Reaction, register};

/// Where queue n's rings are; a page each.
pub(super) const RINGS: u64 = 0x10_0000;
pub(super) const RINGS_BYTES: u64 = 0x1_0000;
/// Where buffers are.
pub(super) const BUFFERS: u64 = 0x20_0000;

pub(super) const ALL_STEPS: u8 =
    status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;

pub(super) fn image() -> Image {
    let shape = Shape {
        vcpu_count: 1,
        memory_bytes: 16 << 20,
    };
    Image::new(shape).unwrap()
}

#[derive(Debug)]
pub(super) struct Disk {
    pub(super) bytes: Mutex<Vec<u8>>,
    pub(super) is_read_only: bool,
    pub(super) fails: bool,
    pub(super) flush_count: AtomicUsize,
}

impl Disk {
    /// A disk where every sector is different.
    pub(super) fn new(sectors: u32) -> Self {
        let bytes =
            (0..sectors * 128).flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_le_bytes());
        Self {
            bytes: Mutex::new(bytes.collect()),
            is_read_only: false,
            fails: false,
            flush_count: AtomicUsize::new(0),
        }
    }

    pub(super) fn contents(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn with<R>(&self, offset: u64, bytes: u64, act: impl FnOnce(&mut [u8]) -> R) -> io::Result<R> {
        if self.fails {
            return Err(io::Error::other("broken"));
        }
        let mut all = self.bytes.lock().unwrap();
        let range = offset as usize..(offset + bytes) as usize;
        Ok(act(all
            .get_mut(range)
            .ok_or(io::ErrorKind::UnexpectedEof)?))
    }
}

impl Blocks for Disk {
    fn bytes(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(offset, out.len() as u64, |part| out.copy_from_slice(part))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(!self.is_read_only, "a read-only disk is not written");
        self.with(offset, bytes.len() as u64, |part| {
            part.copy_from_slice(bytes);
        })
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        assert!(!self.is_read_only, "a read-only disk is not written");
        self.with(offset, bytes, |part| part.fill(0))
    }

    fn flush(&self) -> io::Result<()> {
        self.flush_count.fetch_add(1, Ordering::Relaxed);
        self.with(0, 0, |_| ())
    }
}

/// A buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub(super) enum Buffer {
    /// For the device to read.
    Out(u64, u32),
    /// For the device to write.
    In(u64, u32),
}

/// The driver's part of a queue.
#[derive(Clone, Debug, Default)]
struct DriverQueue {
    next_descriptor: u16,
    available: u16,
    seen: u16,
}

/// A guest with one device.
pub(super) struct Guest {
    pub(super) image: Image,
    pub(super) device: Device,
    pub(super) size: u16,
    pub(super) to: Reaction,
    /// Pulses of the interrupt line since they were last counted.
    pub(super) pulses: usize,
    queues: Vec<DriverQueue>,
}

impl Guest {
    /// A guest whose driver has not started.
    pub(super) fn new(device: Device) -> Self {
        Self {
            image: image(),
            device,
            size: 8,
            to: Reaction::default(),
            pulses: 0,
            queues: vec![DriverQueue::default(); 2],
        }
    }

    /// A guest whose driver takes all features.
    pub(super) fn started(device: Device) -> Self {
        let mut guest = Self::new(device);
        guest.start(u64::MAX);
        guest
    }

    /// A guest whose driver takes no more than it must.
    pub(super) fn plain(device: Device) -> Self {
        let mut guest = Self::new(device);
        guest.start(VERSION_1);
        guest
    }

    pub(super) fn memory(&self) -> &GuestMemory {
        self.image.guest_memory()
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        self.device.read(offset, 4) as u32
    }

    pub(super) fn write(&mut self, offset: u64, value: u32) {
        let memory = self.image.guest_memory();
        self.to.interrupts = false;
        self.device
            .write(offset, 4, value.into(), memory, &mut self.to);
        self.pulses += usize::from(self.to.interrupts);
        assert_eq!(self.device.check(), Ok(()));
    }

    pub(super) fn status(&self) -> u8 {
        self.read(register::STATUS) as u8
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.status() & status::NEEDS_RESET != 0
    }

    /// The features that the device offers.
    pub(super) fn offered(&mut self) -> u64 {
        let mut half = |index: u32| {
            self.write(register::DEVICE_FEATURES_SEL, index);
            u64::from(self.read(register::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Up to the point where features are agreed on.
    pub(super) fn negotiate(&mut self, wanted: u64) {
        self.write(register::STATUS, 0);
        let mut reached = status::ACKNOWLEDGE;
        self.write(register::STATUS, reached.into());
        reached |= status::DRIVER;
        self.write(register::STATUS, reached.into());
        let features = self.offered() & wanted;
        for index in 0..2 {
            self.write(register::DRIVER_FEATURES_SEL, index);
            self.write(register::DRIVER_FEATURES, (features >> (32 * index)) as u32);
        }
        reached |= status::FEATURES_OK;
        self.write(register::STATUS, reached.into());
    }

    /// Sets the device up as drivers do.
    pub(super) fn start(&mut self, wanted: u64) {
        self.negotiate(wanted);
        for queue in 0..self.queues.len() {
            self.write(register::QUEUE_SEL, queue as u32);
            if self.read(register::QUEUE_NUM_MAX) > 0 {
                self.set_up_queue(queue);
                assert_eq!(self.read(register::QUEUE_READY), 1);
            }
        }
        self.write(register::STATUS, ALL_STEPS.into());
        assert_eq!(self.status(), ALL_STEPS);
    }

    pub(super) fn set_up_queue(&mut self, queue: usize) {
        self.queues[queue] = DriverQueue::default();
        let zeros = vec![0; RINGS_BYTES as usize];
        self.poke(descriptors(queue), &zeros);
        self.write(register::QUEUE_SEL, queue as u32);
        self.write(register::QUEUE_NUM, self.size.into());
        for (low, address) in [
            (register::QUEUE_DESC_LOW, descriptors(queue)),
            (register::QUEUE_DRIVER_LOW, available(queue)),
            (register::QUEUE_DEVICE_LOW, used(queue)),
        ] {
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
        self.write(register::QUEUE_READY, 1);
    }

    pub(super) fn poke(&self, address: u64, bytes: &[u8]) {
        self.memory()
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub(super) fn poke16(&self, address: u64, value: u16) {
        self.poke(address, &value.to_le_bytes());
    }

    pub(super) fn peek(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        self.memory()
            .read_slice(&mut out, GuestAddress(address))
            .unwrap();
        out
    }

    pub(super) fn peek16(&self, address: u64) -> u16 {
        let bytes = self.peek(address, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    fn peek32(&self, address: u64) -> u32 {
        let bytes = self.peek(address, 4);
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    pub(super) fn poke_descriptor(&self, table: u64, index: u16, descriptor: &Raw) {
        let mut bytes = Vec::new();
        bytes.extend(descriptor.address.to_le_bytes());
        bytes.extend(descriptor.bytes.to_le_bytes());
        bytes.extend(descriptor.flags.to_le_bytes());
        bytes.extend(descriptor.next.to_le_bytes());
        self.poke(table + 16 * u64::from(index), &bytes);
    }

    /// Adds a chain to the available ring, and says which it is.
    pub(super) fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let head = self.queues[queue].next_descriptor % self.size;
        for (index, &buffer) in (1..).zip(buffers) {
            let place = self.queues[queue].next_descriptor % self.size;
            self.queues[queue].next_descriptor = (place + 1) % self.size;
            let mut raw = Raw::new(buffer);
            if index < buffers.len() {
                raw.flags |= VRING_DESC_F_NEXT as u16;
                raw.next = (place + 1) % self.size;
            }
            self.poke_descriptor(descriptors(queue), place, &raw);
        }
        self.offer_head(queue, head);
        head
    }

    pub(super) fn offer_head(&mut self, queue: usize, head: u16) {
        let slot = self.queues[queue].available % self.size;
        self.poke16(available(queue) + 4 + 2 * u64::from(slot), head);
        self.queues[queue].available = self.queues[queue].available.wrapping_add(1);
        self.poke16(available(queue) + 2, self.queues[queue].available);
    }

    pub(super) fn notify(&mut self, queue: usize) {
        self.write(register::QUEUE_NOTIFY, queue as u32);
    }

    pub(super) fn send(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let head = self.offer(queue, buffers);
        self.notify(queue);
        head
    }

    pub(super) fn input(&mut self, bytes: &[u8], disk: Option<&Disk>) -> Result<(), DeviceFault> {
        let memory = self.image.guest_memory();
        self.to.interrupts = false;
        let disk = disk.map(|disk| disk as &dyn Blocks);
        let bytes = Bytes::copy_from_slice(bytes);
        let done = self.device.input(&bytes, memory, disk, &mut self.to);
        self.pulses += usize::from(self.to.interrupts);
        assert_eq!(self.device.check(), Ok(()));
        done
    }

    /// What the device has returned since the last call: heads and lengths.
    pub(super) fn returned(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let index = self.peek16(used(queue) + 2);
        let mut returned = Vec::new();
        while self.queues[queue].seen != index {
            let slot = self.queues[queue].seen % self.size;
            let place = used(queue) + 4 + 8 * u64::from(slot);
            returned.push((self.peek32(place), self.peek32(place + 4)));
            self.queues[queue].seen = self.queues[queue].seen.wrapping_add(1);
        }
        returned
    }

    /// Asks for an interrupt when the device returns its chain number `index`.
    pub(super) fn set_used_event(&self, queue: usize, index: u16) {
        self.poke16(available(queue) + 4 + 2 * u64::from(self.size), index);
    }

    pub(super) fn avail_event(&self, queue: usize) -> u16 {
        self.peek16(used(queue) + 4 + 8 * u64::from(self.size))
    }

    pub(super) fn take_pulses(&mut self) -> usize {
        std::mem::take(&mut self.pulses)
    }

    /// The pages that were written since the last call.
    pub(super) fn take_written(&self) -> Vec<PageIndex> {
        let mut written = Vec::new();
        self.image.take_dma(&mut written);
        written.sort_unstable();
        written.dedup();
        written
    }

    /// Goes on from a snapshot of the device.
    pub(super) fn through_snapshot(&mut self) {
        let bytes = postcard::to_stdvec(&self.device).unwrap();
        let device: Device = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(device, self.device);
        assert_eq!(device.check(), Ok(()));
        self.device = device;
    }
}

/// A descriptor in the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw {
    pub(super) address: u64,
    pub(super) bytes: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Raw {
    pub(super) fn new(buffer: Buffer) -> Self {
        let (address, bytes, flags) = match buffer {
            Buffer::Out(address, bytes) => (address, bytes, 0),
            Buffer::In(address, bytes) => (address, bytes, VRING_DESC_F_WRITE as u16),
        };
        Self {
            address,
            bytes,
            flags,
            next: 0,
        }
    }
}

pub(super) fn descriptors(queue: usize) -> u64 {
    RINGS + RINGS_BYTES * queue as u64
}

pub(super) fn available(queue: usize) -> u64 {
    descriptors(queue) + 0x2000
}

pub(super) fn used(queue: usize) -> u64 {
    descriptors(queue) + 0x4000
}

/// All that every device offers but `EVENT_IDX`.
pub(super) const NO_EVENT_IDX: u64 = FEATURES & !EVENT_IDX;
