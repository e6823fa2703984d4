use std::fs;
use std::path::Path;

use samsara_commitlog::{Boundary, Exit, Frame, StreamHeader};
use serde_json::Value;

use crate::ctl::CtlError;
use crate::ctl::made::{Made, ctl};
use crate::exit::ExitCode;

fn said(words: &[&str]) -> Result<String, CtlError> {
    let (status, out) = ctl(words)?;
    assert_eq!(status, 0);
    Ok(String::from_utf8(out).unwrap())
}

fn log(words: &[&str], path: &Path) -> Result<String, CtlError> {
    let path = path.to_str().unwrap();
    said(&[&["log", words[0], path], &words[1..]].concat())
}

#[test]
fn every_record_is_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let made = Made::run();
    let path = made.write(folder.path());
    let text = log(&["show"], &path).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 1 + 1 + 7 + 1 + 1, "{text}");
    let digest_of = |at: usize| match &made.frames[at] {
        Frame::Record(record) => record.chunk().unwrap().digest,
        other => panic!("{other:?}"),
    };
    let first = format!(
        "         1    0.000250000  vCPU 0    exit             0         8      2  {:016x}  mmio write 0xd0000000 = 0x68 (8 B)",
        digest_of(3)
    );
    let cut = format!(
        "         2    0.000500000  vCPU 1    timer            1         8      2  {:016x}  cut",
        digest_of(4)
    );
    let heading = "    commit   guest time s  source    boundary     after    memory   vCPU  digest            what";
    assert_eq!(lines[0], heading);
    assert!(
        lines[1].contains("0.000000000  snapshot")
            && lines[1].contains("2 vCPU, 16.0 MiB of memory, 4.0 KiB of pages")
    );
    assert_eq!(lines[2..4], [first, cut]);
    assert!(lines[4].ends_with("console: 5 B typed"), "{text}");
    assert!(lines[5].contains("digest") && lines[5].contains("of the whole state: "));
    assert_eq!(lines[10], "the log ends at commit 7: whole");
}

#[test]
fn a_part_of_a_log_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = Made::run().write(folder.path());
    let seqs = |words: &[&str]| -> Vec<(String, u64)> {
        let text = log(&[&["show", "--json"], words].concat(), &path).unwrap();
        let line = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            (
                line["kind"].as_str().unwrap().to_owned(),
                line["seq"].as_u64().unwrap(),
            )
        };
        text.lines().map(line).collect()
    };
    let wanted = |list: &[(&str, u64)]| -> Vec<(String, u64)> {
        list.iter()
            .map(|(kind, seq)| ((*kind).to_owned(), *seq))
            .collect()
    };
    assert_eq!(
        seqs(&["--from", "2", "--until", "3"]),
        wanted(&[("chunk", 2), ("input", 3), ("digest", 3)])
    );
    assert_eq!(seqs(&["--from", "7"]), wanted(&[("chunk", 7), ("end", 7)]));
    assert_eq!(seqs(&["--until", "0"]), wanted(&[("snapshot", 0)]));
    let error = log(&["show", "--from", "3", "--until", "2"], &path).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
}

#[test]
fn json_has_all_of_a_record() {
    let folder = tempfile::tempdir().unwrap();
    let mut made = Made::new();
    let exit = Exit::Fatal {
        rip: u64::MAX,
        reason: "\u{1b}[2J\n\"".to_owned(),
    };
    made.chunk(1, Boundary::Exit, exit);
    let path = made.write(folder.path());
    let text = log(&["show", "--json", "--from", "1", "--until", "1"], &path).unwrap();
    // The end of the log follows.
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(line["exit"]["rip"], "0xffffffffffffffff");
    assert_eq!(line["exit"]["reason"], "\u{1b}[2J\n\"");
    assert_eq!(
        (line["vcpu"].as_u64(), line["memory_bytes"].as_u64()),
        (Some(1), Some(8))
    );
    assert_eq!(
        (line["guest_time_ns"].as_u64(), line["vcpu_bytes"].as_u64()),
        (Some(250_000), Some(2))
    );
    // For people, without what would move their cursor.
    let text = log(&["show"], &path).unwrap();
    assert!(
        text.contains("fatal at rip 0xffffffffffffffff:  [2J \"\n"),
        "{text:?}"
    );
}

#[test]
fn a_log_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = Made::run().write(folder.path());
    let json: Value = serde_json::from_str(&log(&["stats", "--json"], &path).unwrap()).unwrap();
    let number = |pointer: &str| json.pointer(pointer).and_then(Value::as_u64);
    for (pointer, expected) in [
        ("/vcpus", 2),
        ("/memory_bytes", 16 << 20),
        ("/snapshot_seq", 0),
        ("/last_seq", 7),
        ("/digests", 1),
        ("/chunks/count", 6),
        ("/chunks/memory_bytes", 48),
        ("/chunks/vcpu_bytes", 12),
        ("/by_vcpu/0/count", 3),
        ("/by_vcpu/1/count", 3),
        ("/by_boundary/exit", 4),
        ("/by_boundary/timer", 1),
        ("/by_boundary/kick", 1),
        ("/by_exit/cut", 2),
        ("/by_exit/mmio write", 4),
        ("/inputs/console", 1),
        ("/input_bytes", 5),
        ("/guest_end_ns", 1_750_000),
    ] {
        assert_eq!(number(pointer), Some(expected), "{pointer} of {json:#}");
    }
    let file_bytes = fs::metadata(&path).unwrap().len();
    assert_eq!(number("/file_bytes"), Some(file_bytes));
    let parts = ["/snapshot_bytes", "/record_bytes"].map(|part| number(part).unwrap());
    // The stream's header, and the one digest between records.
    let digest_frame = 16 + 1 + 16;
    assert_eq!(parts.iter().sum::<u64>() + 12 + digest_frame, file_bytes);
    let rate = json
        .pointer("/rates/commits")
        .and_then(Value::as_f64)
        .unwrap();
    assert!((rate - 4000.0).abs() < 0.1, "{rate}");

    let text = log(&["stats"], &path).unwrap();
    assert!(
        text.contains("records  6 chunks, 1 inputs; 1 digests"),
        "{text}"
    );
    assert!(
        text.contains("boundary  exit 4 (66.7%), kick 1 (16.7%), timer 1 (16.7%)"),
        "{text}"
    );
    assert!(text.contains("rate  4000 commits, "), "{text}");
    assert!(
        text.lines()
            .last()
            .unwrap()
            .trim_start()
            .starts_with("1           3"),
        "{text}"
    );
}

#[test]
fn a_whole_log_is_verified_and_a_torn_one_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = Made::run().write(folder.path());
    let text = log(&["verify"], &path).unwrap();
    assert!(
        text.contains("frames  whole\n") && text.contains("1 to 7, after the snapshot at commit 0"),
        "{text}"
    );
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let text = log(&["verify"], &path).unwrap();
    assert!(
        text.contains("ends in an unfinished write: the last ") && text.contains("1 to 6"),
        "{text}"
    );
    let json: Value = serde_json::from_str(&log(&["verify", "--json"], &path).unwrap()).unwrap();
    assert_eq!(
        (json["tail"].as_str(), json["last_seq"].as_u64()),
        (Some("torn"), Some(6))
    );
    assert!(
        log(&["show"], &path)
            .unwrap()
            .contains("ends in an unfinished write")
    );
    assert!(
        log(&["stats"], &path)
            .unwrap()
            .contains("ends in an unfinished write")
    );
}

/// Everything that reads a log says what is wrong with it, in one line that names it.
#[test]
fn what_is_no_log_is_refused_by_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = Made::run().write(folder.path());
    let whole = fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 4;
    let mut version = whole.clone();
    version[8] = StreamHeader::VERSION as u8 + 1;
    let cases: [(&str, &[u8], &str); 6] = [
        ("empty", &[], "has no whole snapshot"),
        ("header alone", &whole[..12], "has no whole snapshot"),
        (
            "inside the snapshot",
            &whole[..300],
            "has no whole snapshot",
        ),
        (
            "text",
            b"this is no log, but a text",
            "is not a samsara log",
        ),
        ("flipped", &flipped, "is damaged: at offset "),
        ("version", &version, "use the release that wrote it"),
    ];
    for (what, bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        let name = path.to_str().unwrap();
        for words in [
            &["log", "stats", name][..],
            &["log", "verify", name],
            &["replay", name],
        ] {
            let error = ctl(words).unwrap_err();
            let line = error.line();
            assert_eq!(error.exit_code(), ExitCode::LogFile, "{what}: {line}");
            assert!(
                line.contains(expected) && line.contains(name),
                "{what}: {line}"
            );
            assert!(!line.contains('\n'), "{what}: {line}");
        }
    }
    for (path, expected) in [
        (folder.path().to_owned(), "has no logs in it"),
        (folder.path().join("none.log"), "No such file"),
    ] {
        let name = path.to_str().unwrap();
        for words in [
            &["log", "show", name][..],
            &["log", "verify", name],
            &["replay", name],
        ] {
            let line = ctl(words).unwrap_err().line();
            assert!(line.contains(expected) && line.contains(name), "{line}");
        }
    }
}
