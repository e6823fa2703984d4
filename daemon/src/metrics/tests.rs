//! Every metric moves, and what Grafana and the alerts name exists.

use std::collections::{BTreeMap, BTreeSet};

use samsara_config::{ArbiterKind, Config, Role};

use super::*;
use crate::status::{Arbiter, Counters, Ended, GateMode, LagAmount, Peer, Positions, RoleChange};

const DASHBOARD: &str = include_str!("../../../monitoring/grafana/samsara.json");
const ALERTS: &str = include_str!("../../../monitoring/prometheus/alerts.yml");

fn idle() -> Snapshot {
    let config = Config::load(None, &["vm.vcpus=2".to_owned()]).unwrap();
    Snapshot::new(Status::new(&config, Role::Backup, "alpha"))
}

fn counted() -> Counters {
    Counters {
        chunks_by_vcpu: vec![11, 12],
        chunks_order_form: 13,
        chunks_effects_form: 14,
        commits: 15,
        squashes: 16,
        exclusive_chunks: 17,
        effect_bytes: 18,
        log_bytes: 19,
        order_bytes: 25,
        failovers: 20,
        digests_compared: 21,
        divergences: 22,
        disk_sync_bytes: 23,
        effects_fetched: 24,
        rerun_divergences: [("state".to_owned(), 25)].into(),
        faults_avoided: 26,
        vcpu_ms: [("guest".to_owned(), 27)].into(),
    }
}

/// Differs from `idle` in everything that there is to show.
fn busy() -> Snapshot {
    let mut snapshot = idle();
    let status = &mut snapshot.status;
    status.role = Role::Primary;
    (
        status.term,
        status.protected,
        status.mark,
        status.guest_time_ns,
    ) = (4, true, 9, 2_500_000_000);
    (status.isolation, status.counter) = ("serial".to_owned(), "retired branches".to_owned());
    status.positions = Positions {
        committed: 30,
        received: 20,
        verified: 10,
    };
    status.lag.received = LagAmount {
        commits: 10,
        bytes: 100,
        seconds: 0.25,
    };
    status.lag.verified = LagAmount {
        commits: 20,
        bytes: 200,
        seconds: 0.5,
    };
    status.gate.mode = GateMode::Guarded;
    (status.gate.held_outputs, status.gate.held_bytes) = (3, 300);
    status.counters = counted();
    let (connected, in_sync) = (true, true);
    status.peer = Some(Peer {
        name: "beta".to_owned(),
        address: None,
        connected,
        in_sync,
    });
    let kind = ArbiterKind::File;
    status.arbiter = Some(Arbiter {
        kind,
        reachable: true,
        detail: String::new(),
    });
    let reason = "the primary was lost".to_owned();
    let change = RoleChange {
        at_unix_ms: 1,
        at_ms: 1,
        role: Role::Primary,
        term: 4,
        reason,
    };
    status.role_changes = vec![change];
    status.ended = Some(Ended {
        exit_status: Some(0),
        how: "exit".to_owned(),
    });
    let durations = Durations::default();
    durations.record(std::time::Duration::from_micros(70));
    snapshot.chunk_durations = durations.counts();
    snapshot.commit_durations = durations.counts();
    snapshot.output_holds = durations.counts();
    snapshot.network = vec![crate::net::DeviceCounts {
        device: samsara_commitlog::DeviceIndex(1),
        frames_in: 40,
        bytes_in: 41,
        frames_out: 42,
        bytes_out: 43,
        announcements: 44,
        read_errors: 45,
        lost: [46, 47, 48, 49, 50, 51],
    }];
    snapshot.unwired_frames = 52;
    snapshot
}

/// Samples by name and labels.
fn samples(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(k, v)| (k.into(), v.into()))
        .collect()
}

fn names(metrics: &Metrics) -> BTreeSet<String> {
    metrics
        .registry()
        .gather()
        .iter()
        .map(|family| family.name().to_owned())
        .collect()
}

#[test]
fn every_metric_is_moved_by_a_snapshot() {
    let metrics = Metrics::new("vm", "alpha").unwrap();
    let before = samples(&metrics.render(&idle()).unwrap());
    let after = samples(&metrics.render(&busy()).unwrap());
    let finite = |name: &str| !name.contains("_bucket{") || name.contains("le=\"0.000128\"");
    for (name, value) in after.iter().filter(|(name, _)| finite(name)) {
        let unmoved = before.get(name) == Some(value);
        // Of a set of exclusive states, those that are neither left nor entered stay 0.
        let other_state = name.contains("standalone") || name.contains("mode=\"open\"");
        assert!(
            !unmoved || (other_state && value == "0"),
            "{name} {value} is not moved"
        );
    }
    assert!(names(&metrics).len() > 25, "{:?}", names(&metrics));
}

#[test]
fn values_are_what_the_snapshot_says() {
    let metrics = Metrics::new("vm", "alpha").unwrap();
    let text = metrics.render(&busy()).unwrap();
    let of = |name: &str, labels: &str| {
        let wanted: BTreeSet<&str> = labels
            .split(',')
            .filter(|label| !label.is_empty())
            .collect();
        let all = samples(&text);
        let found = all.iter().find(|(key, _)| {
            let (sample, rest) = key.split_once('{').unwrap_or((key, "}"));
            let labels: BTreeSet<&str> = rest.trim_end_matches('}').split(',').collect();
            sample == name && wanted.is_subset(&labels)
        });
        found.map_or_else(
            || panic!("no {name}{{{labels}}} in\n{text}"),
            |(_, value)| value.clone(),
        )
    };
    assert_eq!(
        of("samsara_commits_total", "vm=\"vm\",host=\"alpha\""),
        "15"
    );
    assert_eq!(of("samsara_chunks_total", "vcpu=\"1\""), "12");
    assert_eq!(of("samsara_role", "role=\"primary\""), "1");
    assert_eq!(of("samsara_role", "role=\"backup\""), "0");
    assert_eq!(
        of("samsara_net_frames_total", "direction=\"out\",vm=\"vm\""),
        "42"
    );
    assert_eq!(of("samsara_lag_seconds", "position=\"verified\""), "0.5");
    assert_eq!(of("samsara_lag_bytes", "position=\"received\""), "100");
    assert_eq!(of("samsara_guest_seconds", ""), "2.5");
    assert_eq!(
        of(
            "samsara_output_hold_seconds_bucket",
            "le=\"0.000064\",vm=\"vm\""
        ),
        "0"
    );
    assert_eq!(
        of(
            "samsara_output_hold_seconds_bucket",
            "le=\"0.000128\",host=\"alpha\""
        ),
        "1"
    );
    assert_eq!(
        of("samsara_info", "version=\"0.1.0\",isolation=\"serial\""),
        "1"
    );
}

#[test]
fn counters_follow_totals_and_never_go_back() {
    let metrics = Metrics::new("vm", "alpha").unwrap();
    let mut snapshot = busy();
    let commits = |snapshot: &Snapshot| {
        let text = metrics.render(snapshot).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("samsara_commits_total{"))
            .unwrap();
        line.rsplit_once(' ').unwrap().1.to_owned()
    };
    assert_eq!(commits(&snapshot), "15");
    assert_eq!(commits(&snapshot), "15");
    snapshot.status.counters.commits = 40;
    assert_eq!(commits(&snapshot), "40");
    snapshot.status.counters.commits = 3;
    assert_eq!(commits(&snapshot), "40");
}

/// Metric names in an expression or a file of them, without the suffixes of histograms.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("samsara_"));
    let base = |word: &str| {
        let histogram = word
            .strip_suffix("_bucket")
            .or_else(|| word.strip_suffix("_count"));
        histogram
            .or_else(|| word.strip_suffix("_sum"))
            .unwrap_or(word)
            .to_owned()
    };
    ours.map(base).collect()
}

#[test]
fn dashboard_and_alerts_name_only_what_exists_and_the_dashboard_shows_everything() {
    let metrics = Metrics::new("vm", "alpha").unwrap();
    metrics.render(&busy()).unwrap();
    let existing = names(&metrics);
    for (file, text) in [("samsara.json", DASHBOARD), ("alerts.yml", ALERTS)] {
        let unknown: Vec<_> = named(text).difference(&existing).cloned().collect();
        assert!(
            unknown.is_empty() && !named(text).is_empty(),
            "{file} names {unknown:?}"
        );
    }
    let shown = named(DASHBOARD);
    let unseen: Vec<_> = existing.difference(&shown).collect();
    assert!(unseen.is_empty(), "samsara.json does not show {unseen:?}");
}

#[test]
fn the_dashboard_is_well_formed() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels
        .iter()
        .map(|panel| panel["id"].as_u64().unwrap())
        .collect();
    assert_eq!(ids.len(), panels.len(), "panel ids repeat");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().unwrap();
        assert!(
            panel["gridPos"]["w"].as_u64().is_some_and(|w| w <= 24),
            "{title}"
        );
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            assert_eq!(
                expression.matches('(').count(),
                expression.matches(')').count(),
                "{title}"
            );
            assert!(
                expression.contains("vm=~\"$vm\""),
                "{title} does not follow the VM selector"
            );
        }
    }
}
