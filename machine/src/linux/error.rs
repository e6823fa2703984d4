//! Why a Linux guest cannot be booted.

use std::path::PathBuf;

use crate::kvm::KvmError;
use crate::memory::MemoryError;

/// Why files and command line are not a guest that fits the machine.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file cannot be read.
    #[error("cannot read {what} {}: {source}", path.display())]
    Read {
        /// What it should be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what it should be, or does not fit.
    #[error("{}: {problem}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The command line does not fit.
    #[error(
        "vm.cmdline has {bytes} bytes or a NUL; {} takes at most {most} bytes without NUL: shorten it",
        path.display()
    )]
    Cmdline {
        /// The kernel.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// Most that the kernel takes.
        most: usize,
    },
}

/// Why a Linux guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The guest does not fit the machine.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Guest memory cannot be written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM cannot tell how its vCPUs start.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}
