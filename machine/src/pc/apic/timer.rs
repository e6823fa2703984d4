//! A local APIC's timer. It counts at 1 GHz of guest time before its divider.
//!
//! A count is not kept but follows from the guest time at which it reaches zero, so that nothing has
//! to happen while it runs. One-shot and periodic counts go on when the mode changes between the
//! two, as processors do; TSC-deadline mode is not offered, and a timer set to it does not run.

use samsara_commitlog::GuestTime;
use serde::{Deserialize, Serialize};

use super::registers::MASKED;

const MODE_SHIFT: u32 = 17;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimerMode {
    OneShot,
    Periodic,
    Unsupported,
}

/// The timer's registers, and when its count ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Timer {
    lvt: u32,
    divide: u32,
    initial: u32,
    /// Guest nanoseconds at which the count reaches zero.
    deadline_ns: Option<u64>,
}

impl Timer {
    pub(super) fn at_reset() -> Self {
        Self {
            lvt: MASKED,
            divide: 0,
            initial: 0,
            deadline_ns: None,
        }
    }

    pub(super) fn lvt(&self) -> u32 {
        self.lvt
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    fn mode(&self) -> TimerMode {
        match self.lvt >> MODE_SHIFT & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            _ => TimerMode::Unsupported,
        }
    }

    /// Nanoseconds of one count.
    fn tick_ns(&self) -> u64 {
        let shift = self.divide & 3 | (self.divide & 8) >> 1;
        1 << ((shift + 1) & 7)
    }

    /// Nanoseconds of a whole count; never 0.
    fn period_ns(&self) -> u64 {
        (u64::from(self.initial) * self.tick_ns()).max(1)
    }

    /// The current count.
    pub(super) fn current(&self, now: GuestTime) -> u32 {
        let Some(deadline) = self.deadline_ns else {
            return 0;
        };
        let left = match deadline.checked_sub(now.0) {
            Some(left) if left > 0 => left,
            _ if self.mode() == TimerMode::Periodic => {
                self.period_ns() - (now.0 - deadline) % self.period_ns()
            }
            _ => 0,
        };
        left.div_ceil(self.tick_ns()) as u32
    }

    /// When the timer will request an interrupt.
    pub(super) fn next_deadline(&self) -> Option<GuestTime> {
        (self.lvt & MASKED == 0)
            .then_some(self.deadline_ns)?
            .map(GuestTime)
    }

    /// Moves on to `now`: the vector to request, if a count ended and the timer is not masked. Counts that
    /// ended in the meantime make one request together; the next ends when it would have anyway.
    pub(super) fn advance(&mut self, now: GuestTime) -> Option<u8> {
        let deadline = self.deadline_ns.filter(|deadline| *deadline <= now.0)?;
        self.deadline_ns = match self.mode() {
            TimerMode::Periodic => {
                let period = self.period_ns();
                now.0.checked_add(period - (now.0 - deadline) % period)
            }
            TimerMode::OneShot | TimerMode::Unsupported => None,
        };
        (self.lvt & MASKED == 0).then_some(self.lvt as u8)
    }

    /// Sets the local vector; the caller has advanced the timer to `now`, as for the others.
    pub(super) fn set_lvt(&mut self, value: u32) {
        let before = self.mode();
        self.lvt = value;
        let is_supported = self.mode() != TimerMode::Unsupported;
        if is_supported != (before != TimerMode::Unsupported) {
            self.initial = 0;
            self.deadline_ns = None;
        }
    }

    /// Masks the local vector; the count goes on.
    pub(super) fn mask(&mut self) {
        self.lvt |= MASKED;
    }

    /// Sets the divider; a count that runs goes on from where it is.
    pub(super) fn set_divide(&mut self, value: u32, now: GuestTime) {
        let current = u64::from(self.current(now));
        let before = self.tick_ns();
        self.divide = value;
        if self.deadline_ns.is_some() && self.tick_ns() != before {
            self.deadline_ns = now.0.checked_add(current * self.tick_ns());
        }
    }

    /// Starts a count; 0 stops the timer.
    pub(super) fn set_initial(&mut self, value: u32, now: GuestTime) {
        if self.mode() == TimerMode::Unsupported {
            return;
        }
        self.initial = value;
        self.deadline_ns = if value == 0 {
            None
        } else {
            now.0.checked_add(self.period_ns())
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PERIODIC: u32 = 1 << MODE_SHIFT;
    const DEADLINE: u32 = 2 << MODE_SHIFT;
    const BY_1: u32 = 0xb;

    fn timer(lvt: u32, divide: u32) -> Timer {
        let mut timer = Timer::at_reset();
        timer.set_lvt(lvt);
        timer.set_divide(divide, GuestTime(0));
        timer
    }

    #[test]
    fn dividers_are_the_architecture_s() {
        let divides = [0, 1, 2, 3, 8, 9, 0xa, 0xb];
        let ticks = divides.map(|divide| timer(0, divide).tick_ns());
        assert_eq!(ticks, [2, 4, 8, 16, 32, 64, 128, 1]);
    }

    #[test]
    fn one_shot_fires_once_and_stays_at_zero() {
        let mut timer = timer(0x40, 3);
        timer.set_initial(10, GuestTime(1000));
        assert_eq!(timer.current(GuestTime(1000)), 10);
        assert_eq!(timer.current(GuestTime(1016)), 9);
        assert_eq!(timer.next_deadline(), Some(GuestTime(1160)));
        assert_eq!(timer.advance(GuestTime(1159)), None);
        assert_eq!(timer.current(GuestTime(5000)), 0);
        assert_eq!(timer.advance(GuestTime(1160)), Some(0x40));
        assert_eq!(timer.advance(GuestTime(9999)), None);
        assert_eq!(timer.next_deadline(), None);
        // An expired count does not start again with the mode.
        timer.set_lvt(PERIODIC | 0x40);
        assert_eq!(timer.current(GuestTime(9999)), 0);
    }

    #[test]
    fn periodic_keeps_its_phase_and_coalesces() {
        let mut timer = timer(PERIODIC | 0x40, BY_1);
        timer.set_initial(100, GuestTime(7));
        assert_eq!(timer.current(GuestTime(108)), 99);
        assert_eq!(timer.advance(GuestTime(750)), Some(0x40));
        assert_eq!(timer.advance(GuestTime(750)), None);
        assert_eq!(timer.next_deadline(), Some(GuestTime(807)));
        assert_eq!(timer.current(GuestTime(807)), 100);
        // To one-shot in the middle: this count is the last.
        timer.set_lvt(0x40);
        assert_eq!(timer.current(GuestTime(757)), 50);
        assert_eq!(timer.advance(GuestTime(807)), Some(0x40));
        assert_eq!(timer.next_deadline(), None);
    }

    #[test]
    fn a_masked_timer_counts_without_a_deadline() {
        let mut timer = timer(PERIODIC | MASKED | 0x40, BY_1);
        timer.set_initial(100, GuestTime(0));
        assert_eq!(timer.next_deadline(), None);
        assert_eq!(timer.current(GuestTime(1030)), 70);
        assert_eq!(timer.advance(GuestTime(1030)), None);
        timer.set_lvt(PERIODIC | 0x40);
        assert_eq!(timer.next_deadline(), Some(GuestTime(1100)));
    }

    #[test]
    fn a_new_divider_goes_on_from_the_count() {
        let mut timer = timer(0x40, BY_1);
        timer.set_initial(100, GuestTime(0));
        timer.set_divide(3, GuestTime(60));
        assert_eq!(timer.current(GuestTime(60)), 40);
        assert_eq!(timer.next_deadline(), Some(GuestTime(60 + 640)));
    }

    #[test]
    fn zero_and_tsc_deadline_stop_it() {
        let mut timer = timer(PERIODIC | 0x40, BY_1);
        timer.set_initial(100, GuestTime(0));
        timer.set_initial(0, GuestTime(10));
        assert_eq!(timer.next_deadline(), None);
        timer.set_initial(100, GuestTime(0));
        timer.set_lvt(DEADLINE | 0x40);
        timer.set_initial(100, GuestTime(0));
        assert_eq!((timer.initial(), timer.next_deadline()), (0, None));
        assert_eq!(timer.current(GuestTime(5)), 0);
    }

    #[test]
    fn the_end_of_time_is_harmless() {
        let end = GuestTime(u64::MAX);
        let mut timer = timer(PERIODIC | 0x40, 0xa);
        timer.set_initial(u32::MAX, end);
        assert_eq!(timer.next_deadline(), None);
        timer.deadline_ns = Some(0);
        assert_eq!(timer.advance(end), Some(0x40));
        assert_eq!((timer.advance(end), timer.current(end)), (None, 0));
    }

    proptest! {
        /// Against a counter that moves one nanosecond at a time.
        #[test]
        fn it_counts_as_a_counter_does(
            initial in 1u32..40, divide in prop::sample::select(vec![0u32, 1, 0xb]),
            is_periodic: bool, steps in prop::collection::vec(1u64..90, 1..20),
        ) {
            let lvt = 0x40 | if is_periodic { PERIODIC } else { 0 };
            let mut timer = timer(lvt, divide);
            timer.set_initial(initial, GuestTime(0));
            let tick = timer.tick_ns();
            let (mut count, mut phase, mut now) = (initial, 0, 0);
            for step in steps {
                let mut has_fired = false;
                for _ in 0..step {
                    phase += 1;
                    if phase == tick && count > 0 {
                        phase = 0;
                        count -= 1;
                        if count == 0 {
                            has_fired = true;
                            count = if is_periodic { initial } else { 0 };
                        }
                    }
                }
                now += step;
                prop_assert_eq!(timer.current(GuestTime(now)), count);
                prop_assert_eq!(timer.advance(GuestTime(now)).is_some(), has_fired);
                prop_assert_eq!(timer.current(GuestTime(now)), count);
            }
        }
    }
}
