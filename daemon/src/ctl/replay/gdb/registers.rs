//! A vCPU's registers as gdb knows them.

use gdbstub::arch::{Arch, Registers};
use gdbstub_arch::x86::reg::{F80, X86_64CoreRegs, X86SegmentRegs, X87FpuInternalRegs};
use samsara_commitlog::VcpuIndex;
use samsara_machine::Machine;

/// An x86-64 vCPU at a commit.
#[derive(Debug)]
pub(super) enum Vcpu {}

impl Arch for Vcpu {
    type Usize = u64;
    type Registers = VcpuRegisters;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(include_str!("target.xml"))
    }
}

/// In the order of target.xml.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VcpuRegisters {
    core: X86_64CoreRegs,
    /// Bases of FS and GS, control registers, EFER, the last commit, the guest's clock.
    system: [u64; 10],
}

impl VcpuRegisters {
    pub(super) fn of(machine: &Machine, vcpu: VcpuIndex) -> Self {
        let state = machine.vcpu(vcpu);
        let (regs, sregs) = (state.regs(), state.sregs());
        let selectors = X86SegmentRegs {
            cs: sregs.cs.selector.into(),
            ss: sregs.ss.selector.into(),
            ds: sregs.ds.selector.into(),
            es: sregs.es.selector.into(),
            fs: sregs.fs.selector.into(),
            gs: sregs.gs.selector.into(),
        };
        let mut core = X86_64CoreRegs {
            regs: [
                regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.rsp,
                regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
            ],
            eflags: regs.rflags as u32,
            rip: regs.rip,
            segments: selectors,
            ..X86_64CoreRegs::default()
        };
        set_floating(&mut core, &state.fxsave());
        let system = [
            sregs.fs.base,
            sregs.gs.base,
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            sregs.cr8,
            sregs.efer,
            machine.seq().0,
            machine.guest_time().0,
        ];
        Self { core, system }
    }
}

impl Registers for VcpuRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.core.pc()
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.core.gdb_serialize(&mut write_byte);
        let system = self.system.iter().flat_map(|word| word.to_le_bytes());
        system.map(Some).for_each(write_byte);
    }

    /// Registers of a replay are read only: whatever gdb would set is refused by who gets it.
    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.core.gdb_deserialize(bytes)
    }
}

/// Takes the x87 and SSE registers from the form that FXSAVE64 stores.
fn set_floating(core: &mut X86_64CoreRegs, fxsave: &[u8; 512]) {
    let half = |at: usize| u16::from_le_bytes([fxsave[at], fxsave[at + 1]]);
    let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
    for (place, register) in core.st.iter_mut().enumerate() {
        register.copy_from_slice(&fxsave[32 + place * 16..][..size_of::<F80>()]);
    }
    for (place, register) in core.xmm.iter_mut().enumerate() {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&fxsave[160 + place * 16..][..16]);
        *register = u128::from_le_bytes(bytes);
    }
    core.mxcsr = word(24);
    core.fpu = X87FpuInternalRegs {
        fctrl: half(0).into(),
        fstat: half(2).into(),
        ftag: tags(fxsave[4], half(2), &core.st).into(),
        // Of a 64-bit pointer the upper half stands where 32-bit code has the segment.
        fiseg: word(12),
        fioff: word(8),
        foseg: word(20),
        fooff: word(16),
        fop: half(6).into(),
    };
}

/// The tag word, which FXSAVE stores as a bit for each register that is in use. Tags are of registers by their own number,
/// values by their distance from the top of the stack.
fn tags(in_use: u8, status: u16, values: &[F80; 8]) -> u16 {
    const EMPTY: u16 = 3;
    let top = usize::from(status >> 11 & 7);
    (0..8).fold(0, |tags, register| {
        let tag = if in_use >> register & 1 == 0 {
            EMPTY
        } else {
            tag(&values[(register + 8 - top) % 8])
        };
        tags | tag << (register * 2)
    })
}

fn tag(value: &F80) -> u16 {
    const VALID: u16 = 0;
    const ZERO: u16 = 1;
    const SPECIAL: u16 = 2;
    let exponent = u16::from_le_bytes([value[8], value[9]]) & 0x7fff;
    let is_normal = value[7] & 0x80 != 0;
    if exponent == 0 && value[..8].iter().all(|&byte| byte == 0) {
        ZERO
    } else if exponent == 0 || exponent == 0x7fff || !is_normal {
        SPECIAL
    } else {
        VALID
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_bytes_as_the_description_says() {
        let mut count = 0;
        VcpuRegisters::default().gdb_serialize(|_| count += 1);
        let xml = Vcpu::target_description_xml().unwrap();
        let sizes = xml.split("bitsize=\"").skip(1);
        let bits = sizes.map(|rest| rest.split('"').next().unwrap().parse::<usize>().unwrap());
        assert_eq!(count * 8, bits.sum::<usize>());
    }

    #[test]
    fn floating_registers_are_where_fxsave_has_them() {
        let mut fxsave = [0; 512];
        fxsave[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        // The top of the stack is register 6: one is in use there, zero in register 7, in register 0 an infinity.
        fxsave[2..4].copy_from_slice(&(6_u16 << 11).to_le_bytes());
        fxsave[4] = 0b1100_0001;
        let one = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f];
        let infinity = [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f];
        fxsave[32..42].copy_from_slice(&one);
        fxsave[64..74].copy_from_slice(&infinity);
        fxsave[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        fxsave[160 + 16 * 15] = 7;
        let mut core = X86_64CoreRegs::default();
        set_floating(&mut core, &fxsave);
        assert_eq!(
            (core.fpu.fctrl, core.mxcsr, core.xmm[15]),
            (0x37f, 0x1f80, 7)
        );
        assert_eq!((core.st[0], core.st[2]), (one, infinity));
        // From register 7 down: zero, valid, five times empty, special.
        assert_eq!(core.fpu.ftag, 0b01_00_11_11_11_11_11_10);
    }
}
