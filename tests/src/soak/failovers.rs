//! What failovers did to the guest's clocks and sleeps, over all of a run.

use std::time::{Duration, Instant};

use super::Span;
use super::clock::{Jump, READINGS, Reading, check_never_back};
use super::observer::{Observations, Sample};
use crate::readings::Clock;

/// Readings so long before and after a failover show what it did to the clocks.
const AROUND: Duration = Duration::from_secs(10);

/// The loss of a primary.
#[derive(Clone, Copy, Debug)]
pub struct Failover {
    /// When it was killed.
    pub killed: Instant,
    /// When the survivor's guest had first answered.
    pub answered: Instant,
}

impl Failover {
    /// What a clock lost (negative) or gained on the host's.
    fn jump(&self, observations: &Observations, reading: Reading) -> Option<Jump> {
        let before = Span {
            from: self.killed.checked_sub(AROUND)?,
            to: self.killed,
        };
        let after = Span {
            from: self.answered,
            to: self.answered + AROUND,
        };
        let (before, after) = (
            observations.clocks_in(&before),
            observations.clocks_in(&after),
        );
        Jump::across(&before, &after, reading)
    }
}

/// The clocks never went back. Gives a line for each: how far it is from the host's in the end, what of that is due to the
/// failovers, and what is left.
///
/// # Errors
///
/// One went back.
pub fn check_clocks(
    observations: &Observations,
    failovers: &[Failover],
) -> Result<Vec<String>, String> {
    let clocks = &observations.clocks;
    let mut lines = Vec::new();
    for (name, reading) in READINGS {
        check_never_back(clocks, reading).map_err(|why| format!("{name}: {why}"))?;
        let jumps = failovers
            .iter()
            .filter_map(|failover| failover.jump(observations, reading));
        let jumps: Vec<Jump> = jumps.collect();
        lines.extend(line(name, clocks, &jumps, reading));
    }
    Ok(lines)
}

fn line(name: &str, clocks: &[Sample<Clock>], jumps: &[Jump], reading: Reading) -> Option<String> {
    let (first, last) = (
        clocks.get(..clocks.len() / 4)?,
        clocks.get(clocks.len() * 3 / 4..)?,
    );
    let (total, total_around) = Jump::across(first, last, reading)?.middle();
    let jumps: Vec<(f64, f64)> = jumps.iter().map(Jump::middle).collect();
    let at_failovers: f64 = jumps.iter().map(|(middle, _)| middle).sum();
    let at_failovers_around: f64 = jumps.iter().map(|(_, around)| around).sum();
    Some(format!(
        "{name} clock: never back; {:+.1} ms (within {:.1}) from the host's over the run, {:+.1} ms (within {:.1}) of it at \
         {} failovers, {:+.1} ms beside them",
        total * 1e3,
        total_around * 1e3,
        at_failovers * 1e3,
        at_failovers_around * 1e3,
        jumps.len(),
        (total - at_failovers) * 1e3
    ))
}

/// The guest's longest sleep is explained by the longest time in which the client heard nothing, or it was not late.
///
/// # Errors
///
/// It is not; or the guest told nothing.
pub fn check_sleeps(observations: &Observations, late: Duration) -> Result<String, String> {
    let (Some(first), Some(last)) = (observations.loads.first(), observations.loads.last()) else {
        return Err("the guest told nothing of its sleeps".to_owned());
    };
    let whole = Span {
        from: first.exchange.sent,
        to: last.exchange.received,
    };
    let pause = observations.longest_pause(&whole);
    let (first, last) = (first.told, last.told);
    // What came before it was watched, as while it booted, is not explained here.
    let explained = (pause + late).max(first.longest);
    if last.longest > explained {
        return Err(format!(
            "a sleep took {:.1?}, with no pause longer than {pause:.1?}",
            last.longest
        ));
    }
    Ok(format!(
        "{} sleeps, none too short, {} as long as {late:.0?}, {:.1?} the longest; {} rounds computed and checked, \
         {} pieces written",
        last.sleeps - first.sleeps,
        last.late - first.late,
        last.longest,
        last.rounds - first.rounds,
        last.writes - first.writes
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readings::Load;
    use crate::store::Exchange;

    /// Requests every 100 ms for 100 seconds, but for a pause of 3 s at 50 s, in which the clock stands; one is for the clock.
    fn observed(longest: Duration) -> (Observations, Failover) {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut observations = Observations::default();
        for ms in (0..100_000)
            .step_by(100)
            .filter(|ms| !(50_000..53_000).contains(ms))
        {
            let exchange = Exchange {
                sent: at(ms),
                received: at(ms + 4),
            };
            observations.exchanges.push(exchange);
            let lost = if ms >= 53_000 { 3000 } else { 0 };
            let monotonic_ns = (ms + 2 - lost) * 1_000_000;
            let told = Clock {
                monotonic_ns,
                realtime_ns: monotonic_ns,
                ticks: 0,
            };
            observations.clocks.push(Sample { exchange, told });
            let told = Load {
                rounds: ms,
                wrong: 0,
                sleeps: ms,
                early: 0,
                late: 0,
                longest: if ms > 0 { longest } else { Duration::ZERO },
                writes: ms,
            };
            observations.loads.push(Sample { exchange, told });
        }
        let failover = Failover {
            killed: at(50_000),
            answered: at(53_000),
        };
        (observations, failover)
    }

    #[test]
    fn what_a_failover_took_is_told_apart() {
        let (mut observations, failover) = observed(Duration::ZERO);
        let lines = check_clocks(&observations, &[failover]).unwrap();
        assert!(
            lines[0].starts_with("monotonic clock: never back; -3000.0 ms"),
            "{lines:?}"
        );
        assert!(lines[0].ends_with("+0.0 ms beside them"), "{lines:?}");
        observations.clocks[700].told.realtime_ns = 1;
        let error = check_clocks(&observations, &[failover]).unwrap_err();
        assert!(error.starts_with("realtime"), "{error}");
    }

    #[test]
    fn a_sleep_that_no_pause_explains_is_noticed() {
        let late = Duration::from_millis(500);
        check_sleeps(&observed(Duration::from_secs(3)).0, late).unwrap();
        assert!(check_sleeps(&observed(Duration::from_secs(4)).0, late).is_err());
        assert!(check_sleeps(&Observations::default(), late).is_err());
    }
}
