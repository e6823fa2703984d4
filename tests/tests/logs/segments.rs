//! Flight recorders, and checkpoints to begin from.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use samsara_testing::by_effort;
use samsara_tests::{Guest, Site, kvm_shared_or_skip};
use samsarad::exit::ExitCode;
use serde_json::Value;

use crate::recorded::{Recorded, end, start, wait_segments};

/// The segments of the newest run, and the commits that they begin after.
fn segments(recorder: &Path) -> Vec<(u64, PathBuf)> {
    let entries = |path: &Path| {
        let entries = fs::read_dir(path).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let run = entries(recorder).pop().unwrap();
    let named = entries(&run).into_iter().map(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let digits = name
            .strip_suffix(".log")
            .unwrap_or_else(|| panic!("{name} is left"));
        (digits.parse().unwrap(), path)
    });
    named.collect()
}

/// Checkpoints of a running guest are states of its history: each leads to its end.
#[test]
fn a_run_in_segments_is_replayed_from_each() {
    let Some(_machine) = kvm_shared_or_skip("a_run_in_segments_is_replayed_from_each") else {
        return;
    };
    let endless = Recorded::stopped_at_segments(3, "outputs", "n=999999 run=20 delay=2000");
    let ends = [
        ("outputs", "n=4500 run=20 delay=2000"),
        ("lu", "n=1024"),
        ("stream", "passes=12"),
    ];
    let ends = ends.iter().take(by_effort(0, ends.len()));
    let ends = ends.map(|(guest, params)| {
        let run = Recorded::in_segments(guest, params, &[]);
        assert_eq!(run.ran.code, Some(0), "{guest}: {}", run.ran.stderr);
        (*guest, run)
    });
    for (guest, run) in std::iter::once(("outputs, stopped", endless)).chain(ends) {
        let segments = segments(&run.log);
        println!(
            "  {guest}: {:.1} s, {} segments",
            run.report.wall_seconds,
            segments.len()
        );
        assert!(segments.len() > 2, "{guest}: {segments:?}");
        if run.report.digest.is_some() {
            run.assert_replayed(guest);
        } else {
            run.assert_replayed_as_far(guest);
        }
        let all = run.json(&["replay", run.log_name(), "--json"]);
        assert!(all["digests_compared"].as_u64().unwrap() >= segments.len() as u64 - 1);
        let stats = run.json(&["log", "stats", run.log_name(), "--json"]);
        assert_eq!(
            stats["chunks"]["count"].as_u64(),
            Some(run.report.chunks),
            "{guest}"
        );
        assert_eq!(stats["segments"].as_u64(), Some(segments.len() as u64));
        for (seq, path) in &segments {
            let words = [
                "replay",
                run.log_name(),
                "--json",
                "--from-checkpoint",
                &seq.to_string(),
            ];
            let outcome = run.json(&words);
            assert_eq!(outcome["from_seq"].as_u64(), Some(*seq), "{guest}");
            assert_eq!(outcome["digest"], all["digest"], "{guest} from {seq}");
            // Each is a log by itself.
            let verified = run.json(&["log", "verify", path.to_str().unwrap(), "--json"]);
            assert_eq!(verified["snapshot_seq"].as_u64(), Some(*seq), "{guest}");
        }
        // A state is the same from its nearest checkpoint as from the start.
        let until = (segments[1].0 + 3).to_string();
        let near = run.json(&["replay", run.log_name(), "--json", "--until", &until]);
        let far = run.json(&[
            "replay",
            run.log_name(),
            "--json",
            "--from-start",
            "--until",
            &until,
        ]);
        assert_eq!(near["from_seq"].as_u64(), Some(segments[1].0));
        assert_eq!(
            (far["from_seq"].as_u64(), &far["digest"]),
            (Some(0), &near["digest"])
        );
        assert_damage_is_noticed(&run, &segments, &all["digest"]);
    }
}

/// A segment that is damaged, cut or missing is named; what follows from a checkpoint after it is replayed all the same.
fn assert_damage_is_noticed(run: &Recorded, segments: &[(u64, PathBuf)], digest: &Value) {
    let [(_, first), (after, middle), (last, _), ..] = segments else {
        panic!("three segments, not {segments:?}");
    };
    let whole = fs::read(middle).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    let middle_name = middle.to_str().unwrap();
    let missing = format!("the segment before it ends at commit {after}");
    let cases: [(Option<&[u8]>, &str, &str); 3] = [
        (Some(&flipped), "damaged", middle_name),
        (
            Some(&whole[..whole.len() - 3]),
            "is missing",
            "begins after commit",
        ),
        (None, "is missing", &missing),
    ];
    for (contents, what, place) in cases {
        match contents {
            Some(bytes) => fs::write(middle, bytes).unwrap(),
            None => fs::remove_file(middle).unwrap(),
        }
        for words in [&["replay"][..], &["log", "verify"], &["log", "stats"]] {
            let words = [words, &[run.log_name()]].concat();
            let ran = run.ctl(&words);
            let code = Some(ExitCode::LogFile.code().into());
            assert_eq!(ran.code, code, "{what}, {words:?}: {}", ran.stderr);
            for part in [what, place] {
                assert!(
                    ran.stderr.contains(part),
                    "{words:?}, {part}: {}",
                    ran.stderr
                );
            }
        }
        let words = ["replay", run.log_name(), "--json", "--from-checkpoint"];
        let outcome = run.json(&[&words[..], &[&last.to_string()]].concat());
        assert_eq!(&outcome["digest"], digest);
        let alone = run.ctl(&["log", "verify", first.to_str().unwrap()]);
        assert_eq!(alone.code, Some(0), "{}", alone.stderr);
    }
    fs::write(middle, whole).unwrap();
}

/// A flight recorder has the last of a run, within its bound, and not its beginning.
#[test]
fn a_flight_recorder_keeps_what_it_is_told_to() {
    const BOUND_BYTES: u64 = 16 << 20;
    let Some(_machine) = kvm_shared_or_skip("a_flight_recorder_keeps_what_it_is_told_to") else {
        return;
    };
    let run = Recorded::in_segments("private", "n=60000000", &["log.max_bytes=16MiB"]);
    assert_eq!(run.ran.code, Some(0), "{}", run.ran.stderr);
    let segments = segments(&run.log);
    let bytes: u64 = segments
        .iter()
        .map(|(_, path)| fs::metadata(path).unwrap().len())
        .sum();
    let (_, newest) = segments.last().unwrap();
    let newest = fs::metadata(newest).unwrap().len();
    println!(
        "  {:.1} s, {bytes} bytes in {} segments",
        run.report.wall_seconds,
        segments.len()
    );
    // The one that is written, and one that was begun after it, stay.
    assert!(
        bytes <= BOUND_BYTES + newest,
        "{bytes} bytes in {segments:?}"
    );
    assert!(segments[0].0 > 0, "the beginning is still there");
    let outcome = run.json(&["replay", run.log_name(), "--json"]);
    assert_eq!(outcome["from_seq"].as_u64(), Some(segments[0].0));
    assert_eq!(outcome["status"].as_u64(), Some(0));
    assert_eq!(outcome["digest"].as_str(), run.report.digest.as_deref());

    // The next run has a directory of its own, and what the first one left counts.
    let guest = Guest::new(&run.site, "hello", "").unwrap();
    let again = Recorded::at(run.site, run.log, &guest, &["log.max_bytes=64MiB"]);
    assert_eq!(again.ran.code, Some(0), "{}", again.ran.stderr);
    assert_eq!(fs::read_dir(&again.log).unwrap().count(), 2);
    again.assert_replayed("the second run");
}

/// A host that was lost leaves whole segments, and the last one as far as it was written.
#[test]
fn segments_of_a_host_that_was_lost_are_replayed() {
    let Some(_machine) = kvm_shared_or_skip("segments_of_a_host_that_was_lost") else {
        return;
    };
    let site = Site::new().unwrap();
    let guest = Guest::new(&site, "counter", "n=1000000000000").unwrap();
    let log = site.path("recorder");
    fs::create_dir(&log).unwrap();
    let host = start(&site, &guest, &log);
    let waited = wait_segments(&log, 3);
    end(host, Signal::KILL);
    waited.unwrap();
    let words = ["replay", log.to_str().unwrap(), "--json"];
    let replayed = site.ran_ctl(&words).unwrap();
    assert_eq!(
        replayed.code,
        Some(ExitCode::LogEnds.code().into()),
        "{}",
        replayed.stderr
    );
    let outcome: Value = serde_json::from_slice(&replayed.stdout).unwrap();
    assert!(
        outcome["digests_compared"].as_u64().unwrap() >= 2,
        "{outcome}"
    );
}
