//! A samsarad process: started, watched, killed, paused.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use samsarad::control::{self, Request, Response};
use samsarad::report::Report;
use samsarad::status::Status;

use crate::capture::Capture;
use crate::site::text;
use crate::{Binaries, HarnessError, Seat, wait};

/// How long a daemon may take for an answer.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// Log and output lines in a message.
const SHOWN_LINES: usize = 12;

/// A running samsarad. It is killed when this is dropped; if that is while panicking, its log is printed.
#[derive(Debug)]
pub struct Host {
    seat: Seat,
    child: Child,
    started: Instant,
    stdout: Capture,
    stderr: Capture,
    exit: Option<ExitStatus>,
}

impl Host {
    /// Starts a daemon with these settings.
    ///
    /// # Errors
    ///
    /// It cannot be run at all. One that ends at once is found out by the first wait.
    pub fn spawn(
        binaries: &Binaries,
        seat: &Seat,
        role: &str,
        settings: &[String],
    ) -> Result<Self, HarnessError> {
        let _ = fs::remove_file(seat.report());
        let mut command = match seat.prefix.as_slice() {
            [] => Command::new(&binaries.samsarad),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(&binaries.samsarad);
                command
            }
        };
        command
            .args(["--role", role, "--report"])
            .arg(seat.report());
        command
            .arg("--set")
            .arg(format!("control.socket={}", text(&seat.socket())));
        for setting in settings {
            command.args(["--set", setting]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Its log level is ours to choose.
        command.env_remove("NOTIFY_SOCKET").env_remove("RUST_LOG");
        let started = Instant::now();
        let child = command.spawn().map_err(|source| HarnessError::Process {
            what: format!("cannot start {}", binaries.samsarad.display()),
            source,
        })?;
        Self::watch(seat.clone(), child, started)
    }

    fn watch(seat: Seat, mut child: Child, started: Instant) -> Result<Self, HarnessError> {
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            let what = "it was started without pipes".to_owned();
            return Err(HarnessError::Answer {
                host: seat.name,
                what,
            });
        };
        let (stdout, stderr) = (Capture::start(stdout), Capture::start(stderr));
        Ok(Self {
            seat,
            child,
            started,
            stdout,
            stderr,
            exit: None,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.seat.name
    }

    /// Its directory and addresses.
    pub const fn seat(&self) -> &Seat {
        &self.seat
    }

    /// When it was started.
    pub const fn started(&self) -> Instant {
        self.started
    }

    /// Console output it has released.
    pub const fn output(&self) -> &Capture {
        &self.stdout
    }

    /// Its log.
    pub const fn log(&self) -> &Capture {
        &self.stderr
    }

    /// Its log as text.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr.bytes()).into_owned()
    }

    fn seen(&self) -> String {
        let state = self
            .exit
            .map_or("it runs".to_owned(), |exit| format!("it ended with {exit}"));
        let log = self.log_text();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n    ");
        format!(
            "{}: {state}; {} bytes released; its log:\n    {last}",
            self.name(),
            self.stdout.count()
        )
    }

    /// Its status.
    pub fn status(&self) -> Result<Status, HarnessError> {
        let answer = |what: String| HarnessError::Answer {
            host: self.name().to_owned(),
            what,
        };
        match control::request(&self.seat.socket(), Request::Status, ANSWER_BOUND) {
            Ok(Response::Status(status)) => Ok(*status),
            Ok(other) => Err(answer(format!("not a status: {other:?}"))),
            Err(error) => Err(answer(error.to_string())),
        }
    }

    /// Waits until its status is as wanted.
    pub fn wait_status(
        &mut self,
        what: &str,
        bound: Duration,
        mut wanted: impl FnMut(&Status) -> bool,
    ) -> Result<Status, HarnessError> {
        let mut last = None;
        let deadline = Instant::now() + bound;
        loop {
            let is_last = Instant::now() >= deadline;
            let has_ended = self.has_ended()?;
            // It does not answer before its socket is there.
            if let Ok(status) = self.status() {
                if wanted(&status) {
                    return Ok(status);
                }
                last = Some(status);
            }
            if has_ended {
                return Err(self.ended_before(what));
            }
            if is_last {
                let state = last.map_or("no status".to_owned(), |status| status.state);
                let seen = format!("state: {state}; {}", self.seen());
                return Err(HarnessError::TimedOut {
                    what: what.to_owned(),
                    bound,
                    seen,
                });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until its output is as wanted.
    pub fn wait_output<T>(
        &self,
        what: &str,
        bound: Duration,
        look: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T, HarnessError> {
        self.stdout
            .wait(bound, look)
            .ok_or_else(|| self.timed_out(what, bound))
    }

    /// Waits until its log has this text.
    pub fn wait_log(&self, part: &str, bound: Duration) -> Result<(), HarnessError> {
        let has = |log: &[u8]| String::from_utf8_lossy(log).contains(part).then_some(());
        self.stderr
            .wait(bound, has)
            .ok_or_else(|| self.timed_out(&format!("{part:?} in the log"), bound))
    }

    fn timed_out(&self, what: &str, bound: Duration) -> HarnessError {
        HarnessError::TimedOut {
            what: what.to_owned(),
            bound,
            seen: self.seen(),
        }
    }

    fn ended_before(&self, what: &str) -> HarnessError {
        let host = self.name().to_owned();
        HarnessError::Ended {
            host,
            what: what.to_owned(),
            seen: self.seen(),
        }
    }

    fn process_error(&self, what: &str) -> impl FnOnce(std::io::Error) -> HarnessError + use<> {
        let what = format!(
            "cannot {what} {} (process {})",
            self.name(),
            self.child.id()
        );
        |source| HarnessError::Process { what, source }
    }

    /// Whether it has ended. Everything that it wrote is there then.
    pub fn has_ended(&mut self) -> Result<bool, HarnessError> {
        if self.exit.is_none() {
            let exit = self
                .child
                .try_wait()
                .map_err(self.process_error("wait for"))?;
            self.exit = exit;
            if exit.is_some() {
                self.stdout.finish();
                self.stderr.finish();
            }
        }
        Ok(self.exit.is_some())
    }

    /// Waits for its end; gives its exit status.
    pub fn wait(&mut self, bound: Duration) -> Result<ExitStatus, HarnessError> {
        let deadline = Instant::now() + bound;
        while !self.has_ended()? {
            if Instant::now() >= deadline {
                return Err(self.timed_out("its end", bound));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.exit.ok_or_else(|| self.timed_out("its end", bound))
    }

    /// Waits for its end by itself; gives the number that it exits with.
    pub fn wait_code(&mut self, bound: Duration) -> Result<u8, HarnessError> {
        let exit = self.wait(bound)?;
        exit.code()
            .and_then(|code| u8::try_from(code).ok())
            .ok_or_else(|| {
                let what = format!("it ended by signal {:?}; {}", exit.signal(), self.seen());
                HarnessError::Answer {
                    host: self.name().to_owned(),
                    what,
                }
            })
    }

    /// Kills it with SIGKILL, if it still runs; gives the moment.
    pub fn kill(&mut self) -> Result<Instant, HarnessError> {
        self.child.kill().map_err(self.process_error("kill"))?;
        let at = Instant::now();
        self.wait(ANSWER_BOUND)?;
        Ok(at)
    }

    /// Stops it where it stands (SIGSTOP).
    pub fn pause(&self) -> Result<(), HarnessError> {
        self.signal(Signal::STOP, "pause")
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) -> Result<(), HarnessError> {
        self.signal(Signal::CONT, "resume")
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) -> Result<(), HarnessError> {
        self.signal(Signal::TERM, "terminate")
    }

    fn signal(&self, signal: Signal, what: &str) -> Result<(), HarnessError> {
        // One that has been waited for has no process any more: its number may be another's.
        let process = self
            .exit
            .is_none()
            .then(|| Pid::from_raw(self.child.id() as i32))
            .flatten();
        let process = process.ok_or_else(|| self.ended_before(what))?;
        kill_process(process, signal).map_err(|error| self.process_error(what)(error.into()))
    }

    /// The report of its run, after its end.
    pub fn report(&self) -> Result<Report, HarnessError> {
        let path = self.seat.report();
        let text = fs::read(&path).map_err(HarnessError::file(&path))?;
        serde_json::from_slice(&text).map_err(|error| HarnessError::File {
            path,
            source: error.into(),
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stdout.finish();
        self.stderr.finish();
        if std::thread::panicking() {
            let output = self.stdout.bytes();
            let tail = &output[output.len().saturating_sub(200)..];
            eprintln!(
                "--- {} ({} bytes released, last {:?}), its log:\n{}---",
                self.name(),
                output.len(),
                String::from_utf8_lossy(tail),
                self.log_text()
            );
        }
    }
}

/// Runs a daemon that is to end by itself, outside of any pair.
///
/// # Errors
///
/// It cannot be run, or does not end in time.
pub fn run_to_end(
    binaries: &Binaries,
    seat: &Seat,
    settings: &[String],
    bound: Duration,
) -> Result<Host, HarnessError> {
    let mut host = Host::spawn(binaries, seat, "standalone", settings)?;
    host.wait(bound)?;
    Ok(host)
}

/// Waits until a file has at least so many bytes.
pub fn wait_file(path: &std::path::Path, bytes: u64, bound: Duration) -> Result<u64, HarnessError> {
    let count = || fs::metadata(path).map_or(0, |metadata| metadata.len());
    let name = path
        .file_name()
        .unwrap_or(OsStr::new("the file"))
        .to_string_lossy();
    let look = || Ok(Some(count()).filter(|count| *count >= bytes));
    wait::until(&format!("{bytes} bytes in {name}"), bound, look, || {
        format!("it has {}", count())
    })
}
