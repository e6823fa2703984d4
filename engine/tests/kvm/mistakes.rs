//! Real guests notice what the recorder does wrong. This is what the litmus tests are for.

use std::time::{Duration, Instant};

use samsara_engine::{Faults, Mistake};
use samsara_testing::by_effort;

use crate::world::{Answer, Guest, PATIENCE, host, recorded, settings};

const TRIES: usize = 8;
/// How long a forbidden outcome is looked for. It needs both vCPUs to run at once, which is rare on a busy machine.
const SEARCH: Duration = Duration::from_secs(30);

/// The longest that a guest with a mistake is waited for.
const IMPATIENCE: Duration = Duration::from_secs(4);

/// A guest whose locks no longer work may also never end. It is not waited for much longer than it takes without the
/// mistake.
fn impatience(sound: Duration) -> Duration {
    (Duration::from_millis(300) + 2 * sound).min(IMPATIENCE)
}

fn litmus() -> Guest {
    let iters = by_effort(1000, 3000);
    let params = format!("test=all iters={iters} batch=512 cut=64");
    Guest {
        memory_mib: 64,
        ..Guest::new("litmus", &params, 2)
    }
}

fn counter() -> Guest {
    Guest::new("counter", "n=20000 mode=lock", 2)
}

/// The guest is right without the mistake and wrong, or lost, with it.
fn is_noticed(guest: &Guest, mistake: Mistake, squash_every: u64) {
    let Some(host) = host() else { return };
    let sound = Faults {
        mistake: None,
        unchecked: true,
        squash_every,
        ..Faults::default()
    };
    let started = Instant::now();
    let (answer, _) = recorded(&host, guest, settings(sound), PATIENCE).unwrap();
    let impatience = impatience(started.elapsed());
    assert!(answer.is_right(), "without a mistake: {answer:?}");
    let broken = Faults {
        mistake: Some(mistake),
        ..sound
    };
    for _ in 0..TRIES {
        match recorded(&host, guest, settings(broken), impatience) {
            Ok((answer, _)) if answer.is_right() => {}
            Ok((answer, _)) => return println!("{mistake:?}: {answer:?}"),
            Err(error) => return println!("{mistake:?}: {error}"),
        }
    }
    panic!("{mistake:?} goes unnoticed by {}", guest.name);
}

/// Not just an error somewhere: store buffering shows the outcome that x86 forbids.
#[test]
fn litmus_notices_lost_residency() {
    let Some(host) = host() else { return };
    // Without yields in a sweep, both vCPUs run side by side through it.
    let params = "test=sb layout=apart iters=60000 batch=4096 cut=0";
    let guest = Guest {
        memory_mib: 64,
        ..Guest::new("litmus", params, 2)
    };
    let run = |mistake, patience| {
        let faults = Faults {
            mistake,
            side_by_side: true,
            ..Faults::default()
        };
        recorded(&host, &guest, settings(faults), patience).map(|(answer, _)| answer)
    };
    let sound = run(None, PATIENCE).unwrap();
    assert!(sound.is_right(), "without a mistake: {sound:?}");
    let shows = |answer: &Answer| String::from_utf8_lossy(&answer.console).contains("FORBIDDEN");
    let lost = || run(Some(Mistake::IgnoreResidency), PATIENCE).ok();
    let started = Instant::now();
    let tries = std::iter::repeat_with(lost).take_while(|_| started.elapsed() < SEARCH);
    let found = tries.flatten().find(shows);
    println!(
        "{:?}",
        found.expect("no forbidden outcome without residency")
    );
}

#[test]
fn litmus_notices_lost_held_pages() {
    is_noticed(&litmus(), Mistake::IgnoreHeld, 0);
}

#[test]
fn litmus_notices_a_forgotten_written_page() {
    is_noticed(&litmus(), Mistake::ForgetWritten, 0);
}

#[test]
fn counter_notices_a_forgotten_written_page() {
    is_noticed(&counter(), Mistake::ForgetWritten, 0);
}

#[test]
fn counter_notices_stale_pages_at_a_start() {
    is_noticed(&counter(), Mistake::SkipSettle, 0);
}

#[test]
fn counter_notices_memory_that_a_squash_leaves() {
    is_noticed(&counter(), Mistake::SkipRestoreMemory, 3);
}

#[test]
fn registers_notice_a_squash_that_leaves_them() {
    let guest = Guest::new("registers", "n=60 loops=5000", 2);
    is_noticed(&guest, Mistake::SkipRestoreState, 3);
}
