//! What the Linux guest's service tells of its clocks, its timers and its load (`guests/linux/work/protocol.c`).

use std::time::Duration;

/// Ticks of the guest's kernel in a second (`CONFIG_HZ`).
pub const TICKS_PER_SECOND: u64 = 25;
/// The time of one tick.
pub const TICK: Duration = Duration::from_millis(1000 / TICKS_PER_SECOND);

/// Its answer to `CLOCK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`.
    pub realtime_ns: u64,
    /// Ticks that its timekeeping has seen.
    pub ticks: u64,
}

impl Clock {
    /// From the answer's line.
    pub fn parse(line: &str) -> Option<Self> {
        let [monotonic_ns, realtime_ns, ticks] = numbers(line.strip_prefix("CLOCK ")?)?;
        Some(Self {
            monotonic_ns,
            realtime_ns,
            ticks,
        })
    }

    /// How far the ticks are behind the monotonic clock.
    pub const fn behind(&self) -> Duration {
        let ticked_ns = self.ticks * TICK.as_nanos() as u64;
        Duration::from_nanos(self.monotonic_ns.saturating_sub(ticked_ns))
    }
}

/// Its answer to `TICKS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    /// Local timer interrupts of all CPUs, whatever for.
    pub interrupts: u64,
    /// Ticks that all CPUs handled, in 1/100 s. One that is late by a tick or more handles one for all that were due.
    pub handled: u64,
    /// Uptime, in 1/100 s.
    pub uptime: u64,
}

impl Ticks {
    /// From the answer's line.
    pub fn parse(line: &str) -> Option<Self> {
        let [interrupts, handled, uptime] = numbers(line.strip_prefix("TICKS ")?)?;
        Some(Self {
            interrupts,
            handled,
            uptime,
        })
    }
}

/// Its answer to `STATS`: what the background of the job `mixed` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Rounds of computing that were checked.
    pub rounds: u64,
    /// Those that came out wrong.
    pub wrong: u64,
    /// Sleeps of `sleep_ms`.
    pub sleeps: u64,
    /// Those that were shorter.
    pub early: u64,
    /// Those that were longer than `late_ms`.
    pub late: u64,
    /// The longest of them, be it one that still lasts.
    pub longest: Duration,
    /// Pieces of a file that were written and synced.
    pub writes: u64,
}

impl Load {
    /// From the answer's line.
    pub fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.strip_prefix("STATS ")?.split(' ').collect();
        let named = |(index, name): (usize, &str)| {
            let value = words.get(2 * index + 1)?.parse::<u64>().ok()?;
            (words.get(2 * index) == Some(&name)).then_some(value)
        };
        let all = [
            "rounds",
            "wrong",
            "sleeps",
            "early",
            "late",
            "longest_ns",
            "writes",
        ];
        let values: Option<Vec<u64>> = all.into_iter().enumerate().map(named).collect();
        let [rounds, wrong, sleeps, early, late, longest_ns, writes] = values?.try_into().ok()?;
        Some(Self {
            rounds,
            wrong,
            sleeps,
            early,
            late,
            longest: Duration::from_nanos(longest_ns),
            writes,
        })
    }
}

/// What `SPIN` of so many steps is answered with: xorshift64 from 1.
pub const fn spun(steps: u64) -> u64 {
    let (mut value, mut step) = (1u64, 0);
    while step < steps {
        value ^= value << 13;
        value ^= value >> 7;
        value ^= value << 17;
        step += 1;
    }
    value
}

fn numbers<const COUNT: usize>(text: &str) -> Option<[u64; COUNT]> {
    let numbers: Option<Vec<u64>> = text.split(' ').map(|word| word.parse().ok()).collect();
    numbers?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_others_are_not() {
        let clock = Clock::parse("CLOCK 555592240689 1796020524520174186 13889").unwrap();
        assert_eq!(clock.ticks, 13889);
        assert_eq!(clock.behind(), Duration::from_nanos(32_240_689));
        assert_eq!(Clock::parse("CLOCK 1 2"), None);
        assert_eq!(Clock::parse("ERROR unknown: CLOCK"), None);
        let ticks = Ticks::parse("TICKS 254946 110512 55559").unwrap();
        assert_eq!((ticks.handled, ticks.uptime), (110_512, 55_559));
        assert_eq!(Ticks::parse("TICKS 1 2 x"), None);
        let line =
            "STATS rounds 577 wrong 1 sleeps 217 early 2 late 3 longest_ns 26852924 writes 13";
        let load = Load::parse(line).unwrap();
        assert_eq!((load.rounds, load.wrong, load.sleeps), (577, 1, 217));
        assert_eq!((load.early, load.late, load.writes), (2, 3, 13));
        assert_eq!(load.longest, Duration::from_nanos(26_852_924));
        assert_eq!(Load::parse(&line.replace("early", "late")), None);
        assert_eq!(Load::parse("STATS rounds 577"), None);
    }

    #[test]
    fn spinning_here_gives_what_the_guest_gives() {
        assert_eq!(spun(5), 0x860c_1fb0_9059_9265);
    }
}
