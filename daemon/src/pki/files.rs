//! Files that must never be overwritten, and keys that must never be readable by others.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::PkiError;

/// Larger than any certificate or key; keeps a wrong path from being read whole.
const PEM_BYTES_MAX: u64 = 1 << 16;

/// Who may read a file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Access {
    /// Its owner.
    Owner,
    /// All.
    Everyone,
}

/// A file to write.
pub(super) struct NewFile<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
    pub(super) access: Access,
}

/// Makes a directory that only its owner can enter, unless it is there already.
pub(super) fn make_directory(path: &Path) -> Result<(), PkiError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| PkiError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Writes all of the files or, if one exists or fails, none.
pub(super) fn write_new(files: &[NewFile<'_>]) -> Result<(), PkiError> {
    for (index, file) in files.iter().enumerate() {
        if let Err(source) = write(file) {
            for written in &files[..index] {
                // The error that matters is the first one.
                let _ = fs::remove_file(written.path);
            }
            let path = file.path.to_owned();
            return Err(match source.kind() {
                io::ErrorKind::AlreadyExists => PkiError::Exists { path },
                _ => PkiError::Write { path, source },
            });
        }
    }
    Ok(())
}

fn write(file: &NewFile<'_>) -> io::Result<()> {
    let mode = match file.access {
        Access::Owner => 0o600,
        Access::Everyone => 0o644,
    };
    let mut open = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(file.path)?;
    let written = open
        .write_all(file.text.as_bytes())
        .and_then(|()| open.sync_all());
    if written.is_err() {
        // Ours, as it did not exist before; half a file would only confuse.
        let _ = fs::remove_file(file.path);
    }
    written
}

/// Puts a file with this text there, unless it is there already with just this text.
pub(super) fn copy_of(path: &Path, text: &str) -> Result<(), PkiError> {
    match write_new(&[NewFile {
        path,
        text,
        access: Access::Everyone,
    }]) {
        Err(PkiError::Exists { .. }) if read(path).is_ok_and(|found| found == text) => Ok(()),
        other => other,
    }
}

/// Reads a small text file.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(PEM_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}
