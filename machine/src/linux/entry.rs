//! The states in which a Linux guest's vCPUs begin.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events};
use samsara_commitlog::VcpuIndex;

use super::map::{GDT, PAGE_TABLES, STACK, START_INFO, ZERO_PAGE};
use crate::vcpu::VcpuState;

/// RFLAGS with only the bit that is always set.
const RFLAGS: u64 = 2;
/// PE, ET.
const CR0_PROTECTED: u64 = 0x11;
/// PG, WP besides.
const CR0_LONG: u64 = 0x8001_0011;
const CR4_PAE: u64 = 1 << 5;
/// LME, LMA.
const EFER_LONG: u64 = 0x500;
/// Selectors that the boot protocol asks for.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;
const GDT_ENTRIES: u64 = 5;
/// The local APIC is at its address and on; on the boot processor it says so.
const APIC_BASE: u64 = 0xfee0_0800;
const APIC_BASE_BOOT: u64 = 0x100;

const MSR_APIC_BASE: u32 = 0x1b;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const MSR_EFER: u32 = 0xc000_0080;
const MSR_FS_BASE: u32 = 0xc000_0100;
const MSR_GS_BASE: u32 = 0xc000_0101;

/// CR0 after INIT: ET, and caching as it was.
const CR0_AFTER_INIT: u64 = 0x10;
const CR0_KEPT: u64 = 0x6000_0000;
const RIP_AFTER_INIT: u64 = 0xfff0;
/// Family 6, in the register that tells a processor's signature after INIT.
const SIGNATURE: u64 = 0x600;
const DR6_AFTER_INIT: u64 = 0xffff_0ff0;
const DR7_AFTER_INIT: u64 = 0x400;

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// 32-bit protected mode without paging, by the PVH protocol.
    Pvh(u64),
    /// 64-bit mode, by the Linux boot protocol.
    Long(u64),
}

/// The five descriptors of both entries.
pub(super) fn descriptors(entry: Entry) -> [u64; GDT_ENTRIES as usize] {
    let code = match entry {
        Entry::Pvh(_) => 0x00cf_9b00_0000_ffff,
        Entry::Long(_) => 0x00af_9b00_0000_ffff,
    };
    [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]
}

/// What a vCPU that was just made is given whatever it starts with.
pub(super) fn settle(state: &mut VcpuState, index: VcpuIndex) {
    let boot = if index.0 == 0 { APIC_BASE_BOOT } else { 0 };
    let mut sregs = state.sregs();
    sregs.apic_base = APIC_BASE | boot;
    state.set_sregs(&sregs);
    state.set_msr(MSR_APIC_BASE, sregs.apic_base);
    let misc = state.msr(MSR_MISC_ENABLE).unwrap_or_default();
    state.set_msr(MSR_MISC_ENABLE, misc | MISC_ENABLE_FAST_STRINGS);
}

/// Where the kernel is entered, on the boot processor.
pub(super) fn enter(state: &mut VcpuState, entry: Entry) {
    let mut sregs = state.sregs();
    sregs.gdt.base = GDT;
    sregs.gdt.limit = (GDT_ENTRIES * 8 - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    set_segments(&mut sregs, matches!(entry, Entry::Long(_)));
    let mut regs = kvm_regs {
        rflags: RFLAGS,
        ..Default::default()
    };
    match entry {
        Entry::Pvh(rip) => {
            sregs.cr0 = CR0_PROTECTED;
            (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
            (regs.rip, regs.rbx) = (rip, START_INFO);
        }
        Entry::Long(rip) => {
            sregs.cr0 = CR0_LONG;
            (sregs.cr3, sregs.cr4, sregs.efer) = (PAGE_TABLES, CR4_PAE, EFER_LONG);
            (regs.rip, regs.rsi, regs.rsp) = (rip, ZERO_PAGE, STACK);
        }
    }
    state.set_sregs(&sregs);
    state.set_msr(MSR_EFER, sregs.efer);
    state.set_regs(&regs);
}

fn set_segments(sregs: &mut kvm_sregs, is_long: bool) {
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: CODE_SELECTOR,
        type_: 0xb,
        l: is_long.into(),
        db: (!is_long).into(),
        ..flat
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 0x3,
        db: 1,
        ..flat
    };
    for segment in data_segments(sregs) {
        *segment = data;
    }
    sregs.tr = kvm_segment {
        limit: 0x67,
        selector: TASK_SELECTOR,
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

fn data_segments(sregs: &mut kvm_sregs) -> [&mut kvm_segment; 5] {
    [
        &mut sregs.ss,
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
    ]
}

/// The state after INIT of a vCPU that was in state `base`: it starts anew, in real mode, but for what INIT leaves
/// alone (x87 and SSE registers, XCR0, most MSRs, the local APIC's address).
#[must_use]
pub fn after_init(base: &VcpuState) -> VcpuState {
    let mut state = base.clone();
    state.set_regs(&kvm_regs {
        rip: RIP_AFTER_INIT,
        rdx: SIGNATURE,
        rflags: RFLAGS,
        ..Default::default()
    });
    let old = base.sregs();
    let mut sregs = kvm_sregs {
        cr0: old.cr0 & CR0_KEPT | CR0_AFTER_INIT,
        apic_base: old.apic_base,
        ..Default::default()
    };
    set_real_mode_segments(&mut sregs);
    state.set_sregs(&sregs);
    for msr in [MSR_EFER, MSR_FS_BASE, MSR_GS_BASE] {
        state.set_msr(msr, 0);
    }
    let mut debug = base.debug_regs();
    (debug.db, debug.dr6, debug.dr7) = ([0; 4], DR6_AFTER_INIT, DR7_AFTER_INIT);
    state.set_debug_regs(&debug);
    // The flags say which of the fields a restore looks at.
    state.set_events(&kvm_vcpu_events {
        flags: base.events().flags,
        ..Default::default()
    });
    state
}

fn set_real_mode_segments(sregs: &mut kvm_sregs) {
    let segment = kvm_segment {
        limit: 0xffff,
        present: 1,
        s: 1,
        type_: 0x3,
        ..Default::default()
    };
    for data in data_segments(sregs) {
        *data = segment;
    }
    sregs.cs = kvm_segment {
        base: 0xffff_0000,
        selector: 0xf000,
        type_: 0xb,
        ..segment
    };
    sregs.ldt = kvm_segment {
        s: 0,
        type_: 0x2,
        ..segment
    };
    sregs.tr = kvm_segment {
        s: 0,
        type_: 0xb,
        ..segment
    };
    sregs.gdt.limit = 0xffff;
    sregs.idt.limit = 0xffff;
}

/// The state of a vCPU in `state`, which is one [`after_init`], when a start-up interrupt with this vector comes.
#[must_use]
pub fn after_sipi(state: &VcpuState, vector: u8) -> VcpuState {
    let mut state = state.clone();
    let mut sregs = state.sregs();
    sregs.cs.selector = u16::from(vector) << 8;
    sregs.cs.base = u64::from(vector) << 12;
    state.set_sregs(&sregs);
    let regs = state.regs();
    state.set_regs(&kvm_regs { rip: 0, ..regs });
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_starts_at_the_page_of_the_vector() {
        let mut base = VcpuState::zeroed(&[0x10, MSR_EFER, 0xc000_0082]);
        settle(&mut base, VcpuIndex(1));
        enter(&mut base, Entry::Long(0x100_0000));
        base.set_msr(0x10, 77);
        base.set_msr(0xc000_0082, 88);
        let state = after_sipi(&after_init(&base), 0x9a);
        let (sregs, regs) = (state.sregs(), state.regs());
        assert_eq!((sregs.cs.base, sregs.cs.selector), (0x9_a000, 0x9a00));
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0, 0, 2));
        assert_eq!((sregs.cr0, sregs.cr3, sregs.efer), (0x10, 0, 0));
        assert_eq!(sregs.apic_base, 0xfee0_0800);
        assert_eq!(state.msr(MSR_EFER), Some(0));
        assert_eq!(state.msr(0x10), Some(77), "time goes on");
        assert_eq!(state.msr(0xc000_0082), Some(88), "INIT leaves MSRs alone");
    }
}
