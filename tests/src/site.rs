//! What hosts share and what each has of its own: certificates, arbiter, addresses, files.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use samsarad::loopback::{self, PORTS};
use tempfile::TempDir;

use crate::{Binaries, HarnessError};

/// A temporary directory with a CA and an arbiter; goes when it is dropped.
#[derive(Debug)]
pub struct Site {
    directory: TempDir,
    binaries: &'static Binaries,
}

/// What a host has of its own, whichever process is the host.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Its name, as in its certificate.
    pub name: String,
    /// Where it takes backups.
    pub address: SocketAddr,
    /// Where it shows its metrics.
    pub metrics: SocketAddr,
    /// Its files.
    pub directory: PathBuf,
    /// Settings that only this host has: its disks, its taps.
    pub own: Vec<String>,
    /// What its daemon's command line begins with, to run in a namespace.
    pub prefix: Vec<String>,
}

impl Site {
    /// Makes a CA and an arbiter's directory.
    pub fn new() -> Result<Self, HarnessError> {
        let binaries = Binaries::locate()?;
        let directory =
            TempDir::with_prefix("samsara-").map_err(HarnessError::file(std::env::temp_dir()))?;
        let site = Self {
            directory,
            binaries,
        };
        let arbiter = site.arbiter();
        fs::create_dir(&arbiter).map_err(HarnessError::file(arbiter))?;
        let ca = site.ca();
        site.ctl(&["pki", "init", "--dir", &text(&ca)])?;
        Ok(site)
    }

    /// The programs that run here.
    pub const fn binaries(&self) -> &'static Binaries {
        self.binaries
    }

    /// A path in the site's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The arbiter's directory.
    pub fn arbiter(&self) -> PathBuf {
        self.path("arbiter")
    }

    fn ca(&self) -> PathBuf {
        self.path("ca")
    }

    /// The two hosts of a pair, alpha and beta.
    pub fn seats(&self) -> Result<(Seat, Seat), HarnessError> {
        Ok((self.seat("alpha")?, self.seat("beta")?))
    }

    /// A host: a directory with a certificate of its own, made when it is first asked for, and addresses that nobody
    /// used before.
    pub fn seat(&self, name: &str) -> Result<Seat, HarnessError> {
        let directory = self.path(name);
        if !directory.exists() {
            fs::create_dir(&directory).map_err(HarnessError::file(&directory))?;
            let (ca, out) = (text(&self.ca()), text(&directory));
            self.ctl(&["pki", "issue", "--dir", &ca, "--out", &out, "--name", name])?;
        }
        let (address, metrics) = (free_address()?, free_address()?);
        Ok(Seat {
            name: name.to_owned(),
            address,
            metrics,
            directory,
            own: Vec::new(),
            prefix: Vec::new(),
        })
    }

    /// Lets the arbiter forget, for a VM that is another one under the same name.
    pub fn clear_arbiter(&self) -> Result<(), HarnessError> {
        let arbiter = self.arbiter();
        fs::remove_dir_all(&arbiter)
            .and_then(|()| fs::create_dir(&arbiter))
            .map_err(HarnessError::file(arbiter))
    }

    /// Writes a file of the site.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<PathBuf, HarnessError> {
        let path = self.path(name);
        fs::write(&path, contents).map_err(HarnessError::file(&path))?;
        Ok(path)
    }

    /// Runs samsaractl; gives what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String, HarnessError> {
        let command = arguments.join(" ");
        let output = Command::new(&self.binaries.samsaractl)
            .args(arguments)
            .output();
        let output = output.map_err(|source| HarnessError::Process {
            what: format!("cannot run samsaractl {command}"),
            source,
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(HarnessError::Ctl { command, said })
    }
}

impl Seat {
    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// Where its daemon writes its report.
    pub fn report(&self) -> PathBuf {
        self.directory.join("report.json")
    }

    /// The settings of this host in a pair with `peer`.
    pub fn settings(&self, peer: &Self) -> Vec<String> {
        let file = |name: String| text(&self.directory.join(name));
        let mut settings = vec![
            format!("replication.listen={}", self.address),
            format!("replication.peer={}", peer.address),
            format!("replication.peer_name={}", peer.name),
            format!("replication.host_name={}", self.name),
            format!("tls.ca={}", file("ca.pem".into())),
            format!("tls.cert={}", file(format!("{}.pem", self.name))),
            format!("tls.key={}", file(format!("{}.key", self.name))),
            format!("metrics.listen={}", self.metrics),
        ];
        settings.extend_from_slice(&self.own);
        settings
    }
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn free_address() -> Result<SocketAddr, HarnessError> {
    loopback::free_address().ok_or(HarnessError::NoPort {
        from: PORTS.start,
        to: PORTS.end,
    })
}
