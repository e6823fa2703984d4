//! What is no log, and readers that go away.

use std::fs;
use std::process::{Command, Stdio};

use samsara_tests::{Ran, kvm_shared_or_skip};
use samsarad::exit::ExitCode;

use crate::recorded::recorded;

/// What reads logs says what is wrong with one, where, and exits with the status for it.
#[test]
fn a_log_that_is_not_one_is_refused_with_its_status() {
    let Some(_machine) = kvm_shared_or_skip("a_log_that_is_not_one") else {
        return;
    };
    let run = recorded("outputs", "n=200", &[]);
    let whole = fs::read(&run.log).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    let mut version = whole.clone();
    version[8] ^= 0x40;
    let cases: [(&str, &[u8], &str); 4] = [
        ("flipped", &flipped, "damaged"),
        ("version", &version, "format version"),
        ("empty", &[], "no whole snapshot"),
        ("text", b"not a log at all", "not a samsara log"),
    ];
    let name = run.log_name();
    let commands = [
        &["replay", name][..],
        &["log", "stats", name],
        &["log", "verify", name],
    ];
    for (what, bytes, expected) in cases {
        fs::write(&run.log, bytes).unwrap();
        for words in commands {
            assert_refused(
                &run.ctl(words),
                &[expected, name],
                &format!("{what}: {words:?}"),
            );
        }
    }
    fs::remove_file(&run.log).unwrap();
    for words in commands {
        assert_refused(
            &run.ctl(words),
            &["No such file", name],
            &format!("missing: {words:?}"),
        );
    }
    fs::create_dir(&run.log).unwrap();
    for words in commands {
        assert_refused(
            &run.ctl(words),
            &["has no logs in it", name],
            &format!("directory: {words:?}"),
        );
    }
}

#[track_caller]
fn assert_refused(ran: &Ran, parts: &[&str], what: &str) {
    let Ran { code, stderr, .. } = ran;
    assert_eq!(
        *code,
        Some(ExitCode::LogFile.code().into()),
        "{what}: {stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
    for part in parts {
        assert!(
            stderr.contains(part),
            "{what}: {stderr:?} does not say {part:?}"
        );
    }
}

/// `samsaractl log show run.log | head -1` ends well, and soon.
#[test]
fn a_reader_that_has_enough_goes_away() {
    let Some(_machine) = kvm_shared_or_skip("a_reader_that_has_enough_goes_away") else {
        return;
    };
    let run = recorded("outputs", "n=3000", &[]);
    let mut show = Command::new(&run.site.binaries().samsaractl);
    show.args(["log", "show", run.log_name()]);
    let mut child = show
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr), (Some(0), Vec::new()));
}
