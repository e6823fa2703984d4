//! A channel of the interval timer.

use serde::{Deserialize, Serialize};

use super::interval::{ns_of, ticks_at};

/// The frequency that channels count at.
pub(super) const INPUT_HZ: u64 = 1_193_182;

const STATUS_OUTPUT: u8 = 1 << 7;
const STATUS_NO_COUNT: u8 = 1 << 6;

/// Whether a channel may count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Gate {
    Open,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    /// Mode 0: the output goes up when the count ends.
    Terminal,
    /// Mode 1: as 0, but the gate starts it.
    OneShot,
    /// Mode 2: periodic, with a short pulse.
    Rate,
    /// Mode 3: periodic, with halves of equal length.
    Square,
    /// Mode 4: a short pulse when the count ends.
    Strobe,
    /// Mode 5: as 4, but the gate starts it.
    TriggeredStrobe,
}

impl Mode {
    fn from_control(value: u8) -> Self {
        match value >> 1 & 7 {
            0 => Self::Terminal,
            1 => Self::OneShot,
            2 | 6 => Self::Rate,
            3 | 7 => Self::Square,
            4 => Self::Strobe,
            _ => Self::TriggeredStrobe,
        }
    }

    fn is_periodic(self) -> bool {
        matches!(self, Self::Rate | Self::Square)
    }

    fn is_triggered(self) -> bool {
        matches!(self, Self::OneShot | Self::TriggeredStrobe)
    }
}

/// Which halves of a count are accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    Both,
}

/// A channel's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Channel {
    /// The last control word, without the channel's number.
    control: u8,
    mode: Mode,
    access: Access,
    gate: Gate,
    /// The count that was written.
    count: Option<u16>,
    /// Guest nanoseconds since when the channel counts.
    since_ns: Option<u64>,
    /// Nanoseconds that it has counted before that.
    counted_ns: u64,
    /// Count ends that have requested their interrupts.
    ended: u64,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// The low half has been read, or written, and the high half is next.
    is_high_read_next: bool,
    low_written: Option<u8>,
}

impl Channel {
    pub(super) fn new(gate: Gate) -> Self {
        Self {
            control: 0x30,
            mode: Mode::Terminal,
            access: Access::Both,
            gate,
            count: None,
            since_ns: None,
            counted_ns: 0,
            ended: 0,
            latched_count: None,
            latched_status: None,
            is_high_read_next: false,
            low_written: None,
        }
    }

    fn is_bcd(&self) -> bool {
        self.control & 1 != 0
    }

    /// Ticks of a whole count; never 0.
    fn period(&self) -> u64 {
        match self.count {
            None | Some(0) => self.modulus(),
            Some(count) if self.is_bcd() => from_bcd(count).max(1),
            Some(count) => count.into(),
        }
    }

    fn modulus(&self) -> u64 {
        if self.is_bcd() { 10_000 } else { 0x1_0000 }
    }

    /// Whether a count has been started, and maybe held since.
    fn is_started(&self) -> bool {
        self.count.is_some() && (self.since_ns.is_some() || self.counted_ns != 0)
    }

    fn elapsed_ns(&self, now: u64) -> u64 {
        let running = self.since_ns.map_or(0, |since| now.saturating_sub(since));
        self.counted_ns.saturating_add(running)
    }

    fn elapsed(&self, now: u64) -> u64 {
        ticks_at(self.elapsed_ns(now), INPUT_HZ)
    }

    fn start(&mut self, now: u64) {
        self.since_ns = Some(now);
        self.counted_ns = 0;
        self.ended = 0;
    }

    /// A control word for this channel.
    pub(super) fn control(&mut self, value: u8, now: u64) {
        self.access = match value >> 4 & 3 {
            0 => {
                self.latch_count(now);
                return;
            }
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        *self = Self {
            control: value & 0x3f,
            mode: Mode::from_control(value),
            access: self.access,
            ..Self::new(self.gate)
        };
    }

    /// A byte of a new count.
    pub(super) fn write(&mut self, value: u8, now: u64) {
        let count = match (self.access, self.low_written) {
            (Access::Low, _) => value.into(),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, None) => {
                self.low_written = Some(value);
                return;
            }
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
        };
        self.low_written = None;
        self.count = Some(count);
        if self.mode.is_triggered() {
            return;
        }
        self.start(now);
        if self.gate == Gate::Closed {
            self.since_ns = None;
        }
    }

    /// Opens or closes the gate.
    pub(super) fn set_gate(&mut self, gate: Gate, now: u64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        if self.count.is_none() {
            return;
        }
        match (self.mode, gate) {
            (Mode::OneShot | Mode::TriggeredStrobe | Mode::Rate | Mode::Square, Gate::Open) => {
                self.start(now);
            }
            (Mode::OneShot | Mode::TriggeredStrobe, Gate::Closed) => {}
            (Mode::Rate | Mode::Square, Gate::Closed) => {
                self.since_ns = None;
                self.counted_ns = 0;
            }
            (Mode::Terminal | Mode::Strobe, Gate::Open) => self.since_ns = Some(now),
            (Mode::Terminal | Mode::Strobe, Gate::Closed) => {
                self.counted_ns = self.elapsed_ns(now);
                self.since_ns = None;
            }
        }
    }

    /// The count, as it would be read.
    fn current(&self, now: u64) -> u16 {
        let (elapsed, period) = (self.elapsed(now), self.period());
        let modulus = self.modulus();
        let count = match self.mode {
            Mode::Rate => period - elapsed % period,
            Mode::Square => period - elapsed % period * 2 % period,
            _ => (period + modulus - elapsed % modulus) % modulus,
        };
        let count = (count % modulus) as u16;
        if self.is_bcd() { to_bcd(count) } else { count }
    }

    /// The level of the output.
    pub(super) fn output(&self, now: u64) -> bool {
        if !self.is_started() {
            return self.mode != Mode::Terminal;
        }
        let (elapsed, period) = (self.elapsed(now), self.period());
        match self.mode {
            Mode::Terminal | Mode::OneShot => elapsed >= period,
            Mode::Rate => elapsed % period != period - 1,
            Mode::Square => elapsed % period < period.div_ceil(2),
            Mode::Strobe | Mode::TriggeredStrobe => elapsed != period,
        }
    }

    /// Holds the count for the next loads, unless one is held.
    pub(super) fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.current(now));
        }
    }

    /// Holds the status for the next load, unless one is held.
    pub(super) fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_none() {
            let output = if self.output(now) { STATUS_OUTPUT } else { 0 };
            let no_count = if self.count.is_none() {
                STATUS_NO_COUNT
            } else {
                0
            };
            self.latched_status = Some(self.control | output | no_count);
        }
    }

    /// What a load gives.
    pub(super) fn read(&self, now: u64) -> u8 {
        if let Some(status) = self.latched_status {
            return status;
        }
        let count = self.latched_count.unwrap_or_else(|| self.current(now));
        let [low, high] = count.to_le_bytes();
        match self.access {
            Access::High => high,
            Access::Both if self.is_high_read_next => high,
            Access::Low | Access::Both => low,
        }
    }

    /// What a load does.
    pub(super) fn finish_read(&mut self) {
        if self.latched_status.take().is_some() {
            return;
        }
        if self.access == Access::Both {
            self.is_high_read_next = !self.is_high_read_next;
        }
        if !self.is_high_read_next {
            self.latched_count = None;
        }
    }

    /// Moves on to `now`. Whether the output rose since the last time, however often.
    pub(super) fn advance(&mut self, now: u64) -> bool {
        if !self.is_started() {
            return false;
        }
        let ends = self.elapsed(now) / self.period();
        let ends = if self.mode.is_periodic() {
            ends
        } else {
            ends.min(1)
        };
        let has_risen = ends > self.ended;
        self.ended = self.ended.max(ends);
        has_risen
    }

    /// Guest nanoseconds at which the output rises next.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        let since = self.since_ns?;
        self.count?;
        if !self.mode.is_periodic() && self.ended > 0 {
            return None;
        }
        let ticks = (u128::from(self.ended) + 1) * u128::from(self.period());
        let left = ns_of(ticks, INPUT_HZ)?.saturating_sub(self.counted_ns);
        since.checked_add(left)
    }
}

/// The value of four decimal digits; hostile ones count for up to 15.
fn from_bcd(bcd: u16) -> u64 {
    [12, 8, 4, 0]
        .iter()
        .fold(0, |value, shift| value * 10 + u64::from(bcd >> shift & 0xf))
}

/// Four decimal digits of a count below 10000.
fn to_bcd(count: u16) -> u16 {
    [1000, 100, 10, 1]
        .iter()
        .fold(0, |bcd, place| (bcd << 4) + count / place % 10)
}
