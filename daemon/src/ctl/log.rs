//! `samsaractl log`: what is in a commit log.

mod series;
mod show;
mod stats;
mod verify;
mod words;

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;
use samsara_commitlog::Tail;

use super::CtlError;
pub(super) use series::Series;
use show::Range;
pub(super) use show::record_line;

#[derive(Debug, Subcommand)]
pub(super) enum LogCommand {
    /// Prints a line for each snapshot, record and digest, in their order.
    ///
    /// A chunk's line has its vCPU, what ended it, the last commit that its start had seen (`after`: chunks whose spans overlap
    /// ran at the same time), how many bytes of memory and of the vCPU's state it changed, and its digest.
    Show {
        /// The log: a file, or a directory with segments.
        file: PathBuf,
        /// The first commit shown.
        #[arg(long, value_name = "SEQ")]
        from: Option<u64>,
        /// The last commit shown; what comes after it is not read.
        #[arg(long, value_name = "SEQ")]
        until: Option<u64>,
        /// Print JSON, an object for each line.
        #[arg(long)]
        json: bool,
    },
    /// Counts what is in a log: records by kind, chunks by vCPU and by what ended them, bytes, rates.
    Stats {
        /// The log: a file, or a directory with segments.
        file: PathBuf,
        /// Print JSON, for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Checks a log: every frame whole and unchanged, all of them one history.
    ///
    /// An unfinished write at the end, as a crash leaves it, is said and is no error; damage before that is. Whether the
    /// records lead to the states that were recorded is not looked at: that is what `samsaractl replay` does.
    Verify {
        /// The log: a file, or a directory with segments.
        file: PathBuf,
        /// Print JSON, for scripts.
        #[arg(long)]
        json: bool,
    },
}

impl LogCommand {
    pub(super) fn run(self, out: &mut dyn Write) -> Result<(), CtlError> {
        match self {
            Self::Show {
                file,
                from,
                until,
                json,
            } => show::show(&file, Range::new(from, until)?, json, out)?,
            Self::Stats { file, json } => stats::print(&file, json, out)?,
            Self::Verify { file, json } => verify::print(&file, json, out)?,
        }
        Ok(out.flush()?)
    }
}

/// How a log ends that was read to its end, in words.
fn tail_text(log: &Series, tail: Tail) -> String {
    match tail {
        Tail::Clean => "whole".to_owned(),
        Tail::Torn { .. } => format!(
            "ends in an unfinished write: the last {} bytes are no whole frame, and dropped",
            log.file_bytes().saturating_sub(log.valid_bytes())
        ),
    }
}

/// A log's file, or its directory with how many segments it has.
fn name_text(log: &Series) -> String {
    let path = log.path().display();
    match log.segment_count() {
        1 => path.to_string(),
        count => format!("{path}, {count} segments"),
    }
}

/// The same in a word, for scripts.
pub(super) fn tail_word(tail: Tail) -> &'static str {
    match tail {
        Tail::Clean => "clean",
        Tail::Torn { .. } => "torn",
    }
}

#[cfg(test)]
mod tests;
