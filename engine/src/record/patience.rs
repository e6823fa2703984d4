//! How long a chunk that is run again is waited for before it counts as one that never comes to its end.
//!
//! That is told by the time for which its thread has run: on a busy host a thread may stand still for as long as others like,
//! and nothing is wrong. A host that is itself a guest may count as running what was taken from it, so a run counts
//! for no more than it was given.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Many times what chunks take when they are recorded, where a clock ends them.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a run is given.
const RUN: Duration = Duration::from_millis(50);

/// What is left of it, for the calling thread.
#[derive(Debug)]
pub(super) struct Patience {
    has_run: bool,
    left: Duration,
    /// For how long the thread had run when it was last asked.
    ran_before: Option<Duration>,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self {
            has_run: false,
            left: PATIENCE,
            ran_before: None,
        }
    }

    /// For how long the next run may last; nothing if patience is over.
    pub(super) fn next_run(&mut self) -> Option<Duration> {
        // Nearly every chunk needs one run only, which is free: to ask for the time is a system call.
        if std::mem::replace(&mut self.has_run, true) {
            self.count(ran());
        }
        (!self.left.is_zero()).then_some(RUN)
    }

    fn count(&mut self, ran: Duration) {
        let more = ran.saturating_sub(self.ran_before.unwrap_or(ran));
        self.ran_before = Some(ran);
        self.left = self.left.saturating_sub(more.min(RUN));
    }
}

/// For how long the calling thread has run, its guest too.
fn ran() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_and_runs_is_given_up() {
        let mut patience = Patience::new();
        for runs in 0.. {
            patience.count(runs * RUN);
            if patience.left.is_zero() {
                assert_eq!(runs * RUN, PATIENCE);
                break;
            }
        }
    }

    #[test]
    fn a_processor_that_is_taken_away_does_not_count() {
        let mut patience = Patience::new();
        for hours in 0..10 {
            patience.count(Duration::from_hours(hours));
        }
        assert_eq!(patience.left + 9 * RUN, PATIENCE);
    }

    #[test]
    fn a_thread_that_stands_still_loses_no_patience() {
        let mut patience = Patience::new();
        assert_eq!(patience.next_run(), Some(RUN));
        assert_eq!(patience.next_run(), Some(RUN));
        std::thread::sleep(4 * RUN);
        assert!(patience.next_run().is_some());
        assert!(patience.left + RUN > PATIENCE);
        let (mut number, before) = (0_u64, ran());
        while ran() < before + RUN / 2 {
            number = std::hint::black_box(number + 1);
        }
        assert!(patience.next_run().is_some());
        assert!(patience.left + RUN / 2 <= PATIENCE);
    }
}
