//! The thread that serves the devices of a PC: what they wait for becomes commits.

use std::time::Instant;

use samsara_commitlog::{DeviceIndex, GuestTime, Input};
use samsara_machine::Machine;
use samsara_machine::pc::Want;

use super::committer::Shared;
use crate::EngineError;
use crate::outside::{CLOCK_PAUSE, answer, next_want};

enum Next {
    /// A timer is due.
    Clock,
    Serve(Want),
    Leave,
}

/// Serves the devices until the machine ends or the recorder stops.
pub(super) fn run(shared: &Shared) -> Result<(), EngineError> {
    let (mut last_clock, mut last_served) = (None, None);
    loop {
        let input = match next(shared, last_clock, last_served) {
            Next::Leave => return Ok(()),
            Next::Clock => {
                last_clock = Some(Instant::now());
                Input::Clock
            }
            Next::Serve(want) => {
                last_served = Some(want.device);
                answer(shared.outside.as_ref(), want)
            }
        };
        shared.outside.wait_for_room();
        let _floor = shared.floor();
        shared.commit_input(|machine| is_still_wanted(shared, machine, &input).then_some(input))?;
    }
}

fn next(shared: &Shared, last_clock: Option<Instant>, last_served: Option<DeviceIndex>) -> Next {
    let mut machine = shared.machine();
    loop {
        if shared.is_over(&machine) {
            return Next::Leave;
        }
        if let Some(want) = next_want(&machine, last_served) {
            return Next::Serve(want);
        }
        let mut deadline = machine.devices().next_deadline();
        let rest = last_clock.map(|last| CLOCK_PAUSE.saturating_sub(last.elapsed()));
        if let (Some(deadline), Some(rest)) = (&mut deadline, rest) {
            let earliest = shared.now(&machine).0 + rest.as_nanos() as u64;
            deadline.0 = deadline.0.max(earliest);
        }
        if is_due(shared, &machine, deadline) {
            return Next::Clock;
        }
        machine = shared.wait(machine, deadline);
    }
}

fn is_due(shared: &Shared, machine: &Machine, deadline: Option<GuestTime>) -> bool {
    deadline.is_some_and(|deadline| deadline <= shared.now(machine))
}

/// A commit that came first may have moved the clock, or have reset the device.
fn is_still_wanted(shared: &Shared, machine: &Machine, input: &Input) -> bool {
    match input {
        Input::Clock => is_due(shared, machine, machine.devices().next_deadline()),
        Input::Device { device, .. } => machine.wants().any(|want| want.device == *device),
        _ => true,
    }
}
