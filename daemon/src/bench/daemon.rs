//! One daemon, from its start to its report.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::BenchError;
use super::hosts::Hosts;
use crate::report::Report;

/// A run that takes longer is stuck: thirty times what the slowest takes on a machine that does nothing else.
const BOUND: Duration = Duration::from_mins(10);
const LOOK: Duration = Duration::from_millis(2);
/// Bytes of a log's end that are looked at for its last line.
const LOG_END_BYTES: usize = 2000;

/// What a run came to.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) report: Report,
    /// What the guest said.
    pub(super) console: Vec<u8>,
}

/// A running samsarad; killed when this is dropped.
pub(super) struct Daemon {
    name: &'static str,
    child: Child,
    console: PathBuf,
    log: PathBuf,
    report: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    pub(super) fn start(
        hosts: &Hosts,
        name: &'static str,
        prefix: &[OsString],
        role: &[&str],
        guest: &[OsString],
        sets: &[String],
    ) -> Result<Self, BenchError> {
        let file = |kind: &str| hosts.path(&format!("{name}.{kind}"));
        let create = |path: &Path| File::create(path).map_err(BenchError::file(path));
        let (console, log, report) = (file("console"), file("log"), file("report"));
        // That of the run before would be taken for this one's.
        let _ = fs::remove_file(&report);
        let mut command = match prefix {
            [] => Command::new(&hosts.samsarad),
            [program, rest @ ..] => {
                let mut command = Command::new(program);
                command.args(rest).arg(&hosts.samsarad);
                command
            }
        };
        command.args(role).arg("--report").arg(&report).args(guest);
        for set in sets {
            command.args(["--set", set]);
        }
        command
            .env_remove("NOTIFY_SOCKET")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(create(&console)?)
            .stderr(create(&log)?);
        let child = command.spawn().map_err(|source| BenchError::Samsarad {
            path: command.get_program().into(),
            source,
        })?;
        Ok(Self {
            name,
            child,
            console,
            log,
            report,
        })
    }

    /// Waits for its end, which must be that of a guest that is content.
    pub(super) fn finish(mut self, run: &str) -> Result<Ran, BenchError> {
        let status = self.wait(run)?;
        if !status.success() {
            return Err(BenchError::Status {
                run: run.to_owned(),
                host: self.name,
                status: match (status.code(), status.signal()) {
                    (Some(code), _) => code.to_string(),
                    (None, signal) => format!("of signal {}", signal.unwrap_or_default()),
                },
                said: last_line(&self.log),
            });
        }
        let report = fs::read(&self.report).map_err(BenchError::file(&self.report))?;
        let report = serde_json::from_slice(&report)
            .map_err(|error| BenchError::file(&self.report)(error.into()))?;
        let console = fs::read(&self.console).map_err(BenchError::file(&self.console))?;
        Ok(Ran { report, console })
    }

    fn wait(&mut self, run: &str) -> Result<ExitStatus, BenchError> {
        let began = Instant::now();
        loop {
            let ended = self
                .child
                .try_wait()
                .map_err(|source| BenchError::Process {
                    run: run.to_owned(),
                    host: self.name,
                    source,
                })?;
            if let Some(status) = ended {
                return Ok(status);
            }
            if began.elapsed() > BOUND {
                return Err(BenchError::Stuck {
                    run: run.to_owned(),
                    host: self.name,
                    bound: BOUND,
                    said: last_line(&self.log),
                });
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// The last line of a log.
fn last_line(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let end = &bytes[bytes.len().saturating_sub(LOG_END_BYTES)..];
    let text = String::from_utf8_lossy(end);
    text.lines().last().unwrap_or("nothing").to_owned()
}
