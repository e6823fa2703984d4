//! The report of a run (`--report FILE`): JSON for scripts, benchmarks and tests.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use samsara_config::Role;
use serde::{Deserialize, Serialize};

use crate::contention::Conflict;
use crate::status::{RoleChange, Status};

/// The report cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the report {}", .path.display())]
pub struct ReportError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// A distribution of durations in microseconds. All 0 when nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantilesUs {
    /// How many were measured.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Longest.
    pub max: u64,
}

impl QuantilesUs {
    /// From quantiles in nanoseconds.
    pub const fn from_ns(count: u64, p50: u64, p99: u64, max: u64) -> Self {
        Self {
            count,
            p50: p50 / 1000,
            p99: p99 / 1000,
            max: max / 1000,
        }
    }
}

/// A distribution of lag in commits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantilesCommits {
    /// How many were measured.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Greatest.
    pub max: u64,
}

/// What a run was like. `null` where there is nothing to say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Time from the start of the process to this report.
    pub wall_seconds: f64,
    /// The guest clock at its last commit: how long it ran, on whichever hosts.
    #[serde(default)]
    pub guest_seconds: f64,
    /// The guest's exit status, if it ended by itself.
    pub exit_status: Option<u8>,
    /// How the run ended, in words: the guest's exit or halt, a fault, or why samsarad stopped.
    pub stop: String,
    /// Role at the end.
    pub role: Role,
    /// Term at the end.
    pub term: u64,
    /// Commits made or applied.
    pub commits: u64,
    /// Chunks of all vCPUs.
    pub chunks: u64,
    /// Chunks by vCPU.
    pub chunks_by_vcpu: Vec<u64>,
    /// Chunks run again.
    pub squashes: u64,
    /// Chunks run while the others waited.
    pub exclusive_chunks: u64,
    /// Pages that chunks changed without a fault, because they were held already.
    #[serde(default)]
    pub faults_avoided: u64,
    /// What vCPUs' threads on this host spent their time on, milliseconds, all together: `guest` in chunks that were committed, `find`
    /// their changes, `lock` waiting to commit them, `commit`, `upkeep` of views, `lost` chunks, waiting for a `turn` or for the
    /// `backup`, `rest`.
    #[serde(default)]
    pub vcpu_ms: BTreeMap<String, u64>,
    /// Bytes of effects.
    pub effect_bytes: u64,
    /// Bytes of encoded records.
    pub log_bytes: u64,
    /// Those of chunks that travelled as orders.
    #[serde(default)]
    pub order_bytes: u64,
    /// Chunks that travelled as orders to run them again.
    #[serde(default)]
    pub chunks_order_form: u64,
    /// Chunks that travelled as the bytes that they changed.
    #[serde(default)]
    pub chunks_effects_form: u64,
    /// Effects that a backup asked for.
    #[serde(default)]
    pub effects_fetched: u64,
    /// Chunks that came out differently when they were run again here, by cause.
    #[serde(default)]
    pub rerun_divergences: BTreeMap<String, u64>,
    /// Digests that did not agree.
    pub divergences: u64,
    /// Times this host went live after the loss of the primary.
    pub failovers: u64,
    /// The guest's last MARK.
    pub mark: u64,
    /// How long outputs were held.
    pub output_hold_us: QuantilesUs,
    /// From commit to the backup's "received".
    pub lag_received_us: QuantilesUs,
    /// From commit to the backup's "verified".
    pub lag_verified_us: QuantilesUs,
    /// Commits not yet received.
    pub lag_received_commits: QuantilesCommits,
    /// Commits not yet verified.
    pub lag_verified_commits: QuantilesCommits,
    /// What vCPUs lost their chunks by, on this host: the most frequent, at most sixteen.
    #[serde(default)]
    pub conflicts: Vec<Conflict>,
    /// Changes of role, oldest first.
    pub role_changes: Vec<RoleChange>,
    /// Digest of the committed state, hexadecimal.
    pub digest: Option<String>,
    /// The commit after which it was taken.
    pub digest_seq: Option<u64>,
}

impl Report {
    /// Conflicts that are reported.
    pub const CONFLICTS_MAX: usize = 16;

    /// The report that a status allows; distributions and the digest are the caller's to fill in.
    pub fn new(status: &Status, wall_seconds: f64, stop: impl Into<String>) -> Self {
        let counters = &status.counters;
        Self {
            wall_seconds,
            guest_seconds: status.guest_time_ns as f64 / 1e9,
            exit_status: status.ended.as_ref().and_then(|ended| ended.exit_status),
            stop: stop.into(),
            role: status.role,
            term: status.term,
            commits: counters.commits,
            chunks: counters.chunks(),
            chunks_by_vcpu: counters.chunks_by_vcpu.clone(),
            squashes: counters.squashes,
            exclusive_chunks: counters.exclusive_chunks,
            faults_avoided: counters.faults_avoided,
            vcpu_ms: counters.vcpu_ms.clone(),
            effect_bytes: counters.effect_bytes,
            log_bytes: counters.log_bytes,
            order_bytes: counters.order_bytes,
            chunks_order_form: counters.chunks_order_form,
            chunks_effects_form: counters.chunks_effects_form,
            effects_fetched: counters.effects_fetched,
            rerun_divergences: counters.rerun_divergences.clone(),
            divergences: counters.divergences,
            failovers: counters.failovers,
            mark: status.mark,
            output_hold_us: QuantilesUs::default(),
            lag_received_us: QuantilesUs::default(),
            lag_verified_us: QuantilesUs::default(),
            lag_received_commits: QuantilesCommits::default(),
            lag_verified_commits: QuantilesCommits::default(),
            conflicts: Vec::new(),
            role_changes: status.role_changes.clone(),
            digest: None,
            digest_seq: None,
        }
    }

    /// Writes it to `path`, replacing what is there, so that a reader sees the old file or all of the new one.
    pub fn write(&self, path: &Path) -> Result<(), ReportError> {
        self.replace(path).map_err(|source| ReportError {
            path: path.to_owned(),
            source,
        })
    }

    /// Whether a report can be written to `path`: asked at the start, so that a run is not lost at its end.
    pub fn probe(path: &Path) -> Result<(), ReportError> {
        let failed = |source| ReportError {
            path: path.to_owned(),
            source,
        };
        if path.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let temporary = temporary(path).map_err(failed)?;
        File::create(&temporary)
            .and_then(|_| fs::remove_file(&temporary))
            .map_err(failed)
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        let temporary = temporary(path)?;
        let written = File::create(&temporary).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        });
        if written.is_err() {
            // The error that matters is the first one.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

/// Beside the report, so that the rename stays in one file system; with our process id, so that two runs do not meet.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}", std::process::id()));
    Ok(path.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use samsara_config::Config;

    use super::*;
    use crate::status::Ended;

    fn report() -> Report {
        let mut status = Status::new(&Config::default(), Role::Primary, "alpha");
        status.counters.chunks_by_vcpu = vec![3, 4];
        status.ended = Some(Ended {
            exit_status: Some(7),
            how: "exit".to_owned(),
        });
        Report::new(&status, 1.5, "guest exit")
    }

    #[test]
    fn written_whole_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        fs::write(&path, "old").unwrap();
        Report::probe(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        report().write(&path).unwrap();
        let read: Report = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, report());
        assert_eq!((read.chunks, read.exit_status), (7, Some(7)));
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "a temporary file is left"
        );
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        for path in [
            dir.path().join("none/report.json"),
            folder,
            "/".into(),
            "".into(),
        ] {
            let error = Report::probe(&path).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("cannot write the report {}", path.display())
            );
            assert!(report().write(&path).is_err());
        }
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "a temporary file is left"
        );
    }
}
