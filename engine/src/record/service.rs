//! The thread that serves the devices of a PC: what they wait for becomes commits.

use samsara_commitlog::{GuestTime, Input};
use samsara_machine::Machine;
use samsara_machine::pc::Want;

use super::committer::Shared;
use crate::EngineError;
use crate::outside::answer;

enum Next {
    /// A timer is due.
    Clock,
    Serve(Want),
    Leave,
}

/// Serves the devices until the machine ends or the recorder stops.
pub(super) fn run(shared: &Shared) -> Result<(), EngineError> {
    loop {
        let input = match next(shared) {
            Next::Leave => return Ok(()),
            Next::Clock => Input::Clock,
            Next::Serve(want) => answer(shared.outside.as_ref(), want),
        };
        shared.outside.wait_for_room();
        let _floor = shared.floor();
        shared.commit_input(|machine| is_still_wanted(shared, machine, &input).then_some(input))?;
    }
}

fn next(shared: &Shared) -> Next {
    let mut machine = shared.machine();
    loop {
        if shared.is_over(&machine) {
            return Next::Leave;
        }
        if let Some(want) = machine.wants() {
            return Next::Serve(want);
        }
        let deadline = machine.devices().next_deadline();
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
        Input::Device { device, .. } => machine.wants().is_some_and(|want| want.device == *device),
        _ => true,
    }
}
