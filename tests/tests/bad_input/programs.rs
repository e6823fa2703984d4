//! Guest programs that are none, or are for another machine.

use std::fs;
use std::path::Path;

use samsara_tests::kvm_shared_or_skip;
use samsarad::exit::ExitCode::Input;

use crate::ran::{Ran, samsarad};

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
const LOAD: u32 = 1;

fn hello() -> Vec<u8> {
    samsara_guests::program("hello")
        .expect("program")
        .image
        .to_vec()
}

fn try_program(dir: &Path, bytes: &[u8]) -> Ran {
    let path = dir.join("guest.elf");
    fs::write(&path, bytes).expect("written");
    let program = format!("vm.program={}", path.display());
    samsarad(&[
        "--role",
        "standalone",
        "--set",
        &program,
        "--set",
        "vm.memory=16MiB",
    ])
}

/// Where the program header of the first loaded segment is.
fn first_segment(image: &[u8]) -> usize {
    let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().expect("8 bytes"));
    let count = u16::from_le_bytes([image[56], image[57]]).into();
    let table = word(32) as usize;
    let mut headers = (0..count).map(|index: usize| table + index * SEGMENT_BYTES);
    headers
        .find(|&at| image[at..at + 4] == LOAD.to_le_bytes())
        .expect("a loaded segment")
}

#[test]
fn files_that_are_no_program() {
    let dir = tempfile::tempdir().expect("directory");
    let missing = dir.path().join("none.elf").to_string_lossy().into_owned();
    let run = |path: &str| {
        samsarad(&[
            "--role",
            "standalone",
            "--set",
            &format!("vm.program={path}"),
        ])
    };
    run(&missing).failed(Input, &[&missing, "No such file"]);
    run("/").failed(Input, &["vm.program", "regular file"]);
    run("/dev/zero").failed(Input, &["/dev/zero", "regular file"]);
    for bytes in [&b""[..], b"hello", b"\x7fEL", b"#!/bin/sh\nexit 0\n"] {
        try_program(dir.path(), bytes).failed(Input, &["guest.elf", "is not an ELF file"]);
    }
    let ours = std::env::current_exe().expect("this test");
    run(&ours.to_string_lossy()).failed(Input, &["-static -no-pie"]);
}

#[test]
fn programs_for_other_machines() {
    let dir = tempfile::tempdir().expect("directory");
    let change = |at: usize, to: &[u8], parts: &[&str]| {
        let mut image = hello();
        image[at..at + to.len()].copy_from_slice(to);
        try_program(dir.path(), &image).failed(Input, &[&["guest.elf"], parts].concat());
    };
    change(18, &183u16.to_le_bytes(), &["another machine"]);
    change(4, &[1], &[]);
    change(5, &[2], &[]);
    change(16, &3u16.to_le_bytes(), &["ET_EXEC"]);
    change(16, &1u16.to_le_bytes(), &["ET_EXEC"]);
    // Tables that point out of the file.
    change(32, &u64::MAX.to_le_bytes(), &[]);
    change(56, &u16::MAX.to_le_bytes(), &[]);
    change(24, &0u64.to_le_bytes(), &["entry point"]);
}

#[test]
fn programs_outside_of_memory() {
    let Some(_machine) = kvm_shared_or_skip("programs outside of memory") else {
        return;
    };
    let dir = tempfile::tempdir().expect("directory");
    let at = first_segment(&hello());
    // The memory range of the first segment: where, and how much.
    let place = |start: Option<u64>, bytes: Option<u64>| {
        let mut image = hello();
        for (field, value) in [(24, start), (40, bytes)] {
            if let Some(value) = value {
                image[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
            }
        }
        try_program(dir.path(), &image)
    };
    for start in [
        0,
        0x1000,
        0x1f_f000,
        15 << 20,
        1 << 30,
        0xd000_0000,
        u64::MAX - 0xfff,
    ] {
        place(Some(start), Some(2 << 20)).failed(Input, &["guest.elf"]);
    }
    for bytes in [16 << 20, 1 << 40, u64::MAX, 1] {
        place(None, Some(bytes)).failed(Input, &["guest.elf"]);
    }
    let big = samsara_guests::program("hello").expect("program");
    assert!(big.image.len() > HEADER_BYTES);
}

/// Whatever byte of the headers is wrong, and wherever the file ends: refused, or run by a machine that stops it.
#[test]
fn damaged_headers() {
    let Some(_machine) = kvm_shared_or_skip("damaged programs") else {
        return;
    };
    let dir = tempfile::tempdir().expect("directory");
    let image = hello();
    let refused = |bytes: &[u8], what: &str| {
        let ran = try_program(dir.path(), bytes);
        assert!(!ran.stderr.contains("panicked"), "{what}: {}", ran.stderr);
        // Not all bytes of the headers matter.
        assert!(matches!(ran.code, Some(66 | 65 | 0)), "{what}: {ran:?}");
        ran.code
    };
    let ends = (0..image.len()).step_by(image.len() / 24);
    for end in ends {
        assert_eq!(
            refused(&image[..end], &format!("first {end} bytes")),
            Some(66)
        );
    }
    let headers =
        (0..HEADER_BYTES).chain(first_segment(&image)..first_segment(&image) + SEGMENT_BYTES);
    for at in headers.step_by(3) {
        let mut damaged = image.clone();
        damaged[at] ^= 0x81;
        refused(&damaged, &format!("byte {at}"));
    }
}
