//! KVM: virtual machines whose slots point into the image or into a view, and vCPUs that run
//! until an exit, a timer or a kick.

mod capture;
mod counter;
mod cpu_model;
mod dirty_ring;
mod exit;
mod host;
mod kick;
mod probe;
mod vcpu;
mod vm;

pub(crate) use capture::TSC;
pub use capture::{Privilege, Restore, host_tsc};
pub use counter::{CounterKind, Stepper, Stepping};
pub use cpu_model::{Cpu, CpuError, CpuLeaves, CpuModel, X2Apic};
pub use dirty_ring::Harvest;
pub use exit::RawExit;
pub use host::{Host, KvmError};
pub use kick::Kicker;
pub use probe::{CpuidMasking, HostTraits, Paging, TscControl, probe};
pub use vcpu::{Vcpu, VcpuFault};
pub use vm::Vm;
