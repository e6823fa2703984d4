//! The built files are what the bare guest contract asks for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use samsara_guests::{Program, program, programs};

const FIRST_GUEST_BYTE: u64 = 2 << 20;
const PT_LOAD: u32 = 1;
const PT_GNU_STACK: u32 = 0x6474_e551;

struct Segment {
    kind: u32,
    flags: u32,
    address: u64,
    physical: u64,
    memory_bytes: u64,
}

fn number<const N: usize>(image: &[u8], at: usize) -> [u8; N] {
    image[at..at + N].try_into().expect("N bytes")
}

fn u16_at(image: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(number(image, at))
}

fn u32_at(image: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(number(image, at))
}

fn u64_at(image: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(number(image, at))
}

fn segments(image: &[u8]) -> Vec<Segment> {
    let table = u64_at(image, 32) as usize;
    let (bytes, count) = (u16_at(image, 54), u16_at(image, 56));
    (0..usize::from(count))
        .map(|index| table + index * usize::from(bytes))
        .map(|at| Segment {
            kind: u32_at(image, at),
            flags: u32_at(image, at + 4),
            address: u64_at(image, at + 16),
            physical: u64_at(image, at + 24),
            memory_bytes: u64_at(image, at + 40),
        })
        .collect()
}

fn memory_bytes(program: &Program) -> u64 {
    let mib = program.default_memory.strip_suffix("MiB").expect("MiB");
    mib.parse::<u64>().expect("a number") << 20
}

fn check(program: &Program) {
    let (name, image) = (program.name, program.image);
    assert_eq!(&image[..7], b"\x7fELF\x02\x01\x01", "{name}: ELF64");
    assert_eq!(u16_at(image, 16), 2, "{name}: ET_EXEC");
    assert_eq!(u16_at(image, 18), 62, "{name}: x86-64");
    let entry = u64_at(image, 24);
    let mut entry_found = false;
    for segment in segments(image) {
        assert!(
            [PT_LOAD, PT_GNU_STACK].contains(&segment.kind),
            "{name}: static, so no segment of type {:#x}",
            segment.kind
        );
        if segment.kind != PT_LOAD {
            continue;
        }
        assert!(segment.physical >= FIRST_GUEST_BYTE, "{name}: below 2 MiB");
        assert_eq!(segment.physical, segment.address, "{name}: identity map");
        assert_eq!(segment.physical % 4096, 0, "{name}: pages of its own");
        let end = segment.physical + segment.memory_bytes;
        assert!(end < memory_bytes(program) / 2, "{name}: too large");
        let holds_entry = (segment.address..end).contains(&entry);
        entry_found |= holds_entry && segment.flags & 1 != 0;
    }
    assert!(entry_found, "{name}: entry in an executable segment");
}

#[test]
fn every_program_is_a_static_elf_above_two_mib() {
    programs().iter().for_each(check);
}

#[test]
fn path_and_image_are_the_same_file() {
    for program in programs() {
        assert_eq!(fs::read(program.path).unwrap(), program.image);
    }
}

#[test]
fn the_catalogue_lists_every_source_once() {
    let sources: BTreeSet<String> =
        fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("programs"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "c"))
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
    let listed: Vec<String> = programs().iter().map(|p| p.name.to_owned()).collect();
    assert_eq!(listed, sources.into_iter().collect::<Vec<_>>());
    assert_eq!(program("hello").map(|p| p.name), Some("hello"));
    assert_eq!(program("no such program"), None);
}
