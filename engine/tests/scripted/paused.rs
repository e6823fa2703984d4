//! Looks at a machine that stands still for long.

use std::sync::mpsc;
use std::time::Duration;

use samsara_machine::Platform;
use samsara_machine::kvm::RawExit;

use crate::cpu::{Memory, Script};
use crate::pc::Setup;

/// How long a look may take; it takes no time.
const BOUND: Duration = Duration::from_secs(5);

fn busy(step: u64, memory: &mut Memory) -> Option<RawExit> {
    memory.store(0x10_0000, step);
    None
}

/// A machine stands still while it is sent to a backup, for as long as the network takes. Whoever watches over that,
/// or says how the machine is, must not stand still with it.
#[test]
fn who_looks_does_not_wait_for_a_machine_that_is_being_sent() {
    let recording = Setup::new(&[busy as Script]).start();
    let recorder = &recording.recorder;
    let began = recording.wait_until(BOUND, |recording| recording.recorder.shown().0.0 > 0);
    assert!(began);
    let (tell, told) = mpsc::channel();
    let seen = std::thread::scope(|scope| {
        recorder.paused(|machine| {
            scope.spawn(|| tell.send((recorder.shape(), recorder.platform(), recorder.shown())));
            let expected = (machine.shape(), Platform::Pc, (machine.guest_time(), 0));
            told.recv_timeout(BOUND).map(|seen| seen == expected)
        })
    });
    recorder.stop();
    assert_eq!(seen, Ok(true));
}
