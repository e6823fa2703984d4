//! Calendar dates, as the clock's registers count them.

/// Seconds of a day.
const DAY_SECONDS: i64 = 86_400;

/// A date and time of day, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    /// 0 to 9999.
    pub(super) year: u16,
    /// 1 to 12.
    pub(super) month: u8,
    /// 1 to 31.
    pub(super) day: u8,
    /// 1, a Sunday, to 7.
    pub(super) weekday: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

/// The first and the last second that a [`Date`] can be.
const FIRST: i64 = -62_167_219_200;
const LAST: i64 = 253_402_300_799;

impl Date {
    /// The date at a Unix time, in seconds; the first or last date, if it is not between them.
    pub(super) fn at(unix_seconds: i64) -> Self {
        let seconds = unix_seconds.clamp(FIRST, LAST);
        let days = seconds.div_euclid(DAY_SECONDS);
        let of_day = seconds.rem_euclid(DAY_SECONDS);
        // Years that begin in March, in eras of 400 years: leap days come last in both.
        let from_era = days + 719_468;
        let era = from_era.div_euclid(146_097);
        let day_of_era = from_era.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = march_month + if march_month < 10 { 3 } else { -9 };
        Self {
            year: (era * 400 + year_of_era + i64::from(month <= 2)) as u16,
            month: month as u8,
            day: (day_of_year - (153 * march_month + 2) / 5 + 1) as u8,
            // Day 0 was a Thursday.
            weekday: ((days + 4).rem_euclid(7) + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// The Unix time in seconds; none, if there is no such date. The weekday does not matter.
    pub(super) fn unix_seconds(self) -> Option<i64> {
        let is_time = self.hour < 24 && self.minute < 60 && self.second < 60;
        let is_date =
            (1..=12).contains(&self.month) && (1..=31).contains(&self.day) && self.year <= 9999;
        if !is_time || !is_date {
            return None;
        }
        let month = i64::from(self.month);
        let year = i64::from(self.year) - i64::from(month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let march_month = (month + 9) % 12;
        let day_of_year = (153 * march_month + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        let of_day = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60;
        let seconds = days * DAY_SECONDS + of_day + i64::from(self.second);
        // Refuses the 30th of February.
        (Self::at(seconds).day == self.day).then_some(seconds)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dates_are_the_calendar_s() {
        let date = |year, month, day, weekday, hour, minute, second| Date {
            year,
            month,
            day,
            weekday,
            hour,
            minute,
            second,
        };
        for (seconds, expected) in [
            (0, date(1970, 1, 1, 5, 0, 0, 0)),
            (951_782_400, date(2000, 2, 29, 3, 0, 0, 0)),
            (1_735_689_599, date(2024, 12, 31, 3, 23, 59, 59)),
            (-1, date(1969, 12, 31, 4, 23, 59, 59)),
            (FIRST, date(0, 1, 1, 7, 0, 0, 0)),
            (LAST, date(9999, 12, 31, 6, 23, 59, 59)),
        ] {
            assert_eq!(Date::at(seconds), expected);
            assert_eq!(expected.unix_seconds(), Some(seconds));
        }
        assert_eq!(Date::at(i64::MAX), Date::at(LAST));
        assert_eq!(date(2023, 2, 29, 1, 0, 0, 0).unix_seconds(), None);
        assert_eq!(date(2023, 0, 1, 1, 0, 0, 0).unix_seconds(), None);
        assert_eq!(date(2023, 1, 1, 1, 24, 0, 0).unix_seconds(), None);
    }

    proptest! {
        #[test]
        fn seconds_become_dates_and_seconds_again(seconds in FIRST..=LAST) {
            prop_assert_eq!(Date::at(seconds).unix_seconds(), Some(seconds));
        }
    }
}
