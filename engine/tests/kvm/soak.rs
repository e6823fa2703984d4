//! The guests that share most, for minutes, with squashes of chunks that need none.

use std::fs;
use std::time::{Duration, Instant};

use samsara_engine::{Faults, Settings};
use samsara_testing::number_from_env;

use crate::world::{Guest, host, recorded, settings};

/// Longer than any of these takes.
const PATIENCE: Duration = Duration::from_mins(2);
/// What the memory of a process moves by without growing.
const SLACK_KIB: u64 = 32 << 10;

fn guests(vcpus: u8) -> Vec<Guest> {
    let guest = |name, params| Guest::new(name, params, vcpus);
    let large = |name, params| Guest::large(name, params, vcpus);
    vec![
        guest("counter", "n=100000 mode=lock"),
        guest("counter", "n=1000 mode=ticket"),
        guest("counter", "n=1000000 mode=atomic"),
        large("litmus", "test=peterson iters=3000"),
        large("litmus", "test=dekker iters=3000"),
        large("litmus", "test=pingpong iters=3000"),
        large("hashtable", "n=20000"),
        guest("workqueue", "n=1000"),
        large("radix", "n=50000"),
    ]
}

/// Resident memory of this process, KiB.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let mut words = line.unwrap().split_whitespace();
    words.find_map(|word| word.parse().ok()).unwrap()
}

/// Every so many-th chunk is squashed without need, each time another share of them; every commit's digest is followed.
#[test]
#[ignore = "it takes ten minutes: SAMSARA_MINUTES=10 cargo test --release -p samsara-engine --test kvm soak -- --ignored --nocapture"]
fn squashes_without_need_for_minutes() {
    let Some(host) = host() else { return };
    let minutes = number_from_env("SAMSARA_MINUTES").unwrap_or(10);
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let mut memory = Vec::new();
    let (mut rounds, mut commits, mut squashes) = (0, 0, 0);
    while Instant::now() < end {
        for guest in guests([2, 4][rounds % 2]) {
            let faults = Faults {
                squash_every: [2, 3, 5, 11][rounds % 4],
                ..Faults::default()
            };
            let settings = Settings {
                digest_every: 16,
                ..settings(faults)
            };
            let (answer, stats) = recorded(&host, &guest, settings, PATIENCE)
                .unwrap_or_else(|error| panic!("round {rounds}, {guest:?}: {error}"));
            assert!(answer.is_right(), "round {rounds}, {guest:?}: {answer:?}");
            commits += stats.commits;
            squashes += stats.squashes;
        }
        rounds += 1;
        memory.push(resident_kib());
        println!(
            "{rounds} rounds, {commits} commits, {squashes} squashes, {} KiB resident",
            memory[memory.len() - 1]
        );
    }
    // The first rounds fill caches of the allocator.
    if let [_, _, first, .., last] = memory[..] {
        assert!(last < first + SLACK_KIB, "memory grows: {memory:?}");
    }
}
