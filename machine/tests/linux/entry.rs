//! The entry states, run.

use std::time::Duration;

use samsara_commitlog::{Gpa, Shape, Space, VcpuIndex};
use samsara_machine::kvm::{
    Cpu, CpuModel, CpuidMasking, Host, Privilege, RawExit, Restore, Vm, X2Apic, probe,
};
use samsara_machine::linux::{Kernel, after_sipi, boot};
use samsara_machine::memory::Image;
use samsara_machine::vcpu::VcpuState;

use crate::made::{START, bzimage, elf, open};
use crate::{MIB, host};

/// Says EAX at a port.
const SAY: &[u8] = &[0xe7, 0x80]; // out 0x80, eax

fn booted(host: &Host, kernel: &Kernel) -> (Image, Vec<VcpuState>) {
    let shape = Shape::new(2, 64 * MIB).unwrap();
    let image = Image::new(shape).unwrap();
    let states = boot(host, &image, shape, kernel, &[]).unwrap();
    (image, states)
}

/// What a vCPU says from this state on, `count` times.
fn said(host: &Host, image: &Image, index: u8, state: &VcpuState, count: usize) -> Vec<u64> {
    let vm = Vm::on_image(host, image).unwrap();
    let mut vcpu = vm.vcpu(host, VcpuIndex(index), Privilege::Kernel).unwrap();
    vcpu.attach().unwrap();
    vcpu.restore(state, Restore::Whole).unwrap();
    let turn = |_| match vcpu.run(Some(Duration::from_secs(5))).unwrap() {
        RawExit::Write {
            space: Space::Port,
            address: 0x80,
            value,
            ..
        } => value,
        other => panic!("{other:?}"),
    };
    (0..count).map(turn).collect()
}

/// 64-bit code that says what it finds.
fn long_code() -> Vec<u8> {
    [
        &[0x8b, 0x86, 0x02, 0x02, 0, 0][..], // mov eax, [rsi+0x202]
        SAY,
        &[0x48, 0x8d, 0x05, 0, 0, 0, 0], // lea rax, [rip]
        SAY,
        &[0x8c, 0xd8], // mov eax, ds
        SAY,
        &[0x50, 0x58, 0x0f, 0x20, 0xc0], // push rax; pop rax; mov rax, cr0
        SAY,
        &[0xf4],
    ]
    .concat()
}

fn check_long_mode(file: &crate::made::Bytes, entry: u64) {
    let Some(host) = host() else { return };
    let (image, states) = booted(&host, &open(file, "").unwrap());
    let found = said(&host, &image, 0, &states[0], 4);
    let magic = u64::from(u32::from_le_bytes(*b"HdrS"));
    assert_eq!(found, [magic, entry + 15, 0x18, 0x8001_0011]);
}

#[test]
fn a_bzimage_is_entered_in_64_bit_mode() {
    check_long_mode(&bzimage(&long_code()), 0x10_0200);
}

#[test]
fn an_elf_kernel_without_the_note_is_entered_in_64_bit_mode() {
    check_long_mode(&elf(&long_code(), None), START);
}

#[test]
fn a_kernel_with_the_note_is_entered_without_paging() {
    let Some(host) = host() else { return };
    let code = [
        &[0x8b, 0x03][..], // mov eax, [ebx]
        SAY,
        &[0x0f, 0x20, 0xc0], // mov eax, cr0
        SAY,
        &[0xf4],
    ];
    let (image, states) = booted(&host, &open(&elf(&code.concat(), Some(START)), "").unwrap());
    assert_eq!(said(&host, &image, 0, &states[0], 2), [0x336e_c578, 0x11]);
}

#[test]
fn another_processor_starts_in_real_mode_where_it_is_told() {
    let Some(host) = host() else { return };
    let (image, states) = booted(&host, &open(&elf(&[0xf4], None), "").unwrap());
    // In real mode the same bytes say AX.
    let code = [
        &[0x8c, 0xc8][..], // mov ax, cs
        SAY,
        &[0xf4],
    ];
    image.write(Gpa(0x9_a000), &code.concat()).unwrap();
    assert_eq!(states[1].sregs().apic_base, 0xfee0_0800);
    assert_eq!(states[0].sregs().apic_base, 0xfee0_0900);
    let started = after_sipi(&states[1], 0x9a);
    assert_eq!(said(&host, &image, 1, &started, 1), [0x9a00]);
}

/// The processor that was set is the one that a kernel finds, and the hypervisor has no name.
#[test]
fn a_kernel_finds_the_baseline() {
    let Some(mut host) = host() else { return };
    let host_digest = host.cpu_digest();
    let cpu = Cpu {
        model: CpuModel::Baseline,
        vcpu_count: 2,
        x2apic: X2Apic::Hidden,
    };
    host.set_cpu(cpu).unwrap();
    assert_ne!(host.cpu_digest(), host_digest);
    let code = [
        &[0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x89, 0xc8][..], // mov eax, 1; cpuid; mov eax, ecx
        SAY,
        &[0x89, 0xd8], // mov eax, ebx
        SAY,
        &[0xb8, 0, 0, 0, 0x40, 0x0f, 0xa2, 0x89, 0xd8], // mov eax, 0x40000000; cpuid; mov eax, ebx
        SAY,
        &[0xf4],
    ];
    let (image, states) = booted(&host, &open(&elf(&code.concat(), None), "").unwrap());
    let found = said(&host, &image, 0, &states[0], 3);
    // No RDRAND, and of the rest neither x2APIC, nor the TSC deadline timer, nor MONITOR.
    let hidden = match probe(&host).unwrap().cpuid {
        CpuidMasking::Masked => 0x4120_0008,
        CpuidMasking::Native => 0x0120_0008,
    };
    assert_eq!(found[0] & hidden, 0, "{:#x}", found[0]);
    assert_eq!(found[0] & 0x0098_2201, 0x0098_2201, "{:#x}", found[0]);
    assert_eq!(found[1], 0x0002_0800);
    assert_eq!(found[2], 0);
}
