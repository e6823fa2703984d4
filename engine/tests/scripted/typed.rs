//! Threads that are not the recorder's.

use std::time::Duration;

use samsara_machine::kvm::RawExit;

use crate::cpu::{Memory, Script};
use crate::pc::Setup;

/// How long it may take to be told; it is told at once.
const BOUND: Duration = Duration::from_secs(10);

fn busy(step: u64, memory: &mut Memory) -> Option<RawExit> {
    memory.store(0x10_0000, step);
    None
}

/// Nothing commits any more after a panic under the commit lock, and the threads of the recorder end well: without
/// a word to the outside, the machine would only seem to run.
#[test]
fn a_panic_on_a_thread_from_outside_is_told() {
    let recording = Setup::new(&[busy as Script]).start();
    recording.world.refuse_console();
    let typed = std::thread::scope(|scope| {
        let typed = scope.spawn(|| recording.recorder.console_input(b"x"));
        typed.join()
    });
    assert!(typed.is_err());
    let is_told = recording.wait_until(BOUND, |recording| recording.world.failure().is_some());
    recording.recorder.stop();
    assert!(is_told, "the outside does not hear of it");
}
