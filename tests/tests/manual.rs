//! `failover.arbiter = "manual"`: the operator settles who carries on.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends at the first error")]

use std::time::{Duration, Instant};

use samsara_config::Role;
use samsara_tests::{Guest, Joint, Pair, Site, Status, kvm_shared_or_skip, numbered_lines};

const BOUND: Duration = Duration::from_mins(1);
const QUIET: Duration = Duration::from_millis(300);
const COUNT: u32 = 2000;

#[test]
fn a_backup_goes_live_by_the_operators_word() {
    let Some(_machine) = kvm_shared_or_skip("a_backup_goes_live_by_the_operators_word") else {
        return;
    };
    let site = Site::new().unwrap();
    let guest = Guest::new(&site, "outputs", &format!("n={COUNT} run=20 delay=20000")).unwrap();
    let settings = ["failover.arbiter=manual"];
    let mut pair = Pair::start(&site, &guest, &settings).unwrap();
    pair.primary
        .wait_output("output", BOUND, |output| {
            (output.len() > 3000).then_some(())
        })
        .unwrap();
    let socket = pair.backup.seat().socket().display().to_string();
    let promote = ["promote", "--socket", &socket];
    let refused = site.ctl(&promote).unwrap_err().to_string();
    assert!(
        refused.contains("promote"),
        "a backup whose primary lives was promoted: {refused}"
    );

    pair.kill_primary().unwrap();
    let asks = |status: &Status| status.state.contains("samsaractl promote");
    let status = pair
        .backup
        .wait_status("the advice to promote", BOUND, asks)
        .unwrap();
    assert_eq!(status.role, Role::Backup);
    // That nothing happens without the operator is seen only by waiting.
    let until = Instant::now() + QUIET;
    while Instant::now() < until {
        assert_eq!(pair.backup.output().count(), 0, "it went live unasked");
        std::thread::sleep(Duration::from_millis(10));
    }
    let said = site.ctl(&promote).unwrap();
    assert!(said.contains("promoted"), "{said}");
    assert_eq!(pair.backup.wait_code(BOUND).unwrap(), 0);
    let expected = numbered_lines(COUNT);
    let (first, second) = (pair.primary.output().bytes(), pair.backup.output().bytes());
    if let Joint::Broken { why } = Joint::of(&expected, &[&first, &second]) {
        panic!("{why}");
    }
}

/// samsaractl says what the daemon says.
#[test]
fn status_is_shown_for_people_and_for_scripts() {
    let Some(_machine) = kvm_shared_or_skip("status_is_shown_for_people_and_for_scripts") else {
        return;
    };
    let site = Site::new().unwrap();
    let guest = Guest::new(&site, "outputs", &format!("n={COUNT} run=20 delay=20000")).unwrap();
    let mut pair = Pair::start(&site, &guest, &[]).unwrap();
    pair.wait_protected().unwrap();
    let socket = pair.backup.seat().socket().display().to_string();
    let text = site
        .ctl(&["status", "--json", "--socket", &socket])
        .unwrap();
    let status: Status = serde_json::from_str(&text).unwrap();
    assert_eq!((status.role, status.host.as_str()), (Role::Backup, "beta"));
    let text = site.ctl(&["status", "--socket", &socket]).unwrap();
    assert!(text.contains("beta") && text.contains("in sync"), "{text}");
}
