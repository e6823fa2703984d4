//! Chunks in order form: compact frames among the others.

mod common;

use std::fs;

use common::{LIMITS, any_history, history, order, record, snapshot, stream, stream_on};
use proptest::prelude::*;
use samsara_commitlog::{
    Boundary, Commit, CommitSeq, DecodeError, Fault, Frame, FrameEncoder, FrameReader, GuestTime,
    LogError, LogReader, LogWriter, Medium, OrderChunk, Progress, TIME_STEP, TSC_STEP, Tail,
    VcpuIndex,
};
use tempfile::TempDir;

const MEDIA: [Medium; 2] = [Medium::File, Medium::Network];

fn frames_of(mut reader: FrameReader) -> (Vec<Frame>, Result<(), DecodeError>) {
    let mut frames = Vec::new();
    loop {
        match reader.poll_frame() {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, reader.finish()),
            Err(error) => return (frames, Err(error)),
        }
    }
}

fn read_all(medium: Medium, bytes: &[u8]) -> (Vec<Frame>, Result<(), DecodeError>) {
    let mut reader = FrameReader::new(medium);
    reader.push(bytes);
    frames_of(reader)
}

/// A snapshot of commit 7, whose guest time is 5, and what follows it on the network.
fn after_snapshot(follows: &[u8]) -> (Vec<Frame>, Result<(), DecodeError>) {
    let (mut bytes, _) = stream_on(Medium::Network, &snapshot(7));
    bytes.extend_from_slice(follows);
    read_all(Medium::Network, &bytes)
}

proptest! {
    #[test]
    fn every_history_comes_back(frames in any_history()) {
        for medium in MEDIA {
            let (bytes, _) = stream_on(medium, &frames);
            let (found, end) = read_all(medium, &bytes);
            prop_assert_eq!(end, Ok(()));
            prop_assert_eq!(&found, &frames);
        }
    }

    /// However a stream is cut into pieces, and wherever it ends, what came out are its whole frames.
    #[test]
    fn pieces_and_ends_are_known(frames in any_history(), piece in 1usize..40) {
        for medium in MEDIA {
            let (bytes, starts) = stream_on(medium, &frames);
            let mut reader = FrameReader::new(medium);
            let mut found = 0;
            for (index, pushed) in bytes.chunks(piece).enumerate() {
                reader.push(pushed);
                while let Some(frame) = reader.poll_frame().unwrap() {
                    prop_assert_eq!(&frame, &frames[found]);
                    found += 1;
                }
                let length = index * piece + pushed.len();
                let ends_whole = starts.contains(&length);
                prop_assert_eq!(reader.finish().is_ok(), ends_whole, "{} bytes", length);
                if length >= starts[0] {
                    let whole = starts.iter().filter(|&&start| start <= length).count() - 1;
                    prop_assert_eq!(found, whole, "{} bytes", length);
                }
            }
        }
    }

    /// Whatever a peer sends, it is refused or it is exactly what its frames encode to.
    #[test]
    fn what_decodes_has_one_form(
        head in 0x80u8..,
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (mut all, _) = stream_on(Medium::Network, &snapshot(7));
        all.push(head);
        all.extend(rest);
        let (frames, _) = read_all(Medium::Network, &all);
        let (bytes, _) = stream_on(Medium::Network, &frames);
        prop_assert!(all.starts_with(&bytes));
    }
}

/// Bytes that an order takes beside its commit, and in a file two more.
fn size(chunk: OrderChunk, guest_time: u64) -> usize {
    let Frame::Record(mut frame) = record(8, Commit::Order(chunk)) else {
        panic!("not a record");
    };
    frame.guest_time = GuestTime(guest_time);
    let frame = Frame::Record(frame);
    let [file, network] = MEDIA.map(|medium| {
        let mut encoder = FrameEncoder::after(medium, CommitSeq(7), GuestTime(5));
        encoder.encode(&frame).len()
    });
    assert_eq!(file, network + 2);
    network
}

/// What a vCPU ships that comes to an exit of its own every five milliseconds, at 3 GHz: the aim is 3000 bytes in a second.
#[test]
fn an_order_of_the_longest_chunk_takes_thirteen_bytes() {
    let Frame::Record(like) = order(8, None) else {
        panic!("not a record");
    };
    let Commit::Order(like) = like.commit else {
        panic!("not an order");
    };
    let chunk = OrderChunk {
        tsc_gain: 15_000_000_u64.next_multiple_of(TSC_STEP),
        ..like
    };
    let guest_time = 5_000_000 / TIME_STEP * TIME_STEP;
    assert_eq!(size(chunk, guest_time), 13);
    let exact = size(chunk, guest_time + 1);
    assert!((14..=20).contains(&exact), "{exact} bytes");
    let answered = OrderChunk {
        input: Some(1),
        ..chunk
    };
    assert_eq!(size(answered, guest_time), 21);
    let (count, place) = (20_000, None);
    let cut = OrderChunk {
        boundary: Boundary::Kick,
        progress: Some(Progress { count, place }),
        ..chunk
    };
    assert_eq!(size(cut, guest_time), 16);
}

#[test]
#[should_panic(expected = "no chunk ends as")]
fn a_cut_chunk_that_nobody_counted_has_no_order() {
    let Frame::Record(mut frame) = order(8, None) else {
        panic!("not a record");
    };
    if let Commit::Order(chunk) = &mut frame.commit {
        chunk.boundary = Boundary::Timer;
    }
    let mut encoder = FrameEncoder::after(Medium::Network, CommitSeq(7), GuestTime(5));
    encoder.encode(&Frame::Record(frame));
}

#[test]
fn an_order_needs_a_record_before_it() {
    for medium in MEDIA {
        let (bytes, starts) = stream_on(medium, &history());
        let orders = starts[starts.len() - 4];
        let mut reader = FrameReader::resume(medium, 0, LIMITS);
        reader.push(&bytes[orders..]);
        let error = reader.poll_frame().unwrap_err();
        assert_eq!(error.fault, Fault::NothingBefore);
    }
}

/// Fields of an order behind a snapshot whose guest time is 5.
#[test]
fn fields_out_of_range_are_refused() {
    const DIGEST: [u8; 8] = [0; 8];
    const STEPS: u8 = 0x10;
    let field = |head: u8, fields: &[u8]| {
        let order = [&[0x80 | head], fields, &DIGEST].concat();
        let (frames, end) = after_snapshot(&order);
        assert_eq!(frames.len(), 3);
        end.unwrap_err().fault
    };
    let is_refused = |fault: Fault, name: &str| match fault {
        Fault::OutOfRange { field, .. } | Fault::FieldBroken(field) => assert_eq!(field, name),
        other => panic!("{name}: {other}"),
    };
    let (frames, end) = after_snapshot(&[&[0x80 | STEPS, 1, 1, 1][..], &DIGEST].concat());
    assert_eq!(end, Ok(()));
    let last = frames[3].record().unwrap();
    assert_eq!(last.guest_time, GuestTime(TIME_STEP));

    assert_eq!(field(3, &[1, 1, 1]), Fault::NoSuchVcpu(VcpuIndex(3)));
    for start in [0, 9] {
        is_refused(field(0, &[start, 1, 1]), "start of the chunk");
    }
    // A step that had begun before the snapshot, and times that no clock comes to.
    is_refused(field(STEPS, &[1, 0, 1]), "guest time");
    let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
    for steps in [0, STEPS] {
        is_refused(
            field(steps, &[&[1][..], &most, &[1]].concat()),
            "guest time",
        );
    }
    is_refused(field(STEPS, &[&[1, 1][..], &most].concat()), "TSC");
    // Steps that do not say so.
    let time = (TIME_STEP - 5) as u16;
    let coded = [time as u8 | 0x80, (time >> 7) as u8];
    is_refused(field(0, &[&[1][..], &coded, &[0]].concat()), "TSC");
    // Numbers in more bytes than they need, or than there are.
    is_refused(field(0, &[0x81, 0, 1, 1]), "start of the chunk");
    is_refused(
        field(0, &[&[0xff; 10][..], &[1, 1]].concat()),
        "start of the chunk",
    );
}

/// There is no commit after the last number.
#[test]
fn an_order_is_not_the_last_that_could_be() {
    let (mut bytes, _) = stream_on(Medium::Network, &snapshot(u64::MAX - 1));
    let frame = [&[0x80, 1, 1, 1][..], &[0; 8]].concat();
    bytes.extend(frame);
    let (_, end) = read_all(Medium::Network, &bytes);
    let (field, value) = ("commit", u64::MAX);
    assert_eq!(end.unwrap_err().fault, Fault::OutOfRange { field, value });
}

/// Damage before whole orders is known as damage, not taken for an unfinished write, whichever bit it is.
#[test]
fn damage_before_orders_is_damage() {
    let mut frames = snapshot(7);
    frames.extend((8..24).map(|seq| order(seq, None)));
    let (bytes, starts) = stream(&frames);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("log");
    for damaged in 3..15 {
        for bit in 8 * starts[damaged]..8 * starts[damaged + 1] {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &flipped).unwrap();
            let mut reader = LogReader::open(&path).unwrap();
            let end = std::iter::from_fn(|| reader.next_frame().transpose()).find_map(Result::err);
            match end {
                Some(LogError::Damaged { error, follows, .. }) => {
                    assert_eq!(error.offset, starts[damaged] as u64, "bit {bit}");
                    assert_eq!(follows, starts[damaged + 1] as u64, "bit {bit}");
                }
                other => panic!("{damaged}, bit {bit}: {other:?}"),
            }
        }
    }
}

/// A log that ends in orders may end anywhere in them.
#[test]
fn orders_at_the_end_may_be_torn() {
    let mut frames = snapshot(7);
    let (count, place) = (1 << 20, None);
    frames
        .extend((8..16).map(|seq| order(seq, (seq % 2 == 0).then_some(Progress { count, place }))));
    let (bytes, starts) = stream(&frames);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("log");
    for length in starts[3]..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        let mut reader = LogReader::open(&path).unwrap();
        let found: Vec<_> = std::iter::from_fn(|| reader.next_frame().unwrap()).collect();
        let whole = starts.iter().filter(|&&start| start <= length).count() - 1;
        assert_eq!(found, frames[..whole]);
        let valid_bytes = starts[whole] as u64;
        let tail = if valid_bytes == length as u64 {
            Tail::Clean
        } else {
            Tail::Torn { valid_bytes }
        };
        assert_eq!(reader.tail(), Some(tail), "{length}");
    }
}

#[test]
fn a_writer_writes_orders() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("log");
    let mut writer = LogWriter::create(&path).unwrap();
    for frame in history() {
        writer.append(&frame).unwrap();
    }
    drop(writer);
    let mut reader = LogReader::open(&path).unwrap();
    let found: Vec<_> = std::iter::from_fn(|| reader.next_frame().unwrap()).collect();
    assert_eq!(found, history());
    assert_eq!(reader.tail(), Some(Tail::Clean));
}
