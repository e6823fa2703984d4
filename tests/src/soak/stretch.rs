//! What must hold from one kill to the next.

use std::fmt;
use std::time::{Duration, Instant};

use super::clock::{READINGS, Rate, Verdict, check_steady};
use super::observer::Observations;
use super::ticks::{Behind, TickCount, check_behind, check_exact, check_goes_on};
use super::{Span, clock};

/// The part of the due ticks that the guest handles at least. Those that it lacks came with the next one: a kernel that is emulated leaves
/// interrupts closed for longer than a tick, and handles about 80 in 100 without any recording as well, or half of them where the host has much
/// else to do. None is lost for good, which the clocks show, and no timer, which the sleeps show.
const HANDLED_LEAST: f64 = 0.25;

/// From one kill to the next.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    /// When the guest first answered in it.
    pub answered: Instant,
    /// When it was protected.
    pub protected: Instant,
    /// When it ended.
    pub end: Instant,
}

/// What it was like.
#[derive(Clone, Debug)]
pub struct StretchReport {
    length: Duration,
    rates: Vec<(&'static str, Rate, f64)>,
    behind: Behind,
    /// Its ticks while it was protected.
    pub ticks: TickCount,
    /// Whether the clocks' rates are known to be right.
    pub is_decided: bool,
}

impl Stretch {
    /// All of it. The clocks must keep step even while a new backup is taken.
    pub const fn whole(&self) -> Span {
        Span {
            from: self.answered,
            to: self.end,
        }
    }

    /// Where nothing keeps the guest waiting.
    pub const fn protected(&self) -> Span {
        Span {
            from: self.protected,
            to: self.end,
        }
    }

    /// Judges it, for a guest with so many CPUs, in which a sleep is late when it takes this long.
    ///
    /// # Errors
    ///
    /// What did not hold.
    pub fn judge(
        &self,
        observations: &Observations,
        cpus: u64,
        late: Duration,
    ) -> Result<StretchReport, String> {
        let clocks = observations.clocks_in(&self.whole());
        let mut rates = Vec::new();
        let mut is_decided = true;
        for (name, reading) in READINGS {
            let off = check_steady(&clocks, reading).map_err(|why| format!("{name}: {why}"))?;
            match Rate::of(&clocks, reading) {
                Some(rate) => {
                    is_decided &= check_rate(name, rate)?;
                    rates.push((name, rate, off));
                }
                None => is_decided = false,
            }
        }
        let protected = self.protected();
        let counts = observations.ticks_in(&protected);
        let ticks = TickCount::over(&counts, cpus).unwrap_or_default();
        if ticks.due > 0 {
            ticks.check(HANDLED_LEAST)?;
        }
        let loads = observations.loads_in(&protected);
        loads.iter().try_for_each(|load| check_exact(&load.told))?;
        check_goes_on(&loads, late)?;
        Ok(StretchReport {
            length: self.whole().length(),
            rates,
            behind: check_behind(&observations.clocks_in(&protected))?,
            ticks,
            is_decided,
        })
    }
}

/// Whether the rate is known to be right.
fn check_rate(name: &str, rate: Rate) -> Result<bool, String> {
    let (low, high) = rate.ppm();
    let what =
        format!("the guest's {name} clock is {low:+.0} to {high:+.0} ppm faster than the host's");
    let tolerance = clock::RATE_TOLERANCE * 1e6;
    match rate.verdict() {
        Verdict::Holds => Ok(true),
        Verdict::Breaks => Err(format!("{what}, not within {tolerance:.0}")),
        Verdict::Undecided => Ok(false),
    }
}

impl fmt::Display for StretchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0?} without a kill:", self.length)?;
        for (name, rate, off) in &self.rates {
            let (low, high) = rate.ppm();
            write!(
                f,
                " {name} {low:+.0} to {high:+.0} ppm, never off by more than {:.1} ms;",
                off.abs() * 1e3
            )?;
        }
        let Behind {
            typical,
            worst,
            caught_up,
        } = self.behind;
        write!(
            f,
            " coarse clock {typical:.1?} behind, {worst:.1?} at worst, never for long by more than {caught_up:.1?}"
        )?;
        if self.ticks.due > 0 {
            let (share, due) = (self.ticks.share() * 100.0, self.ticks.due);
            write!(f, "; {share:.1} % of {due} due ticks handled")?;
        }
        Ok(())
    }
}
