//! Guests that get at what bare guests have no business with: CPL 0, and the trap flag.

use samsara_engine::Faults;
use samsara_machine::bare::{DEVICE_PAGE, register};
use samsara_machine::kvm::Privilege;
use samsara_machine::machine::Ended;

use crate::loads::{elf, patched};
use crate::programs::same_answer;
use crate::world::{Guest, PATIENCE, Recorded, host, settings};

/// Points the gate of UD2 at a handler of its own, which counts in DR0 at CPL 0. Status 1 if the
/// count is not that of the UD2s.
const COUNT_IN_DR0: &[u8] = &[
    0xbf, 0x60, 0x20, 0, 0, // mov edi, IDT + 6 * 16
    0x48, 0x8d, 0x05, 0x30, 0, 0, 0, // lea rax, handler
    0x66, 0x89, 0x07, // mov [rdi], ax
    0xc1, 0xe8, 0x10, // shr eax, 16
    0x66, 0x89, 0x47, 0x06, // mov [rdi+6], ax
    0xb9, 200, 0, 0, 0, // mov ecx, 200
    0xba, b'M', b'A', b'R', b'K', // mov edx, MARK
    0x0f, 0x0b, // again: ud2
    0x48, 0x89, 0x0a, // mov [rdx], rcx
    0xff, 0xc9, // dec ecx
    0x75, 0xf7, // jnz again
    0x31, 0xc0, // xor eax, eax
    0x81, 0xfb, 200, 0, 0, 0, // cmp ebx, 200
    0x0f, 0x95, 0xc0, // setne al
    0xba, b'E', b'X', b'I', b'T', // mov edx, EXIT
    0x48, 0x89, 0x02, // mov [rdx], rax
    0x0f, 0x21, 0xc3, // handler: mov rbx, dr0
    0x48, 0xff, 0xc3, // inc rbx
    0x0f, 0x23, 0xc3, // mov dr0, rbx
    0x48, 0x83, 0x04, 0x24, 2, // add qword [rsp], 2
    0x48, 0xcf, // iretq
];

/// Gets to CPL 0 by a gate of its own, stays there, leaves no trace of that in the loader's pages, and
/// counts in DR0. Status 1 if the count is wrong.
pub(crate) const COUNT_WITHOUT_TRACE: &[u8] = &[
    0xbf, 0x60, 0x20, 0, 0, // mov edi, IDT + 6 * 16
    0x48, 0x8d, 0x05, 0x0f, 0, 0, 0, // lea rax, handler
    0x66, 0x89, 0x07, // mov [rdi], ax
    0xc1, 0xe8, 0x10, // shr eax, 16
    0x66, 0x89, 0x47, 0x06, // mov [rdi+6], ax
    0x48, 0x89, 0xe6, // mov rsi, rsp
    0x0f, 0x0b, // ud2
    0x48, 0x89, 0xf4, // handler: mov rsp, rsi
    0x66, 0xc7, 0x07, 0x60, 0x30, // mov word [rdi], the low half of the stub
    0x66, 0xc7, 0x47, 0x06, 0, 0, // mov word [rdi+6], the rest
    0xbf, 0xd8, 0x8f, 0, 0, // mov edi, the exception's frame
    0x31, 0xc0, // xor eax, eax
    0xb9, 5, 0, 0, 0, // mov ecx, 5
    0xf3, 0x48, 0xab, // rep stosq
    0xb9, 200, 0, 0, 0, // mov ecx, 200
    0xba, b'M', b'A', b'R', b'K', // mov edx, MARK
    0x0f, 0x21, 0xc3, // again: mov rbx, dr0
    0x48, 0xff, 0xc3, // inc rbx
    0x0f, 0x23, 0xc3, // mov dr0, rbx
    0x48, 0x89, 0x0a, // mov [rdx], rcx
    0xff, 0xc9, // dec ecx
    0x75, 0xf0, // jnz again
    0x31, 0xc0, // xor eax, eax
    0x81, 0xfb, 200, 0, 0, 0, // cmp ebx, 200
    0x0f, 0x95, 0xc0, // setne al
    0xba, b'E', b'X', b'I', b'T', // mov edx, EXIT
    0x48, 0x89, 0x02, // mov [rdx], rax
];

/// Sets the trap flag and loads from a device: the exception is on its way when the chunk ends.
const TRAP_A_LOAD: &[u8] = &[
    0x9c, // pushfq
    0x48, 0x81, 0x0c, 0x24, 0, 1, 0, 0, // or qword [rsp], 0x100
    0xba, b'M', b'A', b'R', b'K', // mov edx, MARK
    0x9d, // popfq
    0x48, 0x8b, 0x02, // mov rax, [rdx]
    0x90, 0x90, // nop; nop
];

pub(crate) fn code(bytes: &[u8]) -> Vec<u8> {
    let mark = (DEVICE_PAGE + register::MARK) as u32;
    let exit = (DEVICE_PAGE + register::EXIT) as u32;
    patched(&patched(bytes, *b"MARK", mark), *b"EXIT", exit)
}

/// How a program ends, the same natively and recorded with chunks squashed that need not be.
fn end_of(bytes: &[u8]) -> Option<Ended> {
    let host = host()?;
    let program = elf(&code(bytes));
    let guest = Guest {
        path: program.path().into(),
        ..Guest::new("status", "", 1)
    };
    let ends = [1, 2, 3].map(|squash_every| {
        let faults = Faults {
            squash_every,
            ..Faults::default()
        };
        same_answer(&host, &guest, faults).ended
    });
    assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
    ends[0].clone()
}

/// Invariant 5, of a guest that has taken the privilege that bare guests do not have.
#[test]
fn squashes_restore_what_only_privileged_code_can_change() {
    if let Some(end) = end_of(COUNT_IN_DR0) {
        assert_eq!(end, Ended::Exit { status: 0 });
    }
}

/// Invariant 5, of such a guest that is carried on elsewhere: what it once did to the loader's tables is
/// no longer to be seen.
#[test]
fn a_guest_that_stays_at_cpl_0_is_carried_on_as_privileged() {
    let Some(host) = host() else { return };
    let program = elf(&code(COUNT_WITHOUT_TRACE));
    let guest = Guest {
        path: program.path().into(),
        ..Guest::new("status", "", 1)
    };
    let faults = Faults {
        squash_every: 2,
        ..Faults::default()
    };
    let machine = guest.machine(&host);
    assert_eq!(machine.privilege().unwrap(), Privilege::User);
    let first = Recorded::start(&host, &guest, machine, settings(faults)).unwrap();
    first.world.wait_for_frames(20).unwrap();
    let (_, consumer, _) = first.stop().unwrap();
    let machine = consumer.into_machine().unwrap();
    assert!(machine.ended().is_none());
    assert_eq!(machine.privilege().unwrap(), Privilege::Kernel);
    let second = Recorded::start(&host, &guest, machine, settings(faults)).unwrap();
    second.world.wait_for_end(PATIENCE).unwrap();
    let (answer, ..) = second.stop().unwrap();
    assert_eq!(answer.ended, Some(Ended::Exit { status: 0 }));
}

/// An exception that waits to be delivered shows in DR6 at CPL 3 already: it is told like any other,
/// and not taken for a change of privilege.
#[test]
fn a_trap_on_its_way_is_no_change_of_privilege() {
    match end_of(TRAP_A_LOAD) {
        None => {}
        Some(Ended::Fault { message }) if message.contains("exception 1 (debug)") => {}
        other => panic!("{other:?}"),
    }
}
