//! The processor that guests are shown: the CPUID leaves of its vCPUs.
//!
//! CPUID is the one part of a vCPU that does not travel with its state: two hosts that run the same machine must show
//! the same, which [`CpuLeaves::digest`] compares. *Baseline* is the same on all hosts of a vendor that have what it
//! needs; *host* is what this host's KVM supports, less what the machine cannot keep up with.
//!
//! No guest is shown KVM's paravirtual leaves: what they offer (a clock, asynchronous page faults) writes guest memory
//! from the outside, past the recording.

mod baseline;
mod features;
mod topology;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use samsara_commitlog::{Shape, VcpuIndex};
use twox_hash::XxHash3_64;

use features::{Feature, HIDDEN, X2APIC};

const FIRST_HYPERVISOR_LEAF: u32 = 0x4000_0000;
const LAST_HYPERVISOR_LEAF: u32 = 0x4fff_ffff;
const PMU_LEAF: u32 = 0xa;
const SGX_LEAF: u32 = 0x12;
const XSAVE_LEAF: u32 = 0xd;
const TSC_LEAF: u32 = 0x15;
const FREQUENCY_LEAF: u32 = 0x16;
/// What the local APIC's timer counts with, which kernels take leaf 0x15's crystal for.
const CRYSTAL_HZ: u32 = 1_000_000_000;
/// Linux multiplies the crystal's kHz with the numerator in 32 bits.
const NUMERATOR_MAX: u64 = u32::MAX as u64 / (CRYSTAL_HZ as u64 / 1000);

/// Which features a guest is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuModel {
    /// x86-64-v2, and a few privileged features where the host has them.
    Baseline,
    /// What this host's KVM supports.
    Host,
}

/// Whether a guest is shown that its local APICs can be reached through MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum X2Apic {
    /// It is.
    Shown,
    /// It must use the registers in memory.
    Hidden,
}

/// The processors of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Their features.
    pub model: CpuModel,
    /// How many there are.
    pub vcpu_count: u8,
    /// How local APICs are reached.
    pub x2apic: X2Apic,
}

impl Default for Cpu {
    fn default() -> Self {
        Self {
            model: CpuModel::Host,
            vcpu_count: Shape::VCPUS_MAX,
            x2apic: X2Apic::Shown,
        }
    }
}

/// Why a host cannot show a processor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this host lacks {}, which vm.cpu = \"baseline\" has: set vm.cpu = \"host\" on both hosts, or use another host",
    .0.join(", ")
)]
pub struct CpuError(Vec<&'static str>);

/// The CPUID leaves of a machine's vCPUs, but for what differs between vCPUs.
#[derive(Clone, Debug)]
pub struct CpuLeaves {
    entries: Vec<kvm_cpuid_entry2>,
}

impl CpuLeaves {
    /// The leaves of these processors on a host whose KVM supports `supported`.
    pub fn new(cpu: Cpu, supported: &CpuId) -> Result<Self, CpuError> {
        Self::of(cpu, supported.as_slice(), &features::native())
    }

    /// As [`Self::new`], on a host whose processor itself has `native`.
    fn of(
        cpu: Cpu,
        supported: &[kvm_cpuid_entry2],
        native: &[kvm_cpuid_entry2],
    ) -> Result<Self, CpuError> {
        let mut entries = match cpu.model {
            CpuModel::Baseline => baseline::entries(supported, native)?,
            CpuModel::Host => host_entries(supported),
        };
        set(&mut entries, &X2APIC, cpu.x2apic == X2Apic::Shown);
        topology::describe(&mut entries, cpu.vcpu_count);
        entries.push(entry(
            FIRST_HYPERVISOR_LEAF,
            [FIRST_HYPERVISOR_LEAF, 0, 0, 0],
        ));
        Ok(Self { entries })
    }

    /// The leaves of one vCPU, whose TSC counts at `tsc_khz` if that is known.
    pub fn for_vcpu(&self, index: VcpuIndex, tsc_khz: Option<u32>) -> Vec<kvm_cpuid_entry2> {
        let mut entries = self.entries.clone();
        topology::identify(&mut entries, index);
        entries.extend(tsc_khz.into_iter().flat_map(frequency_entries));
        entries
    }

    /// Equal for two hosts that show a guest the same. The TSC's rate is not part of it.
    pub fn digest(&self) -> u64 {
        let mut entries = self.entries.clone();
        entries.sort_unstable_by_key(|entry| (entry.function, entry.index));
        let mut bytes = Vec::new();
        for entry in entries {
            let words = [entry.function, entry.index, entry.flags];
            let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            for word in words.into_iter().chain(registers) {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        XxHash3_64::oneshot(&bytes)
    }

    /// The state components that a guest may enable, as XCR0 has them; 0 without XSAVE.
    pub fn xcr0(&self) -> u64 {
        find(&self.entries, XSAVE_LEAF, 0)
            .map_or(0, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax))
    }
}

/// What KVM supports, less what needs more than this machine has.
fn host_entries(supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    let is_shown = |entry: &&kvm_cpuid_entry2| {
        !matches!(
            entry.function,
            FIRST_HYPERVISOR_LEAF
                ..=LAST_HYPERVISOR_LEAF | PMU_LEAF | SGX_LEAF | TSC_LEAF | FREQUENCY_LEAF
        )
    };
    let mut entries: Vec<_> = supported.iter().filter(is_shown).copied().collect();
    for feature in HIDDEN {
        set(&mut entries, feature, false);
    }
    entries
}

/// Rates of the crystal and of the TSC, and of the processor in MHz.
fn frequency_entries(tsc_khz: u32) -> [kvm_cpuid_entry2; 2] {
    let (numerator, denominator) = fraction(u64::from(tsc_khz), u64::from(CRYSTAL_HZ / 1000));
    let mhz = tsc_khz / 1000;
    [
        entry(TSC_LEAF, [denominator, numerator, CRYSTAL_HZ, 0]),
        entry(FREQUENCY_LEAF, [mhz, mhz, 100, 0]),
    ]
}

/// The fraction nearest to `value / by` whose numerator is in bounds: a convergent of the continued fraction, or one
/// between the last two.
fn fraction(value: u64, by: u64) -> (u32, u32) {
    let off = |(n, d): (u64, u64)| (value * d).abs_diff(n * by) as f64 / d as f64;
    let (mut rest, mut divisor) = (value, by);
    let (mut last, mut best) = ((0_u64, 1_u64), (1_u64, 0_u64));
    while divisor != 0 {
        let digit = rest / divisor;
        let most = (NUMERATOR_MAX - last.0).checked_div(best.0);
        let taken = most.map_or(digit, |most| digit.min(most));
        let next = (taken * best.0 + last.0, taken * best.1 + last.1);
        if taken < digit {
            if off(next) < off(best) {
                best = next;
            }
            break;
        }
        (last, best) = (best, next);
        (rest, divisor) = (divisor, rest % divisor);
    }
    (best.0 as u32, best.1 as u32)
}

/// Leaves in which the sub-leaf decides.
fn has_index(function: u32) -> bool {
    matches!(function, 0x4 | 0x7 | 0xb | 0xd | 0x1f | 0x8000_001d)
}

fn entry(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    indexed(function, 0, registers)
}

fn indexed(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        flags: if has_index(function) {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        } else {
            0
        },
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    let mut entries = entries.iter();
    entries.find(|entry| entry.function == function && entry.index == index)
}

/// Shows or hides a feature, where there is its leaf.
fn set(entries: &mut [kvm_cpuid_entry2], feature: &Feature, is_shown: bool) {
    let is_leaf =
        |entry: &&mut kvm_cpuid_entry2| entry.function == feature.leaf && entry.index == 0;
    for entry in entries.iter_mut().filter(is_leaf) {
        let register = feature.register.of(entry);
        *register = *register & !feature.mask() | if is_shown { feature.mask() } else { 0 };
    }
}

#[cfg(test)]
mod tests;
