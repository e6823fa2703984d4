//! What a machine is made of, and where its memory lies.

use crate::{Gpa, PAGE_BYTES};

/// What a machine is made of; equal on all its replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of vCPUs, 1 to 16.
    pub vcpu_count: u8,
    /// Guest memory, in bytes; a multiple of 4 KiB.
    pub memory_bytes: u64,
}

/// Why there is no such machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Too few or too many vCPUs.
    #[error("{0} vCPUs are not possible; a machine has 1 to {max}", max = Shape::VCPUS_MAX)]
    VcpuCount(u8),
    /// Too little or too much memory, or a part of a page.
    #[error(
        "{0} bytes of memory are not possible; a machine has 16 MiB to 64 GiB in whole 4 KiB pages"
    )]
    MemoryBytes(u64),
}

impl Shape {
    /// The most vCPUs.
    pub const VCPUS_MAX: u8 = 16;
    /// The least memory, in bytes.
    pub const MEMORY_BYTES_MIN: u64 = 16 << 20;
    /// The most memory, in bytes.
    pub const MEMORY_BYTES_MAX: u64 = 64 << 30;
    /// Memory from address 0 ends here at the latest; device registers live above.
    pub const HOLE_START: Gpa = Gpa(3 << 30);
    /// Memory beyond [`Self::HOLE_START`] goes on here.
    pub const HOLE_END: Gpa = Gpa(4 << 30);

    /// Checks both numbers.
    pub fn new(vcpu_count: u8, memory_bytes: u64) -> Result<Self, ShapeError> {
        if !(1..=Self::VCPUS_MAX).contains(&vcpu_count) {
            return Err(ShapeError::VcpuCount(vcpu_count));
        }
        let in_range = (Self::MEMORY_BYTES_MIN..=Self::MEMORY_BYTES_MAX).contains(&memory_bytes);
        if !in_range || !memory_bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(ShapeError::MemoryBytes(memory_bytes));
        }
        Ok(Self {
            vcpu_count,
            memory_bytes,
        })
    }

    /// Bytes of memory from address 0 on.
    pub fn low_bytes(self) -> u64 {
        self.memory_bytes.min(Self::HOLE_START.0)
    }

    /// Bytes of memory from [`Self::HOLE_END`] on.
    pub fn high_bytes(self) -> u64 {
        self.memory_bytes - self.low_bytes()
    }

    /// The first address above all memory.
    pub fn memory_end(self) -> Gpa {
        match self.high_bytes() {
            0 => Gpa(self.low_bytes()),
            high => Gpa(Self::HOLE_END.0.saturating_add(high)),
        }
    }

    /// Whether all of the `bytes` bytes from `gpa` on are memory.
    pub fn contains(self, gpa: Gpa, bytes: u64) -> bool {
        let Some(end) = gpa.0.checked_add(bytes) else {
            return false;
        };
        end <= self.low_bytes() || (gpa >= Self::HOLE_END && end <= self.memory_end().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert!(Shape::new(1, 16 << 20).is_ok());
        assert!(Shape::new(16, 64 * GIB).is_ok());
        for vcpus in [0, 17, 255] {
            assert_eq!(Shape::new(vcpus, GIB), Err(ShapeError::VcpuCount(vcpus)));
        }
        for memory in [0, (16 << 20) - 4096, GIB + 1, 64 * GIB + 4096, u64::MAX] {
            assert_eq!(Shape::new(1, memory), Err(ShapeError::MemoryBytes(memory)));
        }
    }

    #[test]
    fn memory_has_a_hole_only_beyond_three_gib() {
        let small = Shape::new(1, GIB).unwrap();
        assert_eq!(small.memory_end(), Gpa(GIB));
        assert!(small.contains(Gpa(GIB - 1), 1));
        assert!(!small.contains(Gpa(GIB - 1), 2));
        assert!(!small.contains(Gpa(4 * GIB), 1));
        assert!(!small.contains(Gpa(4 * GIB), 0));

        let large = Shape::new(1, 5 * GIB).unwrap();
        assert_eq!((large.low_bytes(), large.high_bytes()), (3 * GIB, 2 * GIB));
        assert_eq!(large.memory_end(), Gpa(6 * GIB));
        assert!(large.contains(Gpa(3 * GIB - 8), 8));
        assert!(!large.contains(Gpa(3 * GIB - 8), 9));
        assert!(!large.contains(Gpa(4 * GIB - 1), 2));
        assert!(!large.contains(Gpa(3 * GIB - 1), GIB + 2));
        assert!(large.contains(Gpa(4 * GIB), 2 * GIB));
        assert!(!large.contains(Gpa(4 * GIB), 2 * GIB + 1));
        assert!(!large.contains(Gpa(u64::MAX), 2));
    }
}
