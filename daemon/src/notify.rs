//! Talking to the service manager: ready, status line, watchdog (`Type=notify`).
//!
//! By `sd-notify`, which speaks the datagram protocol itself: users need no C library, and outside of systemd every call
//! does nothing.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

/// Longest status line: it is for one row of `systemctl status`.
const STATUS_CHARS_MAX: usize = 300;

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    watchdog: Option<Duration>,
    last_status: Mutex<String>,
}

impl Notifier {
    /// The one that the environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`).
    pub fn from_env() -> Self {
        let watchdog = sd_notify::watchdog_enabled().filter(|period| !period.is_zero());
        Self {
            watchdog,
            last_status: Mutex::default(),
        }
    }

    /// The daemon is up: sockets are open, and the role is taken.
    pub fn ready(&self) {
        send(&[NotifyState::Ready]);
    }

    /// The daemon is about to exit.
    pub fn stopping(&self) {
        send(&[NotifyState::Stopping]);
    }

    /// What the daemon is doing, in one line. Sent when it differs from the last.
    pub fn status(&self, line: &str) {
        let line: String = line
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(STATUS_CHARS_MAX)
            .collect();
        let mut last = self
            .last_status
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *last != line {
            send(&[NotifyState::Status(&line)]);
            *last = line;
        }
    }

    /// How often [`Notifier::alive`] is due: half the watchdog's period. `None` without a watchdog.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|period| period / 2)
    }

    /// The daemon is alive.
    pub fn alive(&self) {
        send(&[NotifyState::Watchdog]);
    }

    /// Calls [`Notifier::alive`] as often as it is due while `moves` says that the run loop does. When it does not, the
    /// watchdog is left to bark. Returns at once without a watchdog.
    pub async fn feed_watchdog(&self, mut moves: impl FnMut() -> bool) {
        let Some(interval) = self.watchdog_interval() else {
            return;
        };
        let mut due = tokio::time::interval(interval);
        loop {
            due.tick().await;
            if moves() {
                self.alive();
            } else {
                tracing::error!("the run loop does not move: leaving this to the watchdog");
            }
        }
    }
}

/// A service manager that does not listen is no reason to stop a VM.
fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("cannot notify the service manager: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const CHILD: &str = "SAMSARA_TEST_NOTIFY_CHILD";

    /// Does nothing unless started by the test below: the environment belongs to a process, so the notifier gets one.
    #[test]
    fn child() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let notifier = Notifier::from_env();
        assert_eq!(
            notifier.watchdog_interval(),
            Some(Duration::from_millis(20))
        );
        notifier.ready();
        notifier.status("primary,\nREADY=0 protected");
        notifier.status("primary,\nREADY=0 protected");
        notifier.status("backup");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let beats = AtomicU32::new(0);
        let moves = || beats.fetch_add(1, Ordering::Relaxed) < 3;
        runtime.block_on(async {
            let feeding = notifier.feed_watchdog(moves);
            let _ = tokio::time::timeout(Duration::from_millis(150), feeding).await;
        });
        notifier.stopping();
    }

    #[test]
    fn the_service_manager_hears_everything_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "notify::tests::child"])
            .env(CHILD, "1")
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "40000")
            .env_remove("WATCHDOG_PID")
            .output()
            .unwrap();
        assert!(
            child.status.success(),
            "{}",
            String::from_utf8_lossy(&child.stdout)
        );
        let mut heard = Vec::new();
        let mut buffer = [0; 1024];
        while heard.last().is_none_or(|last| last != "STOPPING=1\n") {
            let bytes = socket.recv(&mut buffer).unwrap();
            heard.push(String::from_utf8(buffer[..bytes].to_vec()).unwrap());
        }
        let wanted = [
            "READY=1\n",
            "STATUS=primary, READY=0 protected\n",
            "STATUS=backup\n",
            "WATCHDOG=1\n",
            "WATCHDOG=1\n",
            "WATCHDOG=1\n",
            "STOPPING=1\n",
        ];
        assert_eq!(heard, wanted);
    }

    #[test]
    fn without_a_service_manager_nothing_happens() {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            let notifier = Notifier::from_env();
            notifier.ready();
            notifier.status("x");
            notifier.stopping();
        }
    }
}
