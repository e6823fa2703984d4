//! A guest that changes its page tables all the time: no translation holds longer than it may.
//!
//! Its code at CPL 3 looks through window pages that it remaps, write-protects and unmaps, with shootdowns by
//! interprocessor interrupts; see `guests/kernels/paging.c`.

use std::time::Duration;

use samsara_engine::{Faults, Isolation, Mistake, Settings};
use samsara_machine::kvm::{Host, Paging, probe};
use samsara_machine::{Ended, Platform};
use samsara_testing::by_effort;

use crate::world::{Answer, Guest, PATIENCE, host, native, recorded, settings};

fn guest(rounds: u32, seed: u32) -> Guest {
    Guest {
        name: "paging",
        platform: Platform::Pc,
        path: samsara_guests::PAGING_KERNEL.into(),
        params: format!("{rounds} {seed}"),
        vcpus: 2,
        memory_mib: 16,
        input: Vec::new(),
        typed: b"",
    }
}

fn paging(host: &Host) -> Paging {
    probe(host).unwrap().paging
}

fn settings_of(host: &Host, isolation: Isolation, faults: Faults) -> Settings {
    Settings {
        isolation,
        paging: paging(host),
        ..settings(faults)
    }
}

fn assert_right(answer: &Answer, how: &str) {
    let console = String::from_utf8_lossy(&answer.console);
    let is_right = answer.is_right() && console == "wrong 0\n";
    assert!(is_right, "{how}: {answer:?}");
}

#[test]
fn page_tables_change_natively() {
    let Some(host) = host() else { return };
    for seed in 0..3 {
        let answer = native(&host, &guest(by_effort(100, 1000), seed)).unwrap();
        assert_right(&answer, "native");
    }
}

/// Invariant 5, of translations: with chunks of all lengths, squashed or not.
fn changes_recorded(isolation: Isolation) {
    let Some(host) = host() else { return };
    let lengths = [(200, 1000), (200, 5000), (1000, 3000)];
    for (seed, squash_every) in (0..).zip([0, 2, 3, 7]) {
        for (chunk_min, chunk_max) in lengths {
            let faults = Faults {
                squash_every,
                ..Faults::default()
            };
            let settings = Settings {
                chunk_min: Duration::from_micros(chunk_min),
                chunk_max: Duration::from_micros(chunk_max),
                ..settings_of(&host, isolation, faults)
            };
            let guest = guest(by_effort(15, 150), seed);
            let how = format!("{isolation:?}, {faults:?}, chunks of {chunk_min} to {chunk_max} us");
            let (answer, stats) = recorded(&host, &guest, settings, PATIENCE)
                .unwrap_or_else(|error| panic!("{how}: {error}"));
            assert_right(&answer, &how);
            let squashes = stats.squashes;
            println!("{how}: {} commits, {squashes} squashes", stats.commits);
        }
    }
}

#[test]
fn page_tables_change_in_parallel() {
    changes_recorded(Isolation::Parallel);
}

#[test]
fn page_tables_change_serially() {
    changes_recorded(Isolation::Serial);
}

/// Where KVM keeps shadow page tables, the guest sees what was before unless they are forgotten.
fn notices_kept_translations(isolation: Isolation, squash_every: u64) {
    const TRIES: u32 = 8;
    const IMPATIENCE: Duration = Duration::from_secs(10);
    let Some(host) = host() else { return };
    if paging(&host) == Paging::Second {
        println!("skipped: this host's processor walks page tables itself");
        return;
    }
    let faults = Faults {
        mistake: Some(Mistake::SkipForgetTranslations),
        squash_every,
        ..Faults::default()
    };
    for seed in 0..TRIES {
        let settings = settings_of(&host, isolation, faults);
        let run = recorded(&host, &guest(40, seed), settings, IMPATIENCE);
        println!("{run:?}");
        let Ok((answer, _)) = run else { continue };
        let console = String::from_utf8_lossy(&answer.console);
        if answer.ended == Some(Ended::Panicked) && console.contains("wrong ") {
            return;
        }
    }
    panic!("kept translations go unnoticed");
}

#[test]
fn kept_translations_are_noticed_in_parallel() {
    notices_kept_translations(Isolation::Parallel, 0);
}

#[test]
fn translations_kept_by_squashes_are_noticed() {
    notices_kept_translations(Isolation::Serial, 2);
}
