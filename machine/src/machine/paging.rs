//! Memory as a vCPU sees it: through its page tables.

use samsara_commitlog::{Gpa, PAGE_BYTES, VcpuIndex};

use super::Machine;

const CR0_PAGING: u64 = 1 << 31;
const CR4_LARGE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_FIVE_LEVELS: u64 = 1 << 12;
const EFER_LONG: u64 = 1 << 10;

const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;

/// A kind of page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tables {
    root: u64,
    levels: u32,
    index_bits: u32,
    entry_bytes: u64,
    /// The bits of an entry that are an address.
    address: u64,
    /// Levels above the last at which an entry may be a large page.
    large_levels: u32,
    /// Addresses have so many bits; what is above them repeats the last, or is not looked at.
    is_canonical: bool,
}

impl Tables {
    /// Those of a vCPU with these control registers; none if it has no paging.
    fn of(cr0: u64, cr3: u64, cr4: u64, efer: u64) -> Option<Self> {
        const WIDE: u64 = 0x000f_ffff_ffff_f000;
        if cr0 & CR0_PAGING == 0 {
            return None;
        }
        let wide = Self {
            root: cr3 & WIDE,
            levels: 4,
            index_bits: 9,
            entry_bytes: 8,
            address: WIDE,
            large_levels: 2,
            is_canonical: true,
        };
        Some(if efer & EFER_LONG != 0 {
            let levels = if cr4 & CR4_FIVE_LEVELS != 0 { 5 } else { 4 };
            Self { levels, ..wide }
        } else if cr4 & CR4_PAE != 0 {
            Self {
                root: cr3 & 0xffff_ffe0,
                levels: 3,
                large_levels: 1,
                is_canonical: false,
                ..wide
            }
        } else {
            Self {
                root: cr3 & 0xffff_f000,
                levels: 2,
                index_bits: 10,
                entry_bytes: 4,
                address: 0xffff_f000,
                large_levels: u32::from(cr4 & CR4_LARGE != 0),
                is_canonical: false,
            }
        })
    }

    /// The address without bits that no level looks at, if it can be one.
    fn checked(&self, address: u64) -> Option<u64> {
        if !self.is_canonical {
            return Some(address & 0xffff_ffff);
        }
        let unused = 64 - 12 - self.levels * self.index_bits;
        let extended = ((address << unused) as i64 >> unused) as u64;
        (extended == address).then_some(address)
    }

    /// Where an address is, in memory whose entries `read` gives.
    fn walk(&self, address: u64, read: impl Fn(Gpa, &mut [u8]) -> Option<()>) -> Option<Gpa> {
        let address = self.checked(address)?;
        let mut table = self.root;
        for level in (0..self.levels).rev() {
            let shift = 12 + level * self.index_bits;
            let index = (address >> shift) & ((1 << self.index_bits) - 1);
            let mut entry = [0; 8];
            let place = Gpa(table + index * self.entry_bytes);
            read(place, &mut entry[..self.entry_bytes as usize])?;
            let entry = u64::from_le_bytes(entry);
            if entry & PRESENT == 0 {
                return None;
            }
            table = entry & self.address;
            let is_large = (1..=self.large_levels).contains(&level) && entry & LARGE != 0;
            if level == 0 || is_large {
                let within = (1 << shift) - 1;
                return Some(Gpa((table & !within) | (address & within)));
            }
        }
        None
    }
}

impl Machine {
    /// Where a vCPU finds an address: by its page tables in committed memory, whoever may access it there. `None` if they do not
    /// have it. The result need not be memory.
    pub fn translate(&self, vcpu: VcpuIndex, address: u64) -> Option<Gpa> {
        let sregs = self.vcpu(vcpu).sregs();
        match Tables::of(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) {
            None => Some(Gpa(address)),
            Some(tables) => tables.walk(address, |gpa, out| self.image().read(gpa, out).ok()),
        }
    }

    /// Copies bytes out of committed memory as a vCPU sees it. Gives how many there are up to one that it has not.
    pub fn read_virtual(&self, vcpu: VcpuIndex, address: u64, out: &mut [u8]) -> usize {
        const PAGE: u64 = PAGE_BYTES as u64;
        let mut done = 0;
        while done < out.len() {
            let Some(next) = address.checked_add(done as u64) else {
                break;
            };
            let bytes = (PAGE - next % PAGE).min((out.len() - done) as u64) as usize;
            let target = &mut out[done..done + bytes];
            let gpa = self.translate(vcpu, next);
            if gpa.is_none_or(|gpa| self.image().read(gpa, target).is_err()) {
                break;
            }
            done += bytes;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const LONG: (u64, u64) = (CR4_PAE, EFER_LONG);

    /// Entries by place, of a guest with these tables.
    fn walk(
        (cr4, efer): (u64, u64),
        cr3: u64,
        entries: &[(u64, u64)],
        address: u64,
    ) -> Option<u64> {
        let tables = Tables::of(CR0_PAGING, cr3, cr4, efer).unwrap();
        let entries: HashMap<_, _> = entries.iter().copied().collect();
        let read = |gpa: Gpa, out: &mut [u8]| {
            let bytes = entries.get(&gpa.0)?.to_le_bytes();
            out.copy_from_slice(&bytes[..out.len()]);
            Some(())
        };
        tables.walk(address, read).map(|gpa| gpa.0)
    }

    #[test]
    fn without_paging_there_are_no_tables() {
        assert_eq!(Tables::of(1, 0x1000, CR4_PAE, EFER_LONG), None);
    }

    #[test]
    fn four_levels_with_pages_of_every_size() {
        const BASE: u64 = 0xffff_ff80_0000_0000;
        // The upper bits of CR3 and of entries are no address.
        let entries = [
            (0x1000 + 8 * 0x1ff, (1 << 63) | 0x2067),
            (0x2000, 0x3067),
            (0x2008, 0x4000_0000 | LARGE | PRESENT),
            (0x3000, 0x4067),
            (0x3008, 0x60_0000 | LARGE | PRESENT),
            (0x4000 + 8 * 5, 0x9_9000 | PRESENT),
            (0x4000 + 8 * 6, 0x9_9000),
        ];
        let at = |address| walk(LONG, 0x1018, &entries, address);
        assert_eq!(at(BASE + 0x5123), Some(0x9_9123));
        assert_eq!(at(BASE + 0x6123), None);
        assert_eq!(at(BASE + 0x20_1234), Some(0x60_1234));
        assert_eq!(at(BASE + 0x4000_0000 + 0x1234_5678), Some(0x5234_5678));
        // Not canonical; a table that is not there.
        assert_eq!(at(0x0000_ff80_0000_5123), None);
        assert_eq!(at(0), None);
    }

    #[test]
    fn five_levels() {
        let entries = [
            (0x1000 + 8, 0x2001),
            (0x2000, 0x3001),
            (0x3000, 0x4001),
            (0x4000, 0x5001),
            (0x5000, 0x7_7001),
        ];
        let five = (CR4_PAE | CR4_FIVE_LEVELS, EFER_LONG);
        assert_eq!(
            walk(five, 0x1000, &entries, (1 << 48) + 0x10),
            Some(0x7_7010)
        );
        assert_eq!(walk(LONG, 0x1000, &entries, (1 << 48) + 0x10), None);
    }

    #[test]
    fn guests_of_32_bits() {
        let pae = [
            (0x1020 + 8 * 3, 0x2001),
            (0x2000, 0x3001),
            (0x2008, 0x20_0000 | LARGE | PRESENT),
            (0x3000, 0x8_8001),
        ];
        let at = |address| walk((CR4_PAE, 0), 0x1020, &pae, address);
        assert_eq!(at(0xc000_0123), Some(0x8_8123));
        assert_eq!(at(0xc020_0123), Some(0x20_0123));
        assert_eq!(at(0), None);

        let legacy = [
            (0x1000 + 4 * 0x300, 0x2001),
            (0x1000 + 4 * 0x301, 0x40_0000 | LARGE | PRESENT),
            (0x2000 + 4, 0x5_5001),
        ];
        let at = |cr4, address| walk((cr4, 0), 0x1000, &legacy, address);
        assert_eq!(at(0, 0xc000_1123), Some(0x5_5123));
        assert_eq!(at(CR4_LARGE, 0xc047_1123), Some(0x47_1123));
        assert_eq!(at(0, 0xc040_1123), None);
    }
}
