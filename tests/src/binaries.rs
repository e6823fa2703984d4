//! Where samsarad and samsaractl are: built by cargo, in the release profile, or in a directory that is named.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::HarnessError;

/// Names a directory with both programs, so that what is installed can be tested, or another build.
pub const DIRECTORY_VARIABLE: &str = "SAMSARA_BIN_DIR";

/// The programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The daemon.
    pub samsarad: PathBuf,
    /// The operator's command.
    pub samsaractl: PathBuf,
}

impl Binaries {
    /// Finds or builds them, once in a process. Cargo shows its progress on standard error.
    ///
    /// # Errors
    ///
    /// They are not in the directory named, or cargo cannot build them.
    pub fn locate() -> Result<&'static Self, HarnessError> {
        static FOUND: OnceLock<Result<Binaries, String>> = OnceLock::new();
        let found = FOUND.get_or_init(|| match std::env::var_os(DIRECTORY_VARIABLE) {
            Some(directory) => Self::in_directory(Path::new(&directory)),
            None => Self::build(),
        });
        found
            .as_ref()
            .map_err(|reason| HarnessError::Binaries(reason.clone()))
    }

    fn in_directory(directory: &Path) -> Result<Self, String> {
        let find = |name: &str| {
            let path = directory.join(name);
            let missing = || {
                format!(
                    "{DIRECTORY_VARIABLE} is set, but {} is no file",
                    path.display()
                )
            };
            path.is_file().then(|| path.clone()).ok_or_else(missing)
        };
        Ok(Self {
            samsarad: find("samsarad")?,
            samsaractl: find("samsaractl")?,
        })
    }

    fn build() -> Result<Self, String> {
        // Set by the cargo that runs this, and the one that built it.
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let mut build = Command::new(&cargo);
        build
            .args(["build", "--release", "--package", "samsarad", "--bins"])
            .args([
                "--message-format",
                "json-render-diagnostics",
                "--manifest-path",
            ])
            .arg(&manifest)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit());
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(is_about_this_package) {
                build.env_remove(name);
            }
        }
        let output = build
            .output()
            .map_err(|error| format!("cannot run {}: {error}", cargo.display()))?;
        if !output.status.success() {
            return Err("cargo build --release --package samsarad failed".to_owned());
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let find = |name: &str| {
            executable(&messages, name).ok_or_else(|| format!("cargo built no {name}"))
        };
        Ok(Self {
            samsarad: find("samsarad")?,
            samsaractl: find("samsaractl")?,
        })
    }
}

/// Whether cargo sets this variable for the package that it runs. Build scripts of dependencies watch some of them: left in
/// place, they would have those built anew each time.
fn is_about_this_package(name: &str) -> bool {
    let prefixes = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_PRIMARY_",
    ];
    name == "OUT_DIR" || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// The path that cargo's messages give for the program of that name.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let artifacts = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut named = artifacts.filter(|message| message["target"]["name"] == name);
    named.find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_the_one_of_that_name() {
        let messages = r#"
            {"reason":"compiler-artifact","target":{"name":"samsarad"},"executable":null}
            {"reason":"compiler-artifact","target":{"name":"samsaractl"},"executable":"/t/samsaractl"}
            not json
            {"reason":"compiler-artifact","target":{"name":"samsarad"},"executable":"/t/samsarad"}
        "#;
        assert_eq!(executable(messages, "samsarad"), Some("/t/samsarad".into()));
        assert_eq!(executable(messages, "other"), None);
    }

    #[test]
    fn settings_of_the_person_stay() {
        assert!(is_about_this_package("CARGO_MANIFEST_DIR") && is_about_this_package("OUT_DIR"));
        for name in [
            "CARGO_TARGET_DIR",
            "CARGO_HOME",
            "CARGO_BUILD_JOBS",
            "RUSTFLAGS",
        ] {
            assert!(!is_about_this_package(name), "{name}");
        }
    }

    #[test]
    fn a_directory_without_them_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("samsarad"), "").unwrap();
        let error = Binaries::in_directory(dir.path()).unwrap_err();
        assert!(error.contains("samsaractl is no file"), "{error}");
    }
}
