//! The registers that all devices have: identification, features, status, queues, interrupts.
//!
//! ```text
//! 0 --ACKNOWLEDGE--> --DRIVER--> (features) --FEATURES_OK--> (queues) --DRIVER_OK--> live
//! anywhere --0--> 0              live --malformed ring--> NEEDS_RESET: stands still until 0
//! ```
//!
//! A step out of turn is ignored: the driver reads the status back and finds it missing.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config as config;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::queue::{Malformed, QUEUE_SIZE_MAX, Ring, Virtqueue};
use super::{Reaction, StateFault, register};
use crate::memory::GuestMemory;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const LAYOUT_VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"sams");

/// Bits of the status register.
pub(super) mod status {
    use super::config;

    /// The guest has noticed the device.
    pub(in super::super) const ACKNOWLEDGE: u8 = config::VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
    /// It knows how to drive it.
    pub(in super::super) const DRIVER: u8 = config::VIRTIO_CONFIG_S_DRIVER as u8;
    /// Both agree on features.
    pub(in super::super) const FEATURES_OK: u8 = config::VIRTIO_CONFIG_S_FEATURES_OK as u8;
    /// The driver is set up.
    pub(in super::super) const DRIVER_OK: u8 = config::VIRTIO_CONFIG_S_DRIVER_OK as u8;
    /// The device cannot go on.
    pub(in super::super) const NEEDS_RESET: u8 = config::VIRTIO_CONFIG_S_NEEDS_RESET as u8;
    /// The driver has given up.
    pub(in super::super) const FAILED: u8 = config::VIRTIO_CONFIG_S_FAILED as u8;
}

use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};

/// The status that each step towards a live device needs, and the step.
const STEPS: [(u8, u8); 4] = [
    (0, ACKNOWLEDGE),
    (ACKNOWLEDGE, DRIVER),
    (ACKNOWLEDGE | DRIVER, FEATURES_OK),
    (ACKNOWLEDGE | DRIVER | FEATURES_OK, DRIVER_OK),
];

const STATUS_BITS: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | NEEDS_RESET | FAILED;

/// The features that every device offers; a driver must take `VERSION_1`.
pub(super) const FEATURES: u64 = VERSION_1 | EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
pub(super) const VERSION_1: u64 = 1 << config::VIRTIO_F_VERSION_1;
pub(super) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// The state of the registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Transport {
    status: u8,
    interrupt_status: u8,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<Virtqueue>,
}

impl Transport {
    /// The registers of a device with this many queues, after reset.
    pub(super) fn new(queue_count: usize) -> Self {
        Self {
            status: 0,
            interrupt_status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: vec![Virtqueue::new(); queue_count],
        }
    }

    /// Back to the start.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.queues.len());
    }

    /// Whether this can be the state of a device with so many queues and these features.
    pub(super) fn check(&self, queue_count: usize, offered: u64) -> Result<(), StateFault> {
        if self.queues.len() != queue_count {
            return Err(StateFault::QueueCount(self.queues.len()));
        }
        let steps = self.status & !(NEEDS_RESET | FAILED);
        let is_reached = |&(before, step): &(u8, u8)| before | step == steps;
        let is_known = steps == 0 || STEPS.iter().any(is_reached);
        if self.status & !STATUS_BITS != 0 || !is_known {
            return Err(StateFault::Status(self.status));
        }
        if self.has(FEATURES_OK) && !self.features_fit(offered) {
            return Err(StateFault::Features(self.driver_features));
        }
        let is_early = !self.has(FEATURES_OK) && self.queues.iter().any(|queue| queue.ready);
        if is_early {
            return Err(StateFault::Queue);
        }
        self.queues.iter().try_for_each(Virtqueue::check)
    }

    /// Whether the driver has set the device up and neither of them has given up.
    pub(super) fn is_live(&self) -> bool {
        self.has(DRIVER_OK) && self.status & (NEEDS_RESET | FAILED) == 0
    }

    fn has(&self, bits: u8) -> bool {
        self.status & bits == bits
    }

    fn features_fit(&self, offered: u64) -> bool {
        self.driver_features & !offered == 0 && self.driver_features & VERSION_1 != 0
    }

    /// The value of a register.
    pub(super) fn read(&self, offset: u64, device_id: u32, offered: u64) -> u32 {
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => LAYOUT_VERSION,
            register::DEVICE_ID => device_id,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => half(offered, self.device_features_sel),
            register::QUEUE_NUM_MAX => self.selected().map_or(0, |_| QUEUE_SIZE_MAX.into()),
            register::QUEUE_READY => self.selected().map_or(0, |queue| queue.ready.into()),
            register::INTERRUPT_STATUS => self.interrupt_status.into(),
            register::STATUS => self.status.into(),
            // No device has shared memory: the length and the address of a region are all ones.
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH if offset.is_multiple_of(4) => u32::MAX,
            // Configuration never changes.
            _ => 0,
        }
    }

    /// Writes a register. The answer is the queue that the driver notifies the device of.
    pub(super) fn write(
        &mut self,
        offset: u64,
        value: u32,
        offered: u64,
        memory: &GuestMemory,
    ) -> Result<Option<usize>, Malformed> {
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::DRIVER_FEATURES => self.take_features(value),
            register::QUEUE_SEL => self.queue_sel = value,
            register::QUEUE_READY => return self.set_ready(value, memory).map(|()| None),
            register::QUEUE_NOTIFY => return Ok(self.notified(value)),
            register::INTERRUPT_ACK => self.interrupt_status &= !(value as u8),
            register::STATUS => self.set_status(value, offered),
            _ => self.set_up_queue(offset, value),
        }
        Ok(None)
    }

    fn take_features(&mut self, value: u32) {
        if !self.has(DRIVER) || self.has(FEATURES_OK) {
            return;
        }
        let shift = match self.driver_features_sel {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.driver_features &= !(u64::from(u32::MAX) << shift);
        self.driver_features |= u64::from(value) << shift;
    }

    fn set_status(&mut self, value: u32, offered: u64) {
        if value == 0 {
            return self.reset();
        }
        let value = value as u8;
        for (before, step) in STEPS {
            let is_new = value & step != 0 && !self.has(step);
            let is_granted = step != FEATURES_OK || self.features_fit(offered);
            if is_new && self.has(before) && is_granted {
                self.status |= step;
                self.reached(step);
            }
        }
        self.status |= value & FAILED;
    }

    fn reached(&mut self, step: u8) {
        if step == DRIVER_OK {
            // A driver may have filled the queues before, when notifications count for nothing.
            for queue in &mut self.queues {
                queue.notified = queue.ready;
            }
        }
    }

    fn selected(&self) -> Option<&Virtqueue> {
        self.queues.get(self.queue_sel as usize)
    }

    /// The selected queue while the driver may set it up.
    fn unready(&mut self) -> Option<&mut Virtqueue> {
        let may = self.has(FEATURES_OK) && self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == 0;
        let queue = self.queues.get_mut(self.queue_sel as usize)?;
        (may && !queue.ready).then_some(queue)
    }

    fn set_up_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.unready() else { return };
        match offset {
            register::QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
            register::QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            register::QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            register::QUEUE_DRIVER_LOW => set_low(&mut queue.available, value),
            register::QUEUE_DRIVER_HIGH => set_high(&mut queue.available, value),
            register::QUEUE_DEVICE_LOW => set_low(&mut queue.used, value),
            register::QUEUE_DEVICE_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
    }

    fn set_ready(&mut self, value: u32, memory: &GuestMemory) -> Result<(), Malformed> {
        match value {
            0 => {
                let queue = self.queues.get_mut(self.queue_sel as usize);
                queue.into_iter().for_each(Virtqueue::disable);
                Ok(())
            }
            1 => self.unready().map_or(Ok(()), |queue| queue.enable(memory)),
            _ => Ok(()),
        }
    }

    fn notified(&mut self, value: u32) -> Option<usize> {
        let index = value as usize;
        let is_live = self.is_live();
        let queue = self.queues.get_mut(index)?;
        queue.notified |= is_live && queue.ready;
        (is_live && queue.ready).then_some(index)
    }

    /// Whether the driver has notified the device of buffers in a queue that are left.
    pub(super) fn is_notified(&self, index: usize) -> bool {
        self.is_live() && self.queues.get(index).is_some_and(|queue| queue.notified)
    }

    /// A queue's rings, if it is in use.
    pub(super) fn open<'a>(
        &self,
        index: usize,
        memory: &'a GuestMemory,
    ) -> Result<Option<Ring<'a>>, Malformed> {
        let queue = self.queues.get(index);
        let Some(queue) = queue.filter(|queue| self.is_live() && queue.ready) else {
            return Ok(None);
        };
        let event_idx = self.driver_features & EVENT_IDX != 0;
        Ring::open(queue, event_idx, memory).map(Some)
    }

    /// Ends the work on a queue's rings.
    pub(super) fn close(
        &mut self,
        index: usize,
        ring: Ring<'_>,
        to: &mut Reaction,
    ) -> Result<(), Malformed> {
        let queue = self.queues.get_mut(index).ok_or(Malformed)?;
        if ring.close(queue)? {
            self.interrupt_status |= VIRTIO_MMIO_INT_VRING as u8;
            to.interrupts = true;
        }
        Ok(())
    }

    /// Stops the device until the driver resets it.
    pub(super) fn fail(&mut self, to: &mut Reaction) {
        self.status |= NEEDS_RESET;
        // Before that, the driver does not expect interrupts and must not get this one.
        if self.has(DRIVER_OK) {
            self.interrupt_status |= VIRTIO_MMIO_INT_CONFIG as u8;
            to.interrupts = true;
        }
    }
}

fn half(bits: u64, index: u32) -> u32 {
    match index {
        0 => bits as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
}
