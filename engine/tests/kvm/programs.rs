//! Every guest program gives the same answer natively and recorded, and a consumer follows it.

use std::time::Duration;

use samsara_engine::Faults;
use samsara_machine::Ended;
use samsara_machine::kvm::Host;
use samsara_testing::by_effort;

use crate::world::{Answer, Guest, PATIENCE, host, native, recorded, settings};

fn input(bytes: usize) -> Vec<u8> {
    (0..bytes as u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

/// Small cases of all programs that end by themselves.
fn cases(vcpus: u8) -> Vec<Guest> {
    let guest = |name, params| Guest::new(name, params, vcpus);
    let large = |name, params| Guest::large(name, params, vcpus);
    vec![
        Guest {
            typed: b"one\ntwo\nq\n",
            ..guest("console", "")
        },
        large("blackscholes", "n=3000 passes=2"),
        guest("clock", "n=60"),
        guest("compute", "n=1000000"),
        guest("counter", "n=20000 mode=atomic"),
        guest("counter", "n=4000 mode=lock"),
        guest("counter", "n=200 mode=ticket"),
        Guest {
            input: input(100_000),
            ..guest("echo", "piece=30000")
        },
        large("fft", "log2=10 passes=1"),
        large("hashtable", "n=5000"),
        guest("hello", "via=dma"),
        guest("hello", "via=register"),
        guest("hello", "via=byte"),
        large("kmeans", "n=3000 rounds=3"),
        large("litmus", "iters=600 batch=600"),
        large("lu", "n=64"),
        large("nbody", "n=128 steps=2"),
        large("ocean", "n=62 sweeps=10"),
        guest("outputs", "n=40"),
        large("private", "n=100000"),
        large("radix", "n=10000"),
        guest("registers", "n=30 loops=2000"),
        Guest {
            input: input(700_000),
            ..large("sha256tree", "passes=1")
        },
        guest("status", "status=7"),
        large("stream", "n=100000 passes=2"),
        guest("workqueue", "n=200"),
    ]
}

pub(crate) fn same_answer(host: &Host, guest: &Guest, faults: Faults) -> Answer {
    let native = native(host, guest).unwrap_or_else(|error| panic!("{guest:?}: {error}"));
    let (recorded, _) = recorded(host, guest, settings(faults), PATIENCE)
        .unwrap_or_else(|error| panic!("{guest:?}: {error}"));
    assert_eq!(
        recorded, native,
        "{} {} on {} vCPUs",
        guest.name, guest.params, guest.vcpus
    );
    recorded
}

fn all_programs(vcpus: u8) {
    let Some(host) = host() else { return };
    // With more vCPUs than processors everything takes longer and little is new.
    let step = if vcpus > 2 { by_effort(3, 1) } else { 1 };
    for guest in cases(vcpus).into_iter().step_by(step) {
        let answer = same_answer(&host, &guest, Faults::default());
        let expected = if guest.name == "status" { 7 } else { 0 };
        let ended = Some(Ended::Exit { status: expected });
        assert_eq!(answer.ended, ended, "{guest:?}: {answer:?}");
    }
}

#[test]
fn all_programs_on_one_vcpu() {
    all_programs(1);
}

#[test]
fn all_programs_on_two_vcpus() {
    all_programs(2);
}

#[test]
fn all_programs_on_four_vcpus() {
    all_programs(4);
}

/// Invariant 8, at length.
#[test]
#[ignore = "takes minutes; run with --ignored"]
fn litmus_at_length() {
    let Some(host) = host() else { return };
    for vcpus in [2, 4] {
        let params = "test=all iters=100000";
        let guest = Guest {
            memory_mib: 64,
            ..Guest::new("litmus", params, vcpus)
        };
        let patience = Duration::from_mins(10);
        let (answer, stats) =
            recorded(&host, &guest, settings(Faults::default()), patience).unwrap();
        println!(
            "{vcpus} vCPUs: {} commits, {} squashes",
            stats.commits, stats.squashes
        );
        assert!(answer.is_right(), "{answer:?}");
    }
}

/// What stops a machine is the same text, natively, recorded, and after squashes.
#[test]
fn faults_of_the_guest_are_told_alike() {
    let Some(host) = host() else { return };
    let kinds = ["ud", "pf", "gp", "de", "hlt", "io"].map(|kind| ("fault", format!("kind={kind}")));
    let devices = [
        "size4",
        "size16",
        "misaligned",
        "across",
        "locked",
        "string",
        "outside",
    ];
    let devices = devices.map(|kind| ("baddev", format!("kind={kind}")));
    let dma = ["outside", "hole", "descriptor", "misaligned"];
    let dma = dma.map(|kind| ("baddma", format!("dir=output kind={kind}")));
    for (name, params) in kinds.into_iter().chain(devices).chain(dma) {
        let guest = Guest::new(name, &params, 2);
        let faults = Faults {
            squash_every: 2,
            ..Faults::default()
        };
        let answer = same_answer(&host, &guest, faults);
        match answer.ended {
            Some(Ended::Fault { message }) if message.starts_with("vCPU 0: ") => {}
            other => panic!("{guest:?}: {other:?}"),
        }
    }
}

/// Invariant 5: capture and restore are complete. The guest keeps patterns in every register while
/// chunks are squashed that need not be.
#[test]
fn squashes_restore_every_register() {
    let Some(host) = host() else { return };
    for squash_every in [2, 3] {
        let guest = Guest::new("registers", "n=60 loops=5000", 2);
        let faults = Faults {
            squash_every,
            ..Faults::default()
        };
        let (answer, stats) = recorded(&host, &guest, settings(faults), PATIENCE).unwrap();
        assert!(answer.is_right(), "{answer:?}");
        assert!(stats.squashes > 50, "{} squashes", stats.squashes);
    }
}
