//! What kind of KVM this host has, found out with a throwaway virtual machine.
//!
//! KVM does not say how it virtualizes memory, CPUID and time, and hosts differ in ways that recording must know of.
//! So a small guest at CPL 3 looks, in the way that a real one would.

mod guest;

use super::host::{Host, KvmError};
use guest::{Finding, Probe};

/// What a guest sees when page tables were changed from outside: by another vCPU's commit, or by a squash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paging {
    /// The tables as they are in memory: the processor walks them itself. Flushing translations is enough.
    Second,
    /// Translations that KVM made earlier. Its memory slots must be made anew, see
    /// [`Vm::rebuild_slots`](super::Vm::rebuild_slots).
    Shadow,
}

/// What CPUID tells unprivileged guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuidMasking {
    /// What the vCPU was set to.
    Masked,
    /// What this host's processor is.
    Native,
}

/// What RDTSC tells unprivileged guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TscControl {
    /// A counter that can be set.
    Movable,
    /// This host's own.
    Fixed,
}

/// What kind of KVM a host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTraits {
    /// Page tables that change.
    pub paging: Paging,
    /// CPUID.
    pub cpuid: CpuidMasking,
    /// The TSC.
    pub tsc: TscControl,
}

/// Finds out. Takes some milliseconds. Fails where not even slots that were made anew show changed page tables: there
/// a guest with page tables of its own cannot be recorded.
pub fn probe(host: &Host) -> Result<HostTraits, KvmError> {
    // A thread of its own, so that no timer or signal of the probe's vCPU is left behind on the caller's.
    let result = std::thread::scope(|scope| scope.spawn(|| look(host)).join());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn look(host: &Host) -> Result<HostTraits, KvmError> {
    let mut probe = Probe::start(host)?;
    let before = probe.turn()?;
    if (before.near, before.far) != guest::MAPPED_FIRST {
        return Err(KvmError::Probe(format!(
            "its guest finds {:#x} and {:#x} through fresh page tables",
            before.near, before.far
        )));
    }
    probe.change_tables()?;
    let after = probe.turn()?;
    let traits = traits(&before, &after);
    if traits.paging == Paging::Shadow {
        probe.rebuild_slots()?;
        let rebuilt = probe.turn()?;
        if !sees_changes(&rebuilt) {
            return Err(KvmError::Probe(
                "page tables that were changed do not show in its guest".into(),
            ));
        }
    }
    Ok(traits)
}

fn sees_changes(after: &Finding) -> bool {
    (after.near, after.far) == guest::MAPPED_THEN
}

fn traits(before: &Finding, after: &Finding) -> HostTraits {
    let is_moved = before.tsc.abs_diff(guest::TSC_START) < guest::TSC_TOLERANCE;
    HostTraits {
        paging: if sees_changes(after) {
            Paging::Second
        } else {
            Paging::Shadow
        },
        cpuid: if before.is_its_processor {
            CpuidMasking::Masked
        } else {
            CpuidMasking::Native
        },
        tsc: if is_moved {
            TscControl::Movable
        } else {
            TscControl::Fixed
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Option<Host> {
        match Host::open() {
            Ok(host) => Some(host),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    #[test]
    fn a_host_is_found_out_the_same_each_time() {
        let Some(host) = host() else { return };
        let began = std::time::Instant::now();
        let first = probe(&host).unwrap();
        println!("{first:?} in {:?}", began.elapsed());
        for _ in 0..5 {
            assert_eq!(probe(&host).unwrap(), first);
        }
    }

    /// On any host, a guest whose slots were made anew sees page tables as they are, and writes on.
    #[test]
    fn rebuilt_slots_show_changed_page_tables() {
        let Some(host) = host() else { return };
        let mut probe = Probe::start(&host).unwrap();
        for round in 0..3 {
            let found = probe.turn().unwrap();
            let wanted = if round % 2 == 0 {
                guest::MAPPED_FIRST
            } else {
                guest::MAPPED_THEN
            };
            assert_eq!((found.near, found.far), wanted, "round {round}");
            assert_eq!(found.turns, round + 1, "its own stores stay");
            assert!(probe.reports_writes().unwrap(), "round {round}");
            if round == 1 {
                probe.restore_tables().unwrap();
            } else {
                probe.change_tables().unwrap();
            }
            probe.rebuild_slots().unwrap();
        }
    }
}
