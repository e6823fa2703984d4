//! The run itself: watched until it is protected, killed half way, watched to its end.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use samsara_tests::{HarnessError, Host, Metrics, Pair, Report, Status};

use crate::show::{Screen, Shown};

/// Between two looks at the hosts.
const LOOK: Duration = Duration::from_millis(15);
/// Every so many looks, the metrics are read too.
const LOOKS_PER_SCRAPE: u32 = 8;
/// Each stretch of the demo takes seconds; a machine may be ten times slower than that.
const STRETCH_BOUND: Duration = Duration::from_mins(2);

/// A pair under watch.
pub(crate) struct Run {
    pair: Pair,
    leaves: u64,
    screen: Screen,
    shown: [Shown; 4],
    primary: Samples,
}

/// What was seen of the primary while it lived.
#[derive(Default)]
struct Samples {
    status: Option<Status>,
    metrics: Option<Metrics>,
    lag_commits: Vec<f64>,
    lag_ms: Vec<f64>,
    looks: u32,
}

/// The primary's end, and its numbers until then.
pub(crate) struct Killed {
    pub(crate) at: Instant,
    pub(crate) at_unix_ms: u64,
    pub(crate) status: Status,
    /// Released console output.
    pub(crate) output: Vec<u8>,
    /// Median and 99th percentile of samples.
    pub(crate) lag_commits: Option<[f64; 2]>,
    pub(crate) lag_ms: Option<[f64; 2]>,
    pub(crate) hold_ms: Option<[f64; 2]>,
}

/// The survivor's end.
pub(crate) struct Survived {
    pub(crate) output: Vec<u8>,
    pub(crate) exit_status: u8,
    pub(crate) report: Report,
    pub(crate) detected_after: Option<Duration>,
    pub(crate) first_output_after: Option<Duration>,
    pub(crate) ended_after: Duration,
}

impl Run {
    pub(crate) fn start(pair: Pair, leaves: u64) -> Self {
        let screen = Screen::new(pair.primary.started());
        let (shown, primary) = (Default::default(), Samples::default());
        let run = Self {
            pair,
            leaves,
            screen,
            shown,
            primary,
        };
        let (alpha, beta) = (run.pair.primary.seat(), run.pair.backup.seat());
        let started = |seat: &samsara_tests::Seat, role| {
            let what = format!("started as {role} on {}", seat.address);
            run.screen.line(Instant::now(), &seat.name, &what);
        };
        started(alpha, "primary");
        started(beta, "backup");
        run
    }

    fn show(&mut self) {
        let [a_log, b_log, a_out, b_out] = &mut self.shown;
        for (host, log, out) in [
            (&self.pair.primary, a_log, a_out),
            (&self.pair.backup, b_log, b_out),
        ] {
            self.screen.stream(host.name(), "", host.log(), log);
            self.screen
                .stream(host.name(), "guest: ", host.output(), out);
        }
    }

    fn look_at_primary(&mut self) -> Result<Option<Status>, HarnessError> {
        std::thread::sleep(LOOK);
        self.show();
        let primary = &mut self.pair.primary;
        let has_ended = primary.has_ended()?;
        if has_ended {
            self.show();
            return Err(ended(&self.pair.primary, "it was killed"));
        }
        let backup = &mut self.pair.backup;
        if backup.has_ended()? {
            self.show();
            return Err(ended(&self.pair.backup, "the primary was killed"));
        }
        // It does not answer before its socket is there.
        Ok(self.pair.primary.status().ok())
    }

    /// Until the backup is in sync.
    pub(crate) fn until_protected(&mut self) -> Result<(), HarnessError> {
        let deadline = Instant::now() + STRETCH_BOUND;
        while Instant::now() < deadline {
            if self
                .look_at_primary()?
                .is_some_and(|status| status.protected)
            {
                return Ok(());
            }
        }
        Err(timed_out("protection"))
    }

    /// Until half of the work is done, and the kill.
    pub(crate) fn until_half(&mut self) -> Result<Killed, HarnessError> {
        let deadline = Instant::now() + STRETCH_BOUND;
        while Instant::now() < deadline {
            let Some(status) = self.look_at_primary()? else {
                continue;
            };
            self.screen
                .progress(self.pair.primary.name(), &status, self.leaves);
            let is_half = status.mark * 2 >= self.leaves;
            self.primary.take(status, &self.pair.primary);
            if is_half {
                return self.kill();
            }
        }
        Err(timed_out("half of the work"))
    }

    fn kill(&mut self) -> Result<Killed, HarnessError> {
        self.primary.scrape(&self.pair.primary);
        let at = self.pair.kill_primary()?;
        let at_unix_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let since = at.elapsed();
        self.screen
            .line(at, self.pair.primary.name(), "KILLED with SIGKILL");
        let samples = std::mem::take(&mut self.primary);
        let status = samples
            .status
            .ok_or_else(|| ended(&self.pair.primary, "its status was seen"))?;
        let hold = samples.metrics.and_then(|metrics| {
            let name = "samsara_output_hold_seconds";
            Some([
                metrics.quantile(name, 0.5)? * 1e3,
                metrics.quantile(name, 0.99)? * 1e3,
            ])
        });
        Ok(Killed {
            at,
            at_unix_ms: at_unix_ms.saturating_sub(since).as_millis() as u64,
            status,
            output: self.pair.primary.output().bytes(),
            lag_commits: quantiles(samples.lag_commits),
            lag_ms: quantiles(samples.lag_ms),
            hold_ms: hold,
        })
    }

    /// Until the survivor has ended.
    pub(crate) fn until_end(&mut self, killed: &Killed) -> Result<Survived, HarnessError> {
        let deadline = Instant::now() + STRETCH_BOUND;
        while !self.pair.backup.has_ended()? {
            if Instant::now() >= deadline {
                return Err(timed_out("the survivor's end"));
            }
            std::thread::sleep(LOOK);
            self.show();
            if let Ok(status) = self.pair.backup.status() {
                self.screen
                    .progress(self.pair.backup.name(), &status, self.leaves);
            }
        }
        let ended_after = killed.at.elapsed();
        self.show();
        let backup = &mut self.pair.backup;
        let exit_status = backup.wait_code(LOOK)?;
        let after = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(killed.at));
        let what = format!("ended with status {exit_status}");
        self.screen.line(Instant::now(), backup.name(), &what);
        Ok(Survived {
            output: backup.output().bytes(),
            exit_status,
            report: backup.report()?,
            detected_after: after(backup.log().when("lost the other host")),
            first_output_after: after(backup.output().first_at()),
            ended_after,
        })
    }
}

impl Samples {
    fn take(&mut self, status: Status, host: &Host) {
        let verified = &status.lag.verified;
        if status.protected {
            self.lag_commits.push(verified.commits as f64);
            self.lag_ms.push(verified.seconds * 1e3);
        }
        self.status = Some(status);
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS_PER_SCRAPE) {
            self.scrape(host);
        }
    }

    fn scrape(&mut self, host: &Host) {
        // The table says when there are none.
        if let Ok(metrics) = Metrics::scrape(host.seat().metrics) {
            self.metrics = Some(metrics);
        }
    }
}

fn ended(host: &Host, what: &str) -> HarnessError {
    HarnessError::Ended {
        host: host.name().to_owned(),
        what: what.to_owned(),
        seen: host
            .log_text()
            .lines()
            .last()
            .unwrap_or_default()
            .to_owned(),
    }
}

fn timed_out(what: &str) -> HarnessError {
    let seen = "the log above shows how far it came".to_owned();
    HarnessError::TimedOut {
        what: what.to_owned(),
        bound: STRETCH_BOUND,
        seen,
    }
}

/// Median and 99th percentile.
fn quantiles(mut samples: Vec<f64>) -> Option<[f64; 2]> {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().checked_sub(1)?;
    Some([0.5, 0.99].map(|part| samples[(last as f64 * part).round() as usize]))
}
