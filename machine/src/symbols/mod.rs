//! Names of what a guest's ELF file has at an address: functions where its code is, objects in a page of its memory.
//!
//! The file may be anybody's: only a bounded part of it is read, nothing in it is believed without a check, and names are
//! made printable.

mod table;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use elf::abi;
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::parse::{ParseAt, ParsingTable};
use elf::section::SectionHeader;
use elf::segment::ProgramHeader;
use samsara_commitlog::{Gpa, PAGE_BYTES};

use table::SymbolTable;

/// Largest table of symbols, or of their names, that is read: more than a distribution's kernel has.
const TABLE_BYTES_MAX: u64 = 64 << 20;
/// Size of the header of an ELF64 file.
const HEADER_BYTES: usize = 64;

/// Why there are no names.
#[derive(Debug, thiserror::Error)]
pub enum SymbolsError {
    /// It cannot be read.
    #[error("cannot read the symbols of {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It has none, or none that can be used.
    #[error("{} {problem}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

enum Problem {
    Read(io::Error),
    Unfit(String),
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Unfit("is damaged: it ends too soon".into()),
            _ => Self::Read(error),
        }
    }
}

/// A segment: where the guest sees it, and where it is in guest memory.
#[derive(Clone, Debug)]
struct Segment {
    addresses: Range<u64>,
    memory_start: u64,
    is_code: bool,
}

/// The names in a guest's file.
#[derive(Debug)]
pub struct Symbols {
    table: SymbolTable,
    segments: Vec<Segment>,
}

impl Symbols {
    /// Reads a bare program's or a kernel's ELF file.
    pub fn open(path: &Path) -> Result<Self, SymbolsError> {
        Self::read(path).map_err(|problem| match problem {
            Problem::Read(source) => SymbolsError::Read {
                path: path.to_owned(),
                source,
            },
            Problem::Unfit(problem) => SymbolsError::Unfit {
                path: path.to_owned(),
                problem,
            },
        })
    }

    fn read(path: &Path) -> Result<Self, Problem> {
        let mut options = File::options();
        // A pipe is opened too, and refused below.
        let file = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(Problem::Unfit("is not a regular file".into()));
        }
        let header = header(&file)?;
        let segments: Vec<ProgramHeader> = headers(&file, header.e_phoff, header.e_phnum)?;
        let sections: Vec<SectionHeader> = headers(&file, header.e_shoff, header.e_shnum)?;
        let mut tables = sections.iter();
        let symbols = tables.find(|section| section.sh_type == abi::SHT_SYMTAB);
        let symbols = symbols.ok_or_else(|| Problem::Unfit("has no symbols".into()))?;
        let names = sections.get(symbols.sh_link as usize);
        let names = names.filter(|section| section.sh_type == abi::SHT_STRTAB);
        let names = names.ok_or_else(|| damaged("its symbols have no names"))?;
        let symbols = contents(&file, symbols)?;
        let names = contents(&file, names)?;
        Ok(Self {
            table: SymbolTable::new(&symbols, names),
            segments: segments.iter().filter_map(segment).collect(),
        })
    }

    /// The function that has an address in it, and how far into it.
    pub fn function_at(&self, address: u64) -> Option<(String, u64)> {
        let mut segments = self.segments.iter();
        let is_code = segments.any(|one| one.is_code && one.addresses.contains(&address));
        is_code.then(|| self.table.function_at(address)).flatten()
    }

    /// The objects of which a part is in the page of memory that begins at `page`, lowest first: at most `max` names, and how
    /// many more there are.
    pub fn objects_in(&self, page: Gpa, max: usize) -> (Vec<String>, usize) {
        let mut found = Vec::new();
        let mut more = 0;
        for segment in &self.segments {
            let Some(addresses) = segment.shows(page) else {
                continue;
            };
            let objects = self.table.objects_in(&addresses);
            more += objects.len();
            let room = max - found.len().min(max);
            let names = objects.iter().take(room);
            found.extend(names.map(|object| self.table.name(object)));
        }
        more -= found.len();
        (found, more)
    }
}

impl Segment {
    /// Under which addresses the segment shows a page of memory.
    fn shows(&self, page: Gpa) -> Option<Range<u64>> {
        let bytes = self.addresses.end - self.addresses.start;
        let memory_end = self.memory_start.saturating_add(bytes);
        let start = page.0.max(self.memory_start);
        let end = page.0.saturating_add(PAGE_BYTES as u64).min(memory_end);
        let place = |memory: u64| self.addresses.start + (memory - self.memory_start);
        (start < end).then(|| place(start)..place(end))
    }
}

fn damaged(what: &str) -> Problem {
    Problem::Unfit(format!("is damaged: {what}"))
}

fn header(file: &File) -> Result<FileHeader<LittleEndian>, Problem> {
    let mut bytes = [0; HEADER_BYTES];
    let not_elf = || Problem::Unfit("has no symbols: it is not an ELF file for x86-64".into());
    file.read_exact_at(&mut bytes, 0).map_err(|_| not_elf())?;
    let (ident, tail) = bytes.split_at(abi::EI_NIDENT);
    let ident = parse_ident::<LittleEndian>(ident).map_err(|_| not_elf())?;
    let is_64 = ident.1 == Class::ELF64;
    let header = FileHeader::parse_tail(ident, tail).map_err(|_| not_elf())?;
    let is_ours = is_64 && header.e_machine == abi::EM_X86_64;
    is_ours.then_some(header).ok_or_else(not_elf)
}

/// A table of program or section headers: at most 65,535.
fn headers<T: ParseAt>(file: &File, offset: u64, count: u16) -> Result<Vec<T>, Problem> {
    let entry = T::size_for(Class::ELF64);
    let mut bytes = vec![0; entry * usize::from(count)];
    file.read_exact_at(&mut bytes, offset)?;
    let table = ParsingTable::<_, T>::new(LittleEndian, Class::ELF64, &bytes);
    Ok(table.iter().collect())
}

fn contents(file: &File, section: &SectionHeader) -> Result<Vec<u8>, Problem> {
    if section.sh_size > TABLE_BYTES_MAX {
        return Err(Problem::Unfit(format!(
            "has more than {} MiB of symbols",
            TABLE_BYTES_MAX >> 20
        )));
    }
    let mut bytes = vec![0; section.sh_size as usize];
    file.read_exact_at(&mut bytes, section.sh_offset)?;
    Ok(bytes)
}

fn segment(header: &ProgramHeader) -> Option<Segment> {
    let end = header.p_vaddr.checked_add(header.p_memsz)?;
    (header.p_type == abi::PT_LOAD).then_some(Segment {
        addresses: header.p_vaddr..end,
        memory_start: header.p_paddr,
        is_code: header.p_flags & abi::PF_X != 0,
    })
}

#[cfg(test)]
mod tests;
