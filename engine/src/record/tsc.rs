//! The time stamp counters of a machine's vCPUs when it starts to run here.
//!
//! A state has the TSC of its vCPU's last commit, which was at another time for each. The kernel of a PC takes it that all
//! vCPUs have one common TSC, that it does not go back, and that it keeps pace with the machine's other clocks: so all
//! continue from where the TSC of the vCPU that ran last would be by the guest clock, from one moment on, however
//! long after it each of them is set up. All of them may have been idle for long before that moment.

use std::borrow::Cow;

use samsara_commitlog::{GuestTime, VcpuIndex};
use samsara_machine::kvm::{Restore, TscControl};
use samsara_machine::vcpu::VcpuState;
use samsara_machine::{Machine, Platform};

use super::committer::Settings;

/// A counter of 1 kHz ticks once in so many nanoseconds.
const NS_PER_KHZ_TICK: u128 = 1_000_000;

/// What the vCPUs' TSCs are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tsc {
    /// Each as it was at its last commit.
    Each,
    /// Common: so far ahead of this host's.
    Ahead(u64),
}

impl Tsc {
    /// Of a machine that starts when this host's TSC is `now`.
    pub(super) fn of(machine: &Machine, settings: &Settings, now: u64) -> Self {
        let vcpus = (0..machine.shape().vcpu_count).map(VcpuIndex);
        let readings = vcpus.filter_map(|vcpu| {
            Some(Reading {
                at: machine.ran_until(vcpu),
                tsc: machine.vcpu(vcpu).tsc()?,
            })
        });
        let common = common(readings, machine.guest_time(), settings.tsc_khz);
        Self::from_common(machine.platform(), settings.tsc, common, now)
    }

    fn from_common(platform: Platform, control: TscControl, common: u64, now: u64) -> Self {
        match (platform, control) {
            // Where programs see the host's own anyway, kernels at least go on from where they were.
            (Platform::Bare, _) | (Platform::Pc, TscControl::Fixed) => Self::Each,
            (Platform::Pc, TscControl::Movable) => Self::Ahead(common.wrapping_sub(now)),
        }
    }

    /// What to restore, and how, when this host's TSC is `now`, of a vCPU whose committed state this is.
    pub(super) fn entry<'a>(
        &self,
        state: &'a VcpuState,
        now: u64,
    ) -> (Cow<'a, VcpuState>, Restore) {
        match *self {
            Self::Each => (Cow::Borrowed(state), Restore::Whole),
            Self::Ahead(ahead) => {
                let mut state = state.clone();
                state.set_tsc(now.wrapping_add(ahead));
                (Cow::Owned(state), Restore::Whole)
            }
        }
    }
}

/// A vCPU's TSC, and the guest clock when it was that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Reading {
    at: GuestTime,
    tsc: u64,
}

/// What the TSC is when the guest clock shows `now`. Counted on from the last reading, as the rate of the host on
/// which others were made may have been a little different; not back from any.
fn common(readings: impl Iterator<Item = Reading>, now: GuestTime, khz: Option<u64>) -> u64 {
    let readings: Vec<_> = readings.collect();
    let Some(last) = readings.iter().max() else {
        return 0;
    };
    let idle_ns = u128::from(now.0.saturating_sub(last.at.0));
    let ticks = idle_ns * u128::from(khz.unwrap_or(0)) / NS_PER_KHZ_TICK;
    let counted_on = last.tsc.wrapping_add(ticks as u64);
    readings
        .iter()
        .fold(counted_on, |common, reading| common.max(reading.tsc))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TSC: u32 = 0x10;

    fn state(tsc: u64) -> VcpuState {
        let mut state = VcpuState::zeroed(&[0x1b, TSC, 0x3b]);
        state.set_tsc(tsc);
        state
    }

    fn common_of(readings: &[(u64, u64)], now: u64, khz: Option<u64>) -> u64 {
        let readings = readings.iter().map(|&(at, tsc)| Reading {
            at: GuestTime(at),
            tsc,
        });
        common(readings, GuestTime(now), khz)
    }

    fn pc(readings: &[(u64, u64)], now: u64) -> Tsc {
        let last = readings.iter().map(|&(at, _)| at).max().unwrap_or(0);
        let common = common_of(readings, last, Some(1));
        Tsc::from_common(Platform::Pc, TscControl::Movable, common, now)
    }

    #[test]
    fn all_vcpus_continue_from_the_highest() {
        let tscs = [700, 900, 20];
        let tsc = pc(&tscs.map(|tsc| (tsc, tsc)), 5000);
        for (tsc_before, now) in tscs.into_iter().zip([5000, 5010, 5300]) {
            let state = state(tsc_before);
            let (entry, how) = tsc.entry(&state, now);
            assert_eq!((entry.tsc(), how), (Some(900 + now - 5000), Restore::Whole));
            assert_eq!(entry.msr(0x1b), state.msr(0x1b));
        }
        // A counter near its end, of this host or in a state, is no trouble.
        let tsc = pc(&[(1, 700)], u64::MAX - 1);
        assert_eq!(tsc.entry(&state(700), 2).0.tsc(), Some(704));
        let tsc = pc(&[(1, u64::MAX)], 10);
        assert_eq!(tsc.entry(&state(u64::MAX), 11).0.tsc(), Some(0));
    }

    #[test]
    fn what_cannot_be_set_or_is_each_ones_own_stays() {
        let fixed = Tsc::from_common(Platform::Pc, TscControl::Fixed, 900, 5);
        assert_eq!(fixed, Tsc::Each);
        let bare = Tsc::from_common(Platform::Bare, TscControl::Movable, 900, 5);
        assert_eq!(bare, Tsc::Each);
        let state = state(700);
        let (entry, how) = bare.entry(&state, 9);
        assert_eq!((entry.as_ref(), how), (&state, Restore::Whole));
    }

    #[test]
    fn time_in_which_no_vcpu_ran_has_passed_for_the_tsc_too() {
        const SECOND: u64 = 1_000_000_000;
        let khz = Some(2_000_000);
        // All have been idle for three seconds, and one has never run.
        let readings = [(9 * SECOND, 7000), (8 * SECOND, 1000), (0, 5)];
        assert_eq!(common_of(&readings, 12 * SECOND, khz), 7000 + 6 * SECOND);
        assert_eq!(common_of(&readings, 9 * SECOND, khz), 7000);
        // A kernel that gave them different ones does not see one go back.
        assert_eq!(common_of(&[(9, 100), (8, 900)], 9, khz), 900);
    }

    #[test]
    fn without_a_rate_or_any_tsc_nothing_is_counted_on() {
        assert_eq!(common_of(&[(1, 100), (2, 90)], 1 << 60, None), 100);
        assert_eq!(common_of(&[], 1 << 60, Some(1)), 0);
        assert_eq!(common_of(&[(0, u64::MAX)], 0, Some(1)), u64::MAX);
    }

    #[test]
    fn states_without_one_are_left_alone() {
        let state = VcpuState::zeroed(&[0x1b]);
        assert_eq!(pc(&[], 5).entry(&state, 9).0.as_ref(), &state);
    }
}
