//! A real kernel, up to where it needs an interrupt controller.
//!
//! `SAMSARA_LINUX_KERNEL` names a kernel that boots on this host's KVM; without it the test is skipped.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use samsara_commitlog::{Shape, Space, VcpuIndex};
use samsara_machine::kvm::{Cpu, CpuModel, Privilege, RawExit, Restore, Vcpu, Vm, X2Apic};
use samsara_machine::linux::{Kernel, VirtioSlot, boot};
use samsara_machine::memory::Image;
use samsara_machine::vcpu::VcpuState;

use crate::host;

const COM1: u64 = 0x3f8;
const COM1_LINE_STATUS: u64 = 0x3fd;
/// Nothing to send is left, nothing was received.
const TRANSMITTER_EMPTY: u64 = 0x60;
/// A kernel whose CPL 0 code is emulated takes so long to its first lines.
const PATIENCE: Duration = Duration::from_mins(2);

fn kernel_file() -> Option<PathBuf> {
    let file = std::env::var_os("SAMSARA_LINUX_KERNEL").map(PathBuf::from);
    if file.is_none() {
        println!("skipped: SAMSARA_LINUX_KERNEL names no kernel");
    }
    file
}

/// Runs a kernel on one vCPU until its console has shown all of `wanted`.
fn console_until(vcpu: &mut Vcpu, wanted: &[&str]) -> String {
    let mut console = Vec::new();
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        match vcpu.run(Some(Duration::from_secs(1))).unwrap() {
            RawExit::Write {
                space: Space::Port,
                address: COM1,
                value,
                ..
            } => {
                console.push(value as u8);
                let text = String::from_utf8_lossy(&console);
                if value == u64::from(b'\n') && wanted.iter().all(|part| text.contains(part)) {
                    return text.into_owned();
                }
            }
            RawExit::Read { space, address, .. } => {
                let value = match (space, address) {
                    (Space::Port, COM1_LINE_STATUS) => TRANSMITTER_EMPTY,
                    _ => u64::MAX,
                };
                vcpu.complete_read(value).unwrap();
            }
            RawExit::Write { .. } | RawExit::Cut => {}
            other => {
                let regs = regs(vcpu);
                panic!(
                    "{other:?} at {regs:?}\n{}",
                    String::from_utf8_lossy(&console)
                );
            }
        }
    }
    let console = String::from_utf8_lossy(&console);
    panic!(
        "not all of {wanted:?} in {PATIENCE:?}, {:?}:\n{console}",
        regs(vcpu)
    );
}

fn regs(vcpu: &Vcpu) -> VcpuState {
    let mut state = VcpuState::zeroed(vcpu.msr_indices());
    vcpu.capture_registers(&mut state).unwrap();
    state
}

#[test]
fn a_kernel_starts_and_finds_what_it_is_told() {
    let (Some(mut host), Some(file)) = (host(), kernel_file()) else {
        return;
    };
    let cpu = Cpu {
        model: CpuModel::Baseline,
        vcpu_count: 2,
        x2apic: X2Apic::Hidden,
    };
    host.set_cpu(cpu).unwrap();
    let shape = Shape::new(2, 64 << 20).unwrap();
    let image = Image::new(shape).unwrap();
    let cmdline = "earlyprintk=serial,ttyS0 console=ttyS0 lpj=12220000 tsc=reliable no_timer_check \
                   rodata=off retain_initrd noreplace-smp";
    let initrd = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(initrd.path(), vec![b'x'; 5000]).unwrap();
    let kernel = Kernel::open(&file, Some(initrd.path()), cmdline).unwrap();
    let slots: Vec<_> = (0..2).map_while(VirtioSlot::new).collect();
    let states = boot(&host, &image, shape, &kernel, &slots).unwrap();
    assert_eq!(states.len(), 2);
    let vm = Vm::on_image(&host, &image).unwrap();
    let mut vcpu = vm.vcpu(&host, VcpuIndex(0), Privilege::Kernel).unwrap();
    vcpu.attach().unwrap();
    vcpu.restore(&states[0], Restore::Whole).unwrap();
    let wanted = [
        "Linux version",
        cmdline,
        "BIOS-e820: [mem 0x0000000000100000-0x0000000003ffffff] usable",
        "RAMDISK: [mem 0x03ffe000-",
        "smpboot: Allowing 2 CPUs",
    ];
    let console = console_until(&mut vcpu, &wanted);
    println!("{console}");
}
