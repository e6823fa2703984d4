use std::io::Write as _;

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;

const FUNC: u8 = 2;
const OBJECT: u8 = 1;
const NOTYPE: u8 = 0;

/// An ELF file with a code segment, a data segment and symbols: kind, address, bytes, name.
struct Made {
    /// Addresses of code and data, and how much lower both are in memory.
    code: u64,
    data: u64,
    offset: u64,
    symbols: Vec<(u8, u64, u64, &'static str)>,
}

impl Made {
    fn bytes(&self) -> Vec<u8> {
        let mut names = vec![0];
        let mut symbols = vec![0; 24];
        for &(kind, address, bytes, name) in &self.symbols {
            symbols.extend((names.len() as u32).to_le_bytes());
            symbols.extend([kind, 0, 1, 0]);
            symbols.extend([address, bytes].into_iter().flat_map(u64::to_le_bytes));
            names.extend(name.as_bytes());
            names.push(0);
        }
        let (symbols_at, names_at) = (176, 176 + symbols.len() as u64);
        let sections_at = names_at + names.len() as u64;
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend([2_u16, 62].into_iter().flat_map(u16::to_le_bytes));
        file.extend(1_u32.to_le_bytes());
        file.extend(
            [self.code, 64, sections_at]
                .into_iter()
                .flat_map(u64::to_le_bytes),
        );
        file.extend(0_u32.to_le_bytes());
        file.extend(
            [64_u16, 56, 2, 64, 3, 0]
                .into_iter()
                .flat_map(u16::to_le_bytes),
        );
        for (flags, address) in [(5_u32, self.code), (6, self.data)] {
            file.extend([1, flags].into_iter().flat_map(u32::to_le_bytes));
            let words = [
                0,
                address,
                address.wrapping_sub(self.offset),
                0,
                0x3000,
                4096,
            ];
            file.extend(words.into_iter().flat_map(u64::to_le_bytes));
        }
        file.extend(&symbols);
        file.extend(&names);
        let sections = [
            [0; 7],
            [2, 0, 0, symbols_at, symbols.len() as u64, 2, 24],
            [3, 0, 0, names_at, names.len() as u64, 0, 0],
        ];
        for [kind, flags, address, at, bytes, link, entry] in sections {
            file.extend([0, kind as u32].into_iter().flat_map(u32::to_le_bytes));
            file.extend(
                [flags, address, at, bytes]
                    .into_iter()
                    .flat_map(u64::to_le_bytes),
            );
            file.extend([link as u32, 0].into_iter().flat_map(u32::to_le_bytes));
            file.extend([0, entry].into_iter().flat_map(u64::to_le_bytes));
        }
        file
    }
}

fn open(bytes: &[u8]) -> Result<Symbols, SymbolsError> {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    Symbols::open(file.path())
}

fn program() -> Made {
    Made {
        code: 0x20_0000,
        data: 0x20_4000,
        offset: 0,
        symbols: vec![
            (FUNC, 0x20_0000, 0x10, "_start"),
            (NOTYPE, 0x20_0000, 0, "text_begin"),
            (FUNC, 0x20_0020, 0x40, "spin_lock"),
            (NOTYPE, 0x20_2000, 0, "label"),
            (OBJECT, 0x20_4000, 8, "count"),
            (OBJECT, 0x20_4008, 8, "lock"),
            (OBJECT, 0x20_4ff0, 0x1100, "table"),
            (OBJECT, 0x20_6100, 8, "last"),
            (NOTYPE, 0x20_7000, 0, "guest_end"),
        ],
    }
}

#[test]
fn functions_and_how_far_into_them() {
    let symbols = open(&program().bytes()).unwrap();
    let at = |address| symbols.function_at(address);
    assert_eq!(at(0x20_0000), Some(("_start".to_owned(), 0)));
    assert_eq!(at(0x20_005f), Some(("spin_lock".to_owned(), 0x3f)));
    assert_eq!(at(0x20_2010), Some(("label".to_owned(), 0x10)));
    for nowhere in [0, 0x1f_ffff, 0x20_0018, 0x20_0060, 0x20_4000, u64::MAX] {
        assert_eq!(at(nowhere), None, "{nowhere:#x}");
    }
}

#[test]
fn objects_of_a_page() {
    let symbols = open(&program().bytes()).unwrap();
    let of = |page| {
        let (names, more) = symbols.objects_in(Gpa(page), 2);
        (names.join(" "), more)
    };
    assert_eq!(of(0x20_4000), ("count lock".to_owned(), 1));
    assert_eq!(of(0x20_5000), ("table".to_owned(), 0));
    assert_eq!(of(0x20_6000), ("table last".to_owned(), 0));
    for nowhere in [0, 0x20_0000, 0x20_7000, !0xfff] {
        assert_eq!(of(nowhere), (String::new(), 0), "{nowhere:#x}");
    }
}

/// A kernel's code sees its memory at high addresses.
#[test]
fn a_kernels_pages_are_found_by_where_they_are_in_memory() {
    const HIGH: u64 = 0xffff_ffff_8000_0000;
    let kernel = Made {
        code: HIGH + 0x100_0000,
        data: HIGH + 0x1a0_0000,
        offset: HIGH,
        symbols: vec![
            (FUNC, HIGH + 0x100_0040, 0x100, "schedule"),
            (OBJECT, HIGH + 0x1a0_1234, 8, "jiffies"),
        ],
    };
    let symbols = open(&kernel.bytes()).unwrap();
    assert_eq!(
        symbols.function_at(HIGH + 0x100_0050),
        Some(("schedule".to_owned(), 0x10))
    );
    assert_eq!(
        symbols.function_at(0x40_1000),
        None,
        "a program's code is not the kernel's"
    );
    assert_eq!(symbols.objects_in(Gpa(0x1a0_1000), 4).0, ["jiffies"]);
}

#[test]
fn names_are_fit_for_a_terminal() {
    let mut made = program();
    made.symbols = vec![
        (FUNC, 0x20_0000, 8, "a\u{1b}[2J b"),
        (FUNC, 0x20_0010, 8, "\u{e9}"),
    ];
    let symbols = open(&made.bytes()).unwrap();
    assert_eq!(symbols.function_at(0x20_0001).unwrap().0, "a?[2J?b");
    assert_eq!(symbols.function_at(0x20_0010).unwrap().0, "??");
}

#[test]
fn files_without_usable_symbols_are_named_with_the_reason() {
    let good = program().bytes();
    let mut no_symbols = good.clone();
    no_symbols[60] = 0;
    let mut endless = good.clone();
    let size_of_symbols = good.len() - 2 * 64 + 32;
    endless[size_of_symbols + 4] = 1;
    let mut elsewhere = good.clone();
    elsewhere[size_of_symbols + 8] = 0;
    let cases: [(&[u8], &str); 6] = [
        (b"", "is not an ELF file"),
        (b"#!/bin/sh\n", "is not an ELF file"),
        (&good[..good.len() - 1], "is damaged: it ends too soon"),
        (&no_symbols, "has no symbols"),
        (&endless, "has more than 64 MiB of symbols"),
        (&elsewhere, "its symbols have no names"),
    ];
    for (bytes, reason) in cases {
        let error = open(bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let error = Symbols::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("is not a regular file"), "{error}");
    let error = Symbols::open(&folder.path().join("none")).unwrap_err();
    assert!(matches!(error, SymbolsError::Read { .. }), "{error}");
}

proptest! {
    /// Whatever is in the file, nothing panics, overflows or grows beyond the file.
    #[test]
    fn a_hostile_file_does_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut bytes = program().bytes();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(symbols) = open(&bytes) {
            for address in [0, 0x20_0000, 0x20_4008, 0x20_5000, u64::MAX - 0xfff, u64::MAX] {
                let function = symbols.function_at(address);
                prop_assert!(function.is_none_or(|(name, _)| name.len() <= 128));
                let (names, _) = symbols.objects_in(Gpa(address & !0xfff), 3);
                prop_assert!(names.len() <= 3);
            }
        }
    }
}
