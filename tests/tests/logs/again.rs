//! Logs whose chunks are run again: the states of the run, from orders alone.

use samsara_testing::by_effort;
use samsara_tests::{Guest, Site, kvm_shared_or_skip};
use samsarad::exit::ExitCode;

use crate::recorded::{Recorded, recorded};

/// Replays by running chunks again, with so many threads; how many there were, and how many came out differently.
fn run_again(run: &Recorded, threads: &str) -> (u64, u64) {
    let words = [
        "replay",
        run.log_name(),
        "--reexecute",
        "--threads",
        threads,
    ];
    let replayed = run.ctl(&words);
    assert_eq!(replayed.code, run.ran.code, "{}", replayed.stderr);
    assert!(replayed.stdout == run.ran.stdout, "another output");
    let outcome = run.json(&[&words[..], &["--json"]].concat());
    assert_eq!(
        outcome["digest"].as_str(),
        run.report.digest.as_deref(),
        "{threads} threads"
    );
    assert_eq!(outcome["seq"].as_u64(), run.report.digest_seq);
    assert!(outcome["digests_compared"].as_u64() >= Some(1));
    let divergences = outcome["divergences"].as_object().unwrap().values();
    let divergences = divergences.map(|count| count.as_u64().unwrap()).sum();
    (outcome["chunks_run"].as_u64().unwrap(), divergences)
}

/// Every chunk of a guest that was stepped can be run again; the log says nothing else of it.
#[test]
fn stepped_runs_are_replayed_from_orders_alone() {
    let Some(_machine) = kvm_shared_or_skip("stepped_runs_are_replayed_from_orders_alone") else {
        return;
    };
    let settings = [
        "recording.form=order",
        "recording.counter=single-step",
        "recording.digest_every=1",
    ];
    let small = [
        ("counter", "n=60 mode=lock"),
        ("status", "status=37"),
        ("hello", "via=byte"),
        ("outputs", "n=10"),
        ("litmus", "test=sb iters=2 batch=2"),
        ("clock", "n=6"),
    ];
    let cases = by_effort(&small[..2], &small[..]);
    for (name, params) in cases {
        let run = recorded(name, params, &settings);
        let refused = run.ctl(&["replay", run.log_name()]);
        assert_eq!(
            refused.code,
            Some(ExitCode::LogFile.code().into()),
            "{name}"
        );
        assert!(refused.stderr.contains("--reexecute"), "{}", refused.stderr);
        for threads in ["1", "2"] {
            let (chunks, divergences) = run_again(&run, threads);
            assert_eq!(
                (chunks, divergences),
                (run.report.chunks, 0),
                "{name} {params}"
            );
        }
        let stats = run.json(&["log", "stats", run.log_name(), "--json"]);
        let mean = stats["chunks"]["mean_order_log_bytes"].as_f64().unwrap();
        println!(
            "{name} {params}: {} orders, {mean:.1} bytes on average",
            run.report.chunks
        );
    }
}

/// A log of orders from four vCPUs leads to the same states with any number of threads, and an order takes twenty bytes or less.
#[test]
fn a_guest_that_yields_needs_no_counter() {
    let Some(_machine) = kvm_shared_or_skip("a_guest_that_yields_needs_no_counter") else {
        return;
    };
    let site = Site::new().unwrap();
    let n = by_effort(300, 3000);
    let guest = Guest::new(&site, "registers", &format!("n={n} loops=20000")).unwrap();
    let settings = ["recording.form=order", "recording.counter=exits"];
    let run = Recorded::new(site, &guest.vcpus(4), &settings);
    assert_eq!(run.ran.code, Some(0), "{}", run.ran.stderr);
    for threads in ["1", "2", "3", "4"] {
        let (chunks, divergences) = run_again(&run, threads);
        assert!(chunks >= 1000, "{chunks} chunks run again");
        assert_eq!(divergences, 0, "{threads} threads");
    }
    let stats = run.json(&["log", "stats", run.log_name(), "--json"]);
    let mean = stats["chunks"]["mean_order_log_bytes"].as_f64().unwrap();
    println!("{mean:.1} bytes an order");
    assert!(mean <= 20.0, "{mean} bytes an order");
}

/// A log that says what chunks changed can be run again, too: what comes out differently is taken from it.
#[test]
fn a_log_with_effects_is_run_again() {
    let Some(_machine) = kvm_shared_or_skip("a_log_with_effects_is_run_again") else {
        return;
    };
    let run = recorded("registers", "n=300 loops=20000", &[]);
    let (chunks, divergences) = run_again(&run, "2");
    assert!(chunks > 500, "{chunks} chunks run again");
    assert_eq!(divergences, 0);
    let run = recorded("tsc", "n=300 every=10", &[]);
    let (chunks, divergences) = run_again(&run, "2");
    assert!(divergences >= 30, "{divergences} of {chunks}");
}
