//! Kernels' files, made up: right ones, to be damaged.

use samsara_machine::linux::{Kernel, KernelError};
use tempfile::NamedTempFile;

pub(crate) const START: u64 = 0x20_0000;
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Where a file's code is.
pub(crate) const CODE: usize = 0x200;

/// Bytes with values put at offsets.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Bytes {
    pub(crate) fn put(&mut self, at: usize, value: &[u8]) {
        self.0[at..at + value.len()].copy_from_slice(value);
    }
}

/// Offsets in the headers of an ELF kernel.
pub(crate) mod elf_at {
    use super::{ELF_HEADER, PROGRAM_HEADER};

    pub(crate) const CLASS: usize = 4;
    pub(crate) const MACHINE: usize = 18;
    pub(crate) const ENTRY: usize = 24;
    pub(crate) const PROGRAM_HEADERS: usize = 32;
    pub(crate) const OFFSET: usize = ELF_HEADER + 8;
    pub(crate) const ADDRESS: usize = ELF_HEADER + 24;
    pub(crate) const FILE_BYTES: usize = ELF_HEADER + 32;
    pub(crate) const MEMORY_BYTES: usize = ELF_HEADER + 40;
    pub(crate) const NOTE: usize = ELF_HEADER + 2 * PROGRAM_HEADER;
}

/// An ELF kernel with one segment of code at [`START`], a megabyte of memory, and a note with this PVH entry.
pub(crate) fn elf(code: &[u8], pvh_entry: Option<u64>) -> Bytes {
    let mut file = Bytes(vec![0; CODE]);
    file.put(0, b"\x7fELF\x02\x01\x01");
    file.put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    file.put(elf_at::ENTRY, &START.to_le_bytes());
    file.put(elf_at::PROGRAM_HEADERS, &(ELF_HEADER as u64).to_le_bytes());
    file.put(52, &(ELF_HEADER as u16).to_le_bytes());
    file.put(54, &(PROGRAM_HEADER as u16).to_le_bytes());
    file.put(56, &2_u16.to_le_bytes());
    file.put(ELF_HEADER, &1_u32.to_le_bytes());
    file.put(elf_at::OFFSET, &(CODE as u64).to_le_bytes());
    file.put(elf_at::ADDRESS, &START.to_le_bytes());
    file.put(elf_at::FILE_BYTES, &(code.len() as u64).to_le_bytes());
    file.put(elf_at::MEMORY_BYTES, &(1_u64 << 20).to_le_bytes());
    if let Some(entry) = pvh_entry {
        let header = ELF_HEADER + PROGRAM_HEADER;
        file.put(header, &4_u32.to_le_bytes());
        file.put(header + 8, &(elf_at::NOTE as u64).to_le_bytes());
        file.put(header + 32, &24_u64.to_le_bytes());
        file.put(header + 48, &4_u64.to_le_bytes());
        file.put(elf_at::NOTE, &[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0]);
        file.put(elf_at::NOTE + 12, b"Xen\0");
        file.put(elf_at::NOTE + 16, &entry.to_le_bytes());
    }
    file.0.extend(code);
    file
}

/// Offsets in the header of a bzImage.
pub(crate) mod bz_at {
    pub(crate) const SETUP_SECTORS: usize = 0x1f1;
    pub(crate) const HEADER_END: usize = 0x201;
    pub(crate) const MAGIC: usize = 0x202;
    pub(crate) const VERSION: usize = 0x206;
    pub(crate) const LOAD_FLAGS: usize = 0x211;
    pub(crate) const INITRD_ADDRESS_MAX: usize = 0x22c;
    pub(crate) const EXTENDED_LOAD_FLAGS: usize = 0x236;
    pub(crate) const CMDLINE_BYTES: usize = 0x238;
    pub(crate) const SETUP_DATA: usize = 0x250;
    pub(crate) const PREFERRED_ADDRESS: usize = 0x258;
    pub(crate) const MEMORY_BYTES: usize = 0x260;
}

/// A bzImage with this code at its 64-bit entry, that unpacks itself to 16 MiB and takes 4 MiB there.
pub(crate) fn bzimage(code: &[u8]) -> Bytes {
    let sectors = 2;
    let mut file = Bytes(vec![0; (sectors + 1) * 512 + 0x200]);
    file.put(bz_at::SETUP_SECTORS, &[sectors as u8]);
    file.put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    file.put(bz_at::MAGIC, b"HdrS");
    file.put(bz_at::VERSION, &0x20f_u16.to_le_bytes());
    file.put(bz_at::LOAD_FLAGS, &[1]);
    file.put(bz_at::INITRD_ADDRESS_MAX, &0x7fff_ffff_u32.to_le_bytes());
    file.put(bz_at::EXTENDED_LOAD_FLAGS, &[1]);
    file.put(bz_at::CMDLINE_BYTES, &2047_u32.to_le_bytes());
    file.put(bz_at::PREFERRED_ADDRESS, &(16_u64 << 20).to_le_bytes());
    file.put(bz_at::MEMORY_BYTES, &(4_u32 << 20).to_le_bytes());
    // Code follows the header at once; it is not part of it.
    file.put(0x26c, &[0xcc; 16]);
    file.0.extend(code);
    file.0.push(0);
    file
}

/// A temporary file.
pub(crate) fn write(bytes: &[u8]) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

/// Opens a kernel from bytes, without an initrd.
pub(crate) fn open(file: &Bytes, cmdline: &str) -> Result<Kernel, KernelError> {
    Kernel::open(write(&file.0).path(), None, cmdline)
}
