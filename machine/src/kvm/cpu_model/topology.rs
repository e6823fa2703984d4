//! How vCPUs lie: one package, a core for each, no threads. Their APIC ids are their indices.

use kvm_bindings::kvm_cpuid_entry2;
use samsara_commitlog::VcpuIndex;

use super::features::{CMP_LEGACY, HTT};
use super::{find, indexed, set};

const TOPOLOGY_LEAF: u32 = 0xb;
/// The same with more levels, which this machine does not have.
const TOPOLOGY_LEAF_2: u32 = 0x1f;
const CACHE_LEAF: u32 = 4;
const AMD_CACHE_LEAF: u32 = 0x8000_001d;
const AMD_TOPOLOGY_LEAF: u32 = 0x8000_001e;
const AMD_CORES_LEAF: u32 = 0x8000_0008;
/// The last cache that each core has for itself.
const OWN_CACHE_LEVEL: u32 = 2;
/// Leaf 0xb: kinds of levels, where ECX has them.
const THREADS: u32 = 1 << 8;
const CORES: u32 = 2 << 8;

/// Describes `vcpu_count` cores.
pub(super) fn describe(entries: &mut Vec<kvm_cpuid_entry2>, vcpu_count: u8) {
    let count = u32::from(vcpu_count.max(1));
    let ids = count.next_power_of_two();
    let id_bits = ids.trailing_zeros();
    set(entries, &HTT, count > 1);
    let is_amd = find(entries, 0, 0).is_some_and(|leaf| leaf.ecx == u32::from_le_bytes(*b"cAMD"));
    if is_amd {
        set(entries, &CMP_LEGACY, count > 1);
    }
    for entry in entries.iter_mut() {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0xffff | ids << 16,
            CACHE_LEAF if entry.eax & 0x1f != 0 => {
                let sharing = shared_by(entry.eax, ids) - 1;
                entry.eax = entry.eax & 0x3fff | sharing << 14 | (ids - 1) << 26;
            }
            AMD_CACHE_LEAF if entry.eax & 0x1f != 0 => {
                let sharing = shared_by(entry.eax, ids) - 1;
                entry.eax = entry.eax & 0x3fff | sharing << 14;
            }
            AMD_CORES_LEAF if is_amd => entry.ecx = id_bits << 12 | (count - 1),
            AMD_TOPOLOGY_LEAF => (entry.eax, entry.ebx, entry.ecx) = (0, 0, 0),
            _ => {}
        }
    }
    entries.retain(|entry| !matches!(entry.function, TOPOLOGY_LEAF | TOPOLOGY_LEAF_2));
    if find(entries, 0, 0).is_some_and(|leaf| leaf.eax >= TOPOLOGY_LEAF) {
        entries.extend([
            indexed(TOPOLOGY_LEAF, 0, [0, 1, THREADS, 0]),
            indexed(TOPOLOGY_LEAF, 1, [id_bits, count, CORES | 1, 0]),
            indexed(TOPOLOGY_LEAF, 2, [0, 0, 2, 0]),
        ]);
    }
}

/// How many vCPUs share a cache.
fn shared_by(eax: u32, ids: u32) -> u32 {
    let level = eax >> 5 & 7;
    if level <= OWN_CACHE_LEVEL { 1 } else { ids }
}

/// Writes the ids of one vCPU.
pub(super) fn identify(entries: &mut [kvm_cpuid_entry2], index: VcpuIndex) {
    let id = u32::from(index.0);
    for entry in entries {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
            TOPOLOGY_LEAF => entry.edx = id,
            AMD_TOPOLOGY_LEAF => (entry.eax, entry.ebx) = (id, id),
            _ => {}
        }
    }
}
