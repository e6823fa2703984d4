//! `samsaractl contention` and the report name the object and the code that a guest's vCPUs contend for.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends at the first error")]

use std::time::Duration;

use samsara_tests::{Guest, Host, Pair, Site, kvm_or_skip, wait};
use samsarad::contention::{Conflict, Contention, Winner};

const BOUND: Duration = Duration::from_mins(1);
/// So many squashes are not an accident.
const SQUASHES: u64 = 20;

fn asked(site: &Site, host: &Host, options: &[&str]) -> String {
    let socket = host.seat().socket().display().to_string();
    let words = ["contention", "--socket", &socket];
    site.ctl(&[&words, options].concat()).unwrap()
}

/// The worst conflict, once it is one.
fn worst(site: &Site, host: &Host) -> Contention {
    let look = || {
        let json = asked(site, host, &["--json"]);
        let found: Contention = serde_json::from_str(&json).unwrap();
        let worst = found.conflicts.first();
        let is_bad = worst.is_some_and(|worst| worst.squashes >= SQUASHES);
        Ok(is_bad.then_some(found))
    };
    wait::until("conflicts", BOUND, look, || asked(site, host, &[])).unwrap()
}

fn is_the_counter(conflict: &Conflict) -> bool {
    let functions = |places: &[samsarad::contention::Place]| {
        let mut places = places.iter();
        places.any(|place| {
            let function = place.function.as_deref().unwrap_or_default();
            function.starts_with("program_run") || function.starts_with("spin_")
        })
    };
    conflict.objects == ["shared"]
        && functions(&conflict.loser_at)
        && functions(&conflict.winner_at)
}

#[test]
fn a_contended_counter_is_named() {
    let Some(_machine) = kvm_or_skip("contention") else {
        return;
    };
    let site = Site::new().unwrap();
    let guest = Guest::new(&site, "counter", "n=1G mode=atomic").unwrap();
    let mut pair = Pair::start(&site, &guest, &[]).unwrap();
    pair.wait_protected().unwrap();
    let found = worst(&site, &pair.primary);
    let conflict = &found.conflicts[0];
    assert!(is_the_counter(conflict), "{conflict:?}");
    let other = Winner::Vcpu(1 - conflict.loser);
    assert_eq!(conflict.winner, other);
    assert!(
        found.lost_seconds > 0.0 && found.squashes >= conflict.squashes - conflict.squashes_over
    );
    let text = asked(&site, &pair.primary, &["--top", "1"]);
    assert!(
        text.contains("shared") && text.contains("counter.elf"),
        "{text}"
    );
    let backup = asked(&site, &pair.backup, &[]);
    assert!(backup.contains("ask its primary"), "{backup}");

    // The backup first: the primary would hand the guest over.
    for host in [&mut pair.backup, &mut pair.primary] {
        host.terminate().unwrap();
        host.wait(BOUND).unwrap();
    }
    let report = pair.primary.report().unwrap();
    assert!(
        is_the_counter(&report.conflicts[0]),
        "{:?}",
        report.conflicts
    );
    assert!(report.guest_seconds > 0.0 && report.faults_avoided > 0);
}

/// One vCPU at a time: nothing conflicts, and that is said.
#[test]
fn serial_isolation_says_that_nothing_conflicts() {
    let Some(_machine) = kvm_or_skip("contention, serial") else {
        return;
    };
    let site = Site::new().unwrap();
    let guest = Guest::new(&site, "counter", "n=1G mode=atomic").unwrap();
    let mut settings = guest.settings();
    settings.push("recording.isolation=serial".to_owned());
    let seat = site.seat("solo").unwrap();
    let mut host = Host::spawn(site.binaries(), &seat, "standalone", &settings).unwrap();
    let runs = |status: &samsara_tests::Status| status.counters.chunks() > 100;
    host.wait_status("chunks", BOUND, runs).unwrap();
    let text = asked(&site, &host, &[]);
    assert!(text.contains("serial isolation"), "{text}");
    host.terminate().unwrap();
    host.wait(BOUND).unwrap();
    assert_eq!(host.report().unwrap().conflicts, []);
}
