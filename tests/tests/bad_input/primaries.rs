//! Two primaries, and records of hosts that are gone.

use std::fs;
use std::path::Path;

use samsara_tests::{Guest, Host, Pair, Seat, Site, kvm_or_skip};
use samsarad::exit::ExitCode::Refused;

use crate::ran::{BOUND, Ran};

fn settings(site: &Site, own: &Seat, peer: &Seat, arbiter: &Path) -> Vec<String> {
    let mut settings = Guest::new(site, "outputs", "n=300 delay=200000")
        .expect("guest")
        .settings();
    settings.extend(own.settings(peer));
    settings.push("failover.arbiter=file".to_owned());
    settings.push(format!("failover.arbiter_dir={}", arbiter.display()));
    settings
}

fn primary(site: &Site, own: &Seat, peer: &Seat, arbiter: &Path) -> Host {
    Host::spawn(
        site.binaries(),
        own,
        "primary",
        &settings(site, own, peer, arbiter),
    )
    .expect("start")
}

#[test]
fn a_second_primary_is_refused_by_the_arbiter() {
    let Some(_machine) = kvm_or_skip("two primaries, arbiter") else {
        return;
    };
    let site = Site::new().expect("site");
    let (alpha, beta) = site.seats().expect("seats");
    let mut first = primary(&site, &alpha, &beta, &site.arbiter());
    first
        .wait_status("a term", BOUND, |status| status.term == 1)
        .expect("a term");
    let mut second = primary(&site, &beta, &alpha, &site.arbiter());
    Ran::of(&mut second).failed(Refused, &["alpha", "term 1", "--role backup"]);
    assert!(second.output().bytes().is_empty());
    assert!(!first.has_ended().expect("asked"), "the first goes on");
}

/// Arbiters that know nothing of each other are a mistake of the operator; the hosts still talk.
#[test]
fn a_second_primary_is_refused_by_the_first() {
    let Some(_machine) = kvm_or_skip("two primaries, peers") else {
        return;
    };
    let site = Site::new().expect("site");
    let (alpha, beta) = site.seats().expect("seats");
    let mut first = primary(&site, &alpha, &beta, &site.arbiter());
    first
        .wait_status("a term", BOUND, |status| status.term == 1)
        .expect("a term");
    let other = site.path("other-arbiter");
    fs::create_dir(&other).expect("directory");
    let mut second = primary(&site, &beta, &alpha, &other);
    Ran::of(&mut second).failed(Refused, &["two primaries", "alpha", "--role backup"]);
    assert!(second.output().bytes().is_empty());
    assert!(!first.has_ended().expect("asked"), "the first goes on");
}

/// The other host ran the guest and is gone: its guest is not started anew behind its back, and what this host's
/// console file has is left.
#[test]
fn a_record_of_a_host_that_is_gone() {
    let Some(_machine) = kvm_or_skip("stale record") else {
        return;
    };
    let site = Site::new().expect("site");
    let guest = Guest::new(&site, "outputs", "n=300 delay=200000").expect("guest");
    let mut pair = Pair::start(&site, &guest, &[]).expect("pair");
    let some = |output: &[u8]| (output.len() > 200).then_some(());
    pair.primary
        .wait_output("some output", BOUND, some)
        .expect("output");
    pair.backup.kill().expect("killed");
    pair.primary
        .wait_status("going on alone", BOUND, |status| status.term == 2)
        .expect("alone");
    pair.primary.kill().expect("killed");

    let (alpha, beta) = (pair.primary.seat().clone(), pair.backup.seat().clone());
    let console = site
        .write("console", b"of an earlier run\n")
        .expect("written");
    let mut settings = settings(&site, &beta, &alpha, &site.arbiter());
    settings.push(format!("vm.console={}", console.display()));
    let mut host = Host::spawn(site.binaries(), &beta, "primary", &settings).expect("start");
    Ran::of(&mut host).failed(
        Refused,
        &["alpha holds term 2 (running)", "clear the arbiter's record"],
    );
    assert_eq!(fs::read(&console).expect("console"), b"of an earlier run\n");
}

/// As a service manager does it that starts the failed primary again in its old role.
#[test]
fn the_old_primary_comes_back_as_primary() {
    let Some(_machine) = kvm_or_skip("old primary") else {
        return;
    };
    let site = Site::new().expect("site");
    let guest = Guest::new(&site, "outputs", "n=400 delay=100000").expect("guest");
    let mut pair = Pair::start(&site, &guest, &[]).expect("pair");
    let some = |output: &[u8]| (output.len() > 200).then_some(());
    pair.primary
        .wait_output("some output", BOUND, some)
        .expect("output");
    pair.kill_primary().expect("killed");
    pair.backup
        .wait_status("term 2", BOUND, |status| status.term == 2)
        .expect("taken over");
    let (alpha, beta) = (pair.primary.seat().clone(), pair.backup.seat().clone());
    let mut again = pair
        .restart_as_primary(&site, &alpha, &beta)
        .expect("start");
    Ran::of(&mut again).failed(Refused, &["beta", "term 2", "--role backup"]);
    assert!(again.output().bytes().is_empty());
    assert_eq!(pair.backup.wait_code(BOUND).expect("its end"), 0);
}
