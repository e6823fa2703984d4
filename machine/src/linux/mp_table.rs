//! The MP table (version 1.4), for kernels without ACPI.

use samsara_commitlog::Gpa;

use super::acpi::{IOAPIC_ADDRESS, IOAPIC_ID, LOCAL_APIC_ADDRESS, TIMER_PIN};
use super::map::{BIOS_DATA_BASE_KIB, BIOS_DATA_EBDA_SEGMENT, EBDA};
use crate::memory::{Image, MemoryError};

const POINTER_BYTES: u64 = 16;
const HEADER_BYTES: usize = 44;
const SPECIFICATION: u8 = 4;
/// Version numbers of an integrated local APIC and of the IOAPIC.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
/// Family 6, with an FPU and a local APIC; kernels ask CPUID.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;
const ISA_BUS: u8 = 0;
const ISA_LINES: u8 = 16;
/// The line that the second interrupt controller hangs on, so no device.
const CASCADE_LINE: u8 = 2;
const EVERY_LOCAL_APIC: u8 = 0xff;

/// Kinds of interrupts.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    Vectored = 0,
    Nmi = 1,
    External = 3,
}

/// Writes the table, and the BIOS's notes that lead to it.
pub(super) fn write(image: &Image, vcpu_count: u8) -> Result<(), MemoryError> {
    let segment = (EBDA.start >> 4) as u16;
    image.write(Gpa(BIOS_DATA_EBDA_SEGMENT), &segment.to_le_bytes())?;
    let base_kib = (EBDA.start >> 10) as u16;
    image.write(Gpa(BIOS_DATA_BASE_KIB), &base_kib.to_le_bytes())?;
    image.write(Gpa(EBDA.start), &pointer())?;
    image.write(Gpa(EBDA.start + POINTER_BYTES), &table(vcpu_count))
}

fn pointer() -> [u8; POINTER_BYTES as usize] {
    let mut pointer = [0; POINTER_BYTES as usize];
    pointer[..4].copy_from_slice(b"_MP_");
    let table = (EBDA.start + POINTER_BYTES) as u32;
    pointer[4..8].copy_from_slice(&table.to_le_bytes());
    pointer[8] = 1;
    pointer[9] = SPECIFICATION;
    pointer[10] = checksum(&pointer);
    pointer
}

fn table(vcpu_count: u8) -> Vec<u8> {
    let entries = entries(vcpu_count);
    let count = entries.len() as u16;
    let mut table = b"PCMP".to_vec();
    let body: usize = entries.iter().map(Vec::len).sum();
    table.extend(((HEADER_BYTES + body) as u16).to_le_bytes());
    table.extend([SPECIFICATION, 0]);
    table.extend(b"SAMSARA PC          ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LOCAL_APIC_ADDRESS.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries.concat());
    table[7] = checksum(&table);
    table
}

fn entries(vcpu_count: u8) -> Vec<Vec<u8>> {
    let mut entries: Vec<_> = (0..vcpu_count).map(processor).collect();
    entries.push([&[1, ISA_BUS][..], b"ISA   "].concat());
    let ioapic = [2, IOAPIC_ID, IOAPIC_VERSION, 1];
    entries.push([&ioapic[..], &IOAPIC_ADDRESS.to_le_bytes()].concat());
    let lines = (0..ISA_LINES).filter(|&line| line != CASCADE_LINE);
    entries.extend(lines.map(|line| {
        let pin = if line == 0 { TIMER_PIN } else { line };
        interrupt(3, Kind::Vectored, line, IOAPIC_ID, pin)
    }));
    entries.push(interrupt(4, Kind::External, 0, 0, 0));
    entries.push(interrupt(4, Kind::Nmi, 0, EVERY_LOCAL_APIC, 1));
    entries
}

fn processor(index: u8) -> Vec<u8> {
    let boot = if index == 0 { CPU_BOOT } else { 0 };
    let mut entry = vec![0, index, LOCAL_APIC_VERSION, CPU_ENABLED | boot];
    entry.extend(CPU_SIGNATURE.to_le_bytes());
    entry.extend(CPU_FEATURES.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

/// An interrupt with the polarity and trigger of its bus, which for ISA is: when the line rises.
fn interrupt(entry: u8, kind: Kind, line: u8, apic: u8, pin: u8) -> Vec<u8> {
    vec![entry, kind as u8, 0, 0, ISA_BUS, line, apic, pin]
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_adds_up_and_fits() {
        for vcpu_count in [1, 2, 16] {
            let table = table(vcpu_count);
            assert_eq!(checksum(&table), 0);
            assert_eq!(
                usize::from(table[4]) | usize::from(table[5]) << 8,
                table.len()
            );
            assert!(table.len() as u64 + POINTER_BYTES <= EBDA.end - EBDA.start);
            assert_eq!(u16::from(table[34]), u16::from(vcpu_count) + 1 + 1 + 15 + 2);
            assert_eq!(table[36..40], [0, 0, 0xe0, 0xfe]);
        }
        assert_eq!(checksum(&pointer()), 0);
    }
}
