//! The guest's timers, as the guest sees them.
//!
//! Its kernel (100 ticks a second, `NO_HZ_IDLE`, high-resolution timers) keeps its time by the clock source: a tick that comes late brings
//! the kernel's time up to date for all that were due. What it can see of ticks that were lost is this:
//!
//! - its coarse clock, which only ticks advance, stays behind its monotonic clock;
//! - CPUs that are never idle, as those of the job `mixed`, handled fewer ticks than were due: some were late by a tick or more, or never came;
//! - a sleep ends early, or much too late.

use std::time::Duration;

use super::observer::Sample;
use crate::readings::{Clock, Load, TICK, Ticks};

/// Readings of the clocks that were made one right after the other are this close.
const LOOK: Duration = Duration::from_millis(500);
/// The coarse clock is told in whole ticks, and stands from one tick to the next: up to two are nothing, and one may just be late. It is no more
/// behind than that in the middle of all readings; a tick that was lost for good would stay missing.
const TYPICAL_MAX: Duration = Duration::from_millis(3 * TICK.as_millis() as u64);
/// In a single look it may be more: a host with more to do than it has processors lets a vCPU wait for some of its time slices.
const WORST_MAX: Duration = Duration::from_millis(10 * TICK.as_millis() as u64);

/// How far the coarse clock was behind the monotonic one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Looks at the clocks, of some readings each.
    pub looks: usize,
    /// In the middle of all readings.
    pub typical: Duration,
    /// In the worst look, by the best of its readings.
    pub worst: Duration,
}

/// Measures that; fails if ticks were missing.
pub fn check_behind(samples: &[Sample<Clock>]) -> Result<Behind, String> {
    let close = |a: &Sample<Clock>, b: &Sample<Clock>| {
        b.exchange.sent.duration_since(a.exchange.received) < LOOK
    };
    let looks: Vec<Duration> = samples
        .chunk_by(close)
        .filter_map(|look| look.iter().map(|sample| sample.told.behind()).min())
        .collect();
    let nanoseconds = samples
        .iter()
        .map(|sample| sample.told.behind().as_nanos() as u64);
    let behind = Behind {
        looks: looks.len(),
        typical: Duration::from_nanos(super::median(nanoseconds.collect()).unwrap_or_default()),
        worst: looks.into_iter().max().unwrap_or_default(),
    };
    for (what, found, bound) in [
        ("mostly", behind.typical, TYPICAL_MAX),
        ("once", behind.worst, WORST_MAX),
    ] {
        if found > bound {
            return Err(format!(
                "the guest's ticks are {what} {found:.1?} behind its clock, not {bound:?}"
            ));
        }
    }
    Ok(behind)
}

/// Ticks over some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TickCount {
    /// Those of all CPUs that were due.
    pub due: u64,
    /// Those that were handled.
    pub handled: u64,
    /// Local timer interrupts, those for other timers included.
    pub interrupts: u64,
}

impl TickCount {
    /// Between the first and the last of some counts.
    pub fn over(samples: &[Sample<Ticks>], cpus: u64) -> Option<Self> {
        let (first, last) = (samples.first()?.told, samples.last()?.told);
        Some(Self {
            due: (last.uptime - first.uptime) * cpus,
            handled: last.handled - first.handled,
            interrupts: last.interrupts - first.interrupts,
        })
    }

    /// Adds another time's.
    pub const fn add(&mut self, other: Self) {
        self.due += other.due;
        self.handled += other.handled;
        self.interrupts += other.interrupts;
    }

    /// The part of the due ones that was handled.
    pub fn share(&self) -> f64 {
        self.handled as f64 / self.due.max(1) as f64
    }

    /// Fails if fewer than `least` of those that were due were handled.
    pub fn check(&self, least: f64) -> Result<(), String> {
        if self.share() < least {
            return Err(format!(
                "of {} ticks that were due the guest handled {}, less than {least:.2} of them",
                self.due, self.handled
            ));
        }
        Ok(())
    }
}

/// Nothing in the background was ever wrong, and no sleep too short.
pub fn check_exact(load: &Load) -> Result<(), String> {
    if load.wrong > 0 || load.early > 0 {
        let Load { wrong, early, .. } = load;
        return Err(format!(
            "{wrong} rounds were computed wrongly, {early} sleeps were too short"
        ));
    }
    Ok(())
}

/// Where nothing was killed, the background goes on, and no sleep takes as long as `late`.
pub fn check_goes_on(samples: &[Sample<Load>], late: Duration) -> Result<(), String> {
    for pair in samples.windows(2) {
        let (before, after) = (pair[0].told, pair[1].told);
        if after.late > before.late || after.longest > before.longest.max(late) {
            return Err(format!(
                "a sleep was late where nothing was killed: {after:?}, after {before:?}"
            ));
        }
        let stands = [
            ("computing", after.rounds == before.rounds),
            ("sleeping", after.sleeps == before.sleeps),
            ("writing", after.writes == before.writes),
        ];
        if let Some((what, _)) = stands.into_iter().find(|(_, stands)| *stands) {
            return Err(format!("the guest's {what} stands still: {after:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::store::Exchange;

    fn samples<T>(told: impl IntoIterator<Item = T>) -> Vec<Sample<T>> {
        let start = Instant::now();
        let exchange = |second| Exchange {
            sent: start + Duration::from_secs(second),
            received: start + Duration::from_secs(second) + Duration::from_millis(9),
        };
        let sample = |(second, told)| Sample {
            exchange: exchange(second),
            told,
        };
        (0..).zip(told).map(sample).collect()
    }

    fn clock(ticks_behind: u64, second: u64) -> Clock {
        Clock {
            monotonic_ns: second * 1_000_000_000 + 3_000_000,
            realtime_ns: 0,
            ticks: second * 100 - ticks_behind,
        }
    }

    #[test]
    fn ticks_that_stay_away_are_noticed() {
        let good = samples((1..20).map(|second| clock(second % 2, second)));
        let behind = check_behind(&good).unwrap();
        assert_eq!(
            (behind.looks, behind.worst),
            (19, Duration::from_millis(13))
        );
        let bad = samples((1..20).map(|second| clock(second / 10 * 4, second)));
        let error = check_behind(&bad).unwrap_err();
        assert!(error.contains("mostly 43.0ms behind"), "{error}");
        let once = |ticks| {
            samples((1..20).map(move |second| clock(if second == 9 { ticks } else { 0 }, second)))
        };
        check_behind(&once(5)).unwrap();
        let error = check_behind(&once(11)).unwrap_err();
        assert!(error.contains("once 113.0ms behind"), "{error}");
    }

    #[test]
    fn ticks_that_were_not_handled_are_counted() {
        let ticks = |second: u64, lost: u64| Ticks {
            interrupts: second * 390,
            handled: second * 200 - lost,
            uptime: second * 100,
        };
        let count = TickCount::over(&samples([ticks(10, 50), ticks(110, 150)]), 2).unwrap();
        assert_eq!((count.due, count.handled), (20_000, 19_900));
        count.check(0.99).unwrap();
        assert!(count.check(0.999).is_err());
    }

    #[test]
    fn a_background_that_errs_or_stands_is_noticed() {
        let load = |second: u64| Load {
            rounds: second,
            wrong: 0,
            sleeps: second * 90,
            early: 0,
            late: 0,
            longest: Duration::from_millis(30),
            writes: second,
        };
        let change = |change: fn(&mut Load)| {
            let mut changed = load(3);
            change(&mut changed);
            check_exact(&changed).and(check_goes_on(
                &samples([load(1), load(2), changed]),
                Duration::from_secs(1),
            ))
        };
        change(|_| {}).unwrap();
        assert!(change(|load| load.wrong = 1).is_err());
        assert!(change(|load| load.early = 1).is_err());
        assert!(change(|load| load.late = 1).is_err());
        assert!(change(|load| load.longest = Duration::from_secs(2)).is_err());
        assert!(change(|load| load.writes = 2).is_err());
        assert!(change(|load| load.sleeps = 180).is_err());
    }
}
