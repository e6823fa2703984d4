//! The time stamp counters of a machine's vCPUs when it starts to run here.
//!
//! A state has the TSC of its vCPU's last commit, which was at another time for each. The kernel of a PC takes it that all
//! vCPUs have one common TSC, and that it does not go back: so all continue from the highest, from one moment on,
//! however long after it each of them is set up.

use std::borrow::Cow;

use samsara_machine::kvm::{Restore, TscControl};
use samsara_machine::vcpu::VcpuState;
use samsara_machine::{Machine, Platform};

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
    pub(super) fn of(machine: &Machine, control: TscControl, now: u64) -> Self {
        let vcpus = (0..machine.shape().vcpu_count).map(samsara_commitlog::VcpuIndex);
        let states = vcpus.map(|vcpu| machine.vcpu(vcpu));
        Self::of_states(machine.platform(), states, control, now)
    }

    fn of_states<'a>(
        platform: Platform,
        states: impl Iterator<Item = &'a VcpuState>,
        control: TscControl,
        now: u64,
    ) -> Self {
        match (platform, control) {
            // Where programs see the host's own anyway, kernels at least go on from where they were.
            (Platform::Bare, _) | (Platform::Pc, TscControl::Fixed) => Self::Each,
            (Platform::Pc, TscControl::Movable) => {
                let highest = states.filter_map(VcpuState::tsc).max().unwrap_or(0);
                Self::Ahead(highest.wrapping_sub(now))
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    const TSC: u32 = 0x10;

    fn states<const N: usize>(tscs: [u64; N]) -> [VcpuState; N] {
        tscs.map(|tsc| {
            let mut state = VcpuState::zeroed(&[0x1b, TSC, 0x3b]);
            state.set_tsc(tsc);
            state
        })
    }

    fn pc(states: &[VcpuState], control: TscControl, now: u64) -> Tsc {
        Tsc::of_states(Platform::Pc, states.iter(), control, now)
    }

    #[test]
    fn all_vcpus_continue_from_the_highest() {
        let states = states([700, 900, 20]);
        let tsc = pc(&states, TscControl::Movable, 5000);
        for (state, now) in states.iter().zip([5000, 5010, 5300]) {
            let (entry, how) = tsc.entry(state, now);
            assert_eq!((entry.tsc(), how), (Some(900 + now - 5000), Restore::Whole));
            assert_eq!(entry.msr(0x1b), state.msr(0x1b));
        }
        // A counter near its end, of this host or in a state, is no trouble.
        let tsc = pc(&[states[0].clone()], TscControl::Movable, u64::MAX - 1);
        assert_eq!(tsc.entry(&states[0], 2).0.tsc(), Some(704));
        let last = self::states([u64::MAX]);
        let tsc = pc(&last, TscControl::Movable, 10);
        assert_eq!(tsc.entry(&last[0], 11).0.tsc(), Some(0));
    }

    #[test]
    fn what_cannot_be_set_or_is_each_ones_own_stays() {
        let states = states([700, 900]);
        assert_eq!(pc(&states, TscControl::Fixed, 5), Tsc::Each);
        let bare = Tsc::of_states(Platform::Bare, states.iter(), TscControl::Movable, 5);
        assert_eq!(bare, Tsc::Each);
        let (entry, how) = bare.entry(&states[0], 9);
        assert_eq!((entry.as_ref(), how), (&states[0], Restore::Whole));
    }

    #[test]
    fn states_without_one_are_left_alone() {
        let state = VcpuState::zeroed(&[0x1b]);
        let tsc = pc(std::slice::from_ref(&state), TscControl::Movable, 5);
        assert_eq!(tsc.entry(&state, 9).0.as_ref(), &state);
    }
}
