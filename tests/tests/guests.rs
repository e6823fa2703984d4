//! Every guest program says the same in native, recorded and protected runs, with 2 vCPUs.
//!
//! With `SAMSARA_TESTS=full`, with 1, 2 and 4 vCPUs, and the litmus tests run 100,000 times each instead of 2000.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends at the first error")]

use std::time::Duration;

use samsara_testing::by_effort;
use samsara_tests::seed::Seeded;
use samsara_tests::{Guest, Pair, Site, kvm_or_skip, numbered_lines, run_to_end, tree};

const BOUND: Duration = Duration::from_mins(3);
const INPUT_BYTES: usize = (3 << 20) + 12_345;

/// Counts of vCPUs that everything is run with.
fn vcpus() -> &'static [u32] {
    by_effort(&[2], &[1, 2, 4])
}

/// What a run said, and its exit status.
type Answer = (String, u8);

fn alone(site: &Site, guest: &Guest, mode: &str) -> Answer {
    let mut settings = guest.settings();
    settings.push(format!("recording.mode={mode}"));
    let seat = site.seat("solo").unwrap();
    let mut host = run_to_end(site.binaries(), &seat, &settings, BOUND).unwrap();
    let status = host.wait_code(BOUND).unwrap();
    let report = host.report().unwrap();
    assert_eq!(
        report.commits > 0,
        mode == "on",
        "commits of a run with recording {mode}"
    );
    (String::from_utf8(host.output().bytes()).unwrap(), status)
}

fn protected(site: &Site, guest: &Guest) -> Answer {
    site.clear_arbiter().unwrap();
    let mut pair = Pair::start(site, guest, &[]).unwrap();
    let status = pair.primary.wait_code(BOUND).unwrap();
    assert_eq!(
        pair.backup.wait_code(BOUND).unwrap(),
        status,
        "the backup's exit status"
    );
    assert_eq!(
        pair.backup.output().count(),
        0,
        "the backup released output"
    );
    let (report, followed) = (
        pair.primary.report().unwrap(),
        pair.backup.report().unwrap(),
    );
    assert_eq!(
        (report.divergences, followed.divergences),
        (0, 0),
        "divergences"
    );
    assert!(report.digest.is_some(), "no digest of the machine");
    assert_eq!(
        followed.digest, report.digest,
        "the two machines differ at the end"
    );
    (
        String::from_utf8(pair.primary.output().bytes()).unwrap(),
        status,
    )
}

/// Runs a program in all ways; gives its answer for each count of vCPUs.
fn same(site: &Site, vcpus: &[u32], make: impl Fn() -> Guest) -> Vec<String> {
    let answer = |count: &u32| {
        let guest = make().vcpus(*count);
        let native = alone(site, &guest, "off");
        assert!(!native.0.is_empty() || native.1 != 0, "it said nothing");
        assert_eq!(
            alone(site, &guest, "on"),
            native,
            "recorded, {count} vCPUs: another answer than native"
        );
        assert_eq!(
            protected(site, &guest),
            native,
            "protected, {count} vCPUs: another answer than native"
        );
        native.0
    };
    vcpus.iter().map(answer).collect()
}

/// The answers of a program with these parameters.
fn answers(name: &str, params: &str) -> Vec<String> {
    let site = Site::new().unwrap();
    same(&site, vcpus(), || Guest::new(&site, name, params).unwrap())
}

/// The same answer, however many vCPUs.
fn one_answer(name: &str, params: &str) -> String {
    let mut answers = answers(name, params);
    answers.dedup();
    assert_eq!(answers.len(), 1, "{name} {params}: {answers:?}");
    answers.remove(0)
}

fn random_bytes(count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    Seeded::new(count as u64).fill(&mut bytes);
    bytes
}

#[test]
fn hello() {
    let Some(_machine) = kvm_or_skip("hello") else {
        return;
    };
    let greeting = |vcpu: u32| format!("hello from vcpu {vcpu}\n");
    let greetings = |count| (0..count).map(greeting).collect::<Vec<_>>().concat();
    let expected: Vec<String> = vcpus().iter().map(|count| greetings(*count)).collect();
    assert_eq!(answers("hello", ""), expected);
    assert_eq!(answers("hello", "via=register"), expected);
}

#[test]
fn counter() {
    let Some(_machine) = kvm_or_skip("counter") else {
        return;
    };
    for mode in ["atomic", "lock", "ticket"] {
        let answer = one_answer("counter", &format!("n=20000 mode={mode}"));
        assert_eq!(answer, "counter 20000\n", "{mode}");
    }
}

#[test]
fn sha256tree() {
    let Some(_machine) = kvm_or_skip("sha256tree") else {
        return;
    };
    let site = Site::new().unwrap();
    let input = site.write("input", &random_bytes(INPUT_BYTES)).unwrap();
    let expected = tree::guest_output(&tree::root_line(&input).unwrap());
    let make = || {
        Guest::new(&site, "sha256tree", "claim=2")
            .unwrap()
            .input(&input)
            .memory("64MiB")
    };
    assert_eq!(
        same(&site, vcpus(), make),
        vec![expected.clone(); vcpus().len()]
    );
    // Memory on both sides of the gap below 4 GiB.
    assert_eq!(same(&site, &[2], || make().memory("5GiB")), [expected]);
}

#[test]
fn radix() {
    let Some(_machine) = kvm_or_skip("radix") else {
        return;
    };
    one_answer("radix", "n=50000");
}

#[test]
fn fft() {
    let Some(_machine) = kvm_or_skip("fft") else {
        return;
    };
    one_answer("fft", "log2=12 passes=1");
}

#[test]
fn lu() {
    let Some(_machine) = kvm_or_skip("lu") else {
        return;
    };
    one_answer("lu", "n=128");
}

/// Programs of the benchmarks: each kind of sharing, and none; every second one in an ordinary run.
#[test]
fn suite() {
    let Some(_machine) = kvm_or_skip("suite") else {
        return;
    };
    let programs = [
        ("blackscholes", "n=5000 passes=3"),
        ("compute", "n=3000000"),
        ("hashtable", "n=20000"),
        ("kmeans", "n=5000 rounds=4"),
        ("nbody", "n=256 steps=3"),
        ("ocean", "n=126 sweeps=40"),
        ("stream", "n=300000 passes=2"),
        ("workqueue", "n=500"),
    ];
    for (name, params) in programs.into_iter().step_by(by_effort(2, 1)) {
        one_answer(name, params);
    }
}

#[test]
fn private() {
    let Some(_machine) = kvm_or_skip("private") else {
        return;
    };
    answers("private", "n=1000000");
}

#[test]
fn registers_and_clock() {
    let Some(_machine) = kvm_or_skip("registers_and_clock") else {
        return;
    };
    one_answer("registers", "n=200 loops=2000");
    assert_eq!(one_answer("clock", "n=300"), "clock and random ok 300\n");
}

#[test]
fn litmus() {
    let Some(_machine) = kvm_or_skip("litmus") else {
        return;
    };
    let iterations = by_effort(2000, 100_000);
    for answer in answers("litmus", &format!("iters={iterations}")) {
        assert!(!answer.contains("FORBIDDEN"), "{answer}");
    }
}

#[test]
fn lines_and_bytes() {
    let Some(_machine) = kvm_or_skip("lines_and_bytes") else {
        return;
    };
    let lines = one_answer("outputs", "n=300 run=10");
    assert_eq!(lines.as_bytes(), numbered_lines(300));
    let site = Site::new().unwrap();
    let text = "a line of the input\n".repeat(20_000);
    let input = site.write("input", text.as_bytes()).unwrap();
    let make = || {
        Guest::new(&site, "echo", "piece=30000")
            .unwrap()
            .input(&input)
    };
    assert_eq!(same(&site, vcpus(), make), vec![text; vcpus().len()]);
}

#[test]
fn status() {
    let Some(_machine) = kvm_or_skip("status") else {
        return;
    };
    assert_eq!(answers("status", "status=3"), vec![""; vcpus().len()]);
}
