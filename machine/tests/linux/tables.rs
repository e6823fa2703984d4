//! What the loader writes, read as a kernel does.

use samsara_commitlog::{Gpa, Shape};
use samsara_machine::linux::{Kernel, VirtioSlot, boot};
use samsara_machine::memory::Image;

use crate::made::{START, bz_at, bzimage, elf, open, write};
use crate::{GIB, MIB, host};

const ROOT_POINTER: u64 = 0xe_0000;
const ZERO_PAGE: u64 = 0x7000;
const START_INFO: u64 = 0x6000;

fn bytes(image: &Image, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    image.read(Gpa(address), &mut bytes).unwrap();
    bytes
}

fn number(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

fn table(image: &Image, address: u64) -> Vec<u8> {
    let length = number(&bytes(image, address + 4, 4)) as usize;
    let table = bytes(image, address, length);
    assert_eq!(sum(&table), 0, "checksum of the table at {address:#x}");
    table
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn booted(bytes: u64, kernel: &Kernel) -> Option<Image> {
    let host = host()?;
    let shape = Shape::new(3, bytes).unwrap();
    let image = Image::new(shape).unwrap();
    let slots: Vec<_> = (0..8).map_while(VirtioSlot::new).collect();
    boot(&host, &image, shape, kernel, &slots).unwrap();
    Some(image)
}

#[test]
fn acpi_tables_can_be_followed_from_the_root() {
    let kernel = open(&elf(&[0xf4], Some(START)), "").unwrap();
    let Some(image) = booted(64 * MIB, &kernel) else {
        return;
    };
    let root = bytes(&image, ROOT_POINTER, 36);
    assert!(root.starts_with(b"RSD PTR ") && sum(&root) == 0 && sum(&root[..20]) == 0);
    let xsdt = table(&image, number(&root[24..32]));
    assert!(xsdt.starts_with(b"XSDT") && xsdt.len() == 36 + 2 * 8);
    let fadt = table(&image, number(&xsdt[36..44]));
    assert!(fadt.starts_with(b"FACP"));
    assert_eq!(number(&fadt[46..48]), 9, "SCI");
    assert_eq!(number(&fadt[48..52]), 0, "SMI command port");
    assert_eq!(number(&fadt[56..60]), 0x600);
    assert_eq!(number(&fadt[64..68]), 0x604);
    assert_eq!(number(&fadt[76..80]), 0x608);
    assert_eq!(fadt[88..92], [4, 2, 0, 4]);
    assert_eq!(number(&fadt[112..116]), 1 | 1 << 8 | 1 << 10);
    assert_eq!(fadt[116..120], [1, 8, 0, 1]);
    assert_eq!((number(&fadt[120..128]), fadt[128]), (0xcf9, 6));
    assert!(bytes(&image, number(&fadt[36..40]), 64).starts_with(b"FACS"));
    let dsdt = table(&image, number(&fadt[140..148]));
    assert!(dsdt.starts_with(b"DSDT"));
    let has = |part: &[u8]| {
        dsdt.windows(part.len())
            .filter(|&found| found == part)
            .count()
    };
    assert_eq!(
        (has(b"LNRO0005"), has(b"QEMU0001"), has(b"_S5_")),
        (8, 1, 1)
    );
    assert_eq!(has(&0xd000_7000_u32.to_le_bytes()), 1);
    let madt = table(&image, number(&xsdt[44..52]));
    assert!(madt.starts_with(b"APIC"));
    let mut rest = &madt[44..];
    let mut kinds = Vec::new();
    while let [kind, length, ..] = *rest {
        kinds.push(kind);
        rest = &rest[usize::from(length)..];
    }
    assert_eq!(kinds, [0, 0, 0, 1, 2, 2, 4]);
}

#[test]
fn pvh_kernels_are_told_of_memory_and_initrd() {
    let file = write(&elf(&[0xf4], Some(START)).0);
    let initrd = write(b"initrd");
    let kernel = Kernel::open(file.path(), Some(initrd.path()), "quiet").unwrap();
    let Some(image) = booted(5 * GIB, &kernel) else {
        return;
    };
    let info = bytes(&image, START_INFO, 56);
    assert_eq!(number(&info[..4]), 0x336e_c578);
    assert_eq!((number(&info[4..8]), number(&info[12..16])), (1, 1));
    let module = bytes(&image, number(&info[16..24]), 32);
    // Below 2 GiB, though there is more memory.
    assert_eq!(number(&module[..8]), 2 * GIB - 4096);
    assert_eq!(number(&module[8..16]), 6);
    assert_eq!(bytes(&image, 2 * GIB - 4096, 6), b"initrd");
    assert_eq!(bytes(&image, number(&info[24..32]), 6), b"quiet\0");
    assert_eq!(number(&info[32..40]), ROOT_POINTER);
    assert_eq!(number(&info[48..52]), 5);
    let last = bytes(&image, number(&info[40..48]) + 4 * 24, 24);
    assert_eq!(
        (
            number(&last[..8]),
            number(&last[8..16]),
            number(&last[16..20])
        ),
        (4 * GIB, 2 * GIB, 1)
    );
}

#[test]
fn a_bzimage_is_given_its_own_header_with_what_a_loader_fills_in() {
    let mut file = bzimage(&[0xf4]);
    file.put(bz_at::INITRD_ADDRESS_MAX, &0x1ff_ffff_u32.to_le_bytes());
    file.put(bz_at::SETUP_DATA, &[0x77; 8]);
    assert_eq!(bz_at::HEADER_END, 0x201);
    let (file, initrd) = (write(&file.0), write(&[7; 4097]));
    let kernel = Kernel::open(file.path(), Some(initrd.path()), "quiet").unwrap();
    let Some(image) = booted(64 * MIB, &kernel) else {
        return;
    };
    let page = bytes(&image, ZERO_PAGE, 4096);
    assert_eq!(page[bz_at::MAGIC..bz_at::MAGIC + 4], *b"HdrS");
    assert_eq!(page[bz_at::VERSION], 0x0f);
    assert_eq!(page[0x210], 0xff, "boot loader");
    assert_eq!(number(&page[0x218..0x21c]), 32 * MIB - 8192, "initrd");
    assert_eq!(number(&page[0x21c..0x220]), 4097);
    assert_eq!(number(&page[0x228..0x22c]), 0x2_0000, "command line");
    assert_eq!(number(&page[bz_at::SETUP_DATA..bz_at::SETUP_DATA + 8]), 0);
    assert_eq!(number(&page[0x70..0x78]), ROOT_POINTER);
    assert_eq!(page[0x1e8], 4, "entries of the memory map");
    assert_eq!(number(&page[0x26c..0x274]), 0, "code after the header");
}
