//! Made-up frames and streams.
#![allow(dead_code, reason = "each test program uses a part")]

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use samsara_commitlog::{
    Boundary, ByteRuns, ByteRunsBuilder, Chunk, Commit, CommitSeq, DeviceIndex, DiskRange, Effects,
    Exit, Frame, FrameEncoder, Gpa, GuestTime, Input, Limits, Medium, OrderChunk, Place, Progress,
    Record, Shape, SnapshotStart, Space, StateDigest, StreamHeader, TIME_STEP, TSC_STEP, VcpuIndex,
};

/// A machine with memory on both sides of the hole.
pub(crate) const SHAPE: Shape = Shape {
    vcpu_count: 3,
    memory_bytes: 4 << 30,
};

pub(crate) const LIMITS: Limits = Limits::of(SHAPE);

pub(crate) fn runs(list: &[(u64, &[u8])]) -> ByteRuns {
    let mut builder = ByteRunsBuilder::default();
    for &(address, bytes) in list {
        builder.push(address, bytes);
    }
    builder.finish()
}

pub(crate) fn digest(seq: u64) -> StateDigest {
    StateDigest {
        seq: CommitSeq(seq),
        digest: 0x1122_3344_5566_7788_99aa_bbcc_ddee_ff00 ^ u128::from(seq),
    }
}

pub(crate) fn record(seq: u64, commit: Commit) -> Frame {
    Frame::Record(Record {
        seq: CommitSeq(seq),
        guest_time: GuestTime(seq * 1000),
        commit,
    })
}

pub(crate) fn chunk(seq: u64, exit: Exit) -> Frame {
    let effects = Effects {
        memory: runs(&[(0x20_0000, b"low"), (0x1_0000_0000, b"high")]),
        vcpu: runs(&[(16, &[seq as u8; 8])]),
    };
    record(
        seq,
        Commit::Chunk(Chunk {
            vcpu: VcpuIndex(1),
            started_after: CommitSeq(seq - 1),
            boundary: Boundary::Exit,
            exit,
            effects,
            digest: 0xdead_beef_0000_0001,
        }),
    )
}

pub(crate) fn snapshot(seq: u64) -> Vec<Frame> {
    vec![
        Frame::SnapshotStart(SnapshotStart {
            shape: SHAPE,
            seq: CommitSeq(seq),
            guest_time: GuestTime(5),
            state_version: 3,
            vcpus: vec![
                Bytes::from_static(b"zero"),
                Bytes::from_static(b"one"),
                Bytes::new(),
            ],
            devices: Bytes::from_static(b"devices"),
        }),
        Frame::SnapshotPages(runs(&[(0, b"boot"), (0x20_0000, b"program")])),
        Frame::SnapshotEnd(digest(seq)),
    ]
}

pub(crate) fn disk_range(disk: u8, offset: u64, sectors: usize) -> Frame {
    Frame::DiskRange(DiskRange {
        disk,
        offset,
        bytes: vec![disk.wrapping_add(1); sectors * 512].into(),
    })
}

/// A small history with every kind of frame, from commit 7 on.
pub(crate) fn history() -> Vec<Frame> {
    let mut frames = snapshot(7);
    let (space, address, size) = (Space::Mmio, 0xd000_0018, 8);
    frames.push(chunk(
        8,
        Exit::Read {
            space,
            address,
            size,
            input: Some(u64::MAX - 4),
        },
    ));
    frames.push(record(
        9,
        Commit::Input(Input::Console(Bytes::from_static(b"typed\n"))),
    ));
    frames.push(Frame::Digest(digest(9)));
    let vcpu = VcpuIndex(2);
    let bytes = Bytes::from_static(b"input file");
    frames.push(record(10, Commit::Input(Input::File { vcpu, bytes })));
    frames.push(record(11, Commit::Input(Input::OutputStep { vcpu })));
    frames.push(chunk(
        12,
        Exit::Fatal {
            rip: 1 << 63,
            reason: "triple fault".to_owned(),
        },
    ));
    frames.push(Frame::Digest(digest(12)));
    frames.push(order(13, None));
    let count = 500;
    frames.push(order(14, Some(Progress { count, place: None })));
    frames.push(chunk(15, Exit::Halt));
    frames
}

/// A chunk in order form.
pub(crate) fn order(seq: u64, progress: Option<Progress>) -> Frame {
    record(
        seq,
        Commit::Order(OrderChunk {
            vcpu: VcpuIndex(2),
            started_after: CommitSeq(seq - 1),
            boundary: match progress {
                None => Boundary::Exit,
                Some(_) => Boundary::Timer,
            },
            progress,
            tsc_gain: 9 * TSC_STEP,
            input: None,
            digest: 0xdead_beef_0000_0002,
        }),
    )
}

/// How a chunk in order form may have ended, how far it got, and what answered its load.
fn any_end() -> impl Strategy<Value = (Boundary, Option<Progress>, Option<u64>)> {
    let place = option::of((any::<u64>(), any::<u64>()).prop_map(|(rip, rcx)| Place { rip, rcx }));
    let progress = (0..u64::MAX / 2, place).prop_map(|(count, place)| Progress { count, place });
    let cut = prop_oneof![Just(Boundary::Timer), Just(Boundary::Kick)];
    prop_oneof![
        option::of(any::<u64>()).prop_map(|input| (Boundary::Exit, None, input)),
        (cut, progress).prop_map(|(boundary, progress)| (boundary, Some(progress), None)),
    ]
}

/// Any chunk in order form at this place.
fn any_order(seq: u64) -> impl Strategy<Value = OrderChunk> {
    let tsc_gain = prop_oneof![
        any::<u64>(),
        Just(0),
        (0..=u64::MAX / TSC_STEP).prop_map(|steps| steps * TSC_STEP)
    ];
    (any_vcpu(), 0..seq, any_end(), tsc_gain, any::<u64>()).prop_map(
        |(vcpu, started_after, (boundary, progress, input), tsc_gain, digest)| OrderChunk {
            vcpu,
            started_after: CommitSeq(started_after),
            boundary,
            progress,
            tsc_gain,
            input,
            digest,
        },
    )
}

/// A snapshot and records that follow it, many of them chunks in order form.
pub(crate) fn any_history() -> impl Strategy<Value = Vec<Frame>> {
    let gains = vec((any::<bool>(), any::<bool>(), 0..1u64 << 56), 0..30);
    gains.prop_flat_map(|gains| {
        let mut time = 5;
        let records: Vec<_> = (8..)
            .zip(gains)
            .map(|(seq, (is_order, is_steps, gain))| {
                time += gain;
                if is_steps {
                    time = time.next_multiple_of(TIME_STEP);
                }
                let guest_time = GuestTime(time);
                let commit = if is_order {
                    any_order(seq).prop_map(Commit::Order).boxed()
                } else {
                    any_chunk(seq).prop_map(Commit::Chunk).boxed()
                };
                commit
                    .prop_map(move |commit| {
                        Frame::Record(Record {
                            seq: CommitSeq(seq),
                            guest_time,
                            commit,
                        })
                    })
                    .boxed()
            })
            .collect();
        records.prop_map(|records| snapshot(7).into_iter().chain(records).collect())
    })
}

/// The frames as a log file, and where each begins, with the end last.
pub(crate) fn stream(frames: &[Frame]) -> (Vec<u8>, Vec<usize>) {
    stream_on(Medium::File, frames)
}

pub(crate) fn stream_on(medium: Medium, frames: &[Frame]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = StreamHeader::CURRENT.encode().to_vec();
    let mut starts = vec![bytes.len()];
    let mut encoder = FrameEncoder::new(medium);
    for frame in frames {
        bytes.extend_from_slice(&encoder.encode(frame));
        starts.push(bytes.len());
    }
    (bytes, starts)
}

fn any_runs(address_max: u64) -> impl Strategy<Value = ByteRuns> {
    vec((0..address_max, vec(any::<u8>(), 1..40)), 0..12).prop_map(move |mut list| {
        list.sort();
        let mut builder = ByteRunsBuilder::default();
        let mut end = 0;
        for (address, bytes) in list {
            if address >= end && SHAPE.contains(Gpa(address), bytes.len() as u64) {
                builder.push(address, &bytes);
                end = address + bytes.len() as u64;
            }
        }
        builder.finish()
    })
}

fn any_bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn any_vcpu() -> impl Strategy<Value = VcpuIndex> {
    (0..SHAPE.vcpu_count).prop_map(VcpuIndex)
}

fn any_register() -> impl Strategy<Value = (Space, u64)> {
    prop_oneof![
        any::<u64>().prop_map(|address| (Space::Mmio, address)),
        any::<u16>().prop_map(|address| (Space::Port, u64::from(address))),
    ]
}

fn any_exit() -> impl Strategy<Value = Exit> {
    prop_oneof![
        Just(Exit::Cut),
        Just(Exit::Halt),
        Just(Exit::Window),
        (any::<u32>(), any::<u64>()).prop_map(|(index, value)| Exit::Write {
            space: Space::Msr,
            address: index.into(),
            size: 8,
            value
        }),
        any::<u32>().prop_map(|index| Exit::Read {
            space: Space::Msr,
            address: index.into(),
            size: 8,
            input: None
        }),
        (any_register(), 1..=8u8, any::<u64>()).prop_map(|((space, address), size, value)| {
            let value = value >> (64 - 8 * u32::from(size));
            Exit::Write {
                space,
                address,
                size,
                value,
            }
        }),
        (any_register(), 1..=8u8, option::of(any::<u64>())).prop_map(
            |((space, address), size, input)| Exit::Read {
                space,
                address,
                size,
                input
            }
        ),
        (0..=31u8, any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
            |(vector, error_code, rip, cr2)| Exit::Exception {
                vector,
                error_code,
                rip,
                cr2
            }
        ),
        (any::<u64>(), "\\PC{0,60}").prop_map(|(rip, reason)| Exit::Fatal { rip, reason }),
    ]
}

fn any_chunk(seq: u64) -> impl Strategy<Value = Chunk> {
    let boundary = prop_oneof![
        Just(Boundary::Exit),
        Just(Boundary::Timer),
        Just(Boundary::Kick)
    ];
    let effects = (any_runs(SHAPE.memory_end().0), any_runs(4096))
        .prop_map(|(memory, vcpu)| Effects { memory, vcpu });
    (
        any_vcpu(),
        0..seq,
        boundary,
        any_exit(),
        effects,
        any::<u64>(),
    )
        .prop_map(
            |(vcpu, started_after, boundary, exit, effects, digest)| Chunk {
                vcpu,
                started_after: CommitSeq(started_after),
                boundary,
                exit,
                effects,
                digest,
            },
        )
}

fn any_record() -> impl Strategy<Value = Record> {
    let commit = (1..u64::MAX).prop_flat_map(|seq| {
        let commit = prop_oneof![
            4 => any_chunk(seq).prop_map(Commit::Chunk),
            1 => any_bytes(200).prop_map(|bytes| Commit::Input(Input::Console(bytes))),
            1 => (any_vcpu(), any_bytes(3000))
                .prop_map(|(vcpu, bytes)| Commit::Input(Input::File { vcpu, bytes })),
            1 => any_vcpu().prop_map(|vcpu| Commit::Input(Input::OutputStep { vcpu })),
            1 => Just(Commit::Input(Input::Clock)),
            1 => (any::<u8>().prop_map(DeviceIndex), any_bytes(3000))
                .prop_map(|(device, bytes)| Commit::Input(Input::Device { device, bytes })),
        ];
        (Just(seq), commit)
    });
    (commit, any::<u64>()).prop_map(|((seq, commit), guest_time)| Record {
        seq: CommitSeq(seq),
        guest_time: GuestTime(guest_time),
        commit,
    })
}

fn any_digest() -> impl Strategy<Value = StateDigest> {
    (0..u64::MAX, any::<u128>()).prop_map(|(seq, digest)| StateDigest {
        seq: CommitSeq(seq),
        digest,
    })
}

fn any_start() -> impl Strategy<Value = SnapshotStart> {
    let states = vec(any_bytes(300), usize::from(SHAPE.vcpu_count));
    (
        0..u64::MAX,
        any::<u64>(),
        any::<u32>(),
        states,
        any_bytes(500),
    )
        .prop_map(
            |(seq, guest_time, state_version, vcpus, devices)| SnapshotStart {
                shape: SHAPE,
                seq: CommitSeq(seq),
                guest_time: GuestTime(guest_time),
                state_version,
                vcpus,
                devices,
            },
        )
}

fn any_disk_range() -> impl Strategy<Value = DiskRange> {
    let offset = 0..(i64::MAX as u64 >> 9) - 4;
    (any::<u8>(), offset, 1..4usize, any::<u8>()).prop_map(|(disk, sector, count, byte)| {
        DiskRange {
            disk,
            offset: sector * 512,
            bytes: vec![byte; count * 512].into(),
        }
    })
}

/// Any frame of a machine of [`SHAPE`].
pub(crate) fn any_frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        1 => any_disk_range().prop_map(Frame::DiskRange),
        1 => any_start().prop_map(Frame::SnapshotStart),
        1 => any_runs(SHAPE.memory_end().0).prop_map(Frame::SnapshotPages),
        1 => any_digest().prop_map(Frame::SnapshotEnd),
        1 => any_digest().prop_map(Frame::Digest),
        6 => any_record().prop_map(Frame::Record),
    ]
}
