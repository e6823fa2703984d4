//! The MC146818 real-time clock and its memory: BCD, 24 hours, no interrupts, but their status bits.

use samsara_commitlog::GuestTime;
use serde::{Deserialize, Serialize};

use super::date::Date;

/// Selects a register; bit 7 is the mask of NMIs, which do not come from here.
pub(super) const INDEX: u16 = 0x70;
/// The selected register.
pub(super) const DATA: u16 = 0x71;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// The registers that [`Date`] is in, in the order of [`Cmos::frozen`].
const DATE_REGISTERS: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];

/// A 32.768 kHz crystal, and periodic interrupts at 1024 Hz.
const STATUS_A_DEFAULT: u8 = 0x26;
const UPDATING: u8 = 1 << 7;
const HOURS_24: u8 = 1 << 1;
/// The clock stands still and can be set.
const SET: u8 = 1 << 7;
/// Bits of status B that can be written: set, interrupt enables.
const STATUS_B_BITS: u8 = 0xf0;
const VALID: u8 = 1 << 7;

const PERIODIC_FLAG: u8 = 1 << 6;
const ALARM_FLAG: u8 = 1 << 5;
const UPDATE_FLAG: u8 = 1 << 4;
const ANY_FLAG: u8 = 1 << 7;
/// An alarm register from here on matches everything.
const ALARM_ANY: u8 = 0xc0;

const SECOND_NS: i128 = 1_000_000_000;
/// Before each second, registers may be about to change for so long.
const UPDATE_NS: i128 = 244_000;

/// The clock and its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cmos {
    index: u8,
    memory: [[u8; 32]; 4],
    /// Unix time at guest time 0, in nanoseconds.
    base_ns: i128,
    /// The date registers while the clock is being set.
    frozen: Option<[u8; 8]>,
    /// Guest nanoseconds at the last load of status C, which cleared its flags.
    flags_since_ns: u64,
}

impl Cmos {
    pub(super) fn new(unix_time_ns_at_boot: u64) -> Self {
        let mut cmos = Self {
            index: 0,
            memory: [[0; 32]; 4],
            base_ns: unix_time_ns_at_boot.into(),
            frozen: None,
            flags_since_ns: 0,
        };
        *cmos.cell(STATUS_A) = STATUS_A_DEFAULT;
        cmos
    }

    fn cell(&mut self, index: u8) -> &mut u8 {
        &mut self.memory[usize::from(index >> 5 & 3)][usize::from(index & 31)]
    }

    fn stored(&self, index: u8) -> u8 {
        self.memory[usize::from(index >> 5 & 3)][usize::from(index & 31)]
    }

    pub(super) fn select(&mut self, value: u8) {
        self.index = value & 0x7f;
    }

    fn unix_ns(&self, now: u64) -> i128 {
        self.base_ns.saturating_add(now.into())
    }

    fn unix_seconds(&self, now: u64) -> i64 {
        let seconds = self.unix_ns(now).div_euclid(SECOND_NS);
        i64::try_from(seconds).unwrap_or(if seconds < 0 { i64::MIN } else { i64::MAX })
    }

    /// The date registers.
    fn date(&self, now: u64) -> [u8; 8] {
        self.frozen.unwrap_or_else(|| {
            let date = Date::at(self.unix_seconds(now));
            let (year, century) = ((date.year % 100) as u8, (date.year / 100) as u8);
            let (second, minute) = (date.second, date.minute);
            let (weekday, day, month) = (date.weekday, date.day, date.month);
            [
                second, minute, date.hour, weekday, day, month, year, century,
            ]
            .map(to_bcd)
        })
    }

    pub(super) fn read(&self, now: GuestTime) -> u8 {
        let stored = self.stored(self.index);
        match self.index {
            STATUS_A => {
                let left = SECOND_NS - self.unix_ns(now.0).rem_euclid(SECOND_NS);
                let is_updating = self.frozen.is_none() && left <= UPDATE_NS;
                stored | if is_updating { UPDATING } else { 0 }
            }
            STATUS_B => stored | HOURS_24,
            STATUS_C => self.flags(now.0),
            STATUS_D => VALID,
            index => match date_register(index) {
                Some(place) => self.date(now.0)[place],
                None => stored,
            },
        }
    }

    /// What a load does to the clock.
    pub(super) fn finish_read(&mut self, now: GuestTime) {
        if self.index == STATUS_C {
            self.flags_since_ns = now.0;
        }
    }

    pub(super) fn write(&mut self, value: u8, now: GuestTime) {
        match self.index {
            STATUS_A => *self.cell(STATUS_A) = value & !UPDATING,
            STATUS_B => {
                *self.cell(STATUS_B) = value & STATUS_B_BITS;
                if value & SET == 0 {
                    self.thaw(now.0);
                } else {
                    self.frozen = Some(self.date(now.0));
                }
            }
            STATUS_C | STATUS_D => {}
            index => match date_register(index) {
                Some(place) => self.write_date(place, value, now.0),
                None => *self.cell(index) = value,
            },
        }
    }

    fn write_date(&mut self, place: usize, value: u8, now: u64) {
        let is_running = self.frozen.is_none();
        let mut registers = self.date(now);
        registers[place] = value;
        self.frozen = Some(registers);
        if is_running {
            self.thaw(now);
        }
    }

    /// The clock goes on from what was set. A date that does not exist is not set.
    fn thaw(&mut self, now: u64) {
        let Some(registers) = self.frozen.take() else {
            return;
        };
        let [second, minute, hour, weekday, day, month, year, century] = registers.map(from_bcd);
        let date = Date {
            year: u16::from(century) * 100 + u16::from(year),
            month,
            day,
            weekday,
            hour,
            minute,
            second,
        };
        if let Some(seconds) = date.unix_seconds() {
            self.base_ns = i128::from(seconds) * SECOND_NS - i128::from(now);
        }
    }

    /// The flags of what has happened since they were last read. Those whose interrupts are enabled
    /// raise the flag of them all.
    fn flags(&self, now: u64) -> u8 {
        let since = self.flags_since_ns.min(now);
        let mut flags = 0;
        if self.period_ns().is_some_and(|ns| now / ns != since / ns) {
            flags |= PERIODIC_FLAG;
        }
        let (from, to) = (self.unix_seconds(since), self.unix_seconds(now));
        if self.frozen.is_none() && from != to {
            flags |= UPDATE_FLAG;
            if self
                .next_alarm(from.saturating_add(1))
                .is_some_and(|alarm| alarm <= to)
            {
                flags |= ALARM_FLAG;
            }
        }
        if flags & self.stored(STATUS_B) != 0 {
            flags |= ANY_FLAG;
        }
        flags
    }

    /// Nanoseconds between periodic interrupts.
    fn period_ns(&self) -> Option<u64> {
        let rate = match self.stored(STATUS_A) & 0xf {
            0 => return None,
            // The crystal is too slow for these.
            rate @ 1..=2 => rate + 7,
            rate => rate,
        };
        Some((1_000_000_000 << (rate - 1)) / 32_768)
    }

    /// The first second from `from` on that the alarm registers match, within the next day.
    fn next_alarm(&self, from: i64) -> Option<i64> {
        let matches = |alarm: u8, value: u8| {
            let wanted = self.stored(alarm);
            wanted >= ALARM_ANY || wanted == to_bcd(value)
        };
        let mut at = from;
        // Goes to the next hour, minute or second that may match: at most all of each, and the rest of
        // those that `from` is in.
        for _ in 0..2 * (24 + 60 + 60) {
            let date = Date::at(at);
            let (minute, second) = (i64::from(date.minute), i64::from(date.second));
            let step = if !matches(HOURS_ALARM, date.hour) {
                3600 - minute * 60 - second
            } else if !matches(MINUTES_ALARM, date.minute) {
                60 - second
            } else if !matches(SECONDS_ALARM, date.second) {
                1
            } else {
                return Some(at);
            };
            at = at.checked_add(step)?;
        }
        None
    }
}

fn date_register(index: u8) -> Option<usize> {
    DATE_REGISTERS
        .iter()
        .position(|register| *register == index)
}

fn to_bcd(value: u8) -> u8 {
    ((value / 10) << 4) + value % 10
}

/// A BCD value; one that no date has, for what is none.
fn from_bcd(bcd: u8) -> u8 {
    if bcd & 0xf > 9 || bcd > 0x99 {
        u8::MAX
    } else {
        (bcd >> 4) * 10 + (bcd & 0xf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2024-12-31 23:59:58 UTC.
    const BOOT: u64 = 1_735_689_598_000_000_000;
    const SECOND: u64 = 1_000_000_000;

    fn read(cmos: &mut Cmos, index: u8, now: u64) -> u8 {
        cmos.select(index);
        cmos.read(GuestTime(now))
    }

    fn write(cmos: &mut Cmos, index: u8, value: u8, now: u64) {
        cmos.select(index | 0x80);
        cmos.write(value, GuestTime(now));
    }

    fn date(cmos: &mut Cmos, now: u64) -> [u8; 8] {
        DATE_REGISTERS.map(|index| read(cmos, index, now))
    }

    #[test]
    fn the_time_of_day_is_that_of_boot_and_guest_time() {
        let mut cmos = Cmos::new(BOOT);
        let last = [0x58, 0x59, 0x23, 0x03, 0x31, 0x12, 0x24, 0x20];
        assert_eq!(date(&mut cmos, SECOND - 1), last);
        let first = [0x00, 0x00, 0x00, 0x04, 0x01, 0x01, 0x25, 0x20];
        assert_eq!(date(&mut cmos, 2 * SECOND), first);
        assert_eq!(read(&mut cmos, STATUS_A, 0), STATUS_A_DEFAULT);
        assert_eq!(
            read(&mut cmos, STATUS_A, SECOND - 9),
            STATUS_A_DEFAULT | UPDATING
        );
        assert_eq!(read(&mut cmos, STATUS_B, 0), HOURS_24);
        assert_eq!(read(&mut cmos, STATUS_D, 0), VALID);
    }

    #[test]
    fn a_guest_sets_the_clock() {
        let mut cmos = Cmos::new(BOOT);
        write(&mut cmos, STATUS_B, SET, SECOND);
        let set = [0x56, 0x34, 0x12, 0x01, 0x29, 0x02, 0x00, 0x20];
        for (index, value) in DATE_REGISTERS.into_iter().zip(set) {
            write(&mut cmos, index, value, SECOND);
        }
        assert_eq!(date(&mut cmos, 9 * SECOND), set);
        write(&mut cmos, STATUS_B, 0, 10 * SECOND);
        let now = date(&mut cmos, 11 * SECOND);
        assert_eq!(now, [0x57, 0x34, 0x12, 0x03, 0x29, 0x02, 0x00, 0x20]);
        // One register at a time, and no date that does not exist.
        write(&mut cmos, HOURS, 0x07, 11 * SECOND);
        write(&mut cmos, DAY, 0x31, 11 * SECOND);
        write(&mut cmos, MINUTES, 0x6f, 11 * SECOND);
        assert_eq!(
            date(&mut cmos, 11 * SECOND)[..5],
            [0x57, 0x34, 0x07, 0x03, 0x29]
        );
    }

    #[test]
    fn flags_tell_what_has_happened_since_they_were_read() {
        let mut cmos = Cmos::new(BOOT);
        for (index, value) in [
            (SECONDS_ALARM, 0x30),
            (MINUTES_ALARM, 0x01),
            (HOURS_ALARM, 0xff),
        ] {
            write(&mut cmos, index, value, 0);
        }
        assert_eq!(read(&mut cmos, STATUS_C, 100), 0);
        assert_eq!(read(&mut cmos, STATUS_C, 1_000_000), PERIODIC_FLAG);
        assert_eq!(
            read(&mut cmos, STATUS_C, SECOND),
            PERIODIC_FLAG | UPDATE_FLAG
        );
        cmos.finish_read(GuestTime(SECOND));
        assert_eq!(read(&mut cmos, STATUS_C, SECOND + 9), 0);
        write(&mut cmos, STATUS_B, ALARM_FLAG, SECOND);
        // 00:01:30 is 92 seconds after boot.
        assert_eq!(read(&mut cmos, STATUS_C, 92 * SECOND - 1) & ALARM_FLAG, 0);
        let flags = read(&mut cmos, STATUS_C, 92 * SECOND);
        assert_eq!(flags, ANY_FLAG | PERIODIC_FLAG | ALARM_FLAG | UPDATE_FLAG);
    }

    #[test]
    fn an_alarm_is_found_wherever_it_is() {
        for from in [0, 1, 3599, 86_399, 40_000] {
            for (hour, minute, second) in [(0, 0, 0), (23, 59, 59), (11, 6, 39), (11, 6, 40)] {
                let mut cmos = Cmos::new(0);
                write(&mut cmos, HOURS_ALARM, to_bcd(hour), 0);
                write(&mut cmos, MINUTES_ALARM, to_bcd(minute), 0);
                write(&mut cmos, SECONDS_ALARM, to_bcd(second), 0);
                let of_day = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
                let expected = from + (of_day - from).rem_euclid(86_400);
                assert_eq!(cmos.next_alarm(from), Some(expected));
            }
        }
        let mut cmos = Cmos::new(0);
        write(&mut cmos, HOURS_ALARM, 0x24, 0);
        assert_eq!(cmos.next_alarm(0), None);
    }

    #[test]
    fn memory_keeps_what_is_written_and_extremes_are_harmless() {
        let mut cmos = Cmos::new(u64::MAX);
        write(&mut cmos, 0x7f, 0xa5, 0);
        write(&mut cmos, 0x10, 0x5a, 0);
        assert_eq!(read(&mut cmos, 0x7f, 0), 0xa5);
        assert_eq!(read(&mut cmos, 0x10, 0), 0x5a);
        for base_ns in [i128::MIN, i128::MAX] {
            cmos.base_ns = base_ns;
            for index in 0..0x80 {
                read(&mut cmos, index, u64::MAX);
                write(&mut cmos, index, 0xff, u64::MAX);
            }
        }
    }
}
