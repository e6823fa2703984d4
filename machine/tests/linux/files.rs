//! Every mistake in a file is an error that says what to do.

use std::path::Path;

use samsara_commitlog::Shape;
use samsara_machine::linux::{Kernel, boot};
use samsara_machine::memory::Image;

use crate::made::{Bytes, CODE, START, bz_at, bzimage, elf, elf_at, open, write};
use crate::{MIB, host};

const SPIN: &[u8] = &[0xeb, 0xfe];

fn refused(file: &Bytes, part: &str) {
    let error = open(file, "").unwrap_err().to_string();
    assert!(error.contains(part), "{part}: {error}");
}

#[test]
fn files_that_are_no_kernels() {
    for bytes in [&b""[..], b"\x7fELF", b"#!/bin/sh\n", &[0; 4096]] {
        let file = write(bytes);
        let error = Kernel::open(file.path(), None, "").unwrap_err();
        let name = file.path().display().to_string();
        assert!(error.to_string().starts_with(&name), "{error}");
    }
    for path in ["/nonexistent/vmlinuz", "/", "/dev/zero"] {
        let error = Kernel::open(Path::new(path), None, "").unwrap_err();
        let error = error.to_string();
        let start = format!("cannot read the kernel (vm.kernel) {path}: ");
        assert!(error.starts_with(&start), "{error}");
    }
    let kernel = write(&elf(SPIN, None).0);
    let missing = Path::new("/nonexistent/initrd");
    let error = Kernel::open(kernel.path(), Some(missing), "").unwrap_err();
    assert!(error.to_string().contains("vm.initrd"), "{error}");
}

#[test]
fn elf_files_with_mistakes() {
    let changed = |at: usize, value: &[u8], part: &str| {
        let mut file = elf(SPIN, Some(START));
        file.put(at, value);
        refused(&file, part);
    };
    open(&elf(SPIN, Some(START)), "").unwrap();
    open(&elf(SPIN, None), "").unwrap();
    changed(elf_at::CLASS, &[1], "not a 64-bit");
    changed(elf_at::MACHINE, &[183], "another machine (ELF machine 183)");
    changed(elf_at::PROGRAM_HEADERS, &[0xff; 8], "damaged");
    changed(elf_at::OFFSET, &[0xff; 8], "does not lie in the file");
    changed(elf_at::FILE_BYTES, &[0xff; 4], "does not lie in the file");
    changed(elf_at::MEMORY_BYTES, &[0xff; 8], "does not lie in the file");
    changed(
        elf_at::ADDRESS,
        &0xf_f000_u64.to_le_bytes(),
        "is below 0x100000",
    );
    refused(
        &elf(SPIN, Some(0x1000)),
        "entry point 0x1000 is in no segment",
    );
    let mut no_entry = elf(SPIN, None);
    no_entry.put(elf_at::ENTRY, &[0; 8]);
    refused(&no_entry, "entry point 0x0 is in no segment");
}

/// A file may be anything: every byte of the headers is changed in many ways, and no way makes trouble.
#[test]
fn damaged_files_do_not_make_trouble() {
    let image = Image::new(Shape::new(1, 16 * MIB).unwrap()).unwrap();
    let Some(host) = host() else { return };
    let shape = Shape::new(1, 16 * MIB).unwrap();
    for (good, length) in [(elf(SPIN, Some(START)), CODE), (bzimage(SPIN), 0x280)] {
        for at in 0..length {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut file = Bytes(good.0.clone());
                file.put(at, &[value]);
                // Booting takes a VM: it is tried for a sample of what can be opened.
                if let Ok(kernel) = open(&file, "x")
                    && at % 8 == 0
                    && value == 0x80
                {
                    let _ = boot(&host, &image, shape, &kernel, &[]);
                }
            }
        }
        for length in 0..length {
            let file = Bytes(good.0[..length].to_vec());
            assert!(open(&file, "").is_err(), "{length}");
        }
    }
}

#[test]
fn bzimages_with_mistakes() {
    let changed = |at: usize, value: &[u8], part: &str| {
        let mut file = bzimage(SPIN);
        file.put(at, value);
        refused(&file, part);
    };
    open(&bzimage(SPIN), "").unwrap();
    changed(bz_at::MAGIC, b"Hdrs", "neither an ELF file nor a bzImage");
    changed(
        bz_at::VERSION,
        &[0x0a],
        "boot protocol 2.10; use a kernel with",
    );
    changed(bz_at::LOAD_FLAGS, &[0], "boot protocol");
    changed(bz_at::EXTENDED_LOAD_FLAGS, &[0], "XLF_KERNEL_64");
    changed(bz_at::SETUP_SECTORS, &[200], "ends before its code");
    changed(bz_at::SETUP_SECTORS, &[0], "ends before its code");
    changed(bz_at::PREFERRED_ADDRESS, &[0xff; 8], "out of range");
    let short = Bytes(bzimage(SPIN).0[..0x210].to_vec());
    refused(&short, "ends in its header");
}

#[test]
fn command_lines_that_do_not_fit() {
    let kernel = elf(SPIN, None);
    open(&kernel, &"x".repeat(2047)).unwrap();
    let error = open(&kernel, &"x".repeat(2048)).unwrap_err().to_string();
    assert!(error.starts_with("vm.cmdline has 2048 bytes"), "{error}");
    assert!(error.contains("at most 2047"), "{error}");
    assert!(open(&kernel, "a\0b").is_err());
    let mut kernel = bzimage(SPIN);
    kernel.put(bz_at::CMDLINE_BYTES, &255_u32.to_le_bytes());
    let error = open(&kernel, &"x".repeat(256)).unwrap_err().to_string();
    assert!(error.contains("at most 255"), "{error}");
}

#[test]
fn guests_larger_than_memory() {
    let Some(host) = host() else { return };
    let shape = Shape::new(1, 16 * MIB).unwrap();
    let refused = |kernel: &Kernel, part: &str| {
        let image = Image::new(shape).unwrap();
        let error = boot(&host, &image, shape, kernel, &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(part) && error.contains("vm.memory"),
            "{error}"
        );
    };
    // It takes 4 MiB from 16 MiB on.
    refused(&open(&bzimage(SPIN), "").unwrap(), "up to 0x1400000");
    let mut large = elf(SPIN, None);
    large.put(elf_at::MEMORY_BYTES, &(15 * MIB).to_le_bytes());
    refused(&open(&large, "").unwrap(), "up to 0x1100000");
    let kernel = write(&elf(SPIN, None).0);
    for mib in [14, 64] {
        let initrd = write(&[]);
        initrd.as_file().set_len(mib * MIB).unwrap();
        let kernel = Kernel::open(kernel.path(), Some(initrd.path()), "").unwrap();
        refused(&kernel, &format!("has {} bytes", mib * MIB));
    }
    let initrd = write(&[]);
    initrd.as_file().set_len(2048 * MIB + 1).unwrap();
    let error = Kernel::open(kernel.path(), Some(initrd.path()), "").unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
}
