//! Why a command fails, and what samsaractl exits with then.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use samsara_commitlog::{CommitSeq, LogError};

use super::render::one_line;
use crate::bench::BenchError;
use crate::control::ControlError;
use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::pki::PkiError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The daemon cannot be asked.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No certificate.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// No benchmark.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// The daemon says no.
    #[error("{0}")]
    Refused(String),
    /// The daemon's answer does not belong to the question.
    #[error(
        "samsarad gave an answer to another question: are samsarad and samsaractl the same version?"
    )]
    Unexpected,
    /// No socket was named, and there is not just one.
    #[error("{found}: name the control socket with --socket PATH")]
    WhichSocket {
        /// What there is.
        found: String,
    },
    /// JSON cannot be made of the answer.
    #[error("cannot write the answer as JSON")]
    Json(#[from] serde_json::Error),
    /// The words of the command do not go together.
    #[error("{0}")]
    Usage(String),
    /// A log file cannot be read, or is damaged.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A log file without a state to begin from.
    #[error("log file {} has no whole snapshot, so there is no state to begin from; record anew", .0.display())]
    NoSnapshot(PathBuf),
    /// A directory without logs.
    #[error("directory {} has no logs in it: name a log file, or the directory that --record was given", .0.display())]
    NoLogs(PathBuf),
    /// Segments that do not follow each other.
    #[error("log file {} begins after commit {first}, the segment before it ends at commit {last}: what is between them \
        is missing; name this file to read what it has", path.display())]
    SegmentMissing {
        /// The later segment.
        path: PathBuf,
        /// What it begins after.
        first: CommitSeq,
        /// The last commit before it.
        last: CommitSeq,
    },
    /// A replay did not come to its end.
    #[error("{0}")]
    Replay(Failure),
    /// The answer cannot be written.
    #[error("cannot write to standard output")]
    Write(#[from] io::Error),
}

impl CtlError {
    /// The status to exit with.
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::Pki(_) => ExitCode::Certificate,
            Self::Bench(error) => error.exit_code(),
            Self::Refused(_) => ExitCode::Refused,
            Self::WhichSocket { .. } | Self::Usage(_) => ExitCode::Usage,
            Self::Control(_) | Self::Unexpected => ExitCode::Network,
            Self::Json(_) => ExitCode::Internal,
            Self::Log(_) | Self::NoSnapshot(_) | Self::NoLogs(_) | Self::SegmentMissing { .. } => {
                ExitCode::LogFile
            }
            Self::Replay(failure) => failure.code,
            Self::Write(_) => ExitCode::Output,
        }
    }

    /// One line: the error and its causes. Some of it may come from a file or a guest.
    pub fn line(&self) -> String {
        let mut line = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            // Writing to a string does not fail.
            let _ = write!(line, ": {cause}");
            source = cause.source();
        }
        one_line(&line)
    }
}
