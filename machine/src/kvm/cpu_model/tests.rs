use super::features::{BASELINE, Need};
use super::*;

const INTEL: [u32; 4] = [0x24, 0x756e_6547, 0x6c65_746e, 0x4965_6e69];
const AMD: [u32; 4] = [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65];

/// A host with every bit set, and KVM's leaves.
fn rich(vendor: [u32; 4]) -> Vec<kvm_cpuid_entry2> {
    let all = [u32::MAX; 4];
    vec![
        entry(0, vendor),
        entry(1, [0x000a_0671, 0x0102_0800, u32::MAX, u32::MAX]),
        indexed(4, 0, [0x0400_0121, 0x02c0_003f, 63, 0]),
        indexed(4, 3, [0x0400_4163, 0x03c0_003f, 63, 0]),
        indexed(7, 0, all),
        entry(0xa, all),
        indexed(0xd, 0, [0xe7, 0xa80, 0xa80, 0]),
        entry(0x12, all),
        indexed(0x1f, 0, all),
        entry(0x4000_0000, all),
        entry(0x4000_0001, all),
        entry(0x8000_0000, [0x8000_0008, 0, 0, 0]),
        entry(0x8000_0001, all),
        entry(0x8000_0007, all),
        entry(0x8000_0008, [0x3930, u32::MAX, 0, 0]),
    ]
}

fn baseline(vcpu_count: u8) -> Cpu {
    Cpu {
        model: CpuModel::Baseline,
        vcpu_count,
        x2apic: X2Apic::Shown,
    }
}

fn registers(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
    let leaf = find(entries, function, index).unwrap();
    [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
}

#[test]
fn the_baseline_hides_what_it_does_not_name() {
    let leaves = CpuLeaves::of(baseline(4), &rich(INTEL), &[]).unwrap();
    let entries = leaves.for_vcpu(VcpuIndex(3), Some(2_400_000));
    let [signature, ids, ecx, edx] = registers(&entries, 1, 0);
    assert_eq!((signature, ids), (0x306c3, 0x0304_0800));
    // SSE3, PCLMULQDQ, SSSE3, CX16, PCID, SSE4.1, SSE4.2, x2APIC, POPCNT, AES, hypervisor; no RDRAND, XSAVE, AVX,
    // MONITOR, TSC deadline timer.
    assert_eq!(ecx, 0x82ba_2203);
    assert_eq!(edx, 0x178b_ab7f);
    let [_, ebx, ecx, edx] = registers(&entries, 7, 0);
    // No TSX, AVX-512, RDSEED, SGX, TSC_ADJUST; no WAITPKG, PKU.
    assert_eq!((ebx, ecx, edx), (0x0010_0681, 0, 0x8c00_0400));
    let [_, _, ecx, edx] = registers(&entries, 0x8000_0001, 0);
    assert_eq!((ecx, edx), (1, 1 << 29 | 1 << 20 | 1 << 11));
    assert_eq!(registers(&entries, 0x8000_0008, 0)[0], 0x3027);
    for hidden in [0xa, 0xd, 0x12, 0x1f, 0x4000_0001] {
        assert!(find(&entries, hidden, 0).is_none(), "{hidden:#x}");
    }
    assert_eq!(
        registers(&entries, 0x4000_0000, 0),
        [0x4000_0000, 0, 0, 0],
        "no signature"
    );
    assert_eq!(leaves.xcr0(), 0);
}

#[test]
fn topology_is_a_core_for_each_vcpu() {
    for model in [CpuModel::Baseline, CpuModel::Host] {
        let cpu = Cpu {
            model,
            ..baseline(3)
        };
        let entries = CpuLeaves::of(cpu, &rich(INTEL), &[]).unwrap();
        let entries = entries.for_vcpu(VcpuIndex(2), None);
        assert_eq!(registers(&entries, 1, 0)[1], 0x0204_0800);
        assert_eq!(registers(&entries, 0xb, 0), [0, 1, 0x100, 2]);
        assert_eq!(registers(&entries, 0xb, 1), [2, 3, 0x201, 2]);
        assert_eq!(registers(&entries, 4, 0)[0], 0x0c00_0121);
        assert_eq!(registers(&entries, 4, 3)[0], 0x0c00_c163);
        assert!(find(&entries, 0x15, 0).is_none());
    }
    let amd = CpuLeaves::of(baseline(3), &rich(AMD), &[]).unwrap();
    let amd = amd.for_vcpu(VcpuIndex(0), None);
    assert_eq!(registers(&amd, 0x8000_0008, 0)[2], 0x2002);
    assert_eq!(registers(&amd, 0x8000_0001, 0)[2], 3);
    assert_eq!(registers(&amd, 1, 0)[0], 0x0080_0f12);
    let one = CpuLeaves::of(baseline(1), &rich(INTEL), &[]).unwrap();
    assert_eq!(registers(&one.entries, 1, 0)[3] & 1 << 28, 0, "HTT");
}

#[test]
fn the_host_model_has_what_the_host_has_but_for_what_needs_more() {
    let cpu = Cpu {
        model: CpuModel::Host,
        vcpu_count: 2,
        x2apic: X2Apic::Hidden,
    };
    let leaves = CpuLeaves::of(cpu, &rich(INTEL), &[]).unwrap();
    let [_, _, ecx, _] = registers(&leaves.entries, 1, 0);
    assert_eq!(ecx, !(1 << 3 | 1 << 15 | 1 << 21 | 1 << 24));
    assert!(find(&leaves.entries, 0x4000_0001, 0).is_none());
    assert!(find(&leaves.entries, 0xa, 0).is_none());
    assert_eq!(leaves.xcr0(), 0xe7);
}

#[test]
fn a_host_that_lacks_something_is_told_what() {
    let mut poor = rich(INTEL);
    for name in ["SSE2", "NX", "SSE4.2", "SMEP"] {
        let feature = BASELINE.iter().find(|feature| feature.name == name);
        set(&mut poor, feature.unwrap(), false);
    }
    let error = CpuLeaves::of(baseline(1), &poor, &[]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("lacks SSE2, SSE4.2, NX, which"), "{text}");
    // KVM cannot withhold SSE4.2, so the processor's own word is enough; not so for NX.
    let error = CpuLeaves::of(baseline(1), &poor, &rich(INTEL)).unwrap_err();
    assert!(error.to_string().contains("lacks SSE2, NX, which"));
    assert!(BASELINE.iter().any(|feature| feature.need == Need::Kvm));
}

#[test]
fn hosts_that_show_the_same_have_one_digest() {
    let digest = |cpu, host: &[kvm_cpuid_entry2]| CpuLeaves::of(cpu, host, &[]).unwrap().digest();
    let rich = rich(INTEL);
    let mut other = rich.clone();
    other.reverse();
    for entry in &mut other {
        match entry.function {
            // Another model, another cache, AVX-512 gone.
            1 => entry.eax = 0x0005_0654,
            4 => entry.ecx = 1023,
            7 => entry.ebx &= 0xffff,
            _ => {}
        }
    }
    let smap = BASELINE.iter().find(|feature| feature.name == "SMAP");
    set(&mut other, smap.unwrap(), true);
    assert_eq!(digest(baseline(2), &rich), digest(baseline(2), &other));
    assert_ne!(digest(baseline(2), &rich), digest(baseline(3), &rich));
    let host = Cpu {
        model: CpuModel::Host,
        ..baseline(2)
    };
    assert_ne!(digest(host, &rich), digest(host, &other));
    set(&mut other, smap.unwrap(), false);
    assert_ne!(digest(baseline(2), &rich), digest(baseline(2), &other));
}

#[test]
fn the_rate_of_the_tsc_is_near_and_linux_can_multiply_it() {
    let rates = [
        1, 999_999, 1_000_000, 2_000_400, 2_399_987, 2_400_000, 3_693_061, 5_700_123,
    ];
    let _ = frequency_entries(u32::MAX);
    for khz in rates {
        let [leaf, _] = frequency_entries(khz);
        assert!((leaf.ecx / 1000).checked_mul(leaf.ebx).is_some());
        let found = f64::from(leaf.ecx / 1000) * f64::from(leaf.ebx) / f64::from(leaf.eax);
        let off = (found / f64::from(khz) - 1.0).abs();
        assert!(off < 5e-5, "{khz}: {found}");
    }
    assert_eq!(frequency_entries(2_400_000)[0].eax, 5);
}
