//! The codec: every frame comes back, and nothing that is not one comes out.

mod common;

use std::io::{self, Read};

use bytes::Bytes;
use common::{LIMITS, SHAPE, any_frame, chunk, disk_range, history, record, runs, stream};
use proptest::collection::vec;
use proptest::prelude::*;
use samsara_commitlog::{
    BODY_BYTES_MAX, ByteRunsBuilder, Chunk, Commit, DecodeError, Effects, Exit, Fault, Frame,
    FrameReader, Input, Limits, Medium, PAGE_BYTES, Record, Shape, Space, StreamHeader, VcpuIndex,
};

/// The frames in `bytes` up to the end or the first error, pushed in pieces of `piece_bytes`.
fn read_all(bytes: &[u8], piece_bytes: usize) -> (Vec<Frame>, Result<(), DecodeError>) {
    let mut reader = FrameReader::new(Medium::File);
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece_bytes) {
        reader.push(piece);
        loop {
            match reader.poll_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(reader.poll_frame(), Err(error.clone()), "an error is final");
                    return (frames, Err(error));
                }
            }
        }
    }
    (frames, reader.finish())
}

/// That `found` is a part of `expected` from its start, so that no frame is wrong.
fn assert_prefix(found: &[Frame], expected: &[Frame]) {
    assert!(found.len() <= expected.len());
    assert_eq!(found, &expected[..found.len()]);
}

/// A frame with this body and right checks, whatever the body: made by taking the header of a frame
/// apart, as only the codec knows how checks are made.
fn forge(kind: u8, body: &[u8]) -> Vec<u8> {
    use twox_hash::XxHash3_64;
    let length = (body.len() as u32).to_le_bytes();
    let checksum = XxHash3_64::oneshot(body).to_le_bytes();
    let check = XxHash3_64::oneshot(&[&length[..], &checksum, &[kind]].concat()).to_le_bytes();
    [&[kind], &length[..], &check[..3], &checksum, body].concat()
}

fn fault_of(kind: u8, body: &[u8], limits: Limits) -> Fault {
    let forged = Bytes::from(forge(kind, body));
    Frame::decode(&forged, limits)
        .expect_err("a forged frame")
        .fault
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_frame_comes_back_and_its_size_is_known(frame in any_frame()) {
        let encoded = frame.encode();
        prop_assert_eq!(encoded.len(), frame.encoded_bytes());
        prop_assert_eq!(Frame::decode(&encoded, LIMITS), Ok(frame));
    }

    #[test]
    fn frames_come_back_from_pieces_of_any_size(
        frames in vec(any_frame(), 1..6),
        piece_bytes in 1usize..300,
    ) {
        let mut all = common::snapshot(7);
        all.extend(frames);
        let (bytes, _) = stream(&all);
        prop_assert_eq!(read_all(&bytes, piece_bytes), (all, Ok(())));
    }

    /// Whatever decodes is exactly what its frame encodes to: one history has one binary form.
    #[test]
    fn mutated_bodies_decode_to_themselves_or_not_at_all(
        frame in any_frame(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in 0usize..4,
    ) {
        let encoded = frame.encode();
        let mut body = encoded[16..].to_vec();
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] = byte;
            body.truncate(body.len().max(cut) - cut);
        }
        let forged = Bytes::from(forge(encoded[15], &body));
        if let Ok(decoded) = Frame::decode(&forged, LIMITS) {
            prop_assert_eq!(decoded.encode(), forged);
        }
    }

    #[test]
    fn random_bodies_decode_to_themselves_or_not_at_all(
        kind in 0u8..8,
        body in vec(any::<u8>(), 0..64),
    ) {
        let forged = Bytes::from(forge(kind, &body));
        if let Ok(decoded) = Frame::decode(&forged, LIMITS) {
            prop_assert_eq!(decoded.encode(), forged);
        }
    }

    #[test]
    fn random_streams_give_nothing(bytes in vec(any::<u8>(), 0..200), header in any::<bool>()) {
        let mut all = if header { StreamHeader::CURRENT.encode().to_vec() } else { Vec::new() };
        all.extend(bytes);
        prop_assert_eq!(read_all(&all, 64).0, Vec::new());
    }
}

#[test]
fn every_truncation_is_known_as_one() {
    let frames = history();
    let (bytes, starts) = stream(&frames);
    for length in 0..=bytes.len() {
        let (found, end) = read_all(&bytes[..length], 7);
        assert_prefix(&found, &frames);
        let whole = starts.iter().filter(|&&start| start <= length).count();
        assert_eq!(found.len(), whole.saturating_sub(1));
        if starts.contains(&length) {
            assert_eq!(end, Ok(()), "{length}");
        } else {
            let offset = starts
                .iter()
                .rev()
                .find(|&&start| start <= length)
                .unwrap_or(&0);
            let error = DecodeError {
                offset: *offset as u64,
                fault: Fault::EndsInsideFrame,
            };
            assert_eq!(end, Err(error), "{length}");
        }
    }
}

#[test]
fn every_flipped_bit_is_an_error_before_the_frame() {
    let frames = history();
    let (bytes, starts) = stream(&frames);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let (found, end) = read_all(&flipped, 1000);
        let start = starts.iter().filter(|&&start| start <= bit / 8).count();
        assert_eq!(found.len(), start.saturating_sub(1), "bit {bit}");
        assert_prefix(&found, &frames);
        let error = end.expect_err("a flipped bit");
        assert!(error.offset <= (bit / 8) as u64, "bit {bit}: {error}");
    }
}

#[test]
fn lengths_that_no_frame_has_are_refused_by_the_header_alone() {
    for (kind, max) in [
        (1, 18 << 20),
        (2, 2 << 20),
        (3, 32),
        (4, BODY_BYTES_MAX),
        (5, 32),
        (6, (1 << 20) + 16),
    ] {
        for length in [max as u32 + 1, u32::MAX] {
            let mut reader = FrameReader::new(Medium::File);
            reader.push(&StreamHeader::CURRENT.encode());
            // The checks are right, so only the length is wrong.
            let header = forged_header(kind, length);
            reader.push(&header);
            let error = reader.poll_frame().expect_err("a length over the cap");
            assert!(
                matches!(error.fault, Fault::TooLong { .. }),
                "{kind} {length}: {error}"
            );
        }
    }
}

fn forged_header(kind: u8, length: u32) -> [u8; 16] {
    use twox_hash::XxHash3_64;
    let length = length.to_le_bytes();
    let check = XxHash3_64::oneshot(&[&length[..], &[0; 8], &[kind]].concat()).to_le_bytes();
    let mut header = [0; 16];
    header[0] = kind;
    header[1..5].copy_from_slice(&length);
    header[5..8].copy_from_slice(&check[..3]);
    header
}

#[test]
fn the_stream_header_is_checked_first() {
    let fault = |bytes: &[u8]| read_all(bytes, 100).1.expect_err("a bad header");
    let other = fault(b"\x7fELF and something else");
    assert_eq!(
        other,
        DecodeError {
            offset: 0,
            fault: Fault::NotALog
        }
    );
    let mut newer = StreamHeader::CURRENT.encode().to_vec();
    newer[8] = 9;
    let expected = Fault::Version {
        found: 9,
        supported: StreamHeader::VERSION,
    };
    assert_eq!(
        fault(&newer),
        DecodeError {
            offset: 8,
            fault: expected
        }
    );
}

#[test]
fn only_a_snapshot_can_come_first_and_only_of_the_same_machine() {
    let frames = history();
    let (bytes, _) = stream(&frames[1..]);
    let (found, end) = read_all(&bytes, 100);
    assert!(found.is_empty());
    let fault = end.expect_err("no snapshot").fault;
    assert_eq!(fault, Fault::BeforeSnapshot(frames[1].kind()));

    let other = Limits::of(Shape {
        vcpu_count: 4,
        ..SHAPE
    });
    let error = Frame::decode(&frames[0].encode(), other).expect_err("another machine");
    assert!(matches!(error.fault, Fault::ShapeChanged { .. }), "{error}");
}

#[test]
fn vcpus_and_memory_that_the_machine_does_not_have_are_refused() {
    let small = Limits::of(Shape {
        vcpu_count: 1,
        memory_bytes: 16 << 20,
    });
    let of_vcpu_1 = chunk(8, Exit::Cut).encode();
    let error = Frame::decode(&of_vcpu_1, small).expect_err("no such vCPU");
    assert_eq!(error.fault, Fault::NoSuchVcpu(VcpuIndex(1)));
    for (address, bytes) in [(0xC000_0000 - 1, 2), (0xD000_0000, 1), (0x1_4000_0000, 1)] {
        let pages = Frame::SnapshotPages(runs(&[(address, &[1; 2][..bytes])]));
        let error = Frame::decode(&pages.encode(), LIMITS).expect_err("no memory there");
        assert!(matches!(error.fault, Fault::Runs { .. }), "{error}");
        let shown = error.to_string();
        assert!(
            shown.starts_with("at offset 16: memory: byte run of "),
            "{shown}"
        );
    }
}

#[test]
fn fields_out_of_range_are_refused_with_their_place() {
    let seq = u64::MAX;
    let mut last = vec![0xff; 9];
    last.extend([1, 0, 18, 0]);
    let expected = Fault::OutOfRange {
        field: "commit",
        value: seq,
    };
    assert_eq!(fault_of(4, &last, LIMITS), expected);
    let expected = Fault::OutOfRange {
        field: "commit",
        value: 0,
    };
    assert_eq!(fault_of(4, &[0, 0, 18, 0], LIMITS), expected);
    let expected = Fault::OutOfRange {
        field: "kind of commit",
        value: 9,
    };
    assert_eq!(fault_of(4, &[1, 0, 9], LIMITS), expected);
    assert_eq!(
        fault_of(4, &[1, 0, 18, 0, 0], LIMITS),
        Fault::BytesFollow(1)
    );
    // A chunk that starts after its own commit, or before the first.
    for distance in [0, 2] {
        let field = "start of the chunk";
        let expected = Fault::OutOfRange {
            field,
            value: u64::from(distance),
        };
        assert_eq!(fault_of(4, &[1, 0, 1, 0, distance], LIMITS), expected);
    }
    let one_byte_write = [1, 0, 1, 0, 1, 0x10, 0, 0x80, 0x02];
    let expected = Fault::OutOfRange {
        field: "written value",
        value: 256,
    };
    assert_eq!(fault_of(4, &one_byte_write, LIMITS), expected);
    let expected = Fault::OutOfRange {
        field: "exception vector",
        value: 32,
    };
    assert_eq!(fault_of(4, &[1, 0, 1, 0, 1, 1, 32], LIMITS), expected);
    let expected = Fault::OutOfRange {
        field: "console input",
        value: 4097,
    };
    let long = [&[1, 0, 16][..], &[b'x'; 4097]].concat();
    assert_eq!(fault_of(4, &long, LIMITS), expected);
    let port_read = [1, 0, 1, 0, 1, 0x28, 0x80, 0x80, 0x04];
    let expected = Fault::OutOfRange {
        field: "register address",
        value: 0x1_0000,
    };
    assert_eq!(fault_of(4, &port_read, LIMITS), expected);
    let expected = Fault::OutOfRange {
        field: "vCPU state",
        value: 1 << 20,
    };
    let long_state = [
        &[1, 0x80, 0x80, 0x80, 0x08, 0, 0, 0, 0x80, 0x80, 0x40][..],
        &vec![0; 2 << 20],
    ]
    .concat();
    assert_eq!(fault_of(1, &long_state, Limits::BEFORE_SNAPSHOT), expected);
    assert_eq!(fault_of(7, &[], LIMITS), Fault::UnknownKind(7));
    assert!(matches!(
        fault_of(1, &[0, 0], Limits::BEFORE_SNAPSHOT),
        Fault::Shape(_)
    ));
}

#[test]
fn decoding_slices_the_frame_and_does_not_copy() {
    let encoded = chunk(8, Exit::Cut).encode();
    let Ok(Frame::Record(Record {
        commit: Commit::Chunk(chunk),
        ..
    })) = Frame::decode(&encoded, LIMITS)
    else {
        panic!("not a chunk");
    };
    let effects = chunk.effects;
    let inside = encoded.as_ptr_range();
    assert!(inside.contains(&effects.memory.encoded().as_ptr()));
    assert!(inside.contains(&effects.vcpu.encoded().as_ptr()));
}

/// The worst write set that a chunk may have, every other byte of `PAGES_MAX` pages far apart.
#[test]
fn the_longest_effects_fit() {
    let mut builder = ByteRunsBuilder::default();
    let pages = Effects::PAGES_MAX as u64;
    let apart = SHAPE.low_bytes() / pages / PAGE_BYTES as u64;
    for page in 0..pages {
        for byte in (0..PAGE_BYTES as u64).step_by(2) {
            builder.push(page * apart * PAGE_BYTES as u64 + byte, &[1]);
        }
    }
    let memory = builder.finish();
    assert!(memory.encoded().len() <= Effects::MEMORY_BYTES_MAX);
    let frame = chunk_of(Effects {
        memory,
        ..Effects::default()
    });
    let encoded = frame.encode();
    assert_eq!(Frame::decode(&encoded, LIMITS), Ok(frame));
}

fn chunk_of(effects: Effects) -> Frame {
    let Frame::Record(Record {
        seq,
        commit: Commit::Chunk(chunk),
        ..
    }) = chunk(8, Exit::Cut)
    else {
        unreachable!("chunk makes chunks");
    };
    record(seq.0, Commit::Chunk(Chunk { effects, ..chunk }))
}

#[test]
fn a_long_reason_is_cut_at_a_character() {
    let reason = "é".repeat(Exit::REASON_BYTES_MAX);
    let encoded = chunk(
        8,
        Exit::Fatal {
            rip: 1,
            reason: format!("x{reason}"),
        },
    )
    .encode();
    let Ok(Frame::Record(record)) = Frame::decode(&encoded, LIMITS) else {
        panic!("not a record");
    };
    let Some(Exit::Fatal { reason, .. }) = record.chunk().map(|chunk| &chunk.exit) else {
        panic!("not fatal");
    };
    assert_eq!(reason.len(), Exit::REASON_BYTES_MAX - 1);
}

#[test]
fn records_are_small() {
    let (space, address, size) = (Space::Mmio, 0xd000_0000, 1);
    let commit = Commit::Chunk(Chunk {
        vcpu: VcpuIndex(0),
        started_after: common::digest(999_999).seq,
        boundary: samsara_commitlog::Boundary::Exit,
        exit: Exit::Write {
            space,
            address,
            size,
            value: 65,
        },
        effects: Effects::default(),
        digest: 1,
    });
    assert!(record(1_000_000, commit).encoded_bytes() <= 48);
    let step = Commit::Input(Input::OutputStep { vcpu: VcpuIndex(0) });
    assert!(record(1_000_000, step).encoded_bytes() <= 28);
}

#[test]
fn a_source_is_pulled_to_its_end() {
    /// Gives a few bytes at a time, and is interrupted in between.
    struct Slow<'a>(&'a [u8], usize);
    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(3) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let count = buffer.len().min(5);
            (&mut self.0).take(count as u64).read(buffer)
        }
    }
    let frames = history();
    let (bytes, starts) = stream(&frames);
    let mut source = Slow(&bytes, 0);
    let mut reader = FrameReader::new(Medium::File);
    for (frame, start) in frames.iter().zip(starts) {
        let pulled = reader.pull(&mut source).unwrap().unwrap();
        assert_eq!(pulled.as_ref(), Some(frame));
        assert_eq!(reader.frame_offset(), start as u64);
    }
    assert_eq!(reader.pull(&mut source).unwrap(), Ok(None));
    assert_eq!(reader.finish(), Ok(()));
}

#[test]
fn a_stream_is_resumed_between_frames() {
    let frames = history();
    let (bytes, starts) = stream(&frames);
    let mut reader = FrameReader::resume(Medium::File, starts[4] as u64, LIMITS);
    reader.push(&bytes[starts[4]..]);
    assert_eq!(reader.poll_frame(), Ok(Some(frames[4].clone())));
    assert_eq!(reader.frame_offset(), starts[4] as u64);
    assert_eq!(reader.offset(), starts[5] as u64);
}

#[test]
fn parts_of_disks_are_whole_sectors_and_need_no_machine() {
    let longest = disk_range(3, 512, 2048);
    let encoded = longest.encode();
    assert_eq!(
        Frame::decode(&encoded, Limits::BEFORE_SNAPSHOT),
        Ok(longest)
    );
    let fault = |offset: &[u8], bytes: usize| {
        let body = [&[0][..], offset, &vec![1; bytes]].concat();
        fault_of(6, &body, LIMITS)
    };
    let out_of_range = |field, value| Fault::OutOfRange { field, value };
    assert_eq!(fault(&[1], 512), out_of_range("disk offset", 1));
    for bytes in [0, 511, 513] {
        let expected = out_of_range("disk bytes", bytes as u64);
        assert_eq!(fault(&[0], bytes), expected);
    }
    let too_long = (1 << 20) + 8;
    let expected = out_of_range("disk bytes", too_long as u64);
    assert_eq!(fault(&[0], too_long), expected);
    // The last sector of a number space that no file has.
    let far = [0x80, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    assert!(matches!(fault(&far, 512), Fault::OutOfRange { .. }));
    assert_eq!(fault_of(6, &[], LIMITS), Fault::FieldBroken("disk"));
}
