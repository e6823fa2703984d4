//! SIGTERM in every role: status 82, and nothing lost.

use samsara_tests::{Guest, Host, Pair, Site, kvm_shared_or_skip, numbered_lines};
use samsarad::exit::ExitCode::Stopped;

use crate::ran::{BOUND, Ran};

const LINES: u32 = 400;

fn guest(site: &Site) -> Guest {
    Guest::new(site, "outputs", &format!("n={LINES} delay=100000")).expect("guest")
}

fn lines(output: &[u8]) -> u32 {
    output.split(|&byte| byte == b'\n').count() as u32 - 1
}

#[test]
fn a_standalone_host() {
    let Some(_machine) = kvm_shared_or_skip("SIGTERM, standalone") else {
        return;
    };
    let site = Site::new().expect("site");
    for mode in ["recording.mode=on", "recording.mode=off"] {
        let seat = site.seat(&mode.replace(['.', '='], "-")).expect("seat");
        let mut settings = guest(&site).settings();
        settings.push(mode.to_owned());
        let mut host = Host::spawn(site.binaries(), &seat, "standalone", &settings).expect("start");
        let some = |output: &[u8]| (lines(output) > 10).then_some(());
        host.wait_output("some lines", BOUND, some).expect("lines");
        host.terminate().expect("terminated");
        Ran::of(&mut host).failed(Stopped, &["stopped by a signal"]);
        assert!(host.report().expect("report").stop.contains("signal"));
    }
}

#[test]
fn a_primary_hands_over() {
    let Some(_machine) = kvm_shared_or_skip("SIGTERM, primary") else {
        return;
    };
    let site = Site::new().expect("site");
    let expected = numbered_lines(LINES);
    let mut pair = Pair::start(&site, &guest(&site), &[]).expect("pair");
    let some = |output: &[u8]| (lines(output) > LINES / 4).then_some(());
    pair.primary
        .wait_output("a quarter", BOUND, some)
        .expect("lines");
    pair.primary.terminate().expect("terminated");
    Ran::of(&mut pair.primary).failed(Stopped, &["stopped by a signal"]);
    assert_eq!(pair.backup.wait_code(BOUND).expect("its end"), 0);
    let (first, second) = (pair.primary.output().bytes(), pair.backup.output().bytes());
    assert!(!second.is_empty() && expected.starts_with(&first) && expected.ends_with(&second));
    assert!(first.len() + second.len() >= expected.len(), "a gap");
    assert_eq!(pair.backup.report().expect("report").failovers, 1);
}

#[test]
fn a_backup_leaves() {
    let Some(_machine) = kvm_shared_or_skip("SIGTERM, backup") else {
        return;
    };
    let site = Site::new().expect("site");
    let expected = numbered_lines(LINES);
    let mut pair = Pair::start(&site, &guest(&site), &[]).expect("pair");
    pair.wait_protected().expect("protected");
    pair.backup.terminate().expect("terminated");
    Ran::of(&mut pair.backup).failed(Stopped, &["stopped by a signal"]);
    assert_eq!(pair.primary.wait_code(BOUND).expect("its end"), 0);
    assert!(
        pair.primary.output().bytes() == expected,
        "the primary alone says it all"
    );
    assert!(pair.backup.output().bytes().is_empty());
}

#[test]
fn hosts_that_wait() {
    let Some(_machine) = kvm_shared_or_skip("SIGTERM, waiting") else {
        return;
    };
    let site = Site::new().expect("site");
    let (alpha, beta) = site.seats().expect("seats");
    for (role, state) in [
        ("primary", "waiting for a backup"),
        ("backup", "waiting for a primary"),
    ] {
        let mut settings = guest(&site).settings();
        settings.extend(alpha.settings(&beta));
        settings.push("failover.arbiter=manual".to_owned());
        let mut host = Host::spawn(site.binaries(), &alpha, role, &settings).expect("start");
        host.wait_status(state, BOUND, |status| status.state.contains(state))
            .expect(state);
        host.terminate().expect("terminated");
        Ran::of(&mut host).failed(Stopped, &["stopped by a signal"]);
        assert!(host.output().bytes().is_empty());
    }
}
