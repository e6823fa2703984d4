//! Why there is no benchmark.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use samsara_config::ConfigError;
use samsara_machine::kvm::KvmError;

use crate::exit::ExitCode;
use crate::pki::PkiError;

/// Why there is no benchmark.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Nothing can be run on this host.
    #[error("this host cannot run VMs, so there is nothing to measure")]
    Kvm(#[from] KvmError),
    /// No workload has any of the names asked for.
    #[error("no workload has {asked} in its name; there are {known}")]
    NoWorkload {
        /// What was asked for.
        asked: String,
        /// All names.
        known: String,
    },
    /// A machine of one's own is not named right.
    #[error("--machine takes NAME=FILE, not {0:?}")]
    Machine(String),
    /// A machine's configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A machine's configuration asks for what two hosts on one machine cannot share.
    #[error("{}: {key} is set, but both hosts of the benchmark run on this machine and cannot share it: remove it", .path.display())]
    NotShared {
        /// The configuration.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// There is no samsarad.
    #[error("cannot run {}: name samsarad with --samsarad PATH", .path.display())]
    Samsarad {
        /// What was tried.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file or directory cannot be used.
    #[error("cannot use {}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was measured cannot be written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No port could be had.
    #[error("no free port between {from} and {to} on 127.0.0.1")]
    NoPort {
        /// The first that was tried.
        from: u16,
        /// The last.
        to: u16,
    },
    /// No certificates for a pair.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A host cannot be waited for.
    #[error("{run}: cannot wait for {host}")]
    Process {
        /// Workload and mode.
        run: String,
        /// Which host.
        host: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A run does not end.
    #[error("{run}: {host} has not ended after {bound:?}; the last that it said: {said}")]
    Stuck {
        /// Workload and mode.
        run: String,
        /// Which host.
        host: &'static str,
        /// How long it was waited for.
        bound: Duration,
        /// The last line of its log.
        said: String,
    },
    /// A run did not end as it should.
    #[error("{run}: {host} ended with status {status}; the last that it said: {said}")]
    Status {
        /// Workload and mode.
        run: String,
        /// Which host.
        host: &'static str,
        /// Its exit status, or the signal.
        status: String,
        /// The last line of its log.
        said: String,
    },
    /// A run computed something else.
    #[error(
        "{run}: the guest gave another answer than in the native run: a fault of samsarad, or of the guest"
    )]
    Answer {
        /// Workload and mode.
        run: String,
    },
}

impl BenchError {
    /// A file that cannot be used.
    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::File { path, source }
    }

    /// The status to exit with.
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Kvm(_) => ExitCode::Kvm,
            Self::NoWorkload { .. } | Self::Machine(_) | Self::Samsarad { .. } => ExitCode::Usage,
            Self::Config(_) | Self::NotShared { .. } => ExitCode::Config,
            Self::Write { .. } => ExitCode::Output,
            Self::NoPort { .. } => ExitCode::Network,
            Self::Pki(_) => ExitCode::Certificate,
            Self::File { .. }
            | Self::Process { .. }
            | Self::Stuck { .. }
            | Self::Status { .. }
            | Self::Answer { .. } => ExitCode::Internal,
        }
    }
}
