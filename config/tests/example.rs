//! The table of keys, the types, and the example file say the same.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use samsara_config::{Config, KEYS, Role, example};

fn example_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../systemd/samsarad.toml.example")
}

fn load_text(text: &str) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("samsarad.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(Some(&path), &[]).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_table_names_exactly_the_fields_of_the_types() {
    let all = serde_json::to_value(Config::default()).unwrap();
    let mut fields = BTreeSet::new();
    for (section, content) in all.as_object().unwrap() {
        let keys = content.as_object().unwrap().keys();
        fields.extend(keys.map(|key| format!("{section}.{key}")));
    }
    let table: BTreeSet<String> = KEYS.iter().map(|key| key.name.to_owned()).collect();
    assert_eq!(fields, table);
    assert_eq!(KEYS.len(), table.len(), "a key is listed twice");
}

#[test]
fn every_default_in_the_table_is_the_default_and_every_sample_is_valid() {
    let unset = serde_json::to_value(Config::default()).unwrap();
    for key in KEYS {
        let item = format!("{}={}", key.name, key.sample);
        let config = Config::load(None, &[item]).unwrap_or_else(|error| panic!("{error}"));
        let changed = serde_json::to_value(&config).unwrap() != unset;
        assert_eq!(changed, key.default.is_none(), "{}", key.name);
    }
}

/// To write the file anew after a change of the table: `SAMSARA_WRITE_EXAMPLE=1 cargo test -p samsara-config`.
#[test]
fn the_example_file_is_up_to_date() {
    if std::env::var_os("SAMSARA_WRITE_EXAMPLE").is_some() {
        std::fs::write(example_path(), example()).unwrap();
    }
    let file = std::fs::read_to_string(example_path()).unwrap();
    assert!(
        file == example(),
        "systemd/samsarad.toml.example differs from the table of keys"
    );
}

#[test]
fn the_example_makes_a_primary_that_is_otherwise_the_default() {
    let mut config = Config::load(Some(&example_path()), &[]).unwrap();
    config.check(Role::Primary).unwrap();
    config.vm.program = None;
    config.replication.listen = None;
    config.tls = Config::default().tls;
    config.failover.arbiter = None;
    config.failover.arbiter_dir = None;
    assert_eq!(config, Config::default());
}

/// Keys that only one kind of guest takes.
const OF_PROGRAM: &[&str] = &["program", "params", "input"];
const OF_KERNEL: &[&str] = &["kernel", "initrd", "cmdline", "disks", "net"];

#[test]
fn the_example_with_all_keys_in_effect_is_valid_for_every_role() {
    let text = example();
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => rest,
        _ => line,
    });
    let lines: Vec<&str> = lines.collect();
    let set = lines.iter().filter(|line| is_setting(line)).count();
    assert_eq!(set, KEYS.len(), "the example does not have every key");
    for without in [OF_PROGRAM, OF_KERNEL] {
        let is_without = |line: &&&str| !without.iter().any(|key| sets(line, key));
        let lines: Vec<&str> = lines.iter().filter(is_without).copied().collect();
        let config = load_text(&lines.join("\n"));
        for role in Role::ALL {
            config.check(role).unwrap();
            assert_eq!(config.warnings(role), Vec::<String>::new());
        }
    }
}

fn sets(line: &str, key: &str) -> bool {
    line.strip_prefix(key)
        .is_some_and(|rest| rest.starts_with(" = "))
}

fn is_setting(line: &str) -> bool {
    !line.starts_with('#') && line.contains(" = ")
}
