//! Kernels in bzImage files (vmlinuz): the Linux/x86 boot protocol, entered in 64-bit mode.

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued as _;

use super::map::KERNEL_START;

const HEADER: usize = 0x1f1;
const MAGIC: usize = 0x202;
const SECTOR: usize = 512;
/// The oldest boot protocol that can say that there is a 64-bit entry.
const VERSION_MIN: u16 = 0x20c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry, from where the protected-mode code is loaded.
const ENTRY: u64 = 0x200;
/// A header that says zero means this many sectors.
const SETUP_SECTORS_DEFAULT: usize = 4;

/// A checked bzImage.
#[derive(Debug)]
pub(super) struct BzImage {
    pub(super) header: setup_header,
    code_start: usize,
    end: u64,
}

impl BzImage {
    /// Whether a file has the magic number of the boot protocol.
    pub(super) fn is_one(file: &[u8]) -> bool {
        file.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
    }

    pub(super) fn parse(file: &[u8]) -> Result<Self, String> {
        let header = read_header(file).ok_or("is damaged: it ends in its header")?;
        let version = header.version;
        if version < VERSION_MIN || header.loadflags & LOADED_HIGH == 0 {
            return Err(format!(
                "has boot protocol {}.{:02}; use a kernel with boot protocol 2.12 or later (Linux 3.8)",
                version >> 8,
                version & 0xff
            ));
        }
        if header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(
                "has no 64-bit entry point (XLF_KERNEL_64); use a kernel for x86-64".into(),
            );
        }
        let sectors = match usize::from(header.setup_sects) {
            0 => SETUP_SECTORS_DEFAULT,
            sectors => sectors,
        };
        let code_start = (sectors + 1) * SECTOR;
        let code_bytes = file.len().saturating_sub(code_start) as u64;
        if code_bytes <= ENTRY {
            return Err("is damaged: it ends before its code".into());
        }
        // It unpacks itself to the address that it prefers, and says how much memory it needs there.
        let unpacked = header
            .pref_address
            .max(KERNEL_START)
            .checked_add(header.init_size.into());
        let unpacked = unpacked.ok_or("is damaged: its preferred address is out of range")?;
        Ok(Self {
            header,
            code_start,
            end: unpacked.max(KERNEL_START + code_bytes),
        })
    }

    pub(super) fn cmdline_max(&self) -> usize {
        self.header.cmdline_size as usize
    }

    pub(super) fn initrd_address_max(&self) -> u64 {
        self.header.initrd_addr_max.into()
    }

    /// Its protected-mode code, which is loaded at [`KERNEL_START`].
    pub(super) fn code<'file>(&self, file: &'file [u8]) -> &'file [u8] {
        &file[self.code_start..]
    }

    /// Where it is entered.
    pub(super) fn entry() -> u64 {
        KERNEL_START + ENTRY
    }

    /// One past the memory that it uses before it knows what memory there is.
    pub(super) fn end(&self) -> u64 {
        self.end
    }
}

/// The header ends where its second byte of a jump instruction says; what follows is code.
fn read_header(file: &[u8]) -> Option<setup_header> {
    let end = MAGIC + usize::from(*file.get(MAGIC - 1)?);
    let bytes = file.get(HEADER..end)?;
    let mut header = setup_header::default();
    let room = header.as_mut_slice();
    let length = bytes.len().min(room.len());
    room[..length].copy_from_slice(&bytes[..length]);
    Some(header)
}
