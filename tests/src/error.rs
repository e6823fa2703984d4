//! What can go wrong while a pair is started, watched and stopped.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a run of the harness cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// There is no daemon to run.
    #[error("no samsarad to run: {0}")]
    Binaries(String),
    /// A file or directory cannot be used.
    #[error("cannot use {}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A process cannot be started, signalled or waited for.
    #[error("{what}")]
    Process {
        /// Which, and what was tried.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// samsaractl failed.
    #[error("samsaractl {command}: {said}")]
    Ctl {
        /// Its arguments.
        command: String,
        /// Its message.
        said: String,
    },
    /// The catalogue has no such guest program.
    #[error("there is no guest program {0}")]
    NoProgram(String),
    /// What was waited for did not come.
    #[error("waited {bound:?} for {what}; {seen}")]
    TimedOut {
        /// What.
        what: String,
        /// How long.
        bound: Duration,
        /// How things stood.
        seen: String,
    },
    /// A host ended before what was waited for.
    #[error("{host} ended before {what}; {seen}")]
    Ended {
        /// Which.
        host: String,
        /// What was waited for.
        what: String,
        /// What it said.
        seen: String,
    },
    /// A host does not answer as it should.
    #[error("{host}: {what}")]
    Answer {
        /// Which.
        host: String,
        /// What it said.
        what: String,
    },
    /// The guest's service does not answer as it should.
    #[error("the client of the guest's service")]
    Client(#[source] io::Error),
    /// No port could be had.
    #[error("no free UDP and TCP port between {from} and {to} on 127.0.0.1")]
    NoPort {
        /// The first that was tried.
        from: u16,
        /// The last.
        to: u16,
    },
}

impl HarnessError {
    /// A file that cannot be used.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::File { path, source }
    }

    /// The error and its causes in one line.
    pub fn line(&self) -> String {
        let mut line = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            line = format!("{line}: {cause}");
            source = cause.source();
        }
        line
    }
}
