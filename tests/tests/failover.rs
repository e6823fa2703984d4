//! The primary is killed at seeded random moments, in every phase of a run. Each time the survivor must finish with the
//! right answer, and what both released must be the whole output, repeated at most where one host took over.
//!
//! Once in each phase, or four times with `SAMSARA_TESTS=full`; `SAMSARA_KILLS=n` kills n times in all. `SAMSARA_SEED=s`
//! repeats a run.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends at the first error")]

use std::path::PathBuf;
use std::time::Duration;

use samsara_testing::{by_effort, number_from_env};
use samsara_tests::seed::{Seeded, run_seed};
use samsara_tests::{Guest, Host, Joint, Pair, Site, kvm_or_skip, numbered_lines, tree};

/// Phases in which the primary is killed; a test for each.
const PHASES: u64 = 5;
/// Everything here takes a second or two on a machine that is not busy.
const BOUND: Duration = Duration::from_mins(1);
const INPUT_BYTES: usize = 6 << 20;
const PASSES: u32 = 3;
const LINES: u32 = 6000;

/// What a case runs, and what it must release.
struct Case {
    site: Site,
    guest: Guest,
    expected: Vec<u8>,
    seeded: Seeded,
}

impl Case {
    /// The tree of a file of random bytes.
    fn tree(seed: u64) -> Self {
        let site = Site::new().unwrap();
        let mut data = vec![0; INPUT_BYTES];
        let mut seeded = Seeded::new(seed);
        seeded.fill(&mut data);
        let input: PathBuf = site.write("input", &data).unwrap();
        let guest = Guest::new(&site, "sha256tree", &format!("passes={PASSES} claim=4")).unwrap();
        let guest = guest.input(&input).memory("64MiB");
        let expected = tree::guest_output(&tree::root_line(&input).unwrap());
        Self {
            site,
            guest,
            expected: expected.into(),
            seeded,
        }
    }

    /// Numbered lines.
    fn outputs(seed: u64) -> Self {
        let site = Site::new().unwrap();
        let guest = Guest::new(&site, "outputs", &format!("n={LINES} run=40 delay=2000")).unwrap();
        Self {
            site,
            guest,
            expected: numbered_lines(LINES),
            seeded: Seeded::new(seed),
        }
    }

    fn start(&self) -> Pair {
        Pair::start(&self.site, &self.guest, &[]).unwrap()
    }

    /// The survivor's end, and all that was released.
    fn finish(&self, mut pair: Pair) {
        let first = pair.primary.output().bytes();
        let status = pair.backup.wait_code(BOUND).unwrap();
        let second = pair.backup.output().bytes();
        assert_eq!(status, 0, "the survivor's exit status");
        if let Joint::Broken { why } = Joint::of(&self.expected, &[&first, &second]) {
            panic!(
                "{} bytes released, then {}: {why}",
                first.len(),
                second.len()
            );
        }
        let report = pair.backup.report().unwrap();
        assert_eq!(report.divergences, 0, "divergences");
        let how = report
            .role_changes
            .last()
            .map_or("", |change| change.reason.as_str());
        let counts = format!("{} bytes, then {}", first.len(), second.len());
        println!("  {counts}; {how}; {}", report.stop);
    }
}

/// Runs the kills of a phase, each with a seed of its own; a failing one says how to repeat it.
fn kills(phase: u64, test: &str, kill: impl Fn(u64)) {
    let Some(_machine) = kvm_or_skip(test) else {
        return;
    };
    let all = number_from_env("SAMSARA_KILLS").unwrap_or_else(|| by_effort(1, 4) * PHASES);
    // The first phases take what does not divide evenly.
    let count = all / PHASES + u64::from(phase < all % PHASES);
    let seed = run_seed();
    for index in 0..count {
        let seed = seed.wrapping_add(index);
        println!("{test}: seed {seed}");
        let _told = Told(format!(
            "SAMSARA_SEED={seed} SAMSARA_KILLS={PHASES} cargo test --package samsara-tests \
             --test failover -- --nocapture {test}"
        ));
        kill(seed ^ (phase << 56));
    }
}

/// Says on a panic how to repeat it.
struct Told(String);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to repeat this: {}", self.0);
        }
    }
}

/// A random moment is the one thing that is slept until here.
fn let_pass(time: Duration) {
    std::thread::sleep(time);
}

/// From the start of the process on: before the first term, before the backup is there, before it is in sync.
#[test]
fn killed_while_starting() {
    kills(0, "killed_while_starting", |seed| {
        let mut case = Case::tree(seed);
        let mut pair = case.start();
        let_pass(case.seeded.up_to(Duration::from_millis(250)));
        pair.kill_primary().unwrap();
        carried_on(&case, pair);
    });
}

/// While the backup is sent the machine: page tables for much memory make that long enough to be hit.
#[test]
fn killed_while_syncing() {
    kills(1, "killed_while_syncing", |seed| {
        let mut case = Case::tree(seed);
        case.guest = case.guest.memory("4GiB");
        let mut pair = case.start();
        pair.backup
            .wait_log("receiving the machine", BOUND)
            .unwrap();
        let_pass(case.seeded.up_to(Duration::from_millis(300)));
        pair.kill_primary().unwrap();
        carried_on(&case, pair);
    });
}

/// The backup goes on with the guest, or starts it if nothing had been started. A backup that never saw a primary has
/// nothing to go by but the arbiter: then the killed host is started again, as a service manager would.
fn carried_on(case: &Case, mut pair: Pair) {
    let settled = |host: &mut Host| {
        host.wait_status("a decision", BOUND, |status| {
            status.role == samsara_config::Role::Primary
                || status.ended.is_some()
                || status.state.starts_with("waiting for a primary")
        })
    };
    // It may have ended in between.
    let is_alone = settled(&mut pair.backup).is_ok_and(|status| status.peer.is_none());
    if is_alone {
        println!("  killed before the backup had seen it: started again");
        let (seat, peer) = (pair.primary.seat().clone(), pair.backup.seat().clone());
        pair.primary = pair.restart_as_primary(&case.site, &seat, &peer).unwrap();
        assert_eq!(pair.primary.wait_code(BOUND).unwrap(), 0);
    }
    case.finish(pair);
}

#[test]
fn killed_while_computing() {
    kills(2, "killed_while_computing", |seed| {
        let mut case = Case::tree(seed);
        let mut pair = case.start();
        let step = case.seeded.below(15);
        let line = format!("progress {step}/16\n");
        if step == 0 {
            pair.wait_protected().unwrap();
        } else {
            wait_line(&pair.primary, &line);
        }
        let_pass(case.seeded.up_to(Duration::from_millis(40)));
        pair.kill_primary().unwrap();
        case.finish(pair);
    });
}

#[test]
fn killed_while_putting_out_much() {
    kills(3, "killed_while_putting_out_much", |seed| {
        let mut case = Case::outputs(seed);
        let mut pair = case.start();
        let line = case.seeded.below(u64::from(LINES) * 9 / 10);
        wait_line(&pair.primary, &format!("line {line:06}\n"));
        let_pass(case.seeded.up_to(Duration::from_millis(2)));
        pair.kill_primary().unwrap();
        case.finish(pair);
    });
}

/// Within the last lines, or while the guest's end goes its way.
#[test]
fn killed_at_the_end() {
    kills(4, "killed_at_the_end", |seed| {
        let mut case = Case::outputs(seed);
        let mut pair = case.start();
        let before_last = case.seeded.below(60) as u32;
        wait_line(
            &pair.primary,
            &format!("line {:06}\n", LINES - 1 - before_last),
        );
        let_pass(case.seeded.up_to(Duration::from_millis(5)));
        pair.kill_primary().unwrap();
        case.finish(pair);
    });
}

/// Waits until the host has released a line.
fn wait_line(host: &Host, line: &str) {
    let mut from = 0;
    let has = |bytes: &[u8]| {
        let found = bytes[from..]
            .windows(line.len())
            .any(|window| window == line.as_bytes());
        // What was searched is not searched again, but for the start of a line.
        from = bytes.len().saturating_sub(line.len());
        found.then_some(())
    };
    host.wait_output(line.trim_end(), BOUND, has).unwrap();
}
