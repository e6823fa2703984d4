//! A load from a device that stores what it gets, in one instruction: the chunk ends inside it.

use std::io::Write;

use samsara_engine::Faults;
use samsara_machine::bare::{DEVICE_PAGE, register};
use tempfile::NamedTempFile;

use crate::world::{Guest, PATIENCE, host, native, recorded, settings};

const CODE: u64 = 0x20_0000;

/// Pushes device words and pops them again. Status 1 if one is lost on the way.
fn code() -> Vec<u8> {
    let random = ((DEVICE_PAGE + register::RANDOM) as u32).to_le_bytes();
    let exit = ((DEVICE_PAGE + register::EXIT) as u32).to_le_bytes();
    let mut code = vec![0xb9, 120, 0, 0, 0]; // mov ecx, 120
    code.push(0xbb); // mov ebx, RANDOM
    code.extend(random);
    code.extend([0x48, 0xc7, 0x44, 0x24, 0xf8, 0, 0, 0, 0]); // again: mov qword [rsp-8], 0
    code.extend([0xff, 0x33]); // push qword [rbx]
    code.push(0x58); // pop rax
    code.extend([0x48, 0x85, 0xc0]); // test rax, rax
    code.extend([0x74, 14]); // jz lost
    code.extend([0xff, 0xc9]); // dec ecx
    code.extend([0x75, 0xeb]); // jnz again
    code.extend([0x31, 0xc0]); // xor eax, eax
    code.push(0xba); // end: mov edx, EXIT
    code.extend(exit);
    code.extend([0x48, 0x89, 0x02]); // mov [rdx], rax
    code.extend([0xb8, 1, 0, 0, 0]); // lost: mov eax, 1
    code.extend([0xeb, 0xf1]); // jmp end
    code
}

/// Code with a number in place of a mark of four bytes.
pub(crate) fn patched(code: &[u8], mark: [u8; 4], number: u32) -> Vec<u8> {
    let mut code = code.to_vec();
    let places: Vec<_> = (0..code.len().saturating_sub(3))
        .filter(|&at| code[at..at + 4] == mark)
        .collect();
    for at in places {
        code[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    code
}

/// The smallest ELF file around some code.
pub(crate) fn elf(code: &[u8]) -> NamedTempFile {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [CODE, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend([1u32, 7].into_iter().flat_map(u32::to_le_bytes));
    let bytes = code.len() as u64;
    for word in [120, CODE, CODE, bytes, bytes, 4096] {
        file.extend(u64::to_le_bytes(word));
    }
    file.extend(code);
    let mut temporary = NamedTempFile::new().unwrap();
    temporary.write_all(&file).unwrap();
    temporary
}

/// Invariant 5 and 6: what such an instruction stores is committed with it, and goes with it.
#[test]
fn a_load_that_stores_is_committed_whole() {
    let Some(host) = host() else { return };
    let program = elf(&code());
    let guest = Guest {
        path: program.path().into(),
        ..Guest::new("status", "", 1)
    };
    let expected = native(&host, &guest).unwrap();
    assert!(expected.is_right(), "{expected:?}");
    for squash_every in [0, 2, 3] {
        let faults = Faults {
            squash_every,
            ..Faults::default()
        };
        let (answer, stats) = recorded(&host, &guest, settings(faults), PATIENCE).unwrap();
        assert!(answer.is_right(), "{answer:?}");
        assert!(stats.commits > 100, "{} commits", stats.commits);
    }
}
