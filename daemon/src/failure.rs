//! Why a run of the daemon ends before its guest does: an exit status and one line.

use std::error::Error;
use std::fmt;

use samsara_engine::EngineError;
use samsara_machine::bare::BootError;
use samsara_machine::kvm::KvmError;
use samsara_machine::linux;
use samsara_machine::memory::MemoryError;

use crate::exit::ExitCode;

/// A failure with its exit status.
#[derive(Debug)]
pub struct Failure {
    /// The process exits with it.
    pub code: ExitCode,
    /// One line: what, where, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure by an error and what caused it, in one line.
    pub fn new(code: ExitCode, error: &dyn Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Transparent errors repeat their source.
            if !message.ends_with(&cause_text) {
                message = format!("{message}: {cause_text}");
            }
            source = cause.source();
        }
        Self {
            code,
            message: message.replace('\n', " "),
        }
    }

    /// A failure in words.
    pub fn text(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<KvmError> for Failure {
    fn from(error: KvmError) -> Self {
        Self::new(ExitCode::Kvm, &error)
    }
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        Self::new(ExitCode::Kvm, &error)
    }
}

impl From<BootError> for Failure {
    fn from(error: BootError) -> Self {
        let code = match &error {
            BootError::Program(_) => ExitCode::Input,
            BootError::Params { .. } => ExitCode::Config,
            BootError::Memory(_) | BootError::Kvm(_) => ExitCode::Kvm,
        };
        Self::new(code, &error)
    }
}

impl From<linux::BootError> for Failure {
    fn from(error: linux::BootError) -> Self {
        let code = match &error {
            linux::BootError::Kernel(_) => ExitCode::Input,
            linux::BootError::Memory(_) | linux::BootError::Kvm(_) => ExitCode::Kvm,
        };
        Self::new(code, &error)
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let code = match &error {
            EngineError::Kvm(_) | EngineError::Memory(_) | EngineError::Refused { .. } => {
                ExitCode::Kvm
            }
            EngineError::Input { .. } => ExitCode::Input,
            EngineError::Apply(_)
            | EngineError::Thread(_)
            | EngineError::Panicked(_)
            | EngineError::NoVcpus => ExitCode::Internal,
            EngineError::NoCounter => ExitCode::Config,
        };
        Self::new(code, &error)
    }
}
