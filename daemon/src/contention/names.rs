//! The guest's file, if it has names for what is in its memory.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use samsara_commitlog::Gpa;
use samsara_config::Config;
use samsara_machine::symbols::Symbols;

use crate::exit::ExitCode;
use crate::failure::Failure;

/// What tells one state of a file from another.
type Stamp = (u64, u64, u64, i64, i64);

/// The program or kernel that is configured, as it was when the daemon started. It is read when names are asked for.
#[derive(Debug)]
pub struct GuestFile {
    path: Option<PathBuf>,
    stamp: Option<Stamp>,
}

/// Names, or the reason why there are none.
#[derive(Debug, Default)]
pub struct Names {
    /// Where they are from, or why there are none.
    pub from: String,
    symbols: Option<Symbols>,
}

impl GuestFile {
    /// That of a configuration, now.
    pub fn new(config: &Config) -> Self {
        let path = config.vm.program.clone().or(config.vm.kernel.clone());
        Self {
            stamp: path.as_deref().and_then(stamp),
            path,
        }
    }

    /// Reads the names.
    pub fn names(&self) -> Names {
        match self.read() {
            Ok((path, symbols)) => Names {
                from: path.display().to_string(),
                symbols: Some(symbols),
            },
            Err(why) => Names {
                from: format!("none: {why}"),
                symbols: None,
            },
        }
    }

    fn read(&self) -> Result<(&Path, Symbols), String> {
        let path = self.path.as_deref();
        let path = path.ok_or("neither vm.program nor vm.kernel is set on this host")?;
        let symbols = Symbols::open(path);
        let symbols = symbols.map_err(|error| Failure::new(ExitCode::Input, &error).message)?;
        // Asked after reading: what was read is what was there at the start.
        if stamp(path) != self.stamp {
            return Err(format!(
                "{} has changed since samsarad was started",
                path.display()
            ));
        }
        Ok((path, symbols))
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    Some((
        found.dev(),
        found.ino(),
        found.len(),
        found.mtime(),
        found.mtime_nsec(),
    ))
}

impl Names {
    /// The function with this address in it, and how far into it.
    pub(super) fn function_at(&self, rip: u64) -> Option<String> {
        let (name, offset) = self.symbols.as_ref()?.function_at(rip)?;
        Some(match offset {
            0 => name,
            offset => format!("{name}+{offset:#x}"),
        })
    }

    /// The objects in a page: so many names, and how many there are more.
    pub(super) fn objects_in(&self, page: Gpa, max: usize) -> (Vec<String>, usize) {
        let symbols = self.symbols.as_ref();
        symbols.map_or_else(Default::default, |symbols| symbols.objects_in(page, max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(path: &Path) -> GuestFile {
        let set = format!("vm.program={}", path.display());
        GuestFile::new(&Config::load(None, &[set]).unwrap())
    }

    #[test]
    fn why_there_are_no_names() {
        let none = GuestFile::new(&Config::default()).names();
        assert!(none.from.starts_with("none: neither vm.program"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guest.elf");
        let missing = configured(&path).names();
        assert!(missing.from.contains("guest.elf: No such file"));
        fs::write(&path, "no ELF file").unwrap();
        let names = configured(&path).names();
        assert!(names.from.contains("is not an ELF file"), "{}", names.from);
        assert_eq!(names.function_at(0x20_0000), None);
        assert_eq!(names.objects_in(Gpa(0x20_0000), 4), (Vec::new(), 0));
    }

    /// Names of another file would explain nothing.
    #[test]
    fn a_file_that_was_replaced_gives_no_names() {
        let own = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guest.elf");
        fs::copy(&own, &path).unwrap();
        let file = configured(&path);
        let names = file.names();
        assert_eq!(names.from, path.display().to_string());
        let other = dir.path().join("other.elf");
        fs::copy(&own, &other).unwrap();
        fs::rename(&other, &path).unwrap();
        let names = file.names();
        assert!(names.from.contains("has changed"), "{}", names.from);
        assert!(names.symbols.is_none());
    }
}
