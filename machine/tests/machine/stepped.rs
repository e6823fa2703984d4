//! Guests that are stepped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use samsara_commitlog::{Progress, VcpuIndex};
use samsara_machine::bare::{DEVICE_PAGE, Program, boot, register, stepper};
use samsara_machine::kvm::{Privilege, RawExit, Restore, Stepping, Vm};
use samsara_machine::memory::View;

use crate::elf::{Elf, write};
use crate::entry::host;
use crate::{MIB, image};

/// Counts to `n`, three instructions a round after one, then halts.
fn code(n: u32) -> Vec<u8> {
    let mut code = vec![0xb9]; // mov ecx, n
    code.extend(n.to_le_bytes());
    code.extend([0x48, 0xff, 0xc2]); // again: inc rdx
    code.extend([0xff, 0xc9]); // dec ecx
    code.extend([0x75, 0xf9]); // jnz again
    code.push(0xb8); // mov eax, HALT
    code.extend(((DEVICE_PAGE + register::HALT) as u32).to_le_bytes());
    code.extend([0x48, 0x89, 0x00]); // mov [rax], rax
    code
}

#[test]
fn every_instruction_counts() {
    let Some(host) = host() else { return };
    let image = image(16 * MIB);
    let file = write(&Elf::of(&code(100)).bytes());
    let program = Program::open(file.path()).unwrap();
    let states = boot(&host, &image, 1, &program, "").unwrap();
    let view = Arc::new(View::new(&image).unwrap());
    let vm = Vm::on_view(&host, &view).unwrap();
    let mut vcpu = vm.vcpu(&host, VcpuIndex(0), Privilege::User).unwrap();
    vcpu.set_stepper(stepper(VcpuIndex(0), &view, Stepping::Always));
    vcpu.attach().unwrap();
    vcpu.restore(&states[0], Restore::Whole).unwrap();
    let mut state = states[0].clone();
    let latest = Instant::now() + Duration::from_secs(10);
    for count in [1, 2, 3, 150, 151] {
        let target = Progress { count, place: None };
        let exit = vcpu.run_to(target, Some(latest)).unwrap();
        assert_eq!(exit, RawExit::Cut, "at {count}");
        assert_eq!(vcpu.progress(), Some(target));
        vcpu.capture(&mut state).unwrap();
        assert_eq!(state.regs().rflags & 0x100, 0, "the guest's own trap flag");
    }
    assert_eq!(state.regs().rcx, 100 - 50);
    // From here again, with what was captured.
    vcpu.restore(&state, Restore::KeepTime).unwrap();
    vcpu.start_count();
    let exit = vcpu.run(Some(Duration::from_secs(10))).unwrap();
    assert!(matches!(exit, RawExit::Write { .. }), "{exit:?}");
    assert_eq!(vcpu.progress().unwrap().count, 301 - 151 + 1);
}
