//! Whether the hosts compare their states, and agree.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use samsarad::status::Counters;

/// A protected backup compares more often than this by far, with the settings of a long run.
const COMPARE_WITHIN: Duration = Duration::from_secs(20);

/// What one process has compared.
#[derive(Clone, Copy, Debug)]
struct Process {
    compared: u64,
    /// When that number was seen first.
    since: Instant,
}

/// What all processes have compared.
#[derive(Clone, Debug, Default)]
pub struct Digests {
    processes: BTreeMap<u32, Process>,
}

impl Digests {
    /// What a process has counted; `follows_protected`: it is the backup, and in sync.
    ///
    /// # Errors
    ///
    /// It has found a difference; or it follows, protected, and compares nothing.
    pub fn note(
        &mut self,
        process: u32,
        counters: &Counters,
        follows_protected: bool,
        now: Instant,
    ) -> Result<(), String> {
        if counters.divergences > 0 {
            return Err(format!("{} divergences", counters.divergences));
        }
        let compared = counters.digests_compared;
        let known = self.processes.entry(process).or_insert(Process {
            compared,
            since: now,
        });
        if compared != known.compared || !follows_protected {
            *known = Process {
                compared,
                since: now,
            };
        }
        let stands = now.saturating_duration_since(known.since);
        if stands > COMPARE_WITHIN {
            return Err(format!(
                "{compared} digests were compared, and none for {stands:.0?}"
            ));
        }
        Ok(())
    }

    /// Digests that were compared and equal, of all processes.
    pub fn compared(&self) -> u64 {
        self.processes
            .values()
            .map(|process| process.compared)
            .sum()
    }

    /// The same of one process.
    pub fn compared_in(&self, process: u32) -> u64 {
        self.processes
            .get(&process)
            .map_or(0, |process| process.compared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(digests_compared: u64, divergences: u64) -> Counters {
        Counters {
            digests_compared,
            divergences,
            ..Counters::default()
        }
    }

    #[test]
    fn a_backup_that_compares_nothing_is_noticed() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut digests = Digests::default();
        let mut note = |process, count, follows, second| {
            digests.note(process, &counters(count, 0), follows, at(second))
        };
        note(1, 0, false, 0).unwrap();
        note(1, 0, false, 100).unwrap();
        note(1, 0, true, 110).unwrap();
        note(1, 5, true, 115).unwrap();
        note(2, 7, true, 120).unwrap();
        note(1, 5, true, 130).unwrap();
        let error = note(1, 5, true, 140).unwrap_err();
        assert!(error.contains("none for 25s"), "{error}");
        assert_eq!((digests.compared(), digests.compared_in(2)), (12, 7));
    }

    #[test]
    fn a_divergence_is_noticed() {
        let mut digests = Digests::default();
        let noted = digests.note(1, &counters(9, 1), true, Instant::now());
        assert!(noted.unwrap_err().contains("1 divergences"));
    }
}
