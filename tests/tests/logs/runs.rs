//! Whole runs, and those whose host was lost.

use std::fs;

use rustix::process::Signal;
use samsara_tests::{Guest, Site, kvm_shared_or_skip, numbered_lines, tree, wait_file};
use samsarad::exit::ExitCode;

use crate::BOUND;
use crate::recorded::{Recorded, end, recorded, start};

#[test]
fn what_was_recorded_is_replayed() {
    let Some(_machine) = kvm_shared_or_skip("what_was_recorded_is_replayed") else {
        return;
    };
    let serial = "recording.isolation=serial";
    for (name, params, settings, status) in [
        ("hello", "", &[][..], 0),
        ("outputs", "n=400", &["recording.digest_every=16"], 0),
        ("counter", "n=20000", &[], 0),
        ("counter", "n=20000", &[serial], 0),
        ("clock", "", &["recording.digest_every=0"], 0),
        ("status", "status=37", &[], 37),
        ("fault", "", &[], ExitCode::GuestFault.code()),
    ] {
        let run = recorded(name, params, settings);
        let what = format!("{name} {params} {settings:?}");
        assert_eq!(
            run.ran.code,
            Some(status.into()),
            "{what}: {}",
            run.ran.stderr
        );
        run.assert_replayed(&what);
        run.assert_counted(&what);
    }
}

/// The input file is in the log: it is not there any more when the log is replayed.
#[test]
fn an_input_file_is_replayed_without_it() {
    let Some(_machine) = kvm_shared_or_skip("an_input_file_is_replayed_without_it") else {
        return;
    };
    let site = Site::new().unwrap();
    let contents: Vec<u8> = (0..700_000_u32)
        .map(|at| (at * 7 + at / 251) as u8)
        .collect();
    let input = site.write("input", &contents).unwrap();
    let guest = Guest::new(&site, "sha256tree", "").unwrap().input(&input);
    let expected = tree::guest_output(&tree::root_line(&input).unwrap());
    let run = Recorded::new(site, &guest, &[]);
    assert_eq!(run.ran.code, Some(0), "{}", run.ran.stderr);
    assert_eq!(String::from_utf8_lossy(&run.ran.stdout), expected);
    fs::remove_file(&input).unwrap();
    run.assert_replayed("sha256tree");
    run.assert_counted("sha256tree");
}

/// The digests of states on the way are those that a replay to there comes to.
#[test]
fn a_replay_goes_to_any_commit() {
    let Some(_machine) = kvm_shared_or_skip("a_replay_goes_to_any_commit") else {
        return;
    };
    let run = recorded("outputs", "n=400", &["recording.digest_every=50"]);
    let last = run.report.commits;
    assert!(last > 100, "{last} commits");
    let (one, other) = (last / 3, last / 2);
    let words = [one, other].map(|seq| seq.to_string());
    let all = run.json(&[
        "replay",
        run.log_name(),
        "--json",
        "--digest-at",
        &words[0],
        "--digest-at",
        &words[1],
    ]);
    assert_eq!(all["digests_compared"].as_u64(), Some(last / 50));
    for (place, seq) in [(0, one), (1, other)] {
        let part = run.json(&[
            "replay",
            run.log_name(),
            "--json",
            "--until",
            &seq.to_string(),
        ]);
        assert_eq!(part["seq"].as_u64(), Some(seq));
        assert_eq!(part["status"].as_u64(), Some(0));
        assert_eq!(all["digests"][place]["digest"], part["digest"]);
    }
    let digest = all["digests"][0]["digest"].as_str().unwrap();
    let told = run.ctl(&["replay", run.log_name(), "--digest-at", &words[0]]);
    assert!(
        told.stderr
            .contains(&format!("digest at commit {one}: {digest}\n")),
        "{}",
        told.stderr
    );
}

/// A log that its host did not finish: what it has is replayed, and it says that the guest did not end in it.
#[test]
fn a_log_of_a_host_that_was_lost_is_replayed_as_far_as_it_goes() {
    const COUNT: u32 = 100_000;
    const LOG_BYTES: u64 = 512 << 10;
    let Some(_machine) = kvm_shared_or_skip("a_log_of_a_host_that_was_lost") else {
        return;
    };
    for (signal, status) in [
        (Signal::KILL, None),
        (Signal::TERM, Some(ExitCode::Stopped.code())),
    ] {
        let site = Site::new().unwrap();
        let guest = Guest::new(&site, "outputs", &format!("n={COUNT} run=20 delay=2000")).unwrap();
        let log = site.path("run.log");
        let host = start(&site, &guest, &log);
        let waited = wait_file(&log, LOG_BYTES, BOUND);
        let code = end(host, signal);
        waited.unwrap();
        assert_eq!(code, status.map(i32::from));
        let replayed = site.ran_ctl(&["replay", log.to_str().unwrap()]).unwrap();
        let ends = ExitCode::LogEnds.code();
        assert_eq!(replayed.code, Some(ends.into()), "{}", replayed.stderr);
        assert!(
            replayed.stderr.contains("before its guest does"),
            "{}",
            replayed.stderr
        );
        let expected = numbered_lines(COUNT);
        assert!(!replayed.stdout.is_empty() && expected.starts_with(&replayed.stdout));
    }
}
