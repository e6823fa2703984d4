//! The log file: a commit stream on disk.
//!
//! A file that was not closed properly may end in an unfinished write, its *torn tail*. Everything
//! before it is whole, and reading ends there without an error. Damage anywhere else is an error:
//! what tells the two apart is whether a valid frame follows.

mod history;
mod reader;
mod salvage;
mod summary;
mod writer;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

pub use history::LogHistory;
pub use reader::LogReader;
pub use summary::{LogSummary, verify};
pub use writer::{LogClaim, LogWriter};

use crate::{DecodeError, OrderError};

/// How a log file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// At the end of a frame.
    Clean,
    /// In an unfinished write.
    Torn {
        /// Bytes of the file up to the end of its last whole frame.
        valid_bytes: u64,
    },
}

/// What can go wrong with a log file.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused.
    #[error("cannot {action} log file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Not a regular file.
    #[error("log file {} is not a regular file; name another", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// A file with something else in it.
    #[error("{} is not a samsara log, it is left as it is; name another file", path.display())]
    NotALog {
        /// The file.
        path: PathBuf,
    },
    /// Some process writes the file already.
    #[error("log file {} is being written by another process; name another", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file's content is wrong where no unfinished write explains it.
    #[error("log file {} cannot be read: {error}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        error: DecodeError,
    },
    /// The file is damaged, and whole frames follow the damage.
    #[error(
        "log file {} is damaged: {error}; it goes on with whole frames at offset {follows}; \
         restore it from a copy, or keep only the bytes before the damage",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        error: DecodeError,
        /// Where the next whole frame is.
        follows: u64,
    },
    /// Whole frames that do not make a history.
    #[error("log file {} is not one history: at offset {offset}, {error}", path.display())]
    Order {
        /// The file.
        path: PathBuf,
        /// Where the frame is that does not follow.
        offset: u64,
        /// Why it does not.
        error: OrderError,
    },
    /// An append or sync failed before; what is in the file is not known any more.
    #[error("log file {} takes no more frames after a failed write; reopen it", path.display())]
    Stopped {
        /// The file.
        path: PathBuf,
    },
}

/// Makes an I/O error on the file at `path` a [`LogError`].
fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> LogError {
    move |source| LogError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

/// Opens the file at `path` if it is a regular one. That is seen to before, as opening a pipe waits
/// for its other end, and after, as the name may have moved.
fn open_regular(path: &Path, options: &OpenOptions) -> Result<File, LogError> {
    let not_a_file = || LogError::NotAFile {
        path: path.to_owned(),
    };
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(not_a_file());
    }
    let file = options.open(path).map_err(io_error(path, "open"))?;
    if !file
        .metadata()
        .map_err(io_error(path, "look at"))?
        .is_file()
    {
        return Err(not_a_file());
    }
    Ok(file)
}
