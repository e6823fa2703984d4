//! The leaves of the baseline: fixed, but for the vendor and for features that it has where the host has them.

use kvm_bindings::kvm_cpuid_entry2;

use super::features::{BASELINE, Feature, Need};
use super::{CpuError, entry, find, indexed, set};

/// The vendor in leaf 0, in the order of EBX, EDX, ECX.
const INTEL: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];
const AMD: [u32; 3] = [0x6874_7541, 0x6974_6e65, 0x444d_4163];
/// Processors that kernels know and have long known: Haswell, and the first Zen.
const INTEL_SIGNATURE: u32 = 0x0003_06c3;
const AMD_SIGNATURE: u32 = 0x0080_0f12;
const LAST_BASIC_LEAF: u32 = 0x16;
const LAST_EXTENDED_LEAF: u32 = 0x8000_0008;
/// Cache line of 64 bytes, in units of 8, where leaf 1 has it.
const CLFLUSH_LINE: u32 = 8 << 8;
/// Leaf 1 ECX: the guest runs on a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 6: the local APIC's timer never stops.
const ARAT: u32 = 1 << 2;
/// Bits of physical and linear addresses. The machine needs 37 of the first.
const PHYSICAL_BITS: u32 = 39;
const LINEAR_BITS: u32 = 48;
const BRAND: &[u8; 48] =
    b"x86-64-v2 baseline\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Leaf 2: the caches are in leaf 4; prefetches are of 64 bytes.
const DESCRIPTORS: [u32; 4] = [0x00fe_ff01, 0xf0, 0, 0];
/// Leaf 4: level 1 data and code of 32 KiB, level 2 of 256 KiB, all 8-way; level 3 of 16 MiB, 16-way.
const CACHES: [[u32; 4]; 5] = [
    [0x121, 0x01c0_003f, 63, 0],
    [0x122, 0x01c0_003f, 63, 0],
    [0x143, 0x01c0_003f, 511, 0],
    [0x163, 0x03c0_003f, 16383, 0],
    [0, 0, 0, 0],
];
/// Leaves `0x8000_0005` and `0x8000_0006` say the same to those who look for caches there.
const CACHES_LEVEL_1: [u32; 4] = [0, 0, 0x2008_0140, 0x2008_0140];
const CACHES_LEVELS_2_AND_3: [u32; 4] = [0, 0, 0x0100_6140, 0x0080_8140];

/// The leaves on a host whose KVM supports `supported` and whose processor has `native`.
pub(super) fn entries(
    supported: &[kvm_cpuid_entry2],
    native: &[kvm_cpuid_entry2],
) -> Result<Vec<kvm_cpuid_entry2>, CpuError> {
    let is_here = |feature: &Feature| {
        let by_processor = feature.need == Need::Processor && feature.is_in(native);
        by_processor || feature.is_in(supported)
    };
    let needed = BASELINE.iter().filter(|it| it.need != Need::Offered);
    let lacking = needed.filter(|it| !is_here(it)).map(|it| it.name);
    let mut lacking: Vec<_> = lacking.collect();
    let addresses = find(supported, LAST_EXTENDED_LEAF, 0).map_or(0, |leaf| leaf.eax);
    if addresses & 0xff < PHYSICAL_BITS {
        lacking.push("39 bits of physical addresses");
    }
    if !lacking.is_empty() {
        return Err(CpuError(lacking));
    }
    let mut entries = skeleton(supported);
    for feature in BASELINE.iter().filter(|it| is_here(it)) {
        set(&mut entries, feature, true);
    }
    Ok(entries)
}

/// All leaves, without features.
fn skeleton(supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    let of_host = |function| find(supported, function, 0);
    let vendor = of_host(0).map_or([0; 3], |leaf| [leaf.ebx, leaf.edx, leaf.ecx]);
    let signature = match vendor {
        INTEL => INTEL_SIGNATURE,
        AMD => AMD_SIGNATURE,
        _ => of_host(1).map_or(0, |leaf| leaf.eax),
    };
    let [ebx, edx, ecx] = vendor;
    let mut entries = vec![
        entry(0, [LAST_BASIC_LEAF, ebx, ecx, edx]),
        entry(1, [signature, CLFLUSH_LINE, HYPERVISOR, 0]),
        entry(6, [ARAT, 0, 0, 0]),
        indexed(7, 0, [0; 4]),
        entry(0x8000_0000, [LAST_EXTENDED_LEAF, ebx, ecx, edx]),
        entry(0x8000_0001, [0; 4]),
        entry(0x8000_0006, CACHES_LEVELS_2_AND_3),
        entry(0x8000_0007, [0; 4]),
        entry(0x8000_0008, [LINEAR_BITS << 8 | PHYSICAL_BITS, 0, 0, 0]),
    ];
    if vendor == AMD {
        entries.push(entry(0x8000_0005, CACHES_LEVEL_1));
    } else {
        entries.push(entry(2, DESCRIPTORS));
        let caches = (0..).zip(CACHES);
        entries.extend(caches.map(|(index, cache)| indexed(4, index, cache)));
    }
    let (words, _) = BRAND.as_chunks::<4>();
    let (leaves, _) = words.as_chunks::<4>();
    let leaves = (0x8000_0002..).zip(leaves);
    entries.extend(leaves.map(|(leaf, words)| entry(leaf, words.map(u32::from_le_bytes))));
    entries
}
