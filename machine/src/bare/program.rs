//! A bare guest's ELF file, checked.

use std::path::{Path, PathBuf};

use elf::ElfBytes;
use elf::abi;
use elf::endian::LittleEndian;
use elf::segment::ProgramHeader;
use samsara_commitlog::Gpa;

use crate::memory::{Image, Layout};

/// The first address that belongs to the program.
const PROGRAM_START: u64 = 2 << 20;
/// Longest parameter string, without its NUL.
pub const PARAMS_MAX: usize = 4095;
/// Largest program file: a bound for what is read into this process.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Why a file is not a bare guest that fits the machine.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It cannot be read.
    #[error("cannot read the guest program {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not what the contract asks for.
    #[error("{}: {problem}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong and what is needed.
        problem: String,
    },
}

/// A checked program.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    file: Vec<u8>,
    entry: u64,
    segments: Vec<ProgramHeader>,
}

impl Program {
    /// Reads and checks a file.
    pub fn open(path: &Path) -> Result<Self, ProgramError> {
        let unreadable = |source| ProgramError::Read {
            path: path.into(),
            source,
        };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        let unfit = |problem: String| ProgramError::Unfit {
            path: path.into(),
            problem,
        };
        if !metadata.is_file() {
            return Err(unfit(
                "is not a regular file; vm.program names an ELF64 program".into(),
            ));
        }
        if metadata.len() > FILE_BYTES_MAX {
            return Err(unfit(format!("is larger than {FILE_BYTES_MAX} bytes")));
        }
        let file = std::fs::read(path).map_err(unreadable)?;
        let (entry, segments) = parse(&file).map_err(unfit)?;
        Ok(Self {
            path: path.into(),
            file,
            entry,
            segments,
        })
    }

    /// A program that is only code, where programs start.
    pub(crate) fn flat(code: Vec<u8>) -> Self {
        let bytes = code.len() as u64;
        let segment = ProgramHeader {
            p_type: abi::PT_LOAD,
            p_offset: 0,
            p_vaddr: PROGRAM_START,
            p_paddr: PROGRAM_START,
            p_filesz: bytes,
            p_memsz: bytes,
            p_flags: abi::PF_R | abi::PF_X,
            p_align: 1,
        };
        Self {
            path: PathBuf::new(),
            file: code,
            entry: PROGRAM_START,
            segments: vec![segment],
        }
    }

    /// The address of the first instruction.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// Checks that all segments lie in memory below `end`, where the loader's own data begins.
    pub(super) fn check_fit(&self, layout: Layout, end: Gpa) -> Result<(), ProgramError> {
        for segment in &self.segments {
            let (start, bytes) = (segment.p_paddr, segment.p_memsz);
            let inside = layout.offset_of(Gpa(start), bytes).is_some();
            if start < PROGRAM_START || !inside || start + bytes > end.0 {
                return Err(self.unfit(format!(
                    "its segment of {bytes} bytes at {start:#x} is not between 2 MiB and {end}, \
                     where this machine's memory for programs ends; link it lower or give \
                     vm.memory more"
                )));
            }
        }
        Ok(())
    }

    /// Copies the segments into memory. What a file does not fill stays zero.
    pub(super) fn load(&self, image: &Image) -> Result<(), ProgramError> {
        for segment in &self.segments {
            let bytes = self.file_bytes(segment);
            let result = image.write(Gpa(segment.p_paddr), bytes);
            result.map_err(|error| self.unfit(error.to_string()))?;
        }
        Ok(())
    }

    fn file_bytes(&self, segment: &ProgramHeader) -> &[u8] {
        let start = segment.p_offset as usize;
        &self.file[start..start + segment.p_filesz as usize]
    }

    fn unfit(&self, problem: String) -> ProgramError {
        ProgramError::Unfit {
            path: self.path.clone(),
            problem,
        }
    }
}

fn parse(file: &[u8]) -> Result<(u64, Vec<ProgramHeader>), String> {
    if !file.starts_with(&abi::ELFMAGIC) {
        return Err("is not an ELF file; a bare guest is a static ELF64 program".into());
    }
    if file.get(abi::EI_CLASS) != Some(&abi::ELFCLASS64)
        || file.get(abi::EI_DATA) != Some(&abi::ELFDATA2LSB)
    {
        return Err("is not a 64-bit little-endian ELF file; build it for x86-64".into());
    }
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file)
        .map_err(|error| format!("is a damaged ELF file: {error}"))?;
    let header = &elf.ehdr;
    if header.e_machine != abi::EM_X86_64 {
        return Err(format!(
            "is for another machine (ELF machine {})",
            header.e_machine
        ));
    }
    if header.e_type != abi::ET_EXEC {
        return Err(
            "is not a fixed-address executable (ET_EXEC); link it with -static -no-pie".into(),
        );
    }
    let table = elf
        .segments()
        .ok_or("has no program headers, so nothing to load")?;
    let mut segments = Vec::new();
    for segment in table.iter() {
        check_segment(&segment, file.len() as u64)?;
        if segment.p_type == abi::PT_LOAD && segment.p_memsz > 0 {
            segments.push(segment);
        }
    }
    check_disjoint(&mut segments)?;
    let has_entry = segments.iter().any(|segment| {
        (segment.p_paddr..segment.p_paddr + segment.p_memsz).contains(&header.e_entry)
    });
    if !has_entry {
        return Err(format!(
            "its entry point {:#x} is in no segment that is loaded",
            header.e_entry
        ));
    }
    Ok((header.e_entry, segments))
}

fn check_segment(segment: &ProgramHeader, file_bytes: u64) -> Result<(), String> {
    if segment.p_type == abi::PT_INTERP {
        return Err("needs a dynamic linker; link it with -static -no-pie".into());
    }
    if segment.p_type != abi::PT_LOAD {
        return Ok(());
    }
    let in_file = segment.p_offset.checked_add(segment.p_filesz);
    let in_memory = segment.p_paddr.checked_add(segment.p_memsz);
    if segment.p_filesz > segment.p_memsz
        || in_file.is_none_or(|end| end > file_bytes)
        || in_memory.is_none()
    {
        return Err(format!(
            "is damaged: the segment at {:#x} does not lie in the file",
            segment.p_paddr
        ));
    }
    Ok(())
}

fn check_disjoint(segments: &mut [ProgramHeader]) -> Result<(), String> {
    segments.sort_by_key(|segment| segment.p_paddr);
    for pair in segments.windows(2) {
        if pair[0].p_paddr + pair[0].p_memsz > pair[1].p_paddr {
            return Err(format!("its segments overlap at {:#x}", pair[1].p_paddr));
        }
    }
    Ok(())
}
