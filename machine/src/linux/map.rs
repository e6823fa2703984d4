//! Where in low memory the loader puts what a kernel is told, and the map of memory itself.
//!
//! ```text
//! 0x0000_0400  BIOS data area
//! 0x0000_0500  GDT
//! 0x0000_6000  PVH start info, modules, memory map
//! 0x0000_7000  boot_params, the "zero page"
//! 0x0000_9000  page tables of the 64-bit entry
//! 0x0002_0000  command line
//! 0x0008_0000  stack of the 64-bit entry, downwards
//! 0x0009_fc00  extended BIOS data area: MP table
//! 0x000a_0000  nothing (memory, but not told of)
//! 0x000e_0000  ACPI tables
//! 0x0010_0000  kernel and initrd
//! ```

use std::ops::Range;

use crate::memory::{HOLE_START, Layout};

/// The BIOS's notes: where the extended data area is, and how large memory below it.
pub(super) const BIOS_DATA_EBDA_SEGMENT: u64 = 0x40e;
pub(super) const BIOS_DATA_BASE_KIB: u64 = 0x413;
pub(super) const GDT: u64 = 0x500;
pub(super) const START_INFO: u64 = 0x6000;
pub(super) const MODULES: u64 = 0x6080;
pub(super) const MEMORY_MAP: u64 = 0x6100;
pub(super) const ZERO_PAGE: u64 = 0x7000;
pub(super) const PAGE_TABLES: u64 = 0x9000;
pub(super) const CMDLINE: u64 = 0x2_0000;
pub(super) const STACK: u64 = 0x8_0000;
pub(super) const EBDA: Range<u64> = 0x9_fc00..0xa_0000;
pub(super) const ACPI: Range<u64> = 0xe_0000..0x10_0000;
/// Kernels are loaded from here on.
pub(super) const KERNEL_START: u64 = 0x10_0000;

/// One past the memory that kernels and initrds are loaded into.
pub(super) fn low_end(layout: Layout) -> u64 {
    layout.bytes().min(HOLE_START)
}

/// A range of addresses that a kernel is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapEntry {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) kind: MapKind,
}

/// What a range is. The numbers are those of e820 and PVH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum MapKind {
    Ram = 1,
    Reserved = 2,
}

/// The map of memory, lowest first.
pub(super) fn memory_map(layout: Layout) -> Vec<MapEntry> {
    let entry = |range: Range<u64>, kind| MapEntry {
        start: range.start,
        end: range.end,
        kind,
    };
    let mut map = vec![
        entry(0..EBDA.start, MapKind::Ram),
        entry(EBDA, MapKind::Reserved),
        entry(ACPI, MapKind::Reserved),
        entry(KERNEL_START..low_end(layout), MapKind::Ram),
    ];
    let high = layout.regions().skip(1);
    map.extend(high.map(|(range, _)| entry(range, MapKind::Ram)));
    map
}

#[cfg(test)]
mod tests {
    use samsara_commitlog::Shape;

    use super::*;

    #[test]
    fn the_map_rises_and_has_all_memory() {
        for mib in [16_u64, 3 << 10, 5 << 10] {
            let layout = Layout::new(Shape {
                vcpu_count: 1,
                memory_bytes: mib << 20,
            });
            let map = memory_map(layout);
            assert!(map.windows(2).all(|pair| pair[0].end <= pair[1].start));
            assert!(map.iter().all(|entry| entry.start < entry.end));
            let ram = map.iter().filter(|entry| entry.kind == MapKind::Ram);
            let bytes: u64 = ram.map(|entry| entry.end - entry.start).sum();
            let left_out = KERNEL_START - EBDA.start;
            assert_eq!(bytes + left_out, mib << 20);
        }
    }
}
