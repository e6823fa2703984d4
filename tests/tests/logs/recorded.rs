//! A run, and what its log is compared with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use samsara_tests::{Guest, HarnessError, Ran, Report, Site, wait};
use samsarad::exit::ExitCode;
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

    /// A guest whose log is in segments and whose host is stopped when there are so many of them.
    pub(crate) fn stopped_at_segments(count: usize, guest: &str, params: &str) -> Self {
        let site = Site::new().unwrap();
        let guest = Guest::new(&site, guest, params).unwrap();
        let log = site.path("recorder");
        fs::create_dir(&log).unwrap();
        let host = start(&site, &guest, &log);
        let waited = wait_segments(&log, count);
        let code = end(host, Signal::TERM);
        waited.unwrap();
        let ran = Ran {
            code,
            stdout: fs::read(site.path(CONSOLE)).unwrap(),
            stderr: String::new(),
        };
        let report = fs::read(site.path(REPORT)).unwrap();
        Self {
            report: serde_json::from_slice(&report).unwrap(),
            site,
            log,
            ran,
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

    /// Replayed, it goes as far as its host did before it was stopped, whose output had begun to leave.
    pub(crate) fn assert_replayed_as_far(&self, what: &str) {
        let replayed = self.ctl(&["replay", self.log_name()]);
        let codes = [self.ran.code, replayed.code];
        let expected = [ExitCode::Stopped, ExitCode::LogEnds].map(|code| Some(code.code().into()));
        assert_eq!(codes, expected, "{what}: {}", replayed.stderr);
        let (was, is) = (&self.ran.stdout, &replayed.stdout);
        assert!(
            !was.is_empty() && is.starts_with(was),
            "{what}: another output"
        );
        let outcome = self.json(&["replay", self.log_name(), "--json"]);
        assert_eq!(outcome["seq"].as_u64(), Some(self.report.commits), "{what}");
        assert_eq!(outcome["tail"], "clean", "{what}");
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

const CONSOLE: &str = "console";
const REPORT: &str = "stopped.json";

/// Starts a host whose guest is recorded.
pub(crate) fn start(site: &Site, guest: &Guest, log: &Path) -> Child {
    let mut command = Command::new(&site.binaries().samsarad);
    command.args(["--role", "standalone", "--record"]).arg(log);
    command.arg("--report").arg(site.path(REPORT));
    command.args(["--set", "log.checkpoint_every_s=1"]);
    for setting in guest.settings() {
        command.args(["--set", &setting]);
    }
    let console = fs::File::create(site.path(CONSOLE)).unwrap();
    command.stdin(Stdio::null()).stdout(console);
    command.stderr(Stdio::null()).spawn().unwrap()
}

/// Ends a host; gives its exit status.
pub(crate) fn end(mut host: Child, signal: Signal) -> Option<i32> {
    kill_process(Pid::from_child(&host), signal).unwrap();
    host.wait().unwrap().code()
}

/// Waits until the only run in a directory has so many segments.
pub(crate) fn wait_segments(recorder: &Path, count: usize) -> Result<(), HarnessError> {
    let paths = |path: &Path| {
        let entries = fs::read_dir(path).unwrap();
        entries.map(|entry| entry.unwrap().path())
    };
    let is_log = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "log");
    let look = || {
        let run = paths(recorder).next();
        let logs = run.map_or(0, |run| paths(&run).filter(is_log).count());
        Ok((logs >= count).then_some(()))
    };
    wait::until("segments", BOUND, look, String::new)
}
