//! This host's KVM: what kind it is, and what guests are shown of its processor.

use samsara_config::{Config, CpuModel as ConfiguredCpu, Isolation as ConfiguredIsolation};
use samsara_engine::Isolation;
use samsara_machine::Platform;
use samsara_machine::kvm::{
    Cpu, CpuModel, CpuidMasking, Host, HostTraits, KvmError, Paging, TscControl, X2Apic, probe,
};

use crate::failure::Failure;
use crate::run::Base;
use crate::status::{HostKvm, Status};

/// This host's KVM.
pub struct Kvm {
    pub(crate) host: Host,
    pub(crate) traits: HostTraits,
    model: CpuModel,
    tsc_khz: Option<u32>,
}

impl Kvm {
    /// Opens KVM for what the configuration wants, and finds out what kind it is.
    pub fn open(config: &Config, recorded: bool) -> Result<Self, Failure> {
        let host = Host::open()?;
        if recorded {
            host.check_recording()?;
        }
        let model = match config.vm.cpu {
            ConfiguredCpu::Baseline => CpuModel::Baseline,
            ConfiguredCpu::Host => CpuModel::Host,
        };
        let mut kvm = Self {
            traits: probe(&host)?,
            tsc_khz: host.tsc_khz()?,
            host,
            model,
        };
        kvm.set_vcpu_count(config.vm.vcpus as u8)?;
        Ok(kvm)
    }

    /// The same once more, for another machine at the same time.
    pub(crate) fn another(&self) -> Result<Self, KvmError> {
        Ok(Self {
            host: Host::open()?,
            traits: self.traits,
            model: self.model,
            tsc_khz: self.tsc_khz,
        })
    }

    /// The guest is told how many vCPUs there are. A machine that comes from another host has as many
    /// as it had there.
    pub(crate) fn set_vcpu_count(&mut self, vcpu_count: u8) -> Result<(), KvmError> {
        self.host.set_cpu(Cpu {
            model: self.model,
            vcpu_count,
            x2apic: X2Apic::Shown,
        })
    }

    /// A digest of the processor that guests are shown; the other host of a pair must have the same.
    pub fn cpu_digest(&self) -> u64 {
        self.host.cpu_digest()
    }

    /// Rate of vCPUs' TSC, if that is steady.
    pub fn tsc_khz(&self) -> Option<u64> {
        self.tsc_khz.map(u64::from)
    }

    /// Shows what kind of KVM it is, and says it once in the log. What kind of guest it will run is known, but by a
    /// backup.
    pub(crate) fn introduce(&self, base: &Base, platform: Option<Platform>) {
        let shown = shown(self.traits);
        let isolation = platform.map(|platform| isolation(&base.config, self.traits, platform));
        let isolation = isolation.map_or(AS_SUITS, Isolation::as_str);
        tracing::info!("{shown}; isolation {isolation}");
        base.board.update(|status| {
            isolation.clone_into(&mut status.isolation);
            status.kvm = Some(shown);
        });
        if platform == Some(Platform::Pc) {
            self.warn(base);
        }
    }

    /// Says, once, what a Linux guest may trip over.
    pub(crate) fn warn(&self, base: &Base) {
        let warnings = warnings(self.traits);
        let is_new = base.board.update(|status: &mut Status| {
            let is_new = status.warnings.is_empty();
            status.warnings.clone_from(&warnings);
            is_new
        });
        if is_new {
            for line in warnings {
                tracing::warn!("{line}");
            }
        }
    }

    /// What kind of KVM it is.
    pub fn traits(&self) -> HostTraits {
        self.traits
    }
}

/// How vCPUs are kept apart while it is not known what guest they will be of.
const AS_SUITS: &str = "auto";

/// What kind of KVM it is, in words.
fn shown(traits: HostTraits) -> HostKvm {
    let paging = match traits.paging {
        Paging::Second => "second-level",
        Paging::Shadow => "shadow",
    };
    let cpuid = match traits.cpuid {
        CpuidMasking::Masked => "masked",
        CpuidMasking::Native => "native",
    };
    let tsc = match traits.tsc {
        TscControl::Movable => "movable",
        TscControl::Fixed => "fixed",
    };
    HostKvm {
        paging: paging.to_owned(),
        cpuid: cpuid.to_owned(),
        tsc: tsc.to_owned(),
    }
}

/// What a Linux guest may trip over on a host of this kind.
fn warnings(traits: HostTraits) -> Vec<String> {
    let cpuid = (traits.cpuid == CpuidMasking::Native).then_some(
        "this host's KVM does not mask CPUID: programs in the guest see this host's own processor, whatever \
         vm.cpu says; pair it only with a host that has the same processor",
    );
    let tsc = (traits.tsc == TscControl::Fixed).then_some(
        "this host's KVM cannot set the TSC: after a failover the guest's TSC jumps to this host's; \
         choose a clock source other than tsc in the guest",
    );
    cpuid.into_iter().chain(tsc).map(str::to_owned).collect()
}

/// How a machine's vCPUs are kept apart on this host.
pub(crate) fn isolation(config: &Config, traits: HostTraits, platform: Platform) -> Isolation {
    match config.recording.isolation {
        ConfiguredIsolation::Parallel => Isolation::Parallel,
        ConfiguredIsolation::Serial => Isolation::Serial,
        // KVM with shadow paging must forget all it knows of a guest's page tables whenever another vCPU
        // commits: a guest that manages its own is better off with one view.
        ConfiguredIsolation::Auto => match (platform, traits.paging) {
            (Platform::Pc, Paging::Shadow) => Isolation::Serial,
            _ => Isolation::Parallel,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traits(cpuid: CpuidMasking, tsc: TscControl) -> HostTraits {
        HostTraits {
            paging: Paging::Shadow,
            cpuid,
            tsc,
        }
    }

    #[test]
    fn only_what_a_guest_may_trip_over_is_warned_of() {
        let good = traits(CpuidMasking::Masked, TscControl::Movable);
        assert!(warnings(good).is_empty());
        assert_eq!(
            shown(good).to_string(),
            "KVM with shadow paging, CPUID masked, TSC movable"
        );
        let bad = traits(CpuidMasking::Native, TscControl::Fixed);
        let texts = warnings(bad);
        assert!(texts.len() == 2 && texts[0].contains("CPUID") && texts[1].contains("TSC"));
        assert!(shown(bad).to_string().ends_with("CPUID native, TSC fixed"));
    }

    #[test]
    fn linux_runs_serially_where_kvm_keeps_shadow_tables() {
        let config = |sets: &[&str]| {
            let sets: Vec<_> = sets.iter().map(|&set| set.to_owned()).collect();
            Config::load(None, &sets).unwrap()
        };
        let shadow = traits(CpuidMasking::Masked, TscControl::Movable);
        let second = HostTraits {
            paging: Paging::Second,
            ..shadow
        };
        let auto = config(&[]);
        let of = |traits, platform| isolation(&auto, traits, platform);
        assert_eq!(of(shadow, Platform::Pc), Isolation::Serial);
        assert_eq!(of(second, Platform::Pc), Isolation::Parallel);
        assert_eq!(of(shadow, Platform::Bare), Isolation::Parallel);
        let told = config(&["recording.isolation=parallel"]);
        assert_eq!(isolation(&told, shadow, Platform::Pc), Isolation::Parallel);
    }
}
