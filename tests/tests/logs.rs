//! Logs of real runs, looked at and replayed by samsaractl: the same output, the same exit status, the same digest.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends at the first error")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use samsara_tests::{
    Guest, Ran, Report, Site, kvm_shared_or_skip, numbered_lines, tree, wait, wait_file,
};
use samsarad::exit::ExitCode;
use serde_json::Value;

const BOUND: Duration = Duration::from_mins(1);

/// A run of a guest, with its log.
struct Recorded {
    site: Site,
    log: PathBuf,
    ran: Ran,
    report: Report,
}

impl Recorded {
    fn new(site: Site, guest: &Guest, settings: &[&str]) -> Self {
        let log = site.path("run.log");
        Self::at(site, log, guest, settings)
    }

    /// With the log in segments, in a directory.
    fn in_segments(guest: &str, params: &str, settings: &[&str]) -> Self {
        let site = Site::new().unwrap();
        let guest = Guest::new(&site, guest, params).unwrap();
        let log = site.path("recorder");
        fs::create_dir(&log).unwrap();
        let every = "log.checkpoint_every_s=1";
        Self::at(site, log, &guest, &[&[every], settings].concat())
    }

    fn at(site: Site, log: PathBuf, guest: &Guest, settings: &[&str]) -> Self {
        let mut all = guest.settings();
        all.extend(settings.iter().map(ToString::to_string));
        let (ran, report) = site.record(&all, &log, BOUND).unwrap();
        Self {
            site,
            log,
            ran,
            report,
        }
    }

    fn log_name(&self) -> &str {
        self.log.to_str().unwrap()
    }

    fn ctl(&self, words: &[&str]) -> Ran {
        self.site.ran_ctl(words).unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        let ran = self.ctl(words);
        serde_json::from_slice(&ran.stdout).unwrap_or_else(|_| panic!("{words:?}: {}", ran.stderr))
    }

    /// Replayed, it is the run that it was.
    fn assert_replayed(&self, what: &str) {
        let replayed = self.ctl(&["replay", self.log_name()]);
        assert_eq!(replayed.code, self.ran.code, "{what}: {}", replayed.stderr);
        assert!(replayed.stdout == self.ran.stdout, "{what}: another output");
        let outcome = self.json(&["replay", self.log_name(), "--json"]);
        assert_eq!(
            outcome["digest"].as_str(),
            self.report.digest.as_deref(),
            "{what}"
        );
        assert_eq!(outcome["seq"].as_u64(), self.report.digest_seq, "{what}");
        let exit_status = outcome["exit_status"].as_u64();
        assert_eq!(
            exit_status,
            self.report.exit_status.map(u64::from),
            "{what}"
        );
        assert_eq!(outcome["tail"], "clean", "{what}");
        assert!(
            replayed.stderr.contains(&self.report.stop),
            "{what}: {}",
            replayed.stderr
        );
    }

    /// What is shown and counted of it is what the run counted.
    fn assert_counted(&self, what: &str) {
        let stats = self.json(&["log", "stats", self.log_name(), "--json"]);
        assert_eq!(
            stats["chunks"]["count"].as_u64(),
            Some(self.report.chunks),
            "{what}"
        );
        assert_eq!(
            stats["last_seq"].as_u64(),
            Some(self.report.commits),
            "{what}"
        );
        let vcpus: Vec<_> = stats["by_vcpu"].as_array().unwrap().iter().collect();
        let vcpus: Vec<_> = vcpus
            .iter()
            .map(|of| of["count"].as_u64().unwrap())
            .collect();
        assert_eq!(vcpus, self.report.chunks_by_vcpu, "{what}");
        let shown = self.ctl(&["log", "show", self.log_name(), "--json"]);
        let lines = String::from_utf8(shown.stdout).unwrap();
        let kinds: Vec<String> = lines
            .lines()
            .map(|line| {
                serde_json::from_str::<Value>(line).unwrap()["kind"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        let count = |kind: &str| kinds.iter().filter(|found| *found == kind).count() as u64;
        assert_eq!((count("snapshot"), count("end")), (1, 1), "{what}");
        assert_eq!(count("chunk"), self.report.chunks, "{what}");
        assert_eq!(
            count("chunk") + count("input"),
            self.report.commits,
            "{what}"
        );
        let verified = self.ctl(&["log", "verify", self.log_name()]);
        let said = String::from_utf8_lossy(&verified.stdout);
        assert!(
            verified.code == Some(0) && said.contains("frames  whole"),
            "{what}: {said}"
        );
    }
}

fn recorded(name: &str, params: &str, settings: &[&str]) -> Recorded {
    let site = Site::new().unwrap();
    let guest = Guest::new(&site, name, params).unwrap();
    Recorded::new(site, &guest, settings)
}

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
        let mut host = start(&site, &guest, &log);
        wait_file(&log, 2 << 20, BOUND).unwrap();
        kill_process(Pid::from_child(&host), signal).unwrap();
        let code = host.wait().unwrap().code();
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

fn start(site: &Site, guest: &Guest, log: &Path) -> std::process::Child {
    let mut command = Command::new(&site.binaries().samsarad);
    command.args(["--role", "standalone", "--record"]).arg(log);
    command.args(["--set", "log.checkpoint_every_s=1"]);
    for setting in guest.settings() {
        command.args(["--set", &setting]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

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
    for (guest, params) in [("outputs", "n=12000 run=20 delay=2000"), ("lu", "n=1024")] {
        let run = Recorded::in_segments(guest, params, &[]);
        assert_eq!(run.ran.code, Some(0), "{guest}: {}", run.ran.stderr);
        let segments = segments(&run.log);
        println!(
            "  {guest}: {:.1} s, {} segments",
            run.report.wall_seconds,
            segments.len()
        );
        assert!(segments.len() > 2, "{guest}: {segments:?}");
        run.assert_replayed(guest);
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
            assert_eq!(
                outcome["digest"].as_str(),
                run.report.digest.as_deref(),
                "{guest} from {seq}"
            );
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
    }
}

/// A flight recorder has the last of a run, within its bound, and not its beginning.
#[test]
fn a_flight_recorder_keeps_what_it_is_told_to() {
    const BOUND_BYTES: u64 = 16 << 20;
    let Some(_machine) = kvm_shared_or_skip("a_flight_recorder_keeps_what_it_is_told_to") else {
        return;
    };
    let run = Recorded::in_segments("lu", "n=1024", &["log.max_bytes=16MiB"]);
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
    assert!(
        bytes <= BOUND_BYTES.max(newest),
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
    let mut host = start(&site, &guest, &log);
    let has_three = || {
        let runs = fs::read_dir(&log).unwrap().next()?.unwrap().path();
        let names = fs::read_dir(runs)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let logs = names.filter(|name| name.to_str().unwrap().ends_with(".log"));
        (logs.count() >= 3).then_some(())
    };
    wait::until("three segments", BOUND, || Ok(has_three()), String::new).unwrap();
    kill_process(Pid::from_child(&host), Signal::KILL).unwrap();
    host.wait().unwrap();
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
