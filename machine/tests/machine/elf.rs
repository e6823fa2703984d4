//! Makes ELF files, right and wrong ones.

use std::io::Write;

use tempfile::NamedTempFile;

/// Where a program starts unless it says otherwise.
pub(crate) const START: u64 = 2 << 20;

pub(crate) struct Segment {
    pub(crate) kind: u32,
    pub(crate) address: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) memory_bytes: u64,
}

/// An ELF file before it is written.
pub(crate) struct Elf {
    pub(crate) class: u8,
    pub(crate) order: u8,
    pub(crate) kind: u16,
    pub(crate) machine: u16,
    pub(crate) entry: u64,
    pub(crate) segments: Vec<Segment>,
}

pub(crate) const LOAD: u32 = 1;
pub(crate) const INTERPRETER: u32 = 3;

pub(crate) fn segment(address: u64, bytes: &[u8], memory_bytes: u64) -> Segment {
    Segment {
        kind: LOAD,
        address,
        bytes: bytes.to_vec(),
        memory_bytes,
    }
}

impl Elf {
    /// A program that is as it should be.
    pub(crate) fn of(code: &[u8]) -> Self {
        let segments = vec![segment(START, code, code.len() as u64)];
        Self {
            class: 2,
            order: 1,
            kind: 2,
            machine: 62,
            entry: START,
            segments,
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = vec![0x7f, b'E', b'L', b'F', self.class, self.order, 1];
        file.resize(16, 0);
        file.extend(
            [self.kind, self.machine]
                .into_iter()
                .flat_map(u16::to_le_bytes),
        );
        file.extend(1u32.to_le_bytes());
        file.extend([self.entry, 64, 0].into_iter().flat_map(u64::to_le_bytes));
        file.extend(0u32.to_le_bytes());
        let sizes = [64, 56, self.segments.len() as u16, 64, 0, 0];
        file.extend(sizes.into_iter().flat_map(u16::to_le_bytes));
        let mut offset = 64 + 56 * self.segments.len() as u64;
        for segment in &self.segments {
            file.extend(segment.kind.to_le_bytes());
            file.extend(7u32.to_le_bytes());
            let bytes = segment.bytes.len() as u64;
            let (at, memory_bytes) = (segment.address, segment.memory_bytes);
            let words = [offset, at, at, bytes, memory_bytes, 4096];
            file.extend(words.into_iter().flat_map(u64::to_le_bytes));
            offset += bytes;
        }
        self.segments
            .iter()
            .for_each(|segment| file.extend(&segment.bytes));
        file
    }
}

pub(crate) fn write(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}
