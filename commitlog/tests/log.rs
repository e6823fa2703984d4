//! Log files: torn tails end them, damage before that is an error.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::{chunk, digest, disk_range, history, snapshot, stream};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use samsara_commitlog::{
    CommitSeq, Exit, Frame, FrameKind, GuestTime, LogError, LogReader, LogWriter, OrderError,
    Record, StreamOrder, Tail, verify,
};
use tempfile::TempDir;

/// A folder with a file of these bytes.
fn file_of(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("log");
    fs::write(&path, bytes).expect("a file");
    (folder, path)
}

fn frames_of(path: &PathBuf) -> Result<(Vec<Frame>, Tail), LogError> {
    let mut reader = LogReader::open(path)?;
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame()? {
        frames.push(frame);
    }
    Ok((frames, reader.tail().expect("an end")))
}

#[test]
fn what_is_written_is_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("log");
    let frames = history();
    let mut writer = LogWriter::create(&path).unwrap();
    for frame in &frames[..5] {
        writer.append(frame).unwrap();
    }
    writer.flush().unwrap();
    assert_eq!(
        frames_of(&path).unwrap(),
        (frames[..5].to_vec(), Tail::Clean)
    );
    let (all, starts) = stream(&frames);
    writer.append_encoded(&all[starts[5]..]).unwrap();
    writer.sync().unwrap();
    assert_eq!(writer.log_bytes(), fs::metadata(&path).unwrap().len());
    drop(writer);
    assert_eq!(fs::read(&path).unwrap(), stream(&frames).0);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );

    let summary = verify(&path).unwrap();
    assert_eq!(summary.shape, Some(common::SHAPE));
    assert_eq!(summary.snapshot_seq, Some(CommitSeq(7)));
    assert_eq!(summary.last_seq, Some(CommitSeq(15)));
    assert_eq!(summary.last_digest, Some(digest(12)));
    assert_eq!(
        (
            summary.chunk_count,
            summary.input_count,
            summary.digest_count
        ),
        (5, 3, 2)
    );
    let effects: usize = frames
        .iter()
        .filter_map(Frame::record)
        .map(Record::effect_bytes)
        .sum();
    assert!(effects > 0);
    assert_eq!(summary.effect_bytes, effects as u64);
    assert_eq!(summary.tail, Tail::Clean);
    assert_eq!(summary.valid_bytes, fs::metadata(&path).unwrap().len());
}

#[test]
fn a_log_gets_another_name_while_it_is_written() {
    let folder = TempDir::new().unwrap();
    let [part, path] = ["part", "log"].map(|name| folder.path().join(name));
    let frames = history();
    let mut writer = LogWriter::create(&part).unwrap();
    writer.append(&frames[0]).unwrap();
    writer.rename(&path).unwrap();
    assert_eq!(writer.path(), path);
    assert!(!part.exists());
    for frame in &frames[1..] {
        writer.append(frame).unwrap();
    }
    writer.sync().unwrap();
    assert_eq!(frames_of(&path).unwrap(), (frames, Tail::Clean));
    // It is locked under its new name.
    let error = LogWriter::create(&path).unwrap_err();
    assert!(matches!(error, LogError::InUse { .. }), "{error}");
}

#[test]
fn a_tail_torn_anywhere_ends_the_log_and_is_cut_off() {
    let frames = history();
    let (bytes, starts) = stream(&frames);
    let (_folder, path) = file_of(&[]);
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        let valid = starts
            .iter()
            .rev()
            .find(|&&start| start <= length)
            .copied()
            .unwrap_or(0);
        let whole = starts
            .iter()
            .filter(|&&start| start <= length)
            .count()
            .saturating_sub(1);
        let torn = Tail::Torn {
            valid_bytes: valid as u64,
        };
        let tail = if starts.contains(&length) {
            Tail::Clean
        } else {
            torn
        };
        assert_eq!(
            frames_of(&path).unwrap(),
            (frames[..whole].to_vec(), tail),
            "{length}"
        );

        let (mut writer, summary) = LogWriter::reopen(&path).unwrap();
        assert_eq!((summary.valid_bytes, summary.tail), (valid as u64, tail));
        let kept = fs::metadata(&path).unwrap().len();
        assert_eq!(
            kept,
            (valid as u64).max(12),
            "the torn tail is gone, {length}"
        );
        for frame in &frames[whole..] {
            writer.append(frame).unwrap();
        }
        assert_eq!(writer.log_bytes(), bytes.len() as u64);
        drop(writer);
        assert_eq!(fs::read(&path).unwrap(), bytes, "{length}");
    }
}

#[test]
fn a_tail_of_zeros_or_rubbish_is_torn() {
    let frames = history();
    let (bytes, starts) = stream(&frames);
    let last = starts[frames.len() - 1];
    let (_folder, path) = file_of(&[]);
    for kept in [last, last + 3, last + 16, last + 20, bytes.len()] {
        for count in [1, 15, 16, 17, 100, 200_000] {
            let rubbish: Vec<u8> = (0..count).map(|at| (at * 31 % 251) as u8 | 1).collect();
            for tail in [vec![0; count], vec![0xff; count], rubbish] {
                fs::write(&path, [&bytes[..kept], &tail].concat()).unwrap();
                let valid = if kept == bytes.len() { kept } else { last };
                let (_, end) = frames_of(&path).unwrap();
                assert_eq!(
                    end,
                    Tail::Torn {
                        valid_bytes: valid as u64
                    },
                    "{kept} {count}"
                );
            }
        }
    }
}

#[test]
fn a_flipped_bit_is_damage_but_in_the_last_frame() {
    let frames = history();
    let (bytes, starts) = stream(&frames);
    let last = starts[frames.len() - 1];
    let (_folder, path) = file_of(&[]);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &flipped).unwrap();
        let found = frames_of(&path);
        let place = starts.partition_point(|&start| start <= bit / 8);
        match found {
            Ok((found, tail)) => {
                assert!(bit / 8 >= last, "bit {bit} passed");
                assert_eq!(
                    tail,
                    Tail::Torn {
                        valid_bytes: last as u64
                    }
                );
                assert_eq!(found, frames[..frames.len() - 1]);
            }
            Err(LogError::Damaged { error, follows, .. }) => {
                assert_eq!(error.offset, starts[place - 1] as u64, "bit {bit}");
                // A few compact frames are not told from chance.
                let is_order = |frame: &Frame| {
                    let record = frame.record();
                    record.is_some_and(Record::is_order)
                };
                let orders = frames[place..].iter().take_while(|frame| is_order(frame));
                let next = place + orders.count();
                assert_eq!(follows, starts[next] as u64, "bit {bit}");
            }
            Err(LogError::NotALog { .. }) => assert!(bit / 8 < 8, "bit {bit}"),
            Err(LogError::Bad { error, .. }) => assert!(bit / 8 < 12, "bit {bit}: {error}"),
            Err(other) => panic!("bit {bit}: {other}"),
        }
    }
}

/// A guest may well have a samsara log in its memory: an unfinished write of that is no damage.
#[test]
fn frames_inside_a_torn_frame_do_not_make_it_damage() {
    let (inner, _) = stream(&history());
    let mut frames = snapshot(7);
    frames.push(Frame::SnapshotPages(common::runs(&[(0, &inner)])));
    let (mut bytes, starts) = stream(&frames);
    let end = bytes.len();
    bytes[end - 1] ^= 1;
    let (_folder, path) = file_of(&bytes);
    let (_, tail) = frames_of(&path).unwrap();
    assert_eq!(
        tail,
        Tail::Torn {
            valid_bytes: starts[3] as u64
        }
    );
}

/// Several frames of one unfinished write may be damaged; without a whole one it is still a tail.
#[test]
fn damaged_frames_to_the_end_are_torn() {
    let frames = history();
    let (mut bytes, starts) = stream(&frames);
    let before_last = starts[frames.len() - 2];
    bytes[before_last + 1] ^= 1;
    let torn = Tail::Torn {
        valid_bytes: before_last as u64,
    };
    let (_folder, path) = file_of(&bytes[..bytes.len() - 1]);
    assert_eq!(
        frames_of(&path).unwrap(),
        (frames[..frames.len() - 2].to_vec(), torn)
    );
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(frames_of(&path).unwrap().1, torn);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever is done to a file, what is read from it is what was written, as far as it goes.
    #[test]
    fn a_mutated_file_gives_a_part_of_what_was_written_from_its_start(
        changes in vec((any::<Index>(), any::<u8>()), 0..6),
        cut in any::<Index>(),
        rubbish in vec(any::<u8>(), 0..40),
    ) {
        let frames = history();
        let (mut bytes, _) = stream(&frames);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(2 * bytes.len()));
        bytes.extend(rubbish);
        let (_folder, path) = file_of(&bytes);
        let found: Vec<_> = LogReader::open(&path).unwrap().map_while(Result::ok).collect();
        prop_assert!(frames.starts_with(&found));
        let sound = verify(&path).is_ok();
        let reopened = LogWriter::reopen(&path);
        prop_assert_eq!(reopened.is_ok(), sound);
        if !sound {
            prop_assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }
}

/// A made-up file of many headers, each with a long body that is not right, is judged in bounded time.
#[test]
fn many_headers_with_damaged_bodies_are_damage() {
    let frame = Frame::SnapshotPages(common::runs(&[(0, &vec![7; 1 << 20])])).encode();
    let (mut bytes, _) = stream(&snapshot(7));
    let start = bytes.len();
    bytes.push(0);
    for _ in 0..4096 {
        bytes.extend_from_slice(&frame[..16]);
    }
    bytes.resize(bytes.len() + (2 << 20), 0);
    let (_folder, path) = file_of(&bytes);
    match frames_of(&path) {
        Err(LogError::Damaged { error, .. }) => assert_eq!(error.offset, start as u64),
        other => panic!("{other:?}"),
    }
}

#[test]
fn other_files_are_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("log");
    for content in ["a letter", "x", "\u{93}SMSR in UTF-8"] {
        fs::write(&path, content).unwrap();
        assert!(matches!(
            LogWriter::create(&path),
            Err(LogError::NotALog { .. })
        ));
        assert!(matches!(
            LogWriter::reopen(&path),
            Err(LogError::NotALog { .. })
        ));
        assert!(matches!(verify(&path), Err(LogError::NotALog { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    assert!(matches!(
        LogWriter::create(folder.path()),
        Err(LogError::NotAFile { .. })
    ));
    assert!(matches!(
        verify("/dev/null"),
        Err(LogError::NotAFile { .. })
    ));
    let missing = folder.path().join("missing");
    for result in [
        verify(&missing).map(drop),
        LogWriter::reopen(&missing).map(drop),
    ] {
        let error = result.expect_err("no file");
        assert_eq!(
            error.to_string(),
            format!("cannot open log file {}", missing.display())
        );
    }
}

#[test]
fn an_old_log_is_replaced_and_a_log_has_one_writer() {
    let (bytes, _) = stream(&history());
    let (_folder, path) = file_of(&bytes);
    let writer = LogWriter::create(&path).unwrap();
    assert_eq!(frames_of(&path).unwrap(), (vec![], Tail::Clean));
    assert!(matches!(
        LogWriter::create(&path),
        Err(LogError::InUse { .. })
    ));
    assert!(matches!(
        LogWriter::reopen(&path),
        Err(LogError::InUse { .. })
    ));
    drop(writer);
    assert!(LogWriter::reopen(&path).is_ok());
}

#[test]
fn a_log_that_is_not_one_history_is_refused() {
    let order_of = |frames: &[Frame]| {
        let (bytes, starts) = stream(frames);
        let (_folder, path) = file_of(&bytes);
        match verify(&path) {
            Err(LogError::Order { offset, error, .. }) => {
                let at = starts.iter().position(|&start| start as u64 == offset);
                (at.expect("the start of a frame"), error)
            }
            other => panic!("{other:?}"),
        }
    };
    let frames = history();
    let without = |at: usize| {
        let mut frames = frames.clone();
        frames.remove(at);
        frames
    };
    let found = CommitSeq(9);
    assert_eq!(
        order_of(&without(3)),
        (
            3,
            OrderError::Gap {
                last: CommitSeq(7),
                found
            }
        )
    );
    let misplaced = order_of(&without(2));
    assert_eq!(misplaced.0, 2);
    assert!(matches!(
        misplaced.1,
        OrderError::Misplaced {
            found: FrameKind::Record,
            ..
        }
    ));
    let mut twice = frames.clone();
    twice.insert(4, twice[3].clone());
    let (last, found) = (CommitSeq(8), CommitSeq(8));
    assert_eq!(order_of(&twice), (4, OrderError::Gap { last, found }));
    let mut elsewhere = frames.clone();
    elsewhere.swap(4, 5);
    let (last, found) = (CommitSeq(8), CommitSeq(9));
    assert_eq!(
        order_of(&elsewhere),
        (4, OrderError::DigestElsewhere { last, found })
    );
    let mut again = frames;
    again.extend(snapshot(12));
    assert!(matches!(order_of(&again).1, OrderError::Misplaced { .. }));
}

/// A snapshot of a machine that ran meanwhile: the last start counts.
#[test]
fn a_snapshot_may_start_again_at_a_later_state() {
    let mut order = StreamOrder::new();
    let [start, pages, _] = &snapshot(7)[..] else {
        panic!("another snapshot");
    };
    let [later, more, end] = &snapshot(9)[..] else {
        panic!("another snapshot");
    };
    for frame in [start, pages, later, more, pages] {
        order.handle_frame(frame).unwrap();
        assert_eq!(order.seq(), None);
    }
    let error = order.handle_frame(start).unwrap_err();
    assert!(matches!(error, OrderError::Misplaced { .. }), "{error}");
    let error = order.handle_frame(&snapshot(7)[2]).unwrap_err();
    assert!(
        matches!(error, OrderError::DigestElsewhere { .. }),
        "{error}"
    );
    order.handle_frame(end).unwrap();
    assert_eq!(order.seq(), Some(CommitSeq(9)));
    let error = order.handle_frame(later).unwrap_err();
    assert!(matches!(error, OrderError::Misplaced { .. }), "{error}");
}

#[test]
fn guest_time_does_not_go_back() {
    let mut order = StreamOrder::new();
    for frame in snapshot(7) {
        assert_eq!(order.seq(), None);
        order.handle_frame(&frame).unwrap();
    }
    assert_eq!(order.seq(), Some(CommitSeq(7)));
    let Frame::Record(mut record) = chunk(8, Exit::Cut) else {
        panic!("not a record");
    };
    record.guest_time = GuestTime(4);
    let error = order
        .handle_frame(&Frame::Record(record.clone()))
        .unwrap_err();
    assert!(matches!(
        error,
        OrderError::TimeGoesBack {
            at: CommitSeq(8),
            ..
        }
    ));
    record.guest_time = GuestTime(5);
    order.handle_frame(&Frame::Record(record)).unwrap();
    assert_eq!(order.seq(), Some(CommitSeq(8)));
}

#[test]
fn contents_of_disks_belong_to_the_snapshot() {
    let mut frames = vec![disk_range(0, 0, 3), disk_range(1, 1 << 40, 1)];
    let mut rest = history().into_iter();
    frames.extend(rest.by_ref().take(2));
    frames.push(disk_range(0, 512, 1));
    frames.extend(rest);
    let (bytes, starts) = stream(&frames);
    let (_folder, path) = file_of(&bytes);
    let summary = verify(&path).unwrap();
    assert_eq!(summary.disk_bytes, 5 * 512);
    assert_eq!(summary.snapshot_seq, Some(CommitSeq(7)));
    assert_eq!(frames_of(&path).unwrap(), (frames, Tail::Clean));

    let (_folder, path) = file_of(&bytes[..starts[2] - 1]);
    let summary = verify(&path).unwrap();
    let valid_bytes = starts[1] as u64;
    assert_eq!((summary.shape, summary.disk_bytes), (None, 3 * 512));
    assert_eq!(summary.tail, Tail::Torn { valid_bytes });

    let mut late = snapshot(7);
    late.push(disk_range(0, 0, 1));
    let mut order = StreamOrder::new();
    let results: Vec<_> = late.iter().map(|frame| order.handle_frame(frame)).collect();
    let misplaced = OrderError::Misplaced {
        found: FrameKind::DiskRange,
        place: "after the snapshot",
    };
    assert_eq!(results.last(), Some(&Err(misplaced)));
}

#[test]
fn iteration_ends_after_an_error() {
    let (mut bytes, starts) = stream(&history());
    bytes[starts[2] + 1] ^= 1;
    let (_folder, path) = file_of(&bytes);
    let results: Vec<_> = LogReader::open(&path).unwrap().take(100).collect();
    assert_eq!(results.len(), 3);
    assert!(results[2].is_err());
}
