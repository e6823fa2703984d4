//! Runs daemons on this machine: one alone, or two that protect a guest.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use tempfile::TempDir;

use super::BenchError;
use super::daemon::{Daemon, Ran};
use crate::loopback::{PORTS, free_address};
use crate::pki::{self, HostRequest};

/// Names of the two hosts of a pair.
const PAIR: [&str; 2] = ["alpha", "beta"];
const ALONE: &str = "samsarad";

/// How a guest is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Native,
    Recorded,
    Protected,
}

impl Mode {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Recorded => "recorded",
            Self::Protected => "protected",
        }
    }
}

/// A directory to run daemons in; it goes with it.
pub(super) struct Hosts {
    directory: TempDir,
    pub(super) samsarad: PathBuf,
    /// Settings of recorded and protected runs, last.
    sets: Vec<String>,
}

impl Hosts {
    /// With certificates for a pair.
    pub(super) fn new(samsarad: PathBuf, sets: Vec<String>) -> Result<Self, BenchError> {
        let directory = TempDir::with_prefix("samsara-bench-");
        let directory = directory.map_err(BenchError::file(std::env::temp_dir()))?;
        let hosts = Self {
            directory,
            samsarad,
            sets,
        };
        let ca = hosts.path("ca");
        pki::init(&ca, "samsara bench", 2)?;
        for name in PAIR {
            let request = HostRequest {
                name: name.to_owned(),
                addresses: Vec::new(),
                days: 2,
            };
            pki::issue(&ca, &request, &hosts.path(name))?;
        }
        Ok(hosts)
    }

    /// A path in the directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file into the directory.
    pub(super) fn write(&self, name: &str, contents: &[u8]) -> Result<PathBuf, BenchError> {
        let path = self.path(name);
        fs::write(&path, contents).map_err(BenchError::file(&path))?;
        Ok(path)
    }

    /// Runs a guest to its end. `run` names it in messages, `guest` are the arguments that make it.
    pub(super) fn run(&self, run: &str, mode: Mode, guest: &[OsString]) -> Result<Ran, BenchError> {
        let run = format!("{run}, {}", mode.as_str());
        match mode {
            Mode::Native => {
                let set = ["recording.mode=off".to_owned()];
                self.alone(&run, &[], guest, &set)
            }
            Mode::Recorded => {
                let set = ["recording.mode=on".to_owned()];
                let sets = [&set, self.sets.as_slice()].concat();
                self.alone(&run, &[], guest, &sets)
            }
            Mode::Protected => self.pair(&run, guest),
        }
    }

    /// Runs a guest natively below another program.
    pub(super) fn native_under(
        &self,
        run: &str,
        prefix: &[OsString],
        guest: &[OsString],
    ) -> Result<Ran, BenchError> {
        self.alone(run, prefix, guest, &["recording.mode=off".to_owned()])
    }

    fn alone(
        &self,
        run: &str,
        prefix: &[OsString],
        guest: &[OsString],
        sets: &[String],
    ) -> Result<Ran, BenchError> {
        let role = ["--role", "standalone"];
        let daemon = Daemon::start(self, ALONE, prefix, &role, guest, sets)?;
        daemon.finish(run)
    }

    fn pair(&self, run: &str, guest: &[OsString]) -> Result<Ran, BenchError> {
        let arbiter = self.path("arbiter");
        // What an earlier guest left there.
        let _ = fs::remove_dir_all(&arbiter);
        fs::create_dir(&arbiter).map_err(BenchError::file(&arbiter))?;
        let addresses = [(); 2].map(|()| free_address());
        let [Some(first), Some(second)] = addresses else {
            return Err(BenchError::NoPort {
                from: PORTS.start,
                to: PORTS.end,
            });
        };
        let addresses = [first, second];
        let start = |own: usize, role| {
            let peer = 1 - own;
            let mut sets = self.sets_of(own, addresses);
            sets.push(format!("replication.peer={}", addresses[peer]));
            sets.push(format!("replication.peer_name={}", PAIR[peer]));
            sets.extend_from_slice(&self.sets);
            Daemon::start(self, PAIR[own], &[], &["--role", role], guest, &sets)
        };
        let primary = start(0, "primary")?;
        let backup = start(1, "backup")?;
        let ran = primary.finish(run)?;
        backup.finish(run)?;
        Ok(ran)
    }

    fn sets_of(&self, own: usize, addresses: [SocketAddr; 2]) -> Vec<String> {
        let name = PAIR[own];
        let file = |file: String| self.path(name).join(file).display().to_string();
        vec![
            "failover.arbiter=file".to_owned(),
            format!("failover.arbiter_dir={}", self.path("arbiter").display()),
            format!("replication.listen={}", addresses[own]),
            format!("replication.host_name={name}"),
            format!("tls.ca={}", file("ca.pem".to_owned())),
            format!("tls.cert={}", file(format!("{name}.pem"))),
            format!("tls.key={}", file(format!("{name}.key"))),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use samsara_config::{Config, Role};

    use super::*;
    use crate::report::Report;
    use crate::status::{Ended, Status};

    /// Something in the place of samsarad.
    fn hosts_with(script: &str, sets: &[&str]) -> Hosts {
        let hosts = Hosts::new(
            PathBuf::new(),
            sets.iter().map(ToString::to_string).collect(),
        );
        let mut hosts = hosts.unwrap();
        let program = hosts.write("samsarad", script.as_bytes()).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        hosts.samsarad = program;
        hosts
    }

    fn report() -> String {
        let mut status = Status::new(&Config::default(), Role::Standalone, "alpha");
        status.guest_time_ns = 2_500_000_000;
        status.ended = Some(Ended {
            exit_status: Some(0),
            how: "exit".to_owned(),
        });
        serde_json::to_string(&Report::new(&status, 3.0, "exit")).unwrap()
    }

    /// Says what it was called with, and leaves a report.
    fn content() -> String {
        let report = report();
        format!("#!/bin/sh\necho \"$@\"\nprintf '%s' '{report}' >\"$4\"\n")
    }

    #[test]
    fn each_mode_has_its_settings() {
        let hosts = hosts_with(&content(), &["recording.chunk_max_us=900"]);
        let guest = ["--set".into(), "vm.program=x.elf".into()];
        let said = |mode| {
            let ran = hosts.run("x", mode, &guest).unwrap();
            assert!((ran.report.guest_seconds - 2.5).abs() < 1e-9);
            String::from_utf8(ran.console).unwrap()
        };
        let native = said(Mode::Native);
        assert!(native.contains("--role standalone") && native.contains("vm.program=x.elf"));
        assert!(native.contains("recording.mode=off") && !native.contains("chunk_max_us"));
        let recorded = said(Mode::Recorded);
        assert!(recorded.contains("recording.mode=on") && recorded.contains("chunk_max_us=900"));
        let protected = said(Mode::Protected);
        for part in [
            "--role primary",
            "failover.arbiter=file",
            "replication.peer_name=beta",
            "replication.host_name=alpha",
            "alpha.key",
            "chunk_max_us=900",
        ] {
            assert!(protected.contains(part), "{part} is not in {protected}");
        }
    }

    #[test]
    fn a_host_that_fails_is_named_with_what_it_said() {
        let hosts = hosts_with("#!/bin/sh\necho first >&2\necho why >&2\nexit 71\n", &[]);
        let error = hosts.run("radix", Mode::Recorded, &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "radix, recorded: samsarad ended with status 71; the last that it said: why"
        );
        let hosts = hosts_with("#!/bin/sh\nkill -9 $$\n", &[]);
        let error = hosts.run("radix", Mode::Protected, &[]).unwrap_err();
        let wanted = "radix, protected: alpha ended with status of signal 9";
        assert!(error.to_string().starts_with(wanted), "{error}");
    }

    #[test]
    fn where_there_is_no_samsarad_it_is_asked_for() {
        let mut hosts = hosts_with("", &[]);
        hosts.samsarad = hosts.path("none");
        let error = hosts.run("radix", Mode::Native, &[]).unwrap_err();
        assert!(error.to_string().contains("--samsarad PATH"), "{error}");
        assert_eq!(error.exit_code(), crate::exit::ExitCode::Usage);
    }

    /// A run that left no report is none, even if one before it did.
    #[test]
    fn an_old_report_is_not_taken() {
        let mut hosts = hosts_with(&content(), &[]);
        hosts.run("x", Mode::Native, &[]).unwrap();
        hosts.samsarad = PathBuf::from("/bin/true");
        let error = hosts.run("x", Mode::Native, &[]).unwrap_err();
        assert!(error.to_string().contains("samsarad.report"), "{error}");
    }
}
