//! Where a host's disks are in the history of the VM: a small file beside the image.
//!
//! JSON, replaced as a whole: after the loss of the host it has what it had before or what was
//! stored last, never a part.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use samsara_commitlog::CommitSeq;
use samsara_replication::protocol::{DiskHistory, DiskPosition};
use serde::{Deserialize, Serialize};

/// What a file of this kind says of itself.
const FORMAT: &str = "samsara disk position";
/// The version of its layout.
const VERSION: u32 = 1;
/// The file is not read further; a position takes some 300 bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What the file beside an image says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The VM whose disk it is.
    pub(crate) vm: String,
    /// Where it is.
    pub(crate) position: DiskPosition,
    /// It is being brought up to date, and neither what it was nor what it is to be.
    pub(crate) syncing: bool,
}

/// A position that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PositionError {
    /// The operating system refused.
    #[error("cannot {action} disk position {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is not one of ours, or damaged.
    #[error("disk position {} is not usable ({reason}): copy image and position from the other host, \
        or remove the position if the image is the one to go on with", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Deserialize)]
struct Head {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    format: String,
    version: u32,
    vm: String,
    term: u64,
    /// 32 hexadecimal digits: JSON numbers are not that large.
    incarnation: String,
    commit: u64,
    syncing: bool,
}

/// The file of an image.
pub(crate) fn beside(image: &Path) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(".samsara");
    path.into()
}

/// Reads a position; nothing if there is none.
pub(crate) fn load(path: &Path) -> Result<Option<Place>, PositionError> {
    let mut text = Vec::new();
    let read = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut text)),
    };
    read.map_err(|source| PositionError::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })?;
    decode(&text)
        .map(Some)
        .map_err(|reason| PositionError::Bad {
            path: path.to_owned(),
            reason,
        })
}

fn decode(text: &[u8]) -> Result<Place, String> {
    let damaged = |error: serde_json::Error| error.to_string();
    let head: Head = serde_json::from_slice(text).map_err(damaged)?;
    if head.format != FORMAT {
        return Err(format!("it is a {:?}", head.format));
    }
    if head.version != VERSION {
        return Err(format!(
            "it has version {}, this build reads {VERSION}",
            head.version
        ));
    }
    let body: Body = serde_json::from_slice(text).map_err(damaged)?;
    let is_hex = body.incarnation.len() == 32
        && body
            .incarnation
            .bytes()
            .all(|digit| digit.is_ascii_hexdigit());
    let incarnation = u128::from_str_radix(&body.incarnation, 16).ok();
    let incarnation = incarnation.filter(|_| is_hex).ok_or("bad incarnation")?;
    Ok(Place {
        vm: body.vm,
        position: DiskPosition {
            history: DiskHistory {
                term: body.term,
                incarnation,
            },
            commit: CommitSeq(body.commit),
        },
        syncing: body.syncing,
    })
}

fn encode(place: &Place) -> Vec<u8> {
    let body = Body {
        format: FORMAT.to_owned(),
        version: VERSION,
        vm: place.vm.clone(),
        term: place.position.history.term,
        incarnation: format!("{:032x}", place.position.history.incarnation),
        commit: place.position.commit.0,
        syncing: place.syncing,
    };
    // A struct of strings and numbers always has a JSON form.
    let mut text = serde_json::to_vec_pretty(&body).unwrap_or_default();
    text.push(b'\n');
    text
}

/// Stores a position; it survives the loss of the host when this returns.
pub(crate) fn store(path: &Path, place: &Place) -> Result<(), PositionError> {
    let io_error = |action| {
        move |source| PositionError::Io {
            path: path.to_owned(),
            action,
            source,
        }
    };
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(&encode(place))?;
        file.sync_all()
    };
    write().map_err(io_error("write"))?;
    fs::rename(&new, path).map_err(io_error("replace"))?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new(".")));
    folder
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("make durable the name of"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            vm: "web \"1\"".into(),
            position: DiskPosition {
                history: DiskHistory {
                    term: u64::MAX,
                    incarnation: 0xfeed << 100,
                },
                commit: CommitSeq(u64::MAX),
            },
            syncing: true,
        }
    }

    #[test]
    fn what_is_stored_is_loaded_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = beside(&folder.path().join("disk.raw"));
        assert!(path.ends_with("disk.raw.samsara"));
        assert_eq!(load(&path).unwrap(), None);
        for syncing in [true, false] {
            let place = Place { syncing, ..place() };
            store(&path, &place).unwrap();
            assert_eq!(load(&path).unwrap(), Some(place));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_position_is_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.samsara");
        let good = String::from_utf8(encode(&place())).unwrap();
        for (bad, reason) in [
            (String::new(), "EOF"),
            (good.replace("samsara disk", "other"), "other position"),
            (
                good.replace("\"version\": 1", "\"version\": 2"),
                "version 2",
            ),
            (good.replace("feed", "fxed"), "incarnation"),
            (good.replace("feed", "feeed"), "incarnation"),
            (
                good.replace("\"vm\"", "\"more\": 1, \"vm\""),
                "unknown field",
            ),
            (good[..good.len() / 2].to_owned(), "EOF"),
        ] {
            fs::write(&path, bad).unwrap();
            let text = load(&path).unwrap_err().to_string();
            assert!(
                text.contains(reason) && text.contains("x.samsara"),
                "{text}"
            );
        }
        assert!(load(folder.path()).is_err());
        let nowhere = folder.path().join("none").join("x.samsara");
        assert!(store(&nowhere, &place()).is_err());
    }
}
