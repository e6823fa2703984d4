//! A machine whose recorder is gone is carried on from the consumer's copy.

use samsara_engine::Faults;
use samsara_machine::kvm::Privilege;

use crate::world::{Guest, PATIENCE, Recorded, host, native, settings};

fn carries_on(guest: &Guest, frames: &[usize]) {
    let Some(host) = host() else { return };
    let expected = native(&host, guest).unwrap();
    for &count in frames {
        let machine = guest.machine(&host);
        let first = Recorded::start(&host, guest, machine, settings(Faults::default())).unwrap();
        first.world.wait_for_frames(count).unwrap();
        let (before, consumer, _) = first.stop().unwrap();
        let machine = consumer.into_machine().unwrap();
        if machine.ended().is_some() {
            println!("{} had ended after {count} frames", guest.name);
            assert_eq!(before, expected);
            continue;
        }
        assert_eq!(machine.privilege().unwrap(), Privilege::User);
        let second = Recorded::start(&host, guest, machine, settings(Faults::default())).unwrap();
        second.world.wait_for_end(PATIENCE).unwrap();
        let (after, ..) = second.stop().unwrap();
        assert_eq!(before.then(after), expected, "cut after {count} frames");
    }
}

#[test]
fn a_counter_is_carried_on() {
    carries_on(&Guest::new("counter", "n=60000 mode=lock", 2), &[1, 5, 30]);
}

#[test]
fn registers_are_carried_on() {
    carries_on(&Guest::new("registers", "n=40 loops=5000", 2), &[3, 25, 60]);
}

#[test]
fn outputs_are_carried_on_without_gap_or_repetition() {
    carries_on(&Guest::new("outputs", "n=60", 2), &[10, 50, 120]);
}

#[test]
fn dma_is_carried_on() {
    let input = (0..3_000_000u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let guest = Guest {
        input,
        ..Guest::new("echo", "piece=500000", 2)
    };
    carries_on(&guest, &[2, 4, 9]);
}
