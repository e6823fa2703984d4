//! The state in which a guest's vCPUs start, as the guest itself sees it.

use std::time::{Duration, Instant};

use samsara_commitlog::{Gpa, Space, VcpuIndex};
use samsara_machine::bare::{DEVICE_PAGE, Program, boot, register};
use samsara_machine::kvm::{Host, Privilege, RawExit, Restore, Vm};
use samsara_machine::memory::Image;

use crate::elf::{Elf, START, write};
use crate::{GIB, MIB, image};

/// KVM, or `None` after saying that a test is skipped.
pub(crate) fn host() -> Option<Host> {
    if !std::path::Path::new("/dev/kvm").exists() {
        println!("skipped: no /dev/kvm");
        return None;
    }
    Some(Host::open().unwrap())
}

const DUMP: u64 = 0x30_0000;

/// Stores what it finds at `DUMP` + 4 KiB * index, then halts.
fn dumper() -> Vec<u8> {
    let mut code = vec![0x9c, 0x58]; // pushfq; pop rax
    code.extend([0x49, 0x89, 0xf8]); // mov r8, rdi
    code.extend([0x49, 0xc1, 0xe0, 0x0c]); // shl r8, 12
    code.extend([0x49, 0x81, 0xc0, 0, 0, 0x30, 0]); // add r8, DUMP
    code.extend([0x49, 0x89, 0x38]); // mov [r8], rdi
    code.extend([0x49, 0x89, 0x70, 8]); // mov [r8+8], rsi
    code.extend([0x49, 0x89, 0x50, 16]); // mov [r8+16], rdx
    code.extend([0x49, 0x89, 0x48, 24]); // mov [r8+24], rcx
    code.extend([0x49, 0x89, 0x60, 32]); // mov [r8+32], rsp
    code.extend([0x49, 0x89, 0x40, 40]); // mov [r8+40], rax
    code.extend([0x8c, 0xc8]); // mov eax, cs
    code.extend([0x49, 0x89, 0x40, 48]); // mov [r8+48], rax
    code.extend([0x41, 0xd9, 0x78, 56]); // fnstcw [r8+56]
    code.extend([0x41, 0x0f, 0xae, 0x58, 64]); // stmxcsr [r8+64]
    code.extend([0xf2, 0x0f, 0x58, 0xc0]); // addsd xmm0, xmm0
    // The end of memory, below the address in r9, can be read and written.
    code.extend([0x4d, 0x8b, 0x48, 72]); // mov r9, [r8+72]
    code.extend([0x49, 0xff, 0x41, 0xf0]); // inc qword [r9-16]
    code.push(0xb8); // mov eax, HALT
    code.extend(((DEVICE_PAGE + register::HALT) as u32).to_le_bytes());
    code.extend([0x48, 0x89, 0x00]); // mov [rax], rax
    code
}

fn word(image: &Image, address: u64) -> u64 {
    let mut bytes = [0; 8];
    image.read(Gpa(address), &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn check_entry(host: &Host, memory: u64, params: &str) {
    let image = image(memory);
    let file = write(&Elf::of(&dumper()).bytes());
    let states = boot(
        host,
        &image,
        2,
        &Program::open(file.path()).unwrap(),
        params,
    )
    .unwrap();
    let end = if memory > 3 * GIB {
        memory + GIB
    } else {
        memory
    };
    let vm = Vm::on_image(host, &image).unwrap();
    for (index, state) in states.iter().enumerate() {
        let dump = DUMP + index as u64 * 4096;
        image.write(Gpa(dump + 72), &end.to_le_bytes()).unwrap();
        let mut vcpu = vm
            .vcpu(host, VcpuIndex(index as u8), Privilege::User)
            .unwrap();
        vcpu.attach().unwrap();
        vcpu.restore(state, Restore::Whole).unwrap();
        let exit = vcpu.run(Some(Duration::from_secs(5))).unwrap();
        let (space, address) = (Space::Mmio, DEVICE_PAGE + register::HALT);
        assert_eq!(
            exit,
            RawExit::Write {
                space,
                address,
                size: 8,
                value: address
            }
        );
        let found = |offset| word(&image, dump + offset);
        assert_eq!(found(0), index as u64, "rdi");
        assert_eq!(found(8), 2, "rsi");
        assert_eq!(found(24), memory, "rcx");
        // The stack of vCPU 0 is the highest, and 64 KiB each; one word was pushed and popped.
        assert_eq!(found(32), end - index as u64 * (64 << 10), "rsp");
        assert_eq!(found(40) & 0x4_0602, 0x202, "interrupts on, direction up");
        assert_eq!(found(48) & 3, 3, "CPL");
        assert_eq!(found(56) & 0xffff, 0x37f, "x87 control word");
        assert_eq!(found(64) & 0xffff_ffff, 0x1f80, "MXCSR");
        let mut string = vec![0; params.len() + 1];
        image.read(Gpa(found(16)), &mut string).unwrap();
        assert_eq!(string, [params.as_bytes(), &[0]].concat(), "rdx");
    }
    assert_eq!(word(&image, end - 16), 2, "the end of memory");
}

#[test]
fn vcpus_start_as_the_contract_says() {
    let Some(host) = host() else { return };
    check_entry(&host, 16 * MIB, "");
    check_entry(&host, 64 * MIB, &"p".repeat(4095));
    // Memory on both sides of the hole, page tables at the top.
    check_entry(&host, 5 * GIB, "n=1");
}

#[test]
fn registers_are_zero_but_for_those_named() {
    let Some(host) = host() else { return };
    let file = write(&Elf::of(&[0x90]).bytes());
    let program = Program::open(file.path()).unwrap();
    let regs = boot(&host, &image(16 * MIB), 1, &program, "").unwrap()[0].regs();
    assert_eq!((regs.rip, regs.rflags), (START, 0x202));
    let rest = [
        regs.rax, regs.rbx, regs.rbp, regs.r8, regs.r9, regs.r10, regs.r11, regs.r12,
    ];
    assert_eq!(rest, [0; 8]);
    assert_eq!(regs.rsp % 16, 0);
}

/// Stores to MARK so often, then spins.
fn stores_and_a_loop(stores: usize) -> Vec<u8> {
    let mark = ((DEVICE_PAGE + register::MARK) as u32).to_le_bytes();
    let mut code = vec![0xba]; // mov edx, MARK
    code.extend(mark);
    code.extend([0x48, 0x89, 0x02].repeat(stores)); // mov [rdx], rax
    code.extend([0xeb, 0xfe]); // jmp $
    code
}

/// The timer is left set between runs: each still ends when it should, and not before. The TSC goes on.
#[test]
fn runs_last_as_long_as_they_may() {
    let Some(host) = host() else { return };
    let image = image(16 * MIB);
    let file = write(&Elf::of(&stores_and_a_loop(2)).bytes());
    let program = Program::open(file.path()).unwrap();
    let states = boot(&host, &image, 1, &program, "").unwrap();
    let vm = Vm::on_image(&host, &image).unwrap();
    let mut vcpu = vm.vcpu(&host, VcpuIndex(0), Privilege::User).unwrap();
    vcpu.attach().unwrap();
    vcpu.restore(&states[0], Restore::Whole).unwrap();
    let mut state = states[0].clone();
    let mut clocks = Vec::new();
    for (limit, ends_by_itself) in [(10_000, true), (30, true), (200, false)] {
        let limit = Duration::from_millis(limit);
        let began = Instant::now();
        let exit = vcpu.run(Some(limit)).unwrap();
        let took = began.elapsed();
        vcpu.capture(&mut state).unwrap();
        clocks.push(state.msr(0x10).unwrap());
        if ends_by_itself {
            assert!(matches!(exit, RawExit::Write { .. }), "{exit:?}");
        } else {
            assert_eq!(exit, RawExit::Cut);
            assert!(took >= limit && took < limit * 20, "{took:?}");
        }
    }
    assert!(
        clocks[0] > 0 && clocks[0] < clocks[1] && clocks[1] < clocks[2],
        "{clocks:?}"
    );
    // More than 0.2 seconds of any clock that counts at 100 MHz or faster.
    assert!(clocks[2] - clocks[1] > 20_000_000, "{clocks:?}");
}

/// A vCPU whose runs have ended by themselves for long is given more time than the limit, not much
/// more, and none after a kick.
#[test]
fn a_run_after_many_that_ended_by_themselves_ends_too() {
    let Some(host) = host() else { return };
    let image = image(16 * MIB);
    let file = write(&Elf::of(&stores_and_a_loop(20)).bytes());
    let program = Program::open(file.path()).unwrap();
    let states = boot(&host, &image, 1, &program, "").unwrap();
    let vm = Vm::on_image(&host, &image).unwrap();
    let mut vcpu = vm.vcpu(&host, VcpuIndex(0), Privilege::User).unwrap();
    vcpu.attach().unwrap();
    let limit = Duration::from_millis(200);
    for is_kicked in [false, true] {
        vcpu.restore(&states[0], Restore::Whole).unwrap();
        for _ in 0..20 {
            let exit = vcpu.run(Some(limit)).unwrap();
            assert!(matches!(exit, RawExit::Write { .. }), "{exit:?}");
        }
        let kicker = vcpu.kicker();
        let kick = std::thread::spawn(move || {
            std::thread::sleep(limit / 4);
            if is_kicked {
                kicker.kick();
            }
        });
        let began = Instant::now();
        assert_eq!(vcpu.run(Some(limit)).unwrap(), RawExit::Cut);
        let took = began.elapsed();
        kick.join().unwrap();
        let (least, most) = if is_kicked {
            (limit / 4, limit)
        } else {
            (limit, limit * 20)
        };
        assert!(took >= least && took < most, "{took:?}");
        vcpu.kicker().take();
    }
}
