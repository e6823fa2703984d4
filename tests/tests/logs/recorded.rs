//! A run, and what its log is compared with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use samsara_tests::{Guest, Ran, Report, Site};
use serde_json::Value;

use crate::BOUND;

/// A run of a guest, with its log.
pub(crate) struct Recorded {
    pub(crate) site: Site,
    pub(crate) log: PathBuf,
    pub(crate) ran: Ran,
    pub(crate) report: Report,
}

impl Recorded {
    pub(crate) fn new(site: Site, guest: &Guest, settings: &[&str]) -> Self {
        let log = site.path("run.log");
        Self::at(site, log, guest, settings)
    }

    /// With the log in segments, in a directory.
    pub(crate) fn in_segments(guest: &str, params: &str, settings: &[&str]) -> Self {
        let site = Site::new().unwrap();
        let guest = Guest::new(&site, guest, params).unwrap();
        let log = site.path("recorder");
        fs::create_dir(&log).unwrap();
        let every = "log.checkpoint_every_s=1";
        Self::at(site, log, &guest, &[&[every], settings].concat())
    }

    pub(crate) fn at(site: Site, log: PathBuf, guest: &Guest, settings: &[&str]) -> Self {
        let mut all = guest.settings();
        all.extend(settings.iter().map(ToString::to_string));
        let (ran, report) = site.record(&all, &log, BOUND).unwrap();
        Self {
            site,
            log,
            ran,
            report,
        }
    }

    pub(crate) fn log_name(&self) -> &str {
        self.log.to_str().unwrap()
    }

    pub(crate) fn ctl(&self, words: &[&str]) -> Ran {
        self.site.ran_ctl(words).unwrap()
    }

    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let ran = self.ctl(words);
        serde_json::from_slice(&ran.stdout).unwrap_or_else(|_| panic!("{words:?}: {}", ran.stderr))
    }

    /// Replayed, it is the run that it was.
    pub(crate) fn assert_replayed(&self, what: &str) {
        let replayed = self.ctl(&["replay", self.log_name()]);
        assert_eq!(replayed.code, self.ran.code, "{what}: {}", replayed.stderr);
        assert!(replayed.stdout == self.ran.stdout, "{what}: another output");
        let outcome = self.json(&["replay", self.log_name(), "--json"]);
        assert_eq!(
            outcome["digest"].as_str(),
            self.report.digest.as_deref(),
            "{what}"
        );
        assert_eq!(outcome["seq"].as_u64(), self.report.digest_seq, "{what}");
        let exit_status = outcome["exit_status"].as_u64();
        assert_eq!(
            exit_status,
            self.report.exit_status.map(u64::from),
            "{what}"
        );
        assert_eq!(outcome["tail"], "clean", "{what}");
        assert!(
            replayed.stderr.contains(&self.report.stop),
            "{what}: {}",
            replayed.stderr
        );
    }

    /// What is shown and counted of it is what the run counted.
    pub(crate) fn assert_counted(&self, what: &str) {
        let stats = self.json(&["log", "stats", self.log_name(), "--json"]);
        assert_eq!(
            stats["chunks"]["count"].as_u64(),
            Some(self.report.chunks),
            "{what}"
        );
        assert_eq!(
            stats["last_seq"].as_u64(),
            Some(self.report.commits),
            "{what}"
        );
        let vcpus: Vec<_> = stats["by_vcpu"].as_array().unwrap().iter().collect();
        let vcpus: Vec<_> = vcpus
            .iter()
            .map(|of| of["count"].as_u64().unwrap())
            .collect();
        assert_eq!(vcpus, self.report.chunks_by_vcpu, "{what}");
        let shown = self.ctl(&["log", "show", self.log_name(), "--json"]);
        let lines = String::from_utf8(shown.stdout).unwrap();
        let kinds: Vec<String> = lines
            .lines()
            .map(|line| {
                serde_json::from_str::<Value>(line).unwrap()["kind"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        let count = |kind: &str| kinds.iter().filter(|found| *found == kind).count() as u64;
        assert_eq!((count("snapshot"), count("end")), (1, 1), "{what}");
        assert_eq!(count("chunk"), self.report.chunks, "{what}");
        assert_eq!(
            count("chunk") + count("input"),
            self.report.commits,
            "{what}"
        );
        let verified = self.ctl(&["log", "verify", self.log_name()]);
        let said = String::from_utf8_lossy(&verified.stdout);
        assert!(
            verified.code == Some(0) && said.contains("frames  whole"),
            "{what}: {said}"
        );
    }
}

pub(crate) fn recorded(name: &str, params: &str, settings: &[&str]) -> Recorded {
    let site = Site::new().unwrap();
    let guest = Guest::new(&site, name, params).unwrap();
    Recorded::new(site, &guest, settings)
}

/// Starts a host whose guest is recorded.
pub(crate) fn start(site: &Site, guest: &Guest, log: &Path) -> std::process::Child {
    let mut command = Command::new(&site.binaries().samsarad);
    command.args(["--role", "standalone", "--record"]).arg(log);
    command.args(["--set", "log.checkpoint_every_s=1"]);
    for setting in guest.settings() {
        command.args(["--set", &setting]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}
