use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use samsara_commitlog::{
    Boundary, Chunk, Commit, CommitSeq, DeviceIndex, Effects, Exit, Frame, Input, Record, Space,
    VcpuIndex,
};
use samsara_machine::bare::DEVICE_PAGE;
use samsara_machine::machine::ChunkDigest;
use serde_json::Value;

use super::after_help;
use crate::ctl::CtlError;
use crate::ctl::made::{Made, ctl};
use crate::exit::ExitCode;

fn replay(path: &Path, words: &[&str]) -> Result<(u8, Vec<u8>), CtlError> {
    let path = path.to_str().unwrap();
    ctl(&[&["replay", path], words].concat())
}

fn json(path: &Path, words: &[&str]) -> (u8, Value) {
    let (status, out) = replay(path, &[&["--json"], words].concat()).unwrap();
    (status, serde_json::from_slice(&out).unwrap())
}

fn failed(path: &Path, words: &[&str], code: ExitCode, parts: &[&str]) {
    let error = replay(path, words).unwrap_err();
    let line = error.line();
    assert_eq!(error.exit_code(), code, "{line}");
    assert!(!line.contains('\n'), "{line}");
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
}

#[test]
fn a_replay_ends_as_the_run_did() {
    let folder = tempfile::tempdir().unwrap();
    let made = Made::run();
    let path = made.write(folder.path());
    assert_eq!(replay(&path, &["--apply"]).unwrap(), (7, b"hi".to_vec()));
    let (status, outcome) = json(&path, &[]);
    assert_eq!((status, outcome["exit_status"].as_u64()), (7, Some(7)));
    let digest = made.machine.digest();
    assert_eq!(outcome["digest"], format!("{:032x}", digest.digest));
    assert_eq!(
        (outcome["from_seq"].as_u64(), outcome["seq"].as_u64()),
        (Some(0), Some(7))
    );
    assert_eq!(
        (
            outcome["digests_compared"].as_u64(),
            outcome["chunks"].as_u64()
        ),
        (Some(1), Some(6))
    );
    assert_eq!(
        (outcome["console_bytes"].as_u64(), outcome["tail"].as_str()),
        (Some(2), Some("clean"))
    );

    let console = folder.path().join("console");
    let words = ["--json", "--console", console.to_str().unwrap()];
    assert_eq!(replay(&path, &words).unwrap().0, 7);
    assert_eq!(fs::read(&console).unwrap(), b"hi");
}

#[test]
fn a_replay_stops_where_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = Made::new();
    let mut expected = vec![made.machine.digest()];
    for _ in 0..5 {
        made.chunk(0, Boundary::Timer, Exit::Cut);
        expected.push(made.machine.digest());
    }
    let path = made.write(folder.path());
    let (status, outcome) = json(
        &path,
        &["--until", "3", "--digest-at", "0", "--digest-at", "2"],
    );
    assert_eq!((status, outcome["seq"].as_u64()), (0, Some(3)));
    assert_eq!(outcome["tail"], Value::Null);
    let hex = |at: usize| format!("{:032x}", expected[at].digest);
    assert_eq!(outcome["digest"], hex(3));
    let digests = outcome["digests"].as_array().unwrap();
    let digests: Vec<_> = digests
        .iter()
        .map(|digest| {
            (
                digest["seq"].as_u64().unwrap(),
                digest["digest"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(digests, [(0, hex(0).as_str()), (2, hex(2).as_str())]);
    // The last commit of a log whose guest has not ended.
    assert_eq!(json(&path, &["--until", "5"]).0, 0);
    assert_eq!(json(&path, &["--until", "0"]).1["digest"], hex(0));
    let (status, outcome) = json(&path, &[]);
    assert_eq!(
        (status, outcome["exit_status"].as_u64()),
        (ExitCode::LogEnds.code(), None)
    );
    assert_eq!(
        outcome["stop"],
        "the log ends at commit 5, before its guest does"
    );
    failed(
        &path,
        &["--until", "6"],
        ExitCode::LogEnds,
        &["ends at commit 5, before --until 6"],
    );
    failed(
        &path,
        &["--digest-at", "6"],
        ExitCode::LogEnds,
        &["before --digest-at 6"],
    );
    failed(
        &path,
        &["--until", "2", "--digest-at", "3"],
        ExitCode::Usage,
        &["--digest-at 3"],
    );
}

#[test]
fn what_comes_before_the_log_is_not_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = Made::new();
    for _ in 0..4 {
        made.chunk(0, Boundary::Timer, Exit::Cut);
    }
    made.frames.clear();
    made.snapshot();
    made.chunk(0, Boundary::Timer, Exit::Cut);
    let path = made.write(folder.path());
    assert_eq!(json(&path, &["--until", "4"]).1["from_seq"], 4);
    for option in ["--until", "--digest-at"] {
        failed(
            &path,
            &[option, "3"],
            ExitCode::Usage,
            &["begins at commit 4", option],
        );
    }
}

#[test]
fn segments_are_replayed_from_any_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = Made::run();
    made.write_segments(folder.path(), &[3, 5]);
    let whole = format!("{:032x}", made.machine.digest().digest);
    let path = folder.path();
    // From the start, with the states of both later checkpoints compared.
    assert_eq!(replay(path, &[]).unwrap(), (7, b"hi".to_vec()));
    let (status, outcome) = json(path, &[]);
    assert_eq!(
        (status, &outcome["digest"]),
        (7, &Value::from(whole.clone()))
    );
    assert_eq!(outcome["digests_compared"], 3);
    for (words, from, seq) in [
        (&["--from-checkpoint", "4"][..], 3, 7),
        (&["--from-checkpoint", "5"], 5, 7),
        (&["--until", "6"], 5, 6),
        (&["--until", "6", "--digest-at", "4"], 3, 6),
        (&["--until", "6", "--from-start"], 0, 6),
        (&["--until", "4", "--from-checkpoint", "0"], 0, 4),
    ] {
        let outcome = json(path, words).1;
        assert_eq!(
            (&outcome["from_seq"], &outcome["seq"]),
            (&from.into(), &seq.into()),
            "{words:?}"
        );
        if seq == 7 {
            assert_eq!(outcome["digest"], whole);
        }
    }
    assert_eq!(
        replay(path, &["--from-checkpoint", "5"]).unwrap(),
        (7, Vec::new())
    );
    failed(
        path,
        &["--from-checkpoint", "5", "--until", "4"],
        ExitCode::Usage,
        &["begins at commit 5, after --until 4"],
    );
}

#[test]
fn a_state_that_differs_is_a_divergence_and_names_its_commit() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = Made::run();
    let path = made.write(folder.path());
    // Commit 5: behind the snapshot's three frames, four records and a digest.
    let chunk_at = 3 + 4 + 1;
    let Frame::Record(Record {
        commit: Commit::Chunk(chunk),
        seq,
        ..
    }) = &mut made.frames[chunk_at]
    else {
        panic!("not a chunk");
    };
    assert_eq!(seq.0, 5);
    chunk.digest ^= 1;
    let path_of_chunk = made.write(folder.path());
    assert_eq!(path, path_of_chunk);
    failed(
        &path,
        &[],
        ExitCode::Diverged,
        &["run.log", "record 5 has digest"],
    );
    // Up to there it is right.
    assert_eq!(json(&path, &["--until", "4"]).0, 0);

    let mut made = Made::run();
    let Frame::Digest(digest) = &mut made.frames[3 + 3] else {
        panic!("not a digest");
    };
    digest.digest ^= 1;
    let path = made.write(folder.path());
    failed(
        &path,
        &[],
        ExitCode::Diverged,
        &["run.log", "state digest at commit 3"],
    );
}

#[test]
fn a_record_that_cannot_follow_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = Made::run();
    let late = made.frames.len() - 1;
    let mut record = made.frames[late].clone();
    if let Frame::Record(record) = &mut record {
        record.seq = record.seq.next();
    }
    made.frames.push(record);
    let path = made.write(folder.path());
    failed(
        &path,
        &[],
        ExitCode::LogFile,
        &["run.log", "at commit 8", "after the machine has stopped"],
    );
    let mut made = Made::run();
    if let Frame::SnapshotEnd(digest) = &mut made.frames[2] {
        digest.digest ^= 1;
    }
    let path = made.write(folder.path());
    failed(
        &path,
        &[],
        ExitCode::LogFile,
        &["run.log", "another digest than its sender's"],
    );
}

/// Exits and inputs are not covered by the digests of chunks, so a log may claim any of them.
#[test]
fn whatever_a_log_claims_is_an_end_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = 1_u64;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut seen = BTreeMap::<u8, u32>::new();
    for _ in 0..150 {
        let mut made = Made::new();
        for _ in 0..=random(6) {
            let commit = claimed(&made, &mut random);
            made.claim(commit);
        }
        let path = made.write(folder.path());
        let code = match replay(&path, &[]) {
            Ok((status, _)) => status,
            Err(error) => error.exit_code().code(),
        };
        *seen.entry(code).or_default() += 1;
    }
    let wanted = [ExitCode::LogFile, ExitCode::GuestFault, ExitCode::LogEnds];
    assert!(
        wanted.iter().all(|code| seen.contains_key(&code.code())),
        "{seen:?}"
    );
}

/// A chunk that changes nothing and ends with some access, or some input.
fn claimed(made: &Made, random: &mut impl FnMut(u64) -> u64) -> Commit {
    let number = [
        random(80),
        u64::MAX - random(9),
        0x50_0000 + random(1 << 24),
    ][random(3) as usize];
    let address = [
        DEVICE_PAGE + random(80),
        random(1 << 40),
        u64::MAX - random(8),
    ][random(3) as usize];
    let bytes = vec![random(256) as u8; random(5000).min(4096) as usize];
    let vcpu = VcpuIndex(random(2) as u8);
    let (space, size) = (
        [Space::Mmio, Space::Port][random(2) as usize],
        random(8) as u8 + 1,
    );
    let exit = match random(8) {
        0 => Exit::Halt,
        1 => Exit::Window,
        2 => Exit::Exception {
            vector: random(32) as u8,
            error_code: number,
            rip: address,
            cr2: number,
        },
        3 => Exit::Read {
            space,
            address,
            size,
            input: Some(number),
        },
        4 | 5 => Exit::Write {
            space,
            address,
            size,
            value: number,
        },
        6 => return Commit::Input(Input::Console(bytes.into())),
        _ => {
            let device = DeviceIndex(random(256) as u8);
            return Commit::Input(match random(4) {
                0 => Input::File {
                    vcpu,
                    bytes: bytes.into(),
                },
                1 => Input::OutputStep { vcpu },
                2 => Input::Clock,
                _ => Input::Device {
                    device,
                    bytes: bytes.into(),
                },
            });
        }
    };
    let state = made.machine.vcpu(vcpu);
    Commit::Chunk(Chunk {
        vcpu,
        started_after: CommitSeq::BOOT,
        boundary: Boundary::Exit,
        exit,
        digest: ChunkDigest::default().finish(state),
        effects: Effects::default(),
    })
}

#[test]
fn images_that_nobody_asked_for_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = Made::run().write(folder.path());
    let image = folder.path().join("disk.raw");
    fs::write(&image, [0; 512]).unwrap();
    let image = image.to_str().unwrap();
    failed(
        &path,
        &["--disk", image],
        ExitCode::Input,
        &["with these disks: none; given: 512 bytes (512 B)", "--disk"],
    );
}

#[test]
fn the_help_has_the_statuses() {
    let help = after_help();
    assert!(
        help.contains("    84     a replay came to another state"),
        "{help}"
    );
    assert!(help.contains("    85     a log ends before"), "{help}");
}
