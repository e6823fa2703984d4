//! A guest that gives every device register and ring garbage (`guests/kernels/hostile.c`): it is refused or reset, and
//! the host and its backup are unharmed.
//!
//! One seed, or several with `SAMSARA_TESTS=full`. `SAMSARA_SEED=s` repeats a run with that seed only.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use samsara_guests::HOSTILE_KERNEL;
use samsara_testing::{by_effort, number_from_env};
use samsara_tests::linux::net_setting;
use samsara_tests::seed::{Seeded, run_seed};
use samsara_tests::wire::{TAP_A, TAP_B};
use samsara_tests::{Host, Pair, Seat, Site, Wire, run_to_end};

use crate::disks::assert_equal;
use crate::{BOUND, MODES, Told, alone_or_skip, console, in_mode, wait_said};

const DISK_BYTES: usize = 2 << 20;
const READ_ONLY_BYTES: usize = (1 << 20) + SECTOR_BYTES;
const SECTOR_BYTES: usize = 512;
/// Garbage in each phase. There are a quarter as many rings: each of their 44 defects comes by at least once.
const AMOUNT: (u32, u32) = (180, 360);
/// Disks, card, console and entropy.
const DEVICES: u32 = 5;
const PHASES: [&str; 8] = [
    "serial port",
    "timers",
    "clock",
    "ports",
    "local APIC",
    "APIC MSRs",
    "IOAPIC",
    "restarts",
];
/// Images that each host has: one that the guest can write, and one that it cannot.
struct Images {
    written: PathBuf,
    read_only: PathBuf,
}

impl Images {
    fn new(site: &Site, host: &str) -> Self {
        let name = |what| format!("{host}-{what}");
        let written = vec![0; DISK_BYTES];
        Self {
            written: site.write(&name("disk"), &written).unwrap(),
            read_only: site.write(&name("read-only"), &pattern()).unwrap(),
        }
    }

    fn setting(&self) -> String {
        let (written, read_only) = (self.written.display(), self.read_only.display());
        format!("vm.disks=[{{path=\"{written}\"}},{{path=\"{read_only}\",read_only=true}}]")
    }

    fn assert_kept(&self, what: &str) {
        let found = fs::read(&self.read_only).unwrap();
        assert!(
            found == pattern(),
            "{what}: the disk that cannot be written"
        );
    }
}

/// What the guest expects in the first sector of the disk that it cannot write, and goes on in the others.
fn pattern() -> Vec<u8> {
    let byte = |at: usize| (at % SECTOR_BYTES * 13) as u8;
    (0..READ_ONLY_BYTES).map(byte).collect()
}

fn settings(seed: u64) -> Vec<String> {
    vec![
        format!("vm.kernel={HOSTILE_KERNEL}"),
        format!("vm.cmdline=\"{seed} {} 1\"", by_effort(AMOUNT.0, AMOUNT.1)),
        "vm.vcpus=2".to_owned(),
        "vm.memory=64MiB".to_owned(),
        "vm.console_device=virtio".to_owned(),
        "recording.digest_every=50".to_owned(),
    ]
}

fn sit_at(seat: &mut Seat, wire: &Wire, images: &Images, tap: &str) {
    seat.own = vec![images.setting(), net_setting(tap)];
    seat.prefix = wire.hosts.command_prefix().to_vec();
}

/// Seeds of this run.
fn seeds() -> Vec<u64> {
    let first = run_seed();
    let count = if number_from_env("SAMSARA_SEED").is_some() {
        1
    } else {
        by_effort(1, 2)
    };
    (first..first + count).collect()
}

fn told(seed: u64, test: &str) -> Told {
    println!("{test}: seed {seed}");
    Told(format!(
        "SAMSARA_SEED={seed} cargo test --package samsara-tests --test linux -- --nocapture {test}"
    ))
}

/// Every phase has ended well, and the guest as it means to. Garbage is shown as well, so the lines are looked for.
fn assert_said_all(said: &str, what: &str) {
    let lines: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("hostile: "))
        .collect();
    let has = |wanted: &str| {
        let is_there = lines.iter().any(|line| line.starts_with(wanted));
        assert!(is_there, "{what}: no {wanted:?} in {lines:#?}");
    };
    for phase in PHASES {
        has(&format!("{phase}: fine"));
    }
    for window in 0..DEVICES {
        has(&format!("registers of window {window} device "));
        has(&format!("rings of window {window} device "));
    }
    has("the console speaks");
    has(&format!("registers of window {DEVICES} device 0: fine"));
    has("done");
    let last = lines.iter().rfind(|line| line.starts_with("rings of"));
    println!("  {what}: {}", last.unwrap());
}

fn assert_calm(host: &Host) {
    let log = host.log_text();
    assert!(!log.contains("panicked"), "{}: {log}", host.name());
}

fn assert_ended_well(host: &mut Host) {
    assert_eq!(host.wait_code(BOUND).unwrap(), 0, "{}", host.name());
    assert_calm(host);
    let report = host.report().unwrap();
    assert_eq!(report.divergences, 0, "{}", host.name());
}

/// Natively and in one recorded mode, or in all.
fn modes(seed: u64) -> Vec<(&'static str, &'static [&'static str])> {
    let recorded = 1 + (seed % 2) as usize;
    by_effort(vec![MODES[0], MODES[recorded]], MODES.to_vec())
}

#[test]
fn a_hostile_guest_of_one_host() {
    const TEST: &str = "a_hostile_guest_of_one_host";
    let Some(_machine) = alone_or_skip(TEST) else {
        return;
    };
    let Some(wire) = Wire::new_or_skip(TEST) else {
        return;
    };
    for seed in seeds() {
        let _told = told(seed, TEST);
        for (mode, set) in modes(seed) {
            let site = Site::new().unwrap();
            let images = Images::new(&site, "alpha");
            let mut seat = site.seat("alpha").unwrap();
            sit_at(&mut seat, &wire, &images, TAP_A);
            let settings = [in_mode(settings(seed), set), seat.own.clone()].concat();
            let mut host = run_to_end(site.binaries(), &seat, &settings, BOUND).unwrap();
            assert_eq!(
                host.wait_code(Duration::ZERO).unwrap(),
                0,
                "{mode}: power-off"
            );
            assert_calm(&host);
            assert_said_all(&console(&host), mode);
            images.assert_kept(mode);
            println!("  {mode}: {:.1?}", host.started().elapsed());
        }
    }
}

/// The guest keeps all processors busy, and silence is not what is tested: who is killed is noticed by its connection.
const PATIENT: &str = "failover.dead_after_ms=3000";

/// A pair on a wire, each host with images of its own.
struct HostilePair {
    pair: Pair,
    images: [Images; 2],
    _site: Site,
}

impl HostilePair {
    fn start(wire: &Wire, seed: u64, isolation: &str) -> Self {
        let site = Site::new().unwrap();
        let images = ["alpha", "beta"].map(|host| Images::new(&site, host));
        let mut seats = site.seats().unwrap();
        sit_at(&mut seats.0, wire, &images[0], TAP_A);
        sit_at(&mut seats.1, wire, &images[1], TAP_B);
        let mut pair =
            Pair::start_at(&site, &seats, settings(seed), &[isolation, PATIENT]).unwrap();
        pair.wait_protected().unwrap();
        Self {
            pair,
            images,
            _site: site,
        }
    }

    fn written(&self) -> [&Path; 2] {
        [&self.images[0].written, &self.images[1].written]
    }
}

/// How the vCPUs are isolated, by test effort.
fn isolations(seed: u64) -> Vec<&'static str> {
    let both = ["recording.isolation=serial", "recording.isolation=parallel"];
    let one = (seed % 2) as usize;
    both[by_effort(one..one + 1, 0..2)].to_vec()
}

#[test]
fn a_hostile_guest_of_a_pair() {
    const TEST: &str = "a_hostile_guest_of_a_pair";
    let Some(_machine) = alone_or_skip(TEST) else {
        return;
    };
    for seed in seeds() {
        let _told = told(seed, TEST);
        for isolation in isolations(seed) {
            let Some(wire) = Wire::new_or_skip(TEST) else {
                return;
            };
            let mut hostile = HostilePair::start(&wire, seed, isolation);
            assert_ended_well(&mut hostile.pair.primary);
            assert_ended_well(&mut hostile.pair.backup);
            assert_said_all(&console(&hostile.pair.primary), isolation);
            let (primary, backup) = (&hostile.pair.primary, &hostile.pair.backup);
            assert_eq!(backup.output().count(), 0, "a backup released output");
            let (report, followed) = (primary.report().unwrap(), backup.report().unwrap());
            assert_eq!((report.failovers, followed.failovers), (0, 0));
            assert!(report.digest.is_some() && report.digest == followed.digest);
            let [alpha, beta] = hostile.written();
            assert_equal(alpha, beta);
            let written = fs::read(alpha).unwrap();
            assert!(written.iter().any(|byte| *byte != 0), "nothing was written");
            hostile
                .images
                .iter()
                .for_each(|images| images.assert_kept(TEST));
            println!("  {isolation}: {:.1?}", primary.started().elapsed());
        }
    }
}

/// The primary is killed after one of the phases, a little later.
#[test]
fn a_hostile_guest_outlives_its_host() {
    const TEST: &str = "a_hostile_guest_outlives_its_host";
    const LATER: Duration = Duration::from_millis(400);
    let Some(_machine) = alone_or_skip(TEST) else {
        return;
    };
    for seed in seeds() {
        let _told = told(seed, TEST);
        let mut seeded = Seeded::new(seed);
        for isolation in isolations(seed) {
            let Some(wire) = Wire::new_or_skip(TEST) else {
                return;
            };
            let window = seeded.below(DEVICES.into());
            let mut hostile = HostilePair::start(&wire, seed, isolation);
            let mark = format!("hostile: registers of window {window} ");
            wait_said(&hostile.pair.primary, &mark);
            // A random moment is the one thing that is slept until here.
            std::thread::sleep(seeded.up_to(LATER));
            hostile.pair.kill_primary().unwrap();
            assert_ended_well(&mut hostile.pair.backup);
            let (primary, survivor) = (&hostile.pair.primary, &hostile.pair.backup);
            assert_calm(primary);
            let said = format!("{}\n{}", console(primary), console(survivor));
            assert_said_all(&said, &format!("{isolation}, killed after {mark:?}"));
            assert_eq!(survivor.report().unwrap().failovers, 1);
            hostile
                .images
                .iter()
                .for_each(|images| images.assert_kept(TEST));
            println!("  {isolation}: {:.1?}", survivor.started().elapsed());
        }
    }
}
