//! Timers that a guest sets to fire faster than anybody can follow.

use std::time::{Duration, Instant};

use samsara_engine::Isolation;
use samsara_machine::kvm::RawExit;
use samsara_machine::pc::apic::registers::{DIVIDE, INITIAL_COUNT, LVT_TIMER, SVR};

use crate::cpu::{Memory, Script, write_apic};
use crate::pc::Setup;

/// How long each PC runs.
const RUN: Duration = Duration::from_millis(300);
/// One in 100 us, and some more.
const CLOCK_COMMITS_PER_SECOND_MAX: f64 = 12_000.0;

/// Sets its APIC's timer to fire every nanosecond, and computes.
fn ticking(step: u64, memory: &mut Memory) -> Option<RawExit> {
    match step {
        0 => Some(write_apic(SVR, 0x1ff)),
        // Not divided.
        1 => Some(write_apic(DIVIDE, 0xb)),
        // Periodic, vector 0x40.
        2 => Some(write_apic(LVT_TIMER, 0x2_0040)),
        3 => Some(write_apic(INITIAL_COUNT, 1)),
        _ => {
            memory.store(0x10_0000, step);
            None
        }
    }
}

#[test]
fn a_fast_timer_does_not_set_the_rate_of_commits() {
    for isolation in [Isolation::Parallel, Isolation::Serial] {
        let scripts = [ticking as Script];
        let began = Instant::now();
        let recording = Setup::new(&scripts).with_isolation(isolation).start();
        std::thread::sleep(RUN);
        recording.recorder.stop();
        let rate = recording.world.clock_commits() as f64 / began.elapsed().as_secs_f64();
        let steps = recording.step_of(0);
        let world = &recording.world;
        assert_eq!(world.failure(), None, "{isolation:?}");
        assert!(
            steps > 4 && rate > 0.0,
            "{isolation:?}: the timer runs, at step {steps}"
        );
        assert!(
            rate <= CLOCK_COMMITS_PER_SECOND_MAX,
            "{isolation:?}: {rate:.0} commits by the clock in a second"
        );
    }
}
