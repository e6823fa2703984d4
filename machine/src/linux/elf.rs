//! Kernels in ELF files (vmlinux).

use elf::ElfBytes;
use elf::abi;
use elf::endian::LittleEndian;
use elf::note::Note;
use elf::segment::ProgramHeader;
use samsara_commitlog::Gpa;

use super::map::KERNEL_START;
use crate::memory::{Image, MemoryError};

/// The note whose value is the entry point of the PVH boot protocol.
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;
const XEN_NOTE_NAME: &str = "Xen";

/// A checked ELF kernel.
#[derive(Debug)]
pub(super) struct ElfKernel {
    segments: Vec<ProgramHeader>,
    /// Where it is entered in 64-bit mode.
    pub(super) entry: u64,
    /// Where it is entered in 32-bit mode, by the PVH protocol.
    pub(super) pvh_entry: Option<u32>,
}

impl ElfKernel {
    pub(super) fn parse(file: &[u8]) -> Result<Self, String> {
        if file.get(abi::EI_CLASS) != Some(&abi::ELFCLASS64)
            || file.get(abi::EI_DATA) != Some(&abi::ELFDATA2LSB)
        {
            return Err("is not a 64-bit little-endian ELF file; use a kernel for x86-64".into());
        }
        let damaged = |error| format!("is a damaged ELF file: {error}");
        let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(damaged)?;
        if elf.ehdr.e_machine != abi::EM_X86_64 {
            let machine = elf.ehdr.e_machine;
            return Err(format!(
                "is for another machine (ELF machine {machine}); use a kernel for x86-64"
            ));
        }
        let table = elf.segments();
        let table = table.ok_or("has no program headers, so nothing to load")?;
        let mut segments = Vec::new();
        let mut pvh_entry = None;
        for segment in table.iter() {
            if segment.p_type == abi::PT_LOAD && segment.p_memsz > 0 {
                check_segment(&segment, file.len() as u64)?;
                segments.push(segment);
            } else if segment.p_type == abi::PT_NOTE {
                let mut notes = elf.segment_data_as_notes(&segment).map_err(damaged)?;
                pvh_entry = pvh_entry.or(notes.find_map(pvh_entry_of));
            }
        }
        let kernel = Self {
            segments: disjoint(segments)?,
            entry: elf.ehdr.e_entry,
            pvh_entry,
        };
        kernel.check_entry()
    }

    fn check_entry(self) -> Result<Self, String> {
        let entry = self.pvh_entry.map_or(self.entry, u64::from);
        let mut segments = self.segments.iter();
        if segments.any(|segment| range(segment).contains(&entry)) {
            Ok(self)
        } else {
            Err(format!(
                "its entry point {entry:#x} is in no segment that is loaded; is it a kernel?"
            ))
        }
    }

    /// One past its last byte in memory.
    pub(super) fn end(&self) -> u64 {
        let ends = self.segments.iter().map(|segment| range(segment).end);
        ends.max().unwrap_or(KERNEL_START)
    }

    pub(super) fn load(&self, file: &[u8], image: &Image) -> Result<(), MemoryError> {
        for segment in &self.segments {
            let start = segment.p_offset as usize;
            let bytes = &file[start..start + segment.p_filesz as usize];
            image.write(Gpa(segment.p_paddr), bytes)?;
        }
        Ok(())
    }
}

/// A checked segment's place in memory.
fn range(segment: &ProgramHeader) -> std::ops::Range<u64> {
    segment.p_paddr..segment.p_paddr + segment.p_memsz
}

fn pvh_entry_of(note: Note<'_>) -> Option<u32> {
    let Note::Unknown(note) = note else {
        return None;
    };
    let is_entry =
        note.n_type == XEN_ELFNOTE_PHYS32_ENTRY && note.name_str().ok() == Some(XEN_NOTE_NAME);
    // Four bytes, or eight of which the upper four are zero.
    let (value, rest) = note.desc.split_first_chunk()?;
    (is_entry && rest.iter().all(|&byte| byte == 0)).then(|| u32::from_le_bytes(*value))
}

fn check_segment(segment: &ProgramHeader, file_bytes: u64) -> Result<(), String> {
    let start = segment.p_paddr;
    let in_file = segment.p_offset.checked_add(segment.p_filesz);
    if segment.p_filesz > segment.p_memsz
        || in_file.is_none_or(|end| end > file_bytes)
        || start.checked_add(segment.p_memsz).is_none()
    {
        return Err(format!(
            "is damaged: the segment at {start:#x} does not lie in the file"
        ));
    }
    if start < KERNEL_START {
        return Err(format!(
            "its segment at {start:#x} is below {KERNEL_START:#x}, where this machine keeps what it tells the kernel; \
             is it a kernel?"
        ));
    }
    Ok(())
}

/// Memory of one segment that the file does not fill must stay zero.
fn disjoint(mut segments: Vec<ProgramHeader>) -> Result<Vec<ProgramHeader>, String> {
    segments.sort_by_key(|segment| segment.p_paddr);
    for pair in segments.windows(2) {
        if range(&pair[0]).end > pair[1].p_paddr {
            return Err(format!("its segments overlap at {:#x}", pair[1].p_paddr));
        }
    }
    Ok(segments)
}
