//! Real gdb, over a replay that samsaractl serves.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::site::text;
use crate::{Capture, HarnessError, Ran, Site, wait};

const BOUND: Duration = Duration::from_mins(2);

/// Whether there is a gdb; if not, the test is skipped, which is said.
pub fn gdb_or_skip(test: &str) -> bool {
    let has = Command::new("gdb").arg("--version").output().is_ok();
    if !has {
        println!("skipped: {test}: there is no gdb here");
    }
    has
}

/// samsaractl that serves a replay, until it is dropped.
struct Server {
    child: Child,
    said: Capture,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(site: &Site, log: &Path, words: &[&str]) -> Result<Self, HarnessError> {
        let mut command = Command::new(&site.binaries().samsaractl);
        command
            .args(["replay", &text(log), "--gdb", "0"])
            .args(words);
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        let failed = |source| HarnessError::Process {
            what: format!("cannot run samsaractl replay --gdb {words:?}"),
            source,
        };
        let mut child = command.stderr(Stdio::piped()).spawn().map_err(failed)?;
        let stderr = child.stderr.take();
        let stderr = stderr.ok_or_else(|| failed(std::io::ErrorKind::BrokenPipe.into()))?;
        let said = Capture::start(stderr);
        Ok(Self { child, said })
    }

    /// gdb's command to connect, once it is said.
    fn connect(&self) -> Result<String, HarnessError> {
        let connect = self.said.wait(BOUND, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let (_, rest) = text.split_once("(in gdb: ")?;
            Some(rest.split_once(')')?.0.to_owned())
        });
        connect.ok_or_else(|| HarnessError::TimedOut {
            what: "samsaractl to wait for gdb".to_owned(),
            bound: BOUND,
            seen: String::from_utf8_lossy(&self.said.bytes()).into_owned(),
        })
    }

    /// Waits until it has ended, as it does when gdb leaves; gives its exit status.
    fn end(&mut self) -> Result<Option<i32>, HarnessError> {
        let failed = |source| HarnessError::Process {
            what: "cannot wait for samsaractl".to_owned(),
            source,
        };
        let look = || self.child.try_wait().map_err(failed);
        let status = wait::until("samsaractl to end after gdb", BOUND, look, || {
            String::from_utf8_lossy(&self.said.bytes()).into_owned()
        })?;
        Ok(status.code())
    }
}

impl Site {
    /// Runs gdb with a script over the replay of a log, which `words` say more of. What it printed is printed; samsaractl must
    /// have ended well.
    pub fn gdb(
        &self,
        log: &Path,
        words: &[&str],
        program: &Path,
        script: &str,
    ) -> Result<Ran, HarnessError> {
        let mut server = Server::start(self, log, words)?;
        let script = format!("{}\n{script}", server.connect()?);
        let script = self.write("script.gdb", script.as_bytes())?;
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-batch", "-x"]).arg(script).arg(program);
        let ran = Ran::run(&mut gdb, BOUND)?;
        println!("{}{}", String::from_utf8_lossy(&ran.stdout), ran.stderr);
        match server.end()? {
            Some(0) => Ok(ran),
            code => Err(HarnessError::Ctl {
                command: "replay --gdb".to_owned(),
                said: format!(
                    "status {code:?}: {}",
                    String::from_utf8_lossy(&server.said.bytes())
                ),
            }),
        }
    }
}
