//! Putting a bare guest into memory, and its vCPUs into their entry state.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_xcr, kvm_xcrs};
use samsara_commitlog::VcpuIndex;

use super::program::{PARAMS_MAX, Program, ProgramError};
use super::tables::{self, Placement};
use crate::kvm::{Host, KvmError, Privilege, Vm};
use crate::memory::{Image, MemoryError};
use crate::vcpu::VcpuState;

/// Why a bare guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The program does not fit the machine.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The parameter string does not fit.
    #[error("vm.params has {bytes} bytes or a NUL; at most {PARAMS_MAX} bytes without NUL fit")]
    Params {
        /// Its length.
        bytes: usize,
    },
    /// Guest memory cannot be written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM cannot tell how its vCPUs start.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

const RFLAGS_INTERRUPTS: u64 = 0x202;
/// PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
/// PAE, OSFXSR, OSXMMEXCPT.
const CR4: u64 = 0x620;
const CR4_OSXSAVE: u64 = 1 << 18;
/// LME, LMA, NXE.
const EFER: u64 = 0xd00;
/// x87, SSE, AVX, AVX-512: what fits a standard XSAVE area.
const XCR0_OFFERED: u64 = 0xe7;

/// Loads a program and gives the state in which each vCPU starts.
pub fn boot(
    host: &Host,
    image: &Image,
    vcpu_count: u8,
    program: &Program,
    params: &str,
) -> Result<Vec<VcpuState>, BootError> {
    if params.len() > PARAMS_MAX || params.contains('\0') {
        return Err(BootError::Params {
            bytes: params.len(),
        });
    }
    let placement = Placement::new(image.layout(), vcpu_count);
    program.check_fit(image.layout(), placement.program_end)?;
    tables::write_page_tables(image, &placement)?;
    tables::write_tables(image, vcpu_count, params)?;
    program.load(image)?;
    let vm = Vm::on_image(host, image)?;
    let vcpus = (0..vcpu_count).map(VcpuIndex);
    vcpus
        .map(|index| {
            let mut vcpu = vm.vcpu(host, index, Privilege::Kernel)?;
            let mut state = VcpuState::zeroed(vcpu.msr_indices());
            vcpu.capture(&mut state)?;
            enter(&mut state, index, host, &placement);
            let regs = kvm_regs {
                rip: program.entry(),
                rflags: RFLAGS_INTERRUPTS,
                rdi: index.0.into(),
                rsi: vcpu_count.into(),
                rdx: tables::PARAMS,
                rcx: image.layout().bytes(),
                rsp: placement.stack_tops[usize::from(index.0)],
                ..Default::default()
            };
            state.set_regs(&regs);
            Ok(state)
        })
        .collect()
}

/// Whether a vCPU is where a guest cannot get to CPL 0 but through the loader's tables, whose root this is: at CPL 3,
/// with all that leads out of it as [`boot`] made it.
pub(super) fn is_confined(state: &VcpuState, index: VcpuIndex, root: u64) -> bool {
    const SYSENTER_CS: u32 = 0x174;
    let sregs = state.sregs();
    let has_its_mode = sregs.cs.dpl == 3
        && sregs.ss.dpl == 3
        && sregs.cr0 == CR0
        && sregs.cr4 & !CR4_OSXSAVE == CR4
        && sregs.efer == EFER
        && state.msr(SYSENTER_CS).unwrap_or_default() == 0;
    let has_its_tables = sregs.cr3 == root
        && sregs.tr.base == tables::task_state(index)
        && sregs.tr.selector == tables::task_selector(index)
        && sregs.ldt.selector == 0;
    let [gdt, idt] = tables::descriptor_tables();
    has_its_mode
        && has_its_tables
        && (sregs.gdt.base, sregs.gdt.limit) == gdt
        && (sregs.idt.base, sregs.idt.limit) == idt
}

/// 64-bit mode at CPL 3, on the loader's tables.
fn enter(state: &mut VcpuState, index: VcpuIndex, host: &Host, placement: &Placement) {
    let [(gdt, gdt_limit), (idt, idt_limit)] = tables::descriptor_tables();
    let xcr0 = host.supported_xcr0() & XCR0_OFFERED;
    let mut sregs = state.sregs();
    sregs.gdt.base = gdt;
    sregs.gdt.limit = gdt_limit;
    sregs.idt.base = idt;
    sregs.idt.limit = idt_limit;
    sregs.cr0 = CR0;
    sregs.cr3 = placement.root();
    sregs.cr4 = CR4 | if xcr0 == 0 { 0 } else { CR4_OSXSAVE };
    sregs.efer = EFER;
    set_segments(&mut sregs, index);
    state.set_sregs(&sregs);
    if xcr0 != 0 {
        let mut registers = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        registers.xcrs[0] = kvm_xcr {
            xcr: 0,
            value: xcr0,
            ..Default::default()
        };
        state.set_xcrs(&registers);
    }
}

fn set_segments(sregs: &mut kvm_sregs, index: VcpuIndex) {
    let flat = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        present: 1,
        dpl: 3,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: tables::USER_CODE,
        type_: 0xb,
        l: 1,
        ..flat
    };
    let data = kvm_segment {
        selector: tables::USER_DATA,
        type_: 0x3,
        db: 1,
        ..flat
    };
    for segment in [
        &mut sregs.ss,
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
    ] {
        *segment = data;
    }
    sregs.tr = kvm_segment {
        base: tables::task_state(index),
        limit: tables::TASK_BYTES - 1,
        selector: tables::task_selector(index),
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.ldt = kvm_segment {
        unusable: 1,
        type_: 2,
        ..Default::default()
    };
}
