//! What the loader refuses, and how it says so.

use samsara_commitlog::Gpa;
use samsara_machine::bare::{BootError, PARAMS_MAX, Program, boot};
use samsara_machine::kvm::Host;

use crate::elf::{Elf, INTERPRETER, START, Segment, segment, write};
use crate::entry::host;
use crate::{GIB, MIB, Rng, image};

fn open(bytes: &[u8]) -> Result<Program, String> {
    Program::open(write(bytes).path()).map_err(|error| error.to_string())
}

#[test]
fn files_that_are_no_bare_guests_are_refused_with_what_is_wrong() {
    let good = || Elf::of(&[0x90; 16]);
    let interpreter = Segment {
        kind: INTERPRETER,
        address: 0,
        bytes: b"/lib/ld.so".to_vec(),
        memory_bytes: 10,
    };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "not an ELF file"),
        (b"#!/bin/sh\n".to_vec(), "not an ELF file"),
        (b"\x7fELF".to_vec(), "64-bit"),
        (Elf { class: 1, ..good() }.bytes(), "64-bit"),
        (Elf { order: 2, ..good() }.bytes(), "little-endian"),
        (
            Elf {
                machine: 183,
                ..good()
            }
            .bytes(),
            "another machine",
        ),
        (Elf { kind: 3, ..good() }.bytes(), "ET_EXEC"),
        (Elf { kind: 1, ..good() }.bytes(), "ET_EXEC"),
        (
            Elf {
                segments: vec![interpreter],
                ..good()
            }
            .bytes(),
            "dynamic linker",
        ),
        (
            Elf {
                segments: Vec::new(),
                ..good()
            }
            .bytes(),
            "in no segment that is loaded",
        ),
        (
            Elf {
                entry: START + 16,
                ..good()
            }
            .bytes(),
            "entry point 0x200010",
        ),
        (good().bytes()[..100].to_vec(), "damaged"),
        (
            good().bytes()[..good().bytes().len() - 1].to_vec(),
            "does not lie in the file",
        ),
        (
            Elf {
                segments: vec![segment(START, &[0; 16], 15)],
                ..good()
            }
            .bytes(),
            "damaged",
        ),
        (
            Elf {
                segments: vec![segment(START, &[0; 16], u64::MAX)],
                ..good()
            }
            .bytes(),
            "damaged",
        ),
    ];
    for (bytes, expected) in cases {
        let error = open(&bytes).unwrap_err();
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
        assert!(!error.contains('\n'));
    }
    let two = vec![
        segment(START, &[0x90; 16], 4097),
        segment(START + 4096, &[1], 1),
    ];
    let error = open(
        &Elf {
            segments: two,
            ..good()
        }
        .bytes(),
    )
    .unwrap_err();
    assert!(error.contains("overlap at 0x201000"), "{error}");
    assert!(open(&good().bytes()).is_ok());
}

#[test]
fn paths_that_are_no_files_are_named() {
    for path in ["/nowhere/guest.elf", "/dev/zero", "/"] {
        let error = Program::open(path.as_ref()).unwrap_err().to_string();
        assert!(error.contains(path), "{error}");
    }
}

fn boots(host: &Host, memory: u64, segment: Segment) -> Result<(), String> {
    let mut elf = Elf::of(&[0x90]);
    elf.entry = segment.address;
    elf.segments = vec![segment];
    let program = open(&elf.bytes())?;
    boot(host, &image(memory), 2, &program, "")
        .map(drop)
        .map_err(|error| error.to_string())
}

#[test]
fn segments_lie_between_the_loaders_own_areas() {
    let Some(host) = host() else { return };
    // Two stacks of 64 KiB are at the top.
    let end = 16 * MIB - (128 << 10);
    assert_eq!(
        boots(&host, 16 * MIB, segment(START, &[0x90], end - START)),
        Ok(())
    );
    for (address, bytes) in [
        (START, end - START + 1),
        (START - 1, 2),
        (0, 1),
        (16 * MIB, 1),
        (3 * GIB, 1),
    ] {
        let error = boots(&host, 16 * MIB, segment(address, &[0x90], bytes)).unwrap_err();
        assert!(error.contains(&format!("{address:#x}")), "{error}");
        assert!(error.contains("vm.memory"), "{error}");
    }
    let across = segment(3 * GIB - 4096, &[0x90], GIB + 8192);
    assert!(boots(&host, 5 * GIB, across).is_err());
    assert_eq!(
        boots(&host, 5 * GIB, segment(4 * GIB, &[0x90], 4096)),
        Ok(())
    );
}

#[test]
fn what_a_file_does_not_fill_is_zero() {
    let Some(host) = host() else { return };
    let image = image(16 * MIB);
    let elf = Elf {
        segments: vec![segment(START, &[0xaa; 5], 64)],
        ..Elf::of(&[])
    };
    boot(&host, &image, 1, &open(&elf.bytes()).unwrap(), "").unwrap();
    let mut found = [1; 64];
    image.read(Gpa(START), &mut found).unwrap();
    assert_eq!(found[..5], [0xaa; 5]);
    assert_eq!(found[5..], [0; 59]);
}

#[test]
fn parameters_that_do_not_fit_are_refused() {
    let Some(host) = host() else { return };
    let program = open(&Elf::of(&[0x90]).bytes()).unwrap();
    let boot = |params: &str| boot(&host, &image(16 * MIB), 1, &program, params);
    assert!(boot(&"x".repeat(PARAMS_MAX)).is_ok());
    for params in ["x".repeat(PARAMS_MAX + 1), "a\0b".into()] {
        assert!(matches!(boot(&params), Err(BootError::Params { .. })));
    }
}

/// Whatever a file has in it, the answer is a program or an error.
#[test]
fn mutated_files_never_panic() {
    let host = host();
    let mut rng = Rng(7);
    let data = segment(START + 8192, &[7; 300], 9000);
    let mut good = Elf::of(&[0x90; 64]);
    good.segments.push(data);
    let (good, mut accepted) = (good.bytes(), 0);
    for _ in 0..3000 {
        let mut bytes = good.clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(64 + 2 * 56);
            let special = [0, 0xff, 0x7f, 0x80, rng.next() as u8];
            bytes[at] = special[rng.below(special.len())];
        }
        if rng.below(4) == 0 {
            bytes.truncate(rng.below(bytes.len()));
        }
        if let (Ok(program), Some(host)) = (open(&bytes), &host)
            && accepted < 60
        {
            accepted += 1;
            let _ = boot(host, &image(16 * MIB), 1, &program, "");
        }
    }
}
