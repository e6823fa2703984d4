//! What is left of a pair goes on, by the arbiter's grant and by nothing else.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends at the first error")]

use std::fs;
use std::time::{Duration, Instant};

use samsara_config::Role;
use samsara_tests::{
    Guest, Host, Joint, Pair, Site, kvm_shared_or_skip, numbered_lines, wait, wait_file,
};
use samsarad::exit::ExitCode;
use samsarad::status::GateMode;

const BOUND: Duration = Duration::from_mins(1);
/// How long nothing may leave while outputs are held: many times what a line takes.
const QUIET: Duration = Duration::from_millis(300);

fn outputs(site: &Site, count: u32) -> Guest {
    Guest::new(site, "outputs", &format!("n={count} run=20 delay=20000")).unwrap()
}

fn assert_whole(expected: &[u8], pieces: &[&[u8]]) {
    if let Joint::Broken { why } = Joint::of(expected, pieces) {
        panic!("{why}");
    }
}

fn wait_bytes(host: &Host, bytes: usize) {
    let enough = |output: &[u8]| (output.len() >= bytes).then_some(());
    host.wait_output(&format!("{bytes} bytes of output"), BOUND, enough)
        .unwrap();
}

#[test]
fn a_primary_carries_on_without_its_backup() {
    const COUNT: u32 = 2000;
    let Some(_machine) = kvm_shared_or_skip("a_primary_carries_on_without_its_backup") else {
        return;
    };
    let site = Site::new().unwrap();
    let mut pair = Pair::start(&site, &outputs(&site, COUNT), &[]).unwrap();
    wait_bytes(&pair.primary, 3000);
    pair.backup.kill().unwrap();
    let status = pair.primary.wait_status("the grant", BOUND, |status| {
        status.gate.mode == GateMode::Open
    });
    let status = status.unwrap();
    assert_eq!(
        (status.role, status.term, status.protected),
        (Role::Primary, 2, false)
    );
    assert_eq!(pair.primary.wait_code(BOUND).unwrap(), 0);
    assert_whole(&numbered_lines(COUNT), &[&pair.primary.output().bytes()]);
    assert_eq!(pair.backup.output().count(), 0, "a backup released output");
}

/// With the arbiter gone as well, outputs stay, the guest runs on, status says why; then all of them leave.
#[test]
fn outputs_stay_until_the_arbiter_is_back() {
    const COUNT: u32 = 3000;
    let Some(_machine) = kvm_shared_or_skip("outputs_stay_until_the_arbiter_is_back") else {
        return;
    };
    let site = Site::new().unwrap();
    let console = site.path("console");
    let setting = format!("vm.console={}", console.display());
    let mut pair = Pair::start(&site, &outputs(&site, COUNT), &[&setting]).unwrap();
    wait_file(&console, 3000, BOUND).unwrap();
    let away = site.path("arbiter-away");
    fs::rename(site.arbiter(), &away).unwrap();
    pair.backup.kill().unwrap();
    let held = pair.primary.wait_status("held outputs", BOUND, |status| {
        status.gate.mode == GateMode::Held
            && status.gate.held_outputs > 0
            && status
                .arbiter
                .as_ref()
                .is_some_and(|arbiter| !arbiter.reachable)
    });
    let held = held.unwrap();
    let released = fs::read(&console).unwrap().len();
    assert!(
        released < numbered_lines(COUNT).len(),
        "the guest was done before its backup was lost"
    );
    assert!(
        held.state.contains("outputs held: backup beta lost"),
        "{}",
        held.state
    );
    let arbiter = site.arbiter().display().to_string();
    assert!(
        held.state.contains(&arbiter),
        "the arbiter's directory is not named: {}",
        held.state
    );
    let mark = held.mark;
    let runs = |status: &samsara_tests::Status| status.mark > mark + 64;
    pair.primary
        .wait_status("a guest that runs on", BOUND, runs)
        .unwrap();
    // That nothing comes is seen only by waiting.
    let until = Instant::now() + QUIET;
    while Instant::now() < until {
        assert_eq!(
            fs::read(&console).unwrap().len(),
            released,
            "output left without the right"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(
        !pair.primary.has_ended().unwrap(),
        "a primary without the right ended"
    );
    fs::rename(&away, site.arbiter()).unwrap();
    assert_eq!(pair.primary.wait_code(BOUND).unwrap(), 0);
    assert_whole(&numbered_lines(COUNT), &[&fs::read(&console).unwrap()]);
}

/// A primary that stood still while its backup took over finds that out, and releases nothing more.
#[test]
fn a_primary_that_slept_stops() {
    const COUNT: u32 = 2500;
    let Some(_machine) = kvm_shared_or_skip("a_primary_that_slept_stops") else {
        return;
    };
    let site = Site::new().unwrap();
    let mut pair = Pair::start(&site, &outputs(&site, COUNT), &[]).unwrap();
    wait_bytes(&pair.primary, 3000);
    pair.primary.pause().unwrap();
    let promoted = |status: &samsara_tests::Status| {
        status.role == Role::Primary && status.gate.mode == GateMode::Open
    };
    pair.backup
        .wait_status("promotion", BOUND, promoted)
        .unwrap();
    wait_bytes(&pair.backup, 1000);
    let released = pair.primary.output().count();
    pair.primary.resume().unwrap();
    assert_eq!(
        pair.primary.wait_code(BOUND).unwrap(),
        ExitCode::LostTerm.code()
    );
    assert!(
        pair.primary.log_text().contains("taken over")
            || pair.primary.log_text().contains("term 2")
    );
    assert_eq!(pair.backup.wait_code(BOUND).unwrap(), 0);
    let first = pair.primary.output().bytes();
    // What was on its way when it was stopped may still be read; what the survivor says stands either way.
    assert!(first.len() >= released);
    assert_whole(
        &numbered_lines(COUNT),
        &[&first, &pair.backup.output().bytes()],
    );
}

/// The host that was killed comes back as backup; then the survivor is killed too.
#[test]
fn a_survivor_is_protected_again_and_killed_too() {
    const COUNT: u32 = 5000;
    let Some(_machine) = kvm_shared_or_skip("a_survivor_is_protected_again_and_killed_too") else {
        return;
    };
    let site = Site::new().unwrap();
    let mut pair = Pair::start(&site, &outputs(&site, COUNT), &[]).unwrap();
    wait_bytes(&pair.primary, 3000);
    pair.kill_primary().unwrap();
    let first = pair.primary.output().bytes();
    wait_bytes(&pair.backup, 1000);
    let (alpha, beta) = (pair.primary.seat().clone(), pair.backup.seat().clone());
    let mut again = pair.restart_as_backup(&site, &alpha, &beta).unwrap();
    let protected = |status: &samsara_tests::Status| status.protected;
    let status = pair
        .backup
        .wait_status("protection again", BOUND, protected)
        .unwrap();
    assert_eq!((status.role, status.term), (Role::Primary, 2));
    let status = again
        .wait_status("being in sync", BOUND, protected)
        .unwrap();
    assert_eq!(status.role, Role::Backup);
    wait_bytes(&pair.backup, pair.backup.output().count() + 2000);
    pair.backup.kill().unwrap();
    let second = pair.backup.output().bytes();
    assert!(
        first.len() + second.len() < numbered_lines(COUNT).len(),
        "the guest was done before the second kill"
    );
    assert_eq!(again.wait_code(BOUND).unwrap(), 0);
    assert_whole(
        &numbered_lines(COUNT),
        &[&first, &second, &again.output().bytes()],
    );
    let report = again.report().unwrap();
    assert_eq!(
        (report.term, report.failovers, report.divergences),
        (3, 1, 0)
    );
}

/// A guest's own status, other than 0, goes through both ways out.
#[test]
fn the_guests_status_is_the_exit_status_of_both() {
    let Some(_machine) = kvm_shared_or_skip("the_guests_status_is_the_exit_status_of_both") else {
        return;
    };
    let site = Site::new().unwrap();
    let guest = Guest::new(&site, "status", "status=37").unwrap();
    let mut pair = Pair::start(&site, &guest, &[]).unwrap();
    assert_eq!(pair.primary.wait_code(BOUND).unwrap(), 37);
    assert_eq!(pair.backup.wait_code(BOUND).unwrap(), 37);
    let read = || Ok(pair.primary.report().ok().zip(pair.backup.report().ok()));
    let (primary, backup) = wait::until("reports", BOUND, read, String::new).unwrap();
    assert_eq!((primary.exit_status, backup.failovers), (Some(37), 0));
}
