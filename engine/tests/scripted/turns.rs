//! Turns and halts.

use std::time::Duration;

use samsara_machine::kvm::RawExit;
use samsara_machine::pc::apic::registers::{EOI, ICR, ICR_HIGH, SVR};

use crate::cpu::{Memory, Script, write_apic};
use crate::pc::Setup;

/// Recorders to start: each is another chance for the halt to fall into a turn.
const ROUNDS: usize = 4;
/// Steps of the sleeper in a round: it halts at every 20th.
const STEPS: u64 = 400;
/// How long a round may take; it takes a fraction of a second.
const BOUND: Duration = Duration::from_secs(10);

/// Software-enables the APIC; spurious vector 0xff.
const APIC_ON: u64 = 0x1ff;
/// Destination: the vCPU with APIC ID 1.
const TO_SLEEPER: u64 = 1 << 24;
/// Command: a start-up IPI, at whatever address.
const START: u64 = 0x4600;
/// Command: a fixed interrupt.
const WAKE: u64 = 0x4040;

/// Stores to enough pages for a squash to cost something.
fn compute(memory: &mut Memory, base: u64, step: u64) {
    for page in 0..3 {
        memory.store(base + page * 4096, step);
    }
}

/// Starts the other vCPU, then computes and wakes it up, again and again.
fn waker(step: u64, memory: &mut Memory) -> Option<RawExit> {
    match step {
        0 => return Some(write_apic(SVR, APIC_ON)),
        1 => return Some(write_apic(ICR_HIGH, TO_SLEEPER)),
        2 => return Some(write_apic(ICR, START)),
        _ => compute(memory, 0x10_0000, step),
    }
    match step % 40 {
        20 => Some(write_apic(ICR_HIGH, TO_SLEEPER)),
        21 => Some(write_apic(ICR, WAKE)),
        _ => None,
    }
}

/// Works a little and halts.
fn sleeper(step: u64, memory: &mut Memory) -> Option<RawExit> {
    if step == 0 {
        return Some(write_apic(SVR, APIC_ON));
    }
    match step % 20 {
        18 => return Some(write_apic(EOI, 0)),
        _ => compute(memory, 0x20_0000, step),
    }
    (step % 20 == 19).then_some(RawExit::Halt)
}

/// One that halts in its turn waits for an interrupt that another sends perhaps in its own.
#[test]
fn a_vcpu_that_halts_gives_its_turn_up() {
    for round in 0..ROUNDS {
        let scripts = [waker as Script, sleeper];
        let recording = Setup::new(&scripts).with_squashes(2).start();
        let has_passed = recording.wait_until(BOUND, |recording| recording.step_of(1) >= STEPS);
        let steps = [0, 1].map(|vcpu| recording.step_of(vcpu));
        let failure = recording.world.failure();
        assert!(
            has_passed && failure.is_none(),
            "round {round}: stuck at steps {steps:?}, failure {failure:?}"
        );
    }
}
