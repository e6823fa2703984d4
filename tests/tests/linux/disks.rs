//! Files on a disk: what was written is read back, and the file system is without fault afterwards.

use std::fs;
use std::path::Path;

use samsara_testing::by_effort;
use samsara_tests::linux::{LinuxMachine, answer, check_disk, disk_setting, make_disk};
use samsara_tests::{Host, Pair, Site, run_to_end};
use samsarad::exit::ExitCode;

use crate::{BOUND, MODES, console, in_mode, turn_or_skip};

const DISK_MIB: u32 = 16;
const VCPUS: u32 = 2;

/// The job's words, the same for guest and host.
fn job() -> String {
    let (files, bytes) = by_effort((6, 16384), (24, 65536));
    format!("job=files files={files} bytes={bytes} workers=2")
}

fn assert_answer(host: &Host, expected: &str, what: &str) {
    let said = console(host);
    assert_eq!(answer(&said).as_deref(), Some(expected), "{what}: {said}");
}

fn expected(turn: &crate::Turn, site: &Site) -> String {
    let dir = site.path("files");
    fs::create_dir(&dir).unwrap();
    let words = format!("{} dir={}", job(), dir.display());
    turn.guest.answer_on_host(&words).unwrap()
}

/// With all tests only.
#[test]
fn files_of_one_host() {
    if by_effort(true, false) {
        return;
    }
    let Some(turn) = turn_or_skip("files_of_one_host") else {
        return;
    };
    let site = Site::new().unwrap();
    let expected = expected(&turn, &site);
    let machine = LinuxMachine::new(turn.guest, &job()).vcpus(VCPUS).device();
    for (mode, set) in MODES {
        let mut seat = site.seat("alpha").unwrap();
        let image = site.path(&format!("disk-{mode}"));
        make_disk(&image, DISK_MIB).unwrap();
        seat.own.push(disk_setting(&image));
        let settings = [in_mode(machine.settings(), set), seat.own.clone()].concat();
        let mut host = run_to_end(site.binaries(), &seat, &settings, BOUND).unwrap();
        assert_eq!(host.wait_code(BOUND).unwrap(), 0, "{mode}");
        assert_answer(&host, &expected, mode);
        check_disk(&image).unwrap();
        println!("  {mode}: {:.1?}", host.started().elapsed());
    }
}

/// Each host has an image of its own; both are the same at the end.
#[test]
fn files_of_a_pair() {
    let Some(turn) = turn_or_skip("files_of_a_pair") else {
        return;
    };
    let site = Site::new().unwrap();
    let expected = expected(&turn, &site);
    let machine = LinuxMachine::new(turn.guest, &job()).vcpus(VCPUS).device();
    let fresh = site.path("disk-fresh");
    make_disk(&fresh, DISK_MIB).unwrap();
    let images = [site.path("disk-alpha"), site.path("disk-beta")];
    let mut seats = site.seats().unwrap();
    for (seat, image) in [&mut seats.0, &mut seats.1].into_iter().zip(&images) {
        fs::copy(&fresh, image).unwrap();
        seat.own.push(disk_setting(image));
    }
    let mut pair = Pair::start_at(&site, &seats, machine.settings(), &[]).unwrap();
    pair.wait_protected().unwrap();
    assert_eq!(pair.primary.wait_code(BOUND).unwrap(), 0, "the primary");
    assert_eq!(pair.backup.wait_code(BOUND).unwrap(), 0, "the backup");
    assert_answer(&pair.primary, &expected, "pair");
    assert_eq!(pair.backup.output().count(), 0, "a backup released output");
    let report = pair.backup.report().unwrap();
    assert_eq!((report.divergences, report.failovers), (0, 0));
    for image in &images {
        check_disk(image).unwrap();
    }
    assert_equal(&images[0], &images[1]);
    let differs = fs::read(&fresh).unwrap() != fs::read(&images[0]).unwrap();
    assert!(differs, "nothing was written");
    println!("  pair: {:.1?}", pair.primary.started().elapsed());
}

/// A log has no contents of disks: it is replayed with a copy of the image, which stays as it is. With all tests only.
#[test]
fn a_log_is_replayed_with_a_copy_of_the_disk() {
    if by_effort(true, false) {
        return;
    }
    let Some(turn) = turn_or_skip("a_log_is_replayed_with_a_copy_of_the_disk") else {
        return;
    };
    let site = Site::new().unwrap();
    let machine = LinuxMachine::new(turn.guest, &job()).vcpus(VCPUS).device();
    let [image, copy, wrong] = ["disk", "copy", "wrong"].map(|name| site.path(name));
    make_disk(&image, DISK_MIB).unwrap();
    fs::copy(&image, &copy).unwrap();
    fs::write(&wrong, vec![0; (DISK_MIB as usize) << 20]).unwrap();
    let settings = [machine.settings(), vec![disk_setting(&image)]].concat();
    let log = site.path("run.log");
    let (ran, report) = site.record(&settings, &log, BOUND).unwrap();
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let replay = |words: &[&str]| {
        let words = [&["replay", log.to_str().unwrap()], words].concat();
        site.ran_ctl(&words).unwrap()
    };
    let copied = fs::read(&copy).unwrap();
    let disk = ["--disk", copy.to_str().unwrap()];
    let replayed = replay(&disk);
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    assert!(replayed.stdout == ran.stdout, "another output");
    let digest = report.digest.unwrap();
    assert!(
        replayed.stderr.contains(&digest),
        "{digest}: {}",
        replayed.stderr
    );
    assert!(fs::read(&copy).unwrap() == copied, "the copy was written");
    assert!(
        fs::read(&image).unwrap() != copied,
        "the guest wrote nothing"
    );

    let without = replay(&[]);
    assert_eq!(without.code, Some(ExitCode::Input.code().into()));
    assert!(
        without.stderr.contains("name with --disk"),
        "{}",
        without.stderr
    );
    let diverged = replay(&["--disk", wrong.to_str().unwrap()]);
    assert_eq!(
        diverged.code,
        Some(ExitCode::Diverged.code().into()),
        "{}",
        diverged.stderr
    );
    assert!(
        diverged.stderr.contains("are the images those"),
        "{}",
        diverged.stderr
    );
}

/// Two images are the same, byte by byte; if not, where not.
pub(crate) fn assert_equal(one: &Path, other: &Path) {
    let (one, other) = (fs::read(one).unwrap(), fs::read(other).unwrap());
    assert_eq!(one.len(), other.len(), "sizes of the images");
    let places = one.iter().zip(&other).enumerate();
    let mut blocks: Vec<usize> = places
        .filter(|(_, (a, b))| a != b)
        .map(|(at, _)| at / 4096)
        .collect();
    blocks.dedup();
    assert!(blocks.is_empty(), "blocks of 4 KiB that differ: {blocks:?}");
}
