//! The guest's timers, as the guest sees them.
//!
//! Its kernel (25 ticks a second, `NO_HZ_IDLE`, high-resolution timers) keeps its time by the clock source: a tick that comes late brings
//! the kernel's time up to date for all that were due. What it can see of ticks that were lost is this:
//!
//! - its coarse clock, which only ticks advance, stays behind its monotonic clock;
//! - CPUs that are never idle, as those of the job `mixed`, handled fewer ticks than were due: some were late by a tick or more, or never came;
//! - a sleep ends early, or much too late.

use std::time::Duration;

use super::observer::Sample;
use crate::readings::{Clock, Load, TICK, Ticks};

/// Of so many readings in a row one at least sees all ticks: more than a guest is kept from its interrupts for, and few beside those in
/// which a tick that was lost for good would show.
const READINGS: usize = 12;
/// The coarse clock is told in whole ticks, and stands from one tick to the next: up to two are nothing, and one may just be late.
const BEHIND_MAX: Duration = Duration::from_millis(3 * TICK.as_millis() as u64);

/// What the background does is of low priority, and may wait for so long.
const STANDS: Duration = Duration::from_mins(1);

/// How far the coarse clock was behind the monotonic one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// In the middle of all readings.
    pub typical: Duration,
    /// In the worst: a tick was late, or the guest was interrupted between two clocks.
    pub worst: Duration,
    /// In the worst stretch of [`READINGS`], by the best of them.
    pub caught_up: Duration,
}

/// Measures that; fails if ticks were missing.
pub fn check_behind(samples: &[Sample<Clock>]) -> Result<Behind, String> {
    let all: Vec<Duration> = samples.iter().map(|sample| sample.told.behind()).collect();
    let stretches = all.windows(READINGS.min(all.len().max(1)));
    let best = stretches.filter_map(|stretch| stretch.iter().min());
    let caught_up = best.max().copied().unwrap_or_default();
    if caught_up > BEHIND_MAX {
        return Err(format!(
            "the guest's ticks are {caught_up:.1?} behind its clock and stay there, not {BEHIND_MAX:?}"
        ));
    }
    let ns = all.iter().map(|behind| behind.as_nanos() as u64).collect();
    Ok(Behind {
        typical: Duration::from_nanos(super::median(ns).unwrap_or_default()),
        worst: all.into_iter().max().unwrap_or_default(),
        caught_up,
    })
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
    }
    for (index, first) in samples.iter().enumerate() {
        let is_later = |sample: &&Sample<Load>| {
            sample.exchange.sent.duration_since(first.exchange.sent) >= STANDS
        };
        if let Some(later) = samples[index..].iter().find(is_later) {
            check_progress(&first.told, &later.told)?;
        }
    }
    Ok(())
}

fn check_progress(before: &Load, after: &Load) -> Result<(), String> {
    let stands = [
        ("computing", after.rounds == before.rounds),
        ("sleeping", after.sleeps == before.sleeps),
        ("writing", after.writes == before.writes),
    ];
    let found = stands.into_iter().find(|(_, stands)| *stands);
    found.map_or(Ok(()), |(what, _)| {
        Err(format!(
            "the guest's {what} stands still for {STANDS:?}: {after:?}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::store::Exchange;

    fn samples<T>(told: impl IntoIterator<Item = T>, seconds: u64) -> Vec<Sample<T>> {
        let start = Instant::now();
        let exchange = |second| Exchange {
            sent: start + Duration::from_secs(second),
            received: start + Duration::from_secs(second) + Duration::from_millis(9),
        };
        let sample = |(second, told)| Sample {
            exchange: exchange(second),
            told,
        };
        (0..)
            .step_by(seconds as usize)
            .zip(told)
            .map(sample)
            .collect()
    }

    fn clock(ticks_behind: u64, second: u64) -> Clock {
        Clock {
            monotonic_ns: second * 1_000_000_000 + 3_000_000,
            realtime_ns: 0,
            ticks: second * 25 - ticks_behind,
        }
    }

    #[test]
    fn ticks_that_stay_away_are_noticed() {
        // One that is late now and then is not lost.
        let good = samples(
            (1..40).map(|second| clock(if second % 10 == 0 { 9 } else { 1 }, second)),
            1,
        );
        let behind = check_behind(&good).unwrap();
        let (typical, worst) = (Duration::from_millis(43), Duration::from_millis(363));
        assert_eq!((behind.typical, behind.worst), (typical, worst));
        assert_eq!(behind.caught_up, typical);
        let bad = samples((1..40).map(|second| clock(second / 20 * 4, second)), 1);
        let error = check_behind(&bad).unwrap_err();
        assert!(error.contains("163.0ms behind"), "{error}");
    }

    #[test]
    fn ticks_that_were_not_handled_are_counted() {
        let ticks = |second: u64, lost: u64| Ticks {
            interrupts: second * 390,
            handled: second * 200 - lost,
            uptime: second * 100,
        };
        let count = TickCount::over(&samples([ticks(10, 50), ticks(110, 150)], 1), 2).unwrap();
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
            let loads = samples([load(1), load(2), changed], 31);
            check_exact(&changed).and(check_goes_on(&loads, Duration::from_secs(1)))
        };
        change(|_| {}).unwrap();
        assert!(change(|load| load.wrong = 1).is_err());
        assert!(change(|load| load.early = 1).is_err());
        assert!(change(|load| load.late = 1).is_err());
        assert!(change(|load| load.longest = Duration::from_secs(2)).is_err());
        change(|load| load.writes = 2).unwrap();
        assert!(change(|load| load.writes = 1).is_err());
        assert!(change(|load| load.sleeps = 90).is_err());
    }
}
