//! An arbiter in a directory that both hosts see.
//!
//! Every revision of the standing is a file of its own, `standing-<revision>.json`, and the highest one is current.
//! A swap writes the record to a temporary file, syncs it, and hard-links it to the name of the revision after the
//! expected one. Linking is atomic, on NFS as well, and fails if the name exists: so at most one swap of a revision
//! wins, and a reader never sees half a record. Old revisions are pruned, but many are kept.
//!
//! A pruned name can be linked again by a writer that slept through all the revisions since. Therefore a link
//! counts only if the directory, listed after it, has no revision so high that the name could have been pruned.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::{Arbiter, ArbiterError, Swap};
use crate::standing::{HostName, Phase, Revision, Standing, Term, Versioned};

/// The version of the record's format.
const FORMAT: u32 = 1;
/// A record is about 200 bytes; nothing larger is read.
const MAX_RECORD_BYTES: u64 = 4096;
/// Revisions kept below the current one, for people who want to know what happened.
const KEPT_REVISIONS: u64 = 64;
/// Age at which a temporary file is certainly that of a dead process.
const STALE_TEMPORARY_S: i64 = 3600;
/// How often a read starts over because pruning removed what it was about to open.
const READ_ATTEMPTS: usize = 16;
/// More entries than a directory of our own can have; a larger one is some other directory.
const MAX_ENTRIES: usize = 10_000;

const PREFIX: &str = "standing-";
const SUFFIX: &str = ".json";
const TEMPORARY_PREFIX: &str = ".standing-new-";

/// Tells apart the temporary files of one process.
static TEMPORARY_NUMBER: AtomicU64 = AtomicU64::new(0);

/// Compare-and-swap of a standing in a directory that both hosts see.
#[derive(Clone, Debug)]
pub struct FileArbiter {
    directory: PathBuf,
    vm: String,
    host: HostName,
}

/// The record in a file, so that a person can read it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    vm: String,
    revision: Revision,
    term: Term,
    holder: HostName,
    phase: Phase,
}

impl FileArbiter {
    /// An arbiter for `vm` in `directory`, used by `host`. Touches nothing yet: an unusable directory shows when it is
    /// read, and may get better.
    pub fn new(directory: impl Into<PathBuf>, vm: impl Into<String>, host: HostName) -> Self {
        Self {
            directory: directory.into(),
            vm: vm.into(),
            host,
        }
    }

    /// Where it keeps its records.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path_of(&self, revision: Revision) -> PathBuf {
        self.directory
            .join(format!("{PREFIX}{:020}{SUFFIX}", revision.0))
    }

    fn unreachable(&self, source: io::Error) -> ArbiterError {
        ArbiterError::Unreachable {
            path: self.directory.clone(),
            source,
        }
    }

    /// The revisions that have a file, in no order.
    fn revisions(&self) -> Result<Vec<Revision>, ArbiterError> {
        let mut found = Vec::new();
        let entries = fs::read_dir(&self.directory).map_err(|source| self.unreachable(source))?;
        for (index, entry) in entries.enumerate() {
            if index >= MAX_ENTRIES {
                return Err(ArbiterError::BadRecord {
                    path: self.directory.clone(),
                    reason: format!("more than {MAX_ENTRIES} files: not an arbiter's directory"),
                });
            }
            let entry = entry.map_err(|source| self.unreachable(source))?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
                continue;
            };
            let revision = revision_in(name).ok_or_else(|| ArbiterError::BadRecord {
                path: entry.path(),
                reason: "its name has no revision of 20 digits".to_owned(),
            })?;
            found.push(revision);
        }
        Ok(found)
    }

    /// The highest revision. A listing from a client's cache may be old, so names above it are tried as well.
    fn highest(&self) -> Result<Option<Revision>, ArbiterError> {
        let listed = self.revisions()?.into_iter().max();
        let mut highest = listed.unwrap_or_default();
        while let Some(above) = highest.0.checked_add(1).map(Revision) {
            match fs::metadata(self.path_of(above)) {
                Ok(_) => highest = above,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(source) => return Err(self.unreachable(source)),
            }
        }
        Ok((highest != Revision::default()).then_some(highest))
    }

    /// The current standing, or an error; none only if the directory has no record.
    fn current(&self) -> Result<Option<Versioned<Standing>>, ArbiterError> {
        for _ in 0..READ_ATTEMPTS {
            let Some(revision) = self.highest()? else {
                return Ok(None);
            };
            // None: pruned between the listing and the opening, so there are newer ones.
            if let Some(value) = self.load(revision)? {
                return Ok(Some(Versioned { revision, value }));
            }
        }
        Err(ArbiterError::Other(format!(
            "{} changes faster than it can be read",
            self.directory.display()
        )))
    }

    /// The standing of a revision; none if it has no file.
    fn load(&self, revision: Revision) -> Result<Option<Standing>, ArbiterError> {
        let path = self.path_of(revision);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(ArbiterError::BadRecord {
                    path,
                    reason: error.to_string(),
                });
            }
        };
        let mut text = Vec::new();
        file.take(MAX_RECORD_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(|source| self.unreachable(source))?;
        self.decode(revision, &text)
            .map(Some)
            .map_err(|reason| ArbiterError::BadRecord { path, reason })
    }

    fn decode(&self, revision: Revision, text: &[u8]) -> Result<Standing, String> {
        if text.len() as u64 > MAX_RECORD_BYTES {
            return Err(format!("longer than {MAX_RECORD_BYTES} bytes"));
        }
        let record: Record = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if record.format != FORMAT {
            return Err(format!(
                "it has format {}, this version knows {FORMAT}",
                record.format
            ));
        }
        if record.vm != self.vm {
            return Err(format!(
                "it is about VM {:?}, not {:?}: give each VM a directory of its own",
                record.vm, self.vm
            ));
        }
        if record.revision != revision {
            return Err(format!(
                "it says revision {}: copied or renamed",
                record.revision.0
            ));
        }
        Ok(Standing::new(record.term, record.holder, record.phase))
    }

    fn encode(&self, revision: Revision, standing: &Standing) -> Result<Vec<u8>, ArbiterError> {
        let record = Record {
            format: FORMAT,
            vm: self.vm.clone(),
            revision,
            term: standing.term,
            holder: standing.holder.clone(),
            phase: standing.phase,
        };
        let text =
            serde_json::to_vec(&record).map_err(|error| ArbiterError::Other(error.to_string()))?;
        if text.len() as u64 > MAX_RECORD_BYTES {
            return Err(ArbiterError::Other(format!(
                "the VM's name makes a record longer than {MAX_RECORD_BYTES} bytes"
            )));
        }
        Ok(text)
    }

    /// Writes the record, whole and synced, under a name that nobody reads.
    fn write_temporary(&self, text: &[u8]) -> Result<Temporary, ArbiterError> {
        let number = TEMPORARY_NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "{TEMPORARY_PREFIX}{}-{}-{number}",
            self.host,
            std::process::id()
        );
        let path = self.directory.join(name);
        // What a dead process of the same id left is ours to replace.
        let _ = fs::remove_file(&path);
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&path)?;
            let temporary = Temporary(path.clone());
            file.write_all(text)?;
            file.sync_all()?;
            Ok(temporary)
        };
        write().map_err(|source| self.unreachable(source))
    }

    /// Makes the name of `revision` stand for the temporary file; false if the name was taken.
    fn link(
        &self,
        temporary: &Temporary,
        revision: Revision,
        next: &Standing,
    ) -> Result<bool, ArbiterError> {
        let Err(error) = fs::hard_link(&temporary.0, self.path_of(revision)) else {
            return Ok(true);
        };
        // Over NFS the answer to a link that was made may be lost, and the repeated request fails. The file itself
        // knows how many names it has.
        let names = fs::metadata(&temporary.0).map(|metadata| metadata.nlink());
        match (names, error.kind()) {
            (Ok(names), _) if names > 1 => Ok(true),
            (Ok(_), io::ErrorKind::AlreadyExists) => Ok(false),
            (Ok(_), kind) if certainly_not_done(kind) => Err(self.unreachable(error)),
            _ => Err(unsettled(
                next,
                &format!("linking in {}: {error}", self.directory.display()),
            )),
        }
    }

    /// Makes the names in the directory durable: nothing is reported that a power failure could take back.
    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    /// Removes revisions far below the current one, and temporary files of processes that died long ago. What cannot
    /// be removed stays: it harms nobody.
    fn prune(&self, current: Revision) {
        let oldest = current.0.saturating_sub(KEPT_REVISIONS);
        for revision in self.revisions().unwrap_or_default() {
            if revision.0 < oldest {
                let _ = fs::remove_file(self.path_of(revision));
            }
        }
        // Ages by the file server's clock alone, which may differ from ours.
        let Ok(server_now) = fs::metadata(self.path_of(current)).map(|data| data.mtime()) else {
            return;
        };
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.flatten().take(MAX_ENTRIES) {
            let ours = entry
                .file_name()
                .to_string_lossy()
                .starts_with(TEMPORARY_PREFIX);
            let written = entry.metadata().map(|data| data.mtime());
            if ours && written.is_ok_and(|at| server_now.saturating_sub(at) > STALE_TEMPORARY_S) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

impl Arbiter for FileArbiter {
    fn read(&mut self) -> Result<Option<Versioned<Standing>>, ArbiterError> {
        let current = self.current()?;
        self.sync_directory()
            .map_err(|source| self.unreachable(source))?;
        Ok(current)
    }

    fn compare_and_swap(
        &mut self,
        expected: Option<Revision>,
        next: &Standing,
    ) -> Result<Swap, ArbiterError> {
        let before = self.current()?;
        if before.as_ref().map(|before| before.revision) != expected {
            self.sync_directory()
                .map_err(|source| self.unreachable(source))?;
            return Ok(Swap::Lost(before));
        }
        let revision = expected.unwrap_or_default().0.checked_add(1).map(Revision);
        let revision =
            revision.ok_or_else(|| ArbiterError::Other("no revision left".to_owned()))?;
        let temporary = self.write_temporary(&self.encode(revision, next)?)?;
        let linked = self.link(&temporary, revision, next)?;
        drop(temporary);
        let after = self
            .sync_directory()
            .map_err(|source| self.unreachable(source))
            .and_then(|()| self.current())
            .map_err(|error| {
                if linked {
                    unsettled(next, &error.to_string())
                } else {
                    error
                }
            })?;
        let in_force = after
            .as_ref()
            .is_some_and(|after| in_time(revision, after.revision));
        if linked && in_force {
            self.prune(revision);
            return Ok(Swap::Won(revision));
        }
        Ok(Swap::Lost(after))
    }
}

/// Whether a name linked for `revision` cannot have been pruned before, seeing that `highest` was current afterwards.
fn in_time(revision: Revision, highest: Revision) -> bool {
    highest >= revision && highest.0 - revision.0 <= KEPT_REVISIONS
}

/// Removes its file when dropped; the link, if there is one, stays.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn unsettled(next: &Standing, reason: &str) -> ArbiterError {
    ArbiterError::Unsettled {
        next: next.clone(),
        reason: reason.to_owned(),
    }
}

/// Whether the system refused before it did anything.
fn certainly_not_done(kind: io::ErrorKind) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        kind,
        Kind::PermissionDenied
            | Kind::NotFound
            | Kind::StorageFull
            | Kind::QuotaExceeded
            | Kind::ReadOnlyFilesystem
            | Kind::TooManyLinks
            | Kind::Unsupported
    )
}

fn revision_in(name: &str) -> Option<Revision> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits
        .parse()
        .ok()
        .filter(|&number| number > 0)
        .map(Revision)
}

#[cfg(test)]
mod tests;
