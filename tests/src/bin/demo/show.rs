//! What is seen while it happens: a line for each thing a host says, releases or reaches.

use std::io::Write as _;
use std::time::{Duration, Instant};

use samsara_tests::{Capture, Status};

/// Between two lines about progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(400);

/// Prints lines with the time since the start.
pub(crate) struct Screen {
    started: Instant,
    progress_at: Option<Instant>,
}

/// How far a stream has been shown.
#[derive(Default)]
pub(crate) struct Shown {
    bytes: usize,
}

impl Screen {
    pub(crate) fn new(started: Instant) -> Self {
        Self {
            started,
            progress_at: None,
        }
    }

    /// A line about something that happened at `at`.
    pub(crate) fn line(&self, at: Instant, who: &str, what: &str) {
        let seconds = at.saturating_duration_since(self.started).as_secs_f64();
        // A demo whose reader has left goes on to its exit status.
        let _ = writeln!(std::io::stdout(), "{seconds:7.3}s  {who:<6} {what}");
    }

    /// Lines that are new in a stream, as they are, behind `mark`.
    pub(crate) fn stream(&self, who: &str, mark: &str, stream: &Capture, shown: &mut Shown) {
        let new = stream.since(shown.bytes);
        let Some(end) = new.iter().rposition(|byte| *byte == b'\n') else {
            return;
        };
        shown.bytes += end + 1;
        for line in String::from_utf8_lossy(&new[..end]).lines() {
            let line = line.strip_prefix("samsarad: ").unwrap_or(line);
            self.line(Instant::now(), who, &format!("{mark}{line}"));
        }
    }

    /// How far the guest is, from time to time.
    pub(crate) fn progress(&mut self, who: &str, status: &Status, leaves: u64) {
        let now = Instant::now();
        if self.progress_at.is_some_and(|at| now < at + PROGRESS_EVERY) || status.mark == 0 {
            return;
        }
        self.progress_at = Some(now);
        let percent = status.mark as f64 * 100.0 / leaves.max(1) as f64;
        let counters = &status.counters;
        let lag = if status.peer.as_ref().is_some_and(|peer| peer.connected) {
            let verified = &status.lag.verified;
            let ms = verified.seconds * 1e3;
            format!("backup {} commits, {ms:.1} ms behind", verified.commits)
        } else {
            "no backup".to_owned()
        };
        let what = format!(
            "{percent:5.1} %  {} commits, {} squashes, {:.1} MiB of effects; {lag}; {} outputs held",
            counters.commits,
            counters.squashes,
            counters.effect_bytes as f64 / f64::from(1 << 20),
            status.gate.held_outputs,
        );
        self.line(now, who, &what);
    }
}
