//! The guest's clocks against the host's.
//!
//! A reading says what the guest's clock was at some moment between a request and its answer, no more. So the time that passed on
//! the host between two readings is known within bounds, and so are rates and jumps: what the bounds do not decide
//! stays undecided. Each pair of readings bounds the rate; one may have the quicker question and another the quicker answer, so all
//! together bound it best.

use std::time::Duration;

use super::observer::Sample;
use crate::readings::{Clock, TICK};

/// How far a rate may be from the host's.
pub const RATE_TOLERANCE: f64 = 0.001;

/// One of the guest's clocks.
pub type Reading = fn(&Clock) -> u64;

/// `CLOCK_MONOTONIC` and `CLOCK_REALTIME`.
pub const READINGS: [(&str, Reading); 2] = [
    ("monotonic", |clock| clock.monotonic_ns),
    ("realtime", |clock| clock.realtime_ns),
];

/// What passed between two readings.
#[derive(Clone, Copy, Debug)]
struct Elapsed {
    guest_ns: f64,
    /// The host's, at least and at most.
    host_ns: (f64, f64),
}

impl Elapsed {
    fn between(first: &Sample<Clock>, second: &Sample<Clock>, reading: Reading) -> Self {
        let ns = |time: Duration| time.as_nanos() as f64;
        let (first_at, second_at) = (first.exchange, second.exchange);
        let least = second_at.sent.saturating_duration_since(first_at.received);
        let most = second_at.received.saturating_duration_since(first_at.sent);
        Self {
            guest_ns: reading(&second.told) as f64 - reading(&first.told) as f64,
            host_ns: (ns(least), ns(most)),
        }
    }

    /// By how much the guest's is certainly longer (positive) or shorter.
    fn off_ns(&self) -> f64 {
        let (least, most) = self.host_ns;
        (self.guest_ns - most).max(0.0) + (self.guest_ns - least).min(0.0)
    }
}

/// What a rate's bounds say of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Certainly within the tolerance.
    Holds,
    /// Certainly not.
    Breaks,
    /// The readings are too far from exact, for the time between them.
    Undecided,
}

/// The guest's seconds in a second of the host, within bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// At least.
    pub low: f64,
    /// At most.
    pub high: f64,
}

impl Rate {
    /// By all pairs of one reading in the first half of some and one in the last.
    pub fn of(samples: &[Sample<Clock>], reading: Reading) -> Option<Self> {
        let mut rate: Option<Self> = None;
        for (first, last) in pairs(samples) {
            let elapsed = Elapsed::between(first, last, reading);
            let (at_least, at_most) = elapsed.host_ns;
            if at_least > 0.0 {
                let (low, high) = (elapsed.guest_ns / at_most, elapsed.guest_ns / at_least);
                let known = rate.get_or_insert(Self { low, high });
                *known = Self {
                    low: known.low.max(low),
                    high: known.high.min(high),
                };
            }
        }
        rate
    }

    /// Whether it is the host's.
    pub fn verdict(&self) -> Verdict {
        let (slowest, fastest) = (1.0 - RATE_TOLERANCE, 1.0 + RATE_TOLERANCE);
        if self.high < slowest || self.low > fastest {
            Verdict::Breaks
        } else if self.low >= slowest && self.high <= fastest {
            Verdict::Holds
        } else {
            Verdict::Undecided
        }
    }

    /// Its bounds as parts in a million faster than the host's.
    pub fn ppm(&self) -> (f64, f64) {
        ((self.low - 1.0) * 1e6, (self.high - 1.0) * 1e6)
    }
}

fn pairs(samples: &[Sample<Clock>]) -> impl Iterator<Item = (&Sample<Clock>, &Sample<Clock>)> {
    let (early, late) = samples.split_at(samples.len() / 2);
    early
        .iter()
        .flat_map(move |first| late.iter().map(move |last| (first, last)))
}

/// How far a clock is from where the quickest reading in the first half and the host's clock put it, at worst, in seconds; beyond
/// what the readings leave open. Fails if that is more than a tick and the tolerance.
pub fn check_steady(samples: &[Sample<Clock>], reading: Reading) -> Result<f64, String> {
    let early = samples[..samples.len() / 2].iter();
    let Some(first) = early.min_by_key(|sample| sample.exchange.took()) else {
        return Ok(0.0);
    };
    let mut worst = 0.0f64;
    let later = samples
        .iter()
        .filter(|sample| sample.exchange.sent > first.exchange.received);
    for sample in later {
        let elapsed = Elapsed::between(first, sample, reading);
        let off = elapsed.off_ns();
        let allowed = TICK.as_nanos() as f64 + RATE_TOLERANCE * elapsed.host_ns.1;
        if off.abs() > allowed {
            return Err(format!(
                "the guest's clock is off by {:.1} ms or more after {:.1} s",
                off / 1e6,
                elapsed.host_ns.1 / 1e9
            ));
        }
        if off.abs() > worst.abs() {
            worst = off;
        }
    }
    Ok(worst / 1e9)
}

/// No reading is before an earlier one.
pub fn check_never_back(samples: &[Sample<Clock>], reading: Reading) -> Result<(), String> {
    let mut pairs = samples.windows(2);
    let back = pairs.find(|pair| reading(&pair[1].told) < reading(&pair[0].told));
    back.map_or(Ok(()), |pair| {
        let by_ns = reading(&pair[0].told) - reading(&pair[1].told);
        Err(format!("the guest's clock went back by {by_ns} ns"))
    })
}

/// What a clock gained on the host's (positive) or lost across something, in seconds, within bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jump {
    /// At least.
    pub low: f64,
    /// At most.
    pub high: f64,
}

impl Jump {
    /// Between the quickest readings before something and the quickest after it.
    pub fn across(
        before: &[Sample<Clock>],
        after: &[Sample<Clock>],
        reading: Reading,
    ) -> Option<Self> {
        let quickest = |sample: &&Sample<Clock>| sample.exchange.took();
        let first = before.iter().min_by_key(quickest)?;
        let last = after.iter().min_by_key(quickest)?;
        let elapsed = Elapsed::between(first, last, reading);
        let (at_least, at_most) = elapsed.host_ns;
        Some(Self {
            low: (elapsed.guest_ns - at_most) / 1e9,
            high: (elapsed.guest_ns - at_least) / 1e9,
        })
    }

    /// The middle of its bounds, and half of what is between them.
    pub fn middle(&self) -> (f64, f64) {
        (
            f64::midpoint(self.low, self.high),
            (self.high - self.low) / 2.0,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::store::Exchange;

    const MONOTONIC: Reading = READINGS[0].1;

    /// A reading a second, each asked for 20 ms, of a clock that is `at(host seconds)`.
    fn readings(seconds: u32, at: impl Fn(f64) -> f64) -> Vec<Sample<Clock>> {
        let start = Instant::now();
        let reading = |second: u32| {
            let sent = start + Duration::from_secs(u64::from(second));
            let received = sent + Duration::from_millis(20);
            // The guest looks at its clock soon after it was asked, or late.
            let looked = f64::from(second)
                + if second.is_multiple_of(3) {
                    0.002
                } else {
                    0.019
                };
            let ns = (at(looked) * 1e9) as u64;
            let told = Clock {
                monotonic_ns: ns,
                realtime_ns: ns + 5,
                ticks: ns / TICK.as_nanos() as u64,
            };
            let exchange = Exchange { sent, received };
            Sample { exchange, told }
        };
        (0..seconds).map(reading).collect()
    }

    #[test]
    fn rates_are_told_apart_as_far_as_readings_allow() {
        let verdict = |seconds, rate: f64| {
            let samples = readings(seconds, |host| 7.0 + host * rate);
            Rate::of(&samples, MONOTONIC).unwrap().verdict()
        };
        assert_eq!(verdict(240, 1.0), Verdict::Holds);
        assert_eq!(verdict(240, 1.0005), Verdict::Holds);
        assert_eq!(verdict(240, 1.002), Verdict::Breaks);
        assert_eq!(verdict(240, 0.998), Verdict::Breaks);
        // What the readings leave open is more than a thousandth of a few seconds.
        assert_eq!(verdict(6, 1.0), Verdict::Undecided);
        assert!(Rate::of(&readings(1, |host| host), MONOTONIC).is_none());
    }

    #[test]
    fn a_clock_that_stops_and_one_that_goes_back_are_found_out() {
        let steady = readings(100, |host| 7.0 + host);
        assert!(check_steady(&steady, MONOTONIC).unwrap().abs() < 1e-9);
        // It stands still for half a second and makes up for it.
        let stops = |host: f64| {
            7.0 + if (50.0..53.0).contains(&host) {
                host - 0.5
            } else {
                host
            }
        };
        let stops = readings(100, stops);
        let error = check_steady(&stops, MONOTONIC).unwrap_err();
        assert!(error.contains("off by -4"), "{error}");
        check_never_back(&stops, MONOTONIC).unwrap();
        let back = readings(100, |host| if host > 50.0 { host - 2.0 } else { host });
        assert!(check_never_back(&back, READINGS[1].1).is_err());
    }

    #[test]
    fn a_jump_is_measured_within_its_bounds() {
        let samples = readings(60, |host| if host > 30.0 { host - 0.8 } else { host });
        let jump = Jump::across(&samples[..30], &samples[31..], MONOTONIC).unwrap();
        assert!(jump.low <= -0.8 && -0.8 <= jump.high, "{jump:?}");
        let (middle, around) = jump.middle();
        assert!((middle + 0.8).abs() < 0.021 && around < 0.021, "{jump:?}");
    }
}
