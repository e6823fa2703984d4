//! A virtqueue: its state, and the work on its rings, with rust-vmm's `virtio-queue`.
//!
//! `virtio-queue` ends a descriptor chain silently where it is wrong. Here a chain that does not end
//! by itself is [`Malformed`], and so is everything else that a right driver never does: the device
//! then asks for a reset, and nothing of the chain is acted on.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, Permissions};

use super::StateFault;
use crate::memory::GuestMemory;

/// Descriptors in a queue, at most.
pub const QUEUE_SIZE_MAX: u16 = 256;

/// Descriptors in a chain, at most, those of an indirect table included: what fits the largest queue.
/// Drivers are told lower limits where they could want more.
const CHAIN_DESCRIPTORS_MAX: usize = QUEUE_SIZE_MAX as usize;

/// The driver has broken a rule of its queue: the device stops until the driver resets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl From<virtio_queue::Error> for Malformed {
    fn from(_: virtio_queue::Error) -> Self {
        Self
    }
}

impl From<vm_memory::GuestMemoryError> for Malformed {
    fn from(_: vm_memory::GuestMemoryError) -> Self {
        Self
    }
}

/// The state of a virtqueue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Virtqueue {
    /// As the driver wrote it; 0 stands for everything that is too large. Checked when the queue
    /// becomes ready.
    pub(super) size: u16,
    pub(super) ready: bool,
    /// The driver has notified the device of buffers that it has not all used.
    pub(super) notified: bool,
    next_avail: u16,
    next_used: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

impl Virtqueue {
    /// A queue after reset.
    pub(super) fn new() -> Self {
        Self {
            size: QUEUE_SIZE_MAX,
            ready: false,
            notified: false,
            next_avail: 0,
            next_used: 0,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }

    /// Takes the queue into use, if its rings are guest memory.
    pub(super) fn enable(&mut self, memory: &GuestMemory) -> Result<(), Malformed> {
        let candidate = Self {
            ready: true,
            ..self.clone()
        };
        // virtio-queue takes an available ring at address 0 for one that is not set.
        let is_valid = candidate.available != 0 && candidate.queue(false)?.is_valid(memory);
        is_valid.then(|| *self = candidate).ok_or(Malformed)
    }

    /// Takes the queue out of use.
    pub(super) fn disable(&mut self) {
        (self.ready, self.notified) = (false, false);
        (self.next_avail, self.next_used) = (0, 0);
    }

    /// Whether the rings could be worked on.
    pub(super) fn check(&self) -> Result<(), StateFault> {
        if self.ready && self.queue(false).is_err() {
            return Err(StateFault::Queue);
        }
        Ok(())
    }

    fn queue(&self, event_idx_enabled: bool) -> Result<Queue, Malformed> {
        let state = QueueState {
            max_size: QUEUE_SIZE_MAX,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        };
        Ok(Queue::try_from(state)?)
    }
}

/// A virtqueue at work. What it does to the queue lasts if it ends in [`Self::close`].
#[derive(Debug)]
pub(super) struct Ring<'a> {
    queue: Queue,
    memory: &'a GuestMemory,
    has_used: bool,
}

impl<'a> Ring<'a> {
    pub(super) fn open(
        state: &Virtqueue,
        event_idx: bool,
        memory: &'a GuestMemory,
    ) -> Result<Self, Malformed> {
        Ok(Self {
            queue: state.queue(event_idx)?,
            memory,
            has_used: false,
        })
    }

    /// Chains that the driver has made available and that were not taken yet.
    pub(super) fn pending(&self) -> Result<u16, Malformed> {
        let index = self.queue.avail_idx(self.memory, Ordering::Acquire)?;
        let pending = index.0.wrapping_sub(self.queue.next_avail());
        (pending <= self.queue.size())
            .then_some(pending)
            .ok_or(Malformed)
    }

    /// Takes the next chain.
    pub(super) fn next(&mut self) -> Result<Option<Chain<'a>>, Malformed> {
        if self.pending()? == 0 {
            return Ok(None);
        }
        let chain = self.queue.iter(self.memory)?.next().ok_or(Malformed)?;
        Chain::new(chain, self.memory).map(Some)
    }

    /// Gives the chain that was taken last back.
    pub(super) fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// How many chains can be taken in one go: a wrong driver's rings, which may be written as they
    /// are worked on, could be endless.
    pub(super) fn chains_max(&self) -> u16 {
        self.queue.size()
    }

    /// Returns a chain to the driver; the device has written this many bytes of it.
    pub(super) fn complete(&mut self, chain: &Chain, written: usize) -> Result<(), Malformed> {
        self.has_used = true;
        let written = u32::try_from(written).map_err(|_| Malformed)?;
        Ok(self.queue.add_used(self.memory, chain.head, written)?)
    }

    /// Writes bytes to the chains that come next, as long as there are both.
    pub(super) fn fill(&mut self, mut bytes: &[u8]) -> Result<(), Malformed> {
        for _ in 0..self.chains_max() {
            if bytes.is_empty() {
                break;
            }
            let Some(chain) = self.next()? else { break };
            let chain = chain.only_writable()?;
            let (now, later) = bytes.split_at(bytes.len().min(chain.writable_bytes()));
            chain.write(0, now)?;
            self.complete(&chain, now.len())?;
            bytes = later;
        }
        Ok(())
    }

    /// Ends the work; says whether the driver wants an interrupt for it.
    pub(super) fn close(mut self, state: &mut Virtqueue) -> Result<bool, Malformed> {
        if self.queue.event_idx_enabled() {
            // The driver notifies when it adds a buffer here: not before the others are used up.
            self.queue.enable_notification(self.memory)?;
        }
        let interrupts = self.wants_interrupt()?;
        state.next_avail = self.queue.next_avail();
        state.next_used = self.queue.next_used();
        state.notified &= self.pending()? != 0;
        Ok(interrupts)
    }

    fn wants_interrupt(&mut self) -> Result<bool, Malformed> {
        if !self.has_used {
            return Ok(false);
        }
        if self.queue.event_idx_enabled() {
            return Ok(self.queue.needs_notification(self.memory)?);
        }
        // virtio-queue does not know this flag.
        let flags: u16 = self
            .memory
            .read_obj(GuestAddress(self.queue.avail_ring()))?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}

/// A buffer of a chain; all of it is guest memory.
#[derive(Clone, Copy, Debug)]
struct Segment {
    address: GuestAddress,
    bytes: usize,
}

/// A chain of descriptors: bytes for the device to read, then bytes for it to write.
#[derive(Debug)]
pub(super) struct Chain<'a> {
    memory: &'a GuestMemory,
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
}

impl<'a> Chain<'a> {
    fn new(
        descriptors: DescriptorChain<&'a GuestMemory>,
        memory: &'a GuestMemory,
    ) -> Result<Self, Malformed> {
        let mut chain = Self {
            memory,
            head: descriptors.head_index(),
            readable: Vec::new(),
            writable: Vec::new(),
        };
        let mut is_open = true;
        for (index, descriptor) in descriptors.enumerate() {
            if index == CHAIN_DESCRIPTORS_MAX {
                return Err(Malformed);
            }
            is_open = descriptor.has_next();
            let is_writable = descriptor.is_write_only();
            chain.add(is_writable, descriptor.addr(), descriptor.len() as usize)?;
        }
        // Still open, it loops or points nowhere; or there is none.
        (!is_open).then_some(chain).ok_or(Malformed)
    }

    fn add(
        &mut self,
        is_writable: bool,
        address: GuestAddress,
        bytes: usize,
    ) -> Result<(), Malformed> {
        let (access, part) = if is_writable {
            (Permissions::Write, &mut self.writable)
        } else if self.writable.is_empty() {
            (Permissions::Read, &mut self.readable)
        } else {
            return Err(Malformed);
        };
        if !self.memory.check_range(address, bytes, access) {
            return Err(Malformed);
        }
        part.push(Segment { address, bytes });
        Ok(())
    }

    /// Bytes for the device to read.
    pub(super) fn readable_bytes(&self) -> usize {
        self.readable.iter().map(|segment| segment.bytes).sum()
    }

    /// Bytes for the device to write.
    pub(super) fn writable_bytes(&self) -> usize {
        self.writable.iter().map(|segment| segment.bytes).sum()
    }

    /// The chain if the device is only to read it, and there is something to read.
    pub(super) fn only_readable(self) -> Result<Self, Malformed> {
        let is_right = self.writable.is_empty() && self.readable_bytes() > 0;
        is_right.then_some(self).ok_or(Malformed)
    }

    /// The chain if the device is only to write it, and there is room.
    pub(super) fn only_writable(self) -> Result<Self, Malformed> {
        let is_right = self.readable.is_empty() && self.writable_bytes() > 0;
        is_right.then_some(self).ok_or(Malformed)
    }

    /// Copies the readable bytes from `offset` on; there must be as many.
    pub(super) fn read(&self, offset: usize, out: &mut [u8]) -> Result<(), Malformed> {
        let mut done = 0;
        for segment in pieces(&self.readable, offset, out.len()) {
            let part = &mut out[done..done + segment.bytes];
            self.memory.read_slice(part, segment.address)?;
            done += segment.bytes;
        }
        (done == out.len()).then_some(()).ok_or(Malformed)
    }

    /// Copies to the writable bytes from `offset` on; there must be as many.
    pub(super) fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Malformed> {
        let mut done = 0;
        for segment in pieces(&self.writable, offset, bytes.len()) {
            let part = &bytes[done..done + segment.bytes];
            self.memory.write_slice(part, segment.address)?;
            done += segment.bytes;
        }
        (done == bytes.len()).then_some(()).ok_or(Malformed)
    }
}

/// The parts of the segments that make up `bytes` bytes after the first `skip`.
fn pieces(segments: &[Segment], skip: usize, bytes: usize) -> impl Iterator<Item = Segment> {
    let (mut skip, mut left) = (skip, bytes);
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.bytes);
        skip -= skipped;
        let taken = left.min(segment.bytes - skipped);
        left -= taken;
        // In memory as a whole, so the sum does not overflow.
        let address = GuestAddress(segment.address.0.wrapping_add(skipped as u64));
        (taken > 0).then_some(Segment {
            address,
            bytes: taken,
        })
    })
}
