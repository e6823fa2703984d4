//! Running a machine: recorded in chunks, or natively; and following a log that another made.

mod conflicts;
mod consume;
mod cpu;
mod native;
mod outside;
mod record;
mod spent;
mod stats;
mod top;

pub use conflicts::{CONFLICTS_MAX, Conflict, Conflicts, Counted, PLACES_MAX, Winner};
pub use consume::{ConsumeError, Consumer};
pub use cpu::Cpu;
pub use native::NativeRun;
pub use outside::{Item, Outside};
pub use record::{
    Divergence, DivergenceCause, Emitted, Fetch, Isolation, Recorder, Replayer, Rerun, Settings,
    SnapshotBounds, Taken, Waiting,
};
#[doc(hidden)]
pub use record::{Faults, Mistake};
pub use spent::{Phase, Spent, Times};
pub use stats::{DURATION_BUCKETS, DurationCounts, Durations, LaneStats, Stats, StatsSnapshot};

use samsara_commitlog::VcpuIndex;
use samsara_machine::{ApplyError, kvm, memory};

/// Why a machine cannot run on. None of these is the guest's doing.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// KVM refused a request.
    #[error(transparent)]
    Kvm(#[from] kvm::KvmError),
    /// Guest memory cannot be reached.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// A commit of our own does not apply: a bug.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The input file cannot be read.
    #[error("cannot read vm.input at byte {offset}")]
    Input {
        /// Where in the file.
        offset: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// KVM does not run a vCPU, whatever its code is.
    #[error("KVM does not run vCPU {vcpu}: {reason}")]
    Refused {
        /// The vCPU.
        vcpu: VcpuIndex,
        /// What KVM says.
        reason: String,
    },
    /// A vCPU thread cannot be started.
    #[error("cannot start the thread of a vCPU")]
    Thread(#[source] std::io::Error),
    /// A thread found an invariant broken. The machine stands still at its last commit.
    #[error(
        "{0} stopped at a broken invariant, a bug of samsarad: the text before this says which"
    )]
    Panicked(String),
    /// Only bare guests can be stepped.
    #[error(
        "recording.counter = \"single-step\" counts a vm.program only; take it out of the configuration"
    )]
    NoCounter,
    /// A machine without vCPUs cannot run.
    #[error("a machine without vCPUs cannot run")]
    NoVcpus,
}
