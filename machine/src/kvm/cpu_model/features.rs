//! Features of processors, by name and place in CPUID.

use kvm_bindings::kvm_cpuid_entry2;

use super::{entry, find, indexed};

/// A register of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    pub(super) fn of(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}

/// What the baseline makes of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// It has it; hosts whose KVM lacks it cannot show the baseline.
    Kvm,
    /// It has it; hosts whose processor lacks it cannot show the baseline. Instructions that no hypervisor can
    /// withhold, so what KVM says of them does not matter.
    Processor,
    /// It has it where KVM does. Hosts that differ here do not show the same.
    Offered,
}

/// A feature.
#[derive(Clone, Copy, Debug)]
pub(super) struct Feature {
    pub(super) name: &'static str,
    pub(super) leaf: u32,
    pub(super) register: Register,
    bit: u8,
    pub(super) need: Need,
}

impl Feature {
    pub(super) fn mask(&self) -> u32 {
        1 << self.bit
    }

    /// Whether these leaves have it.
    pub(super) fn is_in(&self, entries: &[kvm_cpuid_entry2]) -> bool {
        find(entries, self.leaf, 0)
            .is_some_and(|&found| *self.register.of(&mut { found }) & self.mask() != 0)
    }
}

const fn feature(
    name: &'static str,
    leaf: u32,
    register: Register,
    bit: u8,
    need: Need,
) -> Feature {
    Feature {
        name,
        leaf,
        register,
        bit,
        need,
    }
}

const ADDRESSES: u32 = 0x8000_0008;
const EXTENDED: u32 = 0x8000_0001;
const POWER: u32 = 0x8000_0007;

/// Local APICs in x2APIC mode, which this machine emulates whatever KVM does.
pub(super) const X2APIC: Feature = feature("x2APIC", 1, Register::Ecx, 21, Need::Offered);
/// More than one logical processor in a package.
pub(super) const HTT: Feature = feature("HTT", 1, Register::Edx, 28, Need::Offered);
/// The same, for AMD's way to say that they are cores.
pub(super) const CMP_LEGACY: Feature =
    feature("CMP_LEGACY", EXTENDED, Register::Ecx, 1, Need::Offered);

/// What needs a host's own local APIC, PMU or enclaves, or has registers that KVM does not list as a vCPU's state, so
/// that they would be lost (MCE, MCA, MTRR): no guest is shown it.
pub(super) const HIDDEN: &[Feature] = &[
    feature("MCE", 1, Register::Edx, 7, Need::Offered),
    feature("MTRR", 1, Register::Edx, 12, Need::Offered),
    feature("MCA", 1, Register::Edx, 14, Need::Offered),
    feature("MONITOR", 1, Register::Ecx, 3, Need::Offered),
    feature("PDCM", 1, Register::Ecx, 15, Need::Offered),
    feature("TSC deadline timer", 1, Register::Ecx, 24, Need::Offered),
    feature("SGX", 7, Register::Ebx, 2, Need::Offered),
    feature("WAITPKG", 7, Register::Ecx, 5, Need::Offered),
    feature("SGX_LC", 7, Register::Ecx, 30, Need::Offered),
];

/// The baseline. It is x86-64-v2 without what would differ from run to run (RDRAND, RDSEED, TSX, RDTSCP) and without
/// XSAVE and all that it brings (AVX, AVX-512, PKU, AMX): vCPU states stay small, and every host can restore them.
#[rustfmt::skip]
pub(super) const BASELINE: &[Feature] = &[
    feature("FPU", 1, Register::Edx, 0, Need::Kvm),
    feature("VME", 1, Register::Edx, 1, Need::Offered),
    feature("DE", 1, Register::Edx, 2, Need::Kvm),
    feature("PSE", 1, Register::Edx, 3, Need::Kvm),
    feature("TSC", 1, Register::Edx, 4, Need::Kvm),
    feature("MSR", 1, Register::Edx, 5, Need::Kvm),
    feature("PAE", 1, Register::Edx, 6, Need::Kvm),
    feature("CX8", 1, Register::Edx, 8, Need::Kvm),
    feature("APIC", 1, Register::Edx, 9, Need::Kvm),
    feature("SEP", 1, Register::Edx, 11, Need::Kvm),
    feature("PGE", 1, Register::Edx, 13, Need::Kvm),
    feature("CMOV", 1, Register::Edx, 15, Need::Kvm),
    feature("PAT", 1, Register::Edx, 16, Need::Kvm),
    feature("PSE36", 1, Register::Edx, 17, Need::Offered),
    feature("CLFSH", 1, Register::Edx, 19, Need::Kvm),
    feature("MMX", 1, Register::Edx, 23, Need::Kvm),
    feature("FXSR", 1, Register::Edx, 24, Need::Kvm),
    feature("SSE", 1, Register::Edx, 25, Need::Kvm),
    feature("SSE2", 1, Register::Edx, 26, Need::Kvm),
    feature("SSE3", 1, Register::Ecx, 0, Need::Processor),
    feature("PCLMULQDQ", 1, Register::Ecx, 1, Need::Offered),
    feature("SSSE3", 1, Register::Ecx, 9, Need::Processor),
    feature("CX16", 1, Register::Ecx, 13, Need::Processor),
    feature("PCID", 1, Register::Ecx, 17, Need::Offered),
    feature("SSE4.1", 1, Register::Ecx, 19, Need::Processor),
    feature("SSE4.2", 1, Register::Ecx, 20, Need::Processor),
    feature("POPCNT", 1, Register::Ecx, 23, Need::Processor),
    feature("AES", 1, Register::Ecx, 25, Need::Offered),
    feature("FSGSBASE", 7, Register::Ebx, 0, Need::Offered),
    feature("SMEP", 7, Register::Ebx, 7, Need::Offered),
    feature("ERMS", 7, Register::Ebx, 9, Need::Offered),
    feature("INVPCID", 7, Register::Ebx, 10, Need::Offered),
    feature("SMAP", 7, Register::Ebx, 20, Need::Offered),
    feature("MD_CLEAR", 7, Register::Edx, 10, Need::Offered),
    feature("SPEC_CTRL", 7, Register::Edx, 26, Need::Offered),
    feature("STIBP", 7, Register::Edx, 27, Need::Offered),
    feature("SSBD", 7, Register::Edx, 31, Need::Offered),
    feature("LAHF", EXTENDED, Register::Ecx, 0, Need::Processor),
    feature("SYSCALL", EXTENDED, Register::Edx, 11, Need::Kvm),
    feature("NX", EXTENDED, Register::Edx, 20, Need::Kvm),
    feature("LM", EXTENDED, Register::Edx, 29, Need::Kvm),
    feature("invariant TSC", POWER, Register::Edx, 8, Need::Offered),
    feature("IBPB", ADDRESSES, Register::Ebx, 12, Need::Offered),
    feature("IBRS", ADDRESSES, Register::Ebx, 14, Need::Offered),
    feature("AMD STIBP", ADDRESSES, Register::Ebx, 15, Need::Offered),
    feature("AMD SSBD", ADDRESSES, Register::Ebx, 24, Need::Offered),
];

/// What this host's processor says of itself, in the leaves that the baseline asks about.
pub(super) fn native() -> Vec<kvm_cpuid_entry2> {
    let leaf = |function| {
        let found = std::arch::x86_64::__cpuid_count(function, 0);
        [found.eax, found.ebx, found.ecx, found.edx]
    };
    vec![
        entry(1, leaf(1)),
        indexed(7, 0, leaf(7)),
        entry(EXTENDED, leaf(EXTENDED)),
    ]
}
