//! Values, overrides, and what each mistake is answered with.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use samsara_config::{
    AckPolicy, ArbiterKind, Config, Console, ConsoleInput, RecordingMode, Role, StartPolicy,
};

fn sets(items: &[&str]) -> Result<Config, String> {
    let items: Vec<String> = items.iter().map(|item| (*item).to_owned()).collect();
    Config::load(None, &items).map_err(|error| error.to_string())
}

fn file(text: &str, items: &[&str]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.toml");
    std::fs::write(&path, text).unwrap();
    let items: Vec<String> = items.iter().map(|item| (*item).to_owned()).collect();
    let folder = format!("{}/", dir.path().display());
    Config::load(Some(&path), &items).map_err(|error| error.to_string().replace(&folder, ""))
}

#[test]
fn nothing_given_is_the_default() {
    assert_eq!(sets(&[]).unwrap(), Config::default());
    assert_eq!(file("", &[]).unwrap(), Config::default());
    assert_eq!(Config::default().vm.memory.bytes(), 64 << 20);
}

#[test]
fn items_need_no_quotes() {
    let config = sets(&[
        "vm.vcpus=2",
        "vm.memory=1GiB",
        "vm.console=stdout",
        "vm.params=n=100 mode=lock",
        "vm.name=7",
        "replication.listen=127.0.0.1:7400",
        "replication.peer=[::1]:7400",
        "recording.mode=off",
        "replication.ack=received",
        "failover.arbiter=manual",
        "failover.start=alone",
        "vm.console_input=stdin",
    ])
    .unwrap();
    assert_eq!((config.vm.vcpus, config.vm.memory.bytes()), (2, 1 << 30));
    assert_eq!(config.vm.console, Console::Stdout);
    assert_eq!(config.vm.console_input, ConsoleInput::Stdin);
    assert_eq!(
        (config.vm.params.as_str(), config.vm.name.as_str()),
        ("n=100 mode=lock", "7")
    );
    assert_eq!(config.replication.listen.unwrap().port(), 7400);
    let peer = config.replication.peer.unwrap();
    assert_eq!(
        (peer.host(), peer.port(), peer.to_string().as_str()),
        ("::1", 7400, "[::1]:7400")
    );
    assert_eq!(config.recording.mode, RecordingMode::Off);
    assert_eq!(config.replication.ack, AckPolicy::Received);
    assert_eq!(config.failover.arbiter, Some(ArbiterKind::Manual));
    assert_eq!(config.failover.start, StartPolicy::Alone);
}

#[test]
fn items_may_be_toml_and_the_last_one_wins_over_the_file() {
    let text = "[vm]\nvcpus = 4\nparams = \"a\"\nmemory = 33554432\n";
    let config = file(text, &["vm.params=\"b c\"", "vm.vcpus=8", "vm.vcpus=3"]).unwrap();
    assert_eq!((config.vm.vcpus, config.vm.params.as_str()), (3, "b c"));
    assert_eq!(config.vm.memory.bytes(), 32 << 20);
    assert_eq!(sets(&["vm.params=\"open"]).unwrap().vm.params, "\"open");
    assert_eq!(sets(&["vm.params=true"]).unwrap().vm.params, "true");
    assert_eq!(sets(&["vm.params="]).unwrap().vm.params, "");
    assert_eq!(
        sets(&["vm.console=/tmp/c"]).unwrap().vm.console,
        Console::File("/tmp/c".into())
    );
}

#[test]
fn an_item_cannot_reach_another_key() {
    let config = sets(&["vm.params=1\n[control]\nsocket=\"/x\""]).unwrap();
    assert_eq!(config.control.socket, None);
    assert!(config.vm.params.contains("socket"));
}

#[test]
fn mistakes_in_items_say_what_is_accepted() {
    let cases = [
        (
            "vm.vcpus=17",
            "--set vm.vcpus=17: vm.vcpus takes a whole number from 1 to 16, not 17",
        ),
        ("vm.vcpus=0", "not 0"),
        ("vm.vcpus=two", "not two"),
        ("vm.vcpus=-1", "not -1"),
        ("vm.vcpus=1.5", "not 1.5"),
        ("vm.vcpus=", "not an empty value"),
        ("vm.memory=15MiB", "from \"16MiB\" to \"64GiB\", not 15MiB"),
        ("vm.memory=16777217", "whole 4 KiB pages"),
        ("vm.memory=65GiB", "not 65GiB"),
        ("vm.memory=64MB", "not 64MB"),
        ("vm.memory=99999999999999999999GiB", "from \"16MiB\""),
        ("vm.memory=+64MiB", "not +64MiB"),
        (
            "recording.mode=maybe",
            "recording.mode takes \"on\" or \"off\", not maybe",
        ),
        (
            "replication.listen=localhost",
            "such as \"0.0.0.0:7400\", not localhost",
        ),
        ("replication.peer=beta", "not beta"),
        ("replication.peer=beta:0", "not beta:0"),
        ("replication.peer=::1:7400", "not ::1:7400"),
        ("replication.host_name=a b", "not a b"),
        (
            "tls.ca=",
            "tls.ca takes the path of a file, not an empty value",
        ),
        ("vm.name=a/b", "not a/b"),
        (
            "vm.vcpu=2",
            "--set vm.vcpu=2: unknown key vm.vcpu; did you mean vm.vcpus?",
        ),
        ("vcpus=2", "did you mean vm.vcpus?"),
        ("metric.listen=127.0.0.1:1", "did you mean metrics.listen?"),
        (
            "vm.frobnicate=2",
            "unknown key vm.frobnicate; the keys are listed",
        ),
        ("vm=2", "vm is a section: name a key in it, such as vm.name"),
        ("vm.vcpus", "write it as key=value"),
        ("=", "unknown key "),
    ];
    for (item, wanted) in cases {
        let error = sets(&[item]).unwrap_err();
        assert!(error.contains(wanted), "{item}: {error}");
        assert!(error.lines().count() == 1, "{item}: {error}");
    }
}

#[test]
fn long_and_odd_values_do_not_spill_into_the_message() {
    let error = sets(&[&format!("vm.params={}", "x".repeat(5000))]).unwrap_err();
    assert!(error.len() < 400 && error.contains("4095 bytes"), "{error}");
    let error = sets(&["vm.name=a\u{1b}[2J\nb"]).unwrap_err();
    assert!(
        !error.contains('\u{1b}') && error.lines().count() == 1,
        "{error}"
    );
    assert!(sets(&["vm.params=a\0b"]).is_err());
    assert!(
        sets(&[&format!("{}=1", "k".repeat(1_000_000))])
            .unwrap_err()
            .len()
            < 400
    );
}

#[test]
fn mistakes_in_the_file_name_the_line() {
    let cases = [
        (
            "[vm]\n\nvcpus = 17\n",
            "vm.toml:3: vm.vcpus takes a whole number from 1 to 16, not 17",
        ),
        (
            "[vm]\nvcpus = \"2\"\n",
            "vm.toml:2: vm.vcpus takes a whole number from 1 to 16, not \"2\"",
        ),
        (
            "[vm]\nvcpu = 1\n",
            "vm.toml:2: unknown key vm.vcpu; did you mean vm.vcpus?",
        ),
        ("\n[vmm]\nvcpus = 1\n", "vm.toml:2: unknown key vmm"),
        (
            "vcpus = 1\n",
            "vm.toml:1: unknown key vcpus; did you mean vm.vcpus?",
        ),
        ("vm = 1\n", "vm.toml:1: vm is a section"),
        ("[vm]\nvcpus = { a = 1 }\n", "vm.toml:2: vm.vcpus takes"),
        ("[vm]\nvcpus = \n", "vm.toml:2:"),
        (
            "[vm]\nvcpus = 1\nvcpus = 2\n",
            "vm.toml:3:1: not valid TOML: duplicate key",
        ),
        ("[vm]\nvcpus = 99999999999999999999\n", "vm.toml:2:"),
    ];
    for (text, wanted) in cases {
        let error = file(text, &[]).unwrap_err();
        assert!(error.contains(wanted), "{text:?}: {error}");
        assert!(error.lines().count() == 1, "{text:?}: {error}");
    }
}

#[test]
fn files_that_are_none_are_refused() {
    let missing = Config::load(Some(Path::new("/nonexistent/vm.toml")), &[]).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "cannot read the configuration file /nonexistent/vm.toml"
    );
    assert!(std::error::Error::source(&missing).is_some());
    let endless = Config::load(Some(Path::new("/dev/zero")), &[]).unwrap_err();
    assert!(
        endless.to_string().contains("larger than 1048576 bytes"),
        "{endless}"
    );
    assert!(Config::load(Some(&PathBuf::from("/")), &[]).is_err());
    assert!(
        file("\u{0}\u{1}", &[])
            .unwrap_err()
            .contains("not valid TOML")
    );
}

#[test]
fn values_must_agree() {
    let error = sets(&["recording.chunk_min_us=6000"]).unwrap_err();
    assert!(error.contains("chunk_min_us is 6000") && error.contains("chunk_max_us, 5000"));
    assert!(sets(&["recording.chunk_min_us=5000"]).is_ok());
    let error = sets(&["failover.dead_after_ms=59"]).unwrap_err();
    assert!(
        error.contains("replication.heartbeat_ms") && error.contains("60 or more"),
        "{error}"
    );
    assert!(sets(&["failover.dead_after_ms=60"]).is_ok());
    assert!(
        sets(&["vm.console=/a", "vm.input=/a"])
            .unwrap_err()
            .contains("destroy the input")
    );
}

#[test]
fn a_role_lists_all_it_lacks() {
    let check = |role: Role, items: &[&str]| {
        sets(items)
            .unwrap()
            .check(role)
            .map_err(|error| error.to_string())
    };
    let error = check(Role::Primary, &[]).unwrap_err();
    for key in [
        "vm.program",
        "replication.listen",
        "tls.ca",
        "tls.cert",
        "tls.key",
        "failover.arbiter",
    ] {
        assert!(error.contains(key), "{key}: {error}");
    }
    assert!(
        !error.contains("replication.peer") && !error.contains("arbiter_dir"),
        "{error}"
    );
    let backup = [
        "tls.ca=a",
        "tls.cert=b",
        "tls.key=c",
        "failover.arbiter=file",
    ];
    let error = check(Role::Backup, &backup).unwrap_err();
    assert!(
        error.starts_with("role backup needs replication.peer (") && error.contains("arbiter_dir")
    );
    assert!(
        !error.contains("vm.program") && !error.contains("tls."),
        "{error}"
    );
    let error = check(Role::Standalone, &[]).unwrap_err();
    assert!(
        error.contains("vm.program") && error.contains("set it in"),
        "{error}"
    );
    check(Role::Standalone, &["vm.program=x", "recording.mode=off"]).unwrap();
    let complete = [
        "tls.ca=a",
        "tls.cert=b",
        "tls.key=c",
        "failover.arbiter=manual",
        "replication.peer=b:1",
    ];
    check(Role::Backup, &complete).unwrap();
    let unrecorded = [&complete[..], &["recording.mode=off"]].concat();
    assert!(
        check(Role::Backup, &unrecorded)
            .unwrap_err()
            .contains("--role standalone")
    );
    let config = sets(&complete).unwrap();
    let warnings = config.warnings(Role::Backup);
    assert!(
        warnings[0].contains("replication.listen") && warnings[1].contains("taken to be for b")
    );
}
