//! Where virtio devices are.

/// The first device's registers; the others follow.
const FIRST_ADDRESS: u64 = 0xd000_0000;
/// Registers of one device.
pub(super) const SLOT_BYTES: u64 = 0x1000;
/// Interrupt lines that no legacy device of this machine has.
const LINES: [u8; VIRTIO_SLOTS_MAX] = [5, 10, 11, 12, 6, 7, 14, 15];

/// Most virtio devices of a machine.
pub const VIRTIO_SLOTS_MAX: usize = 8;

/// Place of a virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Guest physical address of its registers.
    pub address: u64,
    /// Its interrupt line: IOAPIC pin and ISA interrupt.
    pub line: u8,
}

impl VirtioSlot {
    /// The place of the device of this number, if there are so many.
    pub fn new(device: usize) -> Option<Self> {
        let &line = LINES.get(device)?;
        let address = FIRST_ADDRESS + device as u64 * SLOT_BYTES;
        Some(Self { address, line })
    }

    /// What tells a kernel without ACPI of the device, on its command line.
    pub fn kernel_parameter(self) -> String {
        let kib = SLOT_BYTES >> 10;
        format!(
            "virtio_mmio.device={kib}K@{:#x}:{}",
            self.address, self.line
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_an_address_and_a_line_each() {
        let slots: Vec<_> = (0..20).map_while(VirtioSlot::new).collect();
        assert_eq!(slots.len(), VIRTIO_SLOTS_MAX);
        assert_eq!(
            slots[1].kernel_parameter(),
            "virtio_mmio.device=4K@0xd0001000:10"
        );
    }
}
