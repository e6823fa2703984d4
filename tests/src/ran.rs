//! A command that is run to its end, with a bound.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use samsarad::report::Report;

use crate::site::text;
use crate::{Capture, HarnessError, Site, wait};

/// How long samsaractl may take for a log of a test.
const CTL_BOUND: Duration = Duration::from_mins(2);

/// How a command ended, and what it wrote.
#[derive(Debug)]
pub struct Ran {
    /// Its exit status; nothing if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Runs a command without standard input to its end; one that takes longer than `bound` is killed.
    pub fn run(command: &mut Command, bound: Duration) -> Result<Self, HarnessError> {
        let what = format!("{command:?}");
        let failed = |source| HarnessError::Process {
            what: format!("cannot run {what}"),
            source,
        };
        command.env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
        };
        let (mut stdout, mut stderr) = (Capture::start(stdout), Capture::start(stderr));
        let look = || child.try_wait().map_err(failed);
        let waited = wait::until(&format!("the end of {what}"), bound, look, || {
            String::from_utf8_lossy(&stderr.bytes()).into_owned()
        });
        if waited.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let status = waited?;
        stdout.finish();
        stderr.finish();
        Ok(Self {
            code: status.code(),
            stdout: stdout.bytes(),
            stderr: String::from_utf8_lossy(&stderr.bytes()).into_owned(),
        })
    }
}

impl Site {
    /// Runs samsaractl, whatever it comes to.
    pub fn ran_ctl(&self, arguments: &[&str]) -> Result<Ran, HarnessError> {
        let mut command = Command::new(&self.binaries().samsaractl);
        Ran::run(command.args(arguments), CTL_BOUND)
    }

    /// Runs a VM without a backup to its end, with a log.
    pub fn record(
        &self,
        settings: &[String],
        log: &Path,
        bound: Duration,
    ) -> Result<(Ran, Report), HarnessError> {
        let path = self.path("recorded.json");
        let mut command = Command::new(&self.binaries().samsarad);
        command.args(["--role", "standalone", "--record", &text(log)]);
        command.args(["--report", &text(&path)]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let ran = Ran::run(&mut command, bound)?;
        let bytes = std::fs::read(&path).map_err(HarnessError::file(&path))?;
        let report = serde_json::from_slice(&bytes);
        let report = report.map_err(|error| HarnessError::Answer {
            host: "samsarad --report".to_owned(),
            what: error.to_string(),
        })?;
        Ok((ran, report))
    }
}
