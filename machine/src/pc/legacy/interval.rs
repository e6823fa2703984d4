//! Guest time in ticks of a clock, without drift.

const NS_PER_SECOND: u128 = 1_000_000_000;

/// Whole ticks of a clock within `ns` nanoseconds.
pub(super) fn ticks_at(ns: u64, hz: u64) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(hz) / NS_PER_SECOND).unwrap_or(u64::MAX)
}

/// The first nanosecond in which a clock has made `ticks` ticks; none, if that is after the end of time.
pub(super) fn ns_of(ticks: u128, hz: u64) -> Option<u64> {
    let ns = ticks.checked_mul(NS_PER_SECOND)?.div_ceil(hz.into());
    u64::try_from(ns).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_begins_in_its_first_nanosecond() {
        for ticks in [1, 2, 3, 1000, 65_536, 1_193_181, 1_193_182, 1 << 50] {
            let ns = ns_of(ticks.into(), 1_193_182).unwrap();
            assert_eq!(ticks_at(ns, 1_193_182), ticks);
            assert_eq!(ticks_at(ns - 1, 1_193_182), ticks - 1);
        }
        assert_eq!(ns_of(u128::MAX, 1), None);
        assert_eq!(ns_of(u128::from(u64::MAX), 1), None);
        ticks_at(u64::MAX, 3_579_545);
    }
}
