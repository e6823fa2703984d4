//! The guest boots, computes what its program computes on the host, and ends with the right status.

use std::time::Duration;

use samsara_testing::by_effort;
use samsara_tests::linux::{LinuxMachine, answer};
use samsara_tests::{Pair, Site, run_to_end};
use samsarad::exit::ExitCode;

use crate::{BOUND, MODES, UP, console, in_mode, turn_or_skip};

const COMPUTE: &str = "job=compute rounds=8";

/// Boots and computes with so many vCPUs: natively and recorded serially, with all tests also in parallel and protected.
fn boots_with(vcpus: u32, test: &str) {
    let Some(turn) = turn_or_skip(test) else {
        return;
    };
    let site = Site::new().unwrap();
    let expected = turn.guest.answer_on_host(COMPUTE).unwrap();
    let machine = LinuxMachine::new(turn.guest, COMPUTE).vcpus(vcpus);
    let mut native = None;
    for (mode, set) in MODES.into_iter().take(by_effort(2, MODES.len())) {
        let (seat, settings) = (
            site.seat("alpha").unwrap(),
            in_mode(machine.settings(), set),
        );
        let mut host = run_to_end(site.binaries(), &seat, &settings, BOUND).unwrap();
        assert_eq!(host.wait_code(BOUND).unwrap(), 0, "{mode}: power-off");
        let said = console(&host);
        assert_eq!(answer(&said).as_deref(), Some(&*expected), "{mode}: {said}");
        let up = host
            .output()
            .when(UP)
            .unwrap()
            .duration_since(host.started());
        let ratio = up.as_secs_f64() / native.get_or_insert(up).as_secs_f64();
        println!("  {vcpus} vCPU, {mode}: user space after {up:.1?}, {ratio:.2} of native");
    }
    if by_effort(false, true) {
        boots_protected(&site, &machine, &expected);
    }
}

/// Both hosts end as the guest does, and the primary gives its answer.
fn boots_protected(site: &Site, machine: &LinuxMachine, expected: &str) {
    let seats = site.seats().unwrap();
    let mut pair = Pair::start_at(site, &seats, machine.settings(), &[]).unwrap();
    pair.wait_protected().unwrap();
    for host in [&mut pair.primary, &mut pair.backup] {
        let name = host.name().to_owned();
        assert_eq!(host.wait_code(BOUND).unwrap(), 0, "protected, {name}");
        assert_eq!(host.report().unwrap().divergences, 0, "{name}");
    }
    let said = console(&pair.primary);
    assert_eq!(answer(&said).as_deref(), Some(expected), "protected");
    let up = pair.primary.output().when(UP).unwrap();
    let up = up.duration_since(pair.primary.started());
    println!("  protected: user space after {up:.1?}");
}

/// With all tests only.
#[test]
fn boots_with_one_vcpu() {
    if by_effort(false, true) {
        boots_with(1, "boots_with_one_vcpu");
    }
}

#[test]
fn boots_with_two_vcpus() {
    boots_with(2, "boots_with_two_vcpus");
}

/// With all tests only: it takes minutes.
#[test]
fn boots_with_four_vcpus() {
    if by_effort(false, true) {
        boots_with(4, "boots_with_four_vcpus");
    }
}

/// A panic is a fault of the guest; what a panicking kernel says is let out before.
#[test]
fn a_panic_and_a_reboot_have_statuses_of_their_own() {
    let Some(turn) = turn_or_skip("a_panic_and_a_reboot_have_statuses_of_their_own") else {
        return;
    };
    let ends = [
        ("job=panic", ExitCode::GuestFault, "Kernel panic"),
        (
            "job=reboot",
            ExitCode::GuestReset,
            "reboot: Restarting system",
        ),
    ];
    for (index, (job, code, last)) in ends.into_iter().enumerate() {
        let machine = LinuxMachine::new(turn.guest, job).vcpus(2);
        let some = index + 1..index + 2;
        for (mode, set) in &MODES[by_effort(some, 0..MODES.len())] {
            let site = Site::new().unwrap();
            let (seat, settings) = (
                site.seat("alpha").unwrap(),
                in_mode(machine.settings(), set),
            );
            let mut host = run_to_end(site.binaries(), &seat, &settings, BOUND).unwrap();
            let status = host.wait_code(Duration::ZERO).unwrap();
            assert_eq!(status, code.code(), "{mode}, {job}");
            assert!(console(&host).contains(last), "{mode}, {job}: no {last:?}");
            println!("  {mode}, {job}: status {status}");
        }
    }
}
