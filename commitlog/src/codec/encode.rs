//! Bodies of frames, written.
//!
//! | kind | body |
//! |---|---|
//! | snapshot start | vCPU count `u8`; varints: memory bytes, seq, guest time, state version; each vCPU's state, then the devices', each after a varint of its length |
//! | snapshot pages | byte runs |
//! | disk range | disk `u8`; varint offset; bytes |
//! | snapshot end, digest | varint seq; digest `u128` |
//! | record | varints: seq, guest time; a tag (`tag`) that says which of these follows |
//! | - chunk | vCPU `u8`; varint seq - `started_after`; exit tag (`exit_tag`) and fields; digest `u64`; varint of the length of the vCPU's byte runs; these; the memory's byte runs |
//! | - console | bytes |
//! | - file | vCPU `u8`; bytes |
//! | - output step | vCPU `u8` |
//! | - clock | |
//! | - device | device `u8`; bytes |
//!
//! What ends a body needs no length. `decode.rs` is the other half; a change here is a change there
//! and a new [`super::StreamHeader::VERSION`].

use bytes::{BufMut, BytesMut};

use crate::varint::varint;
use crate::{
    Boundary, Chunk, Commit, DiskRange, Exit, Frame, Input, Record, SnapshotStart, Space,
    StateDigest,
};

/// What a record's commit is.
pub(super) mod tag {
    pub(in crate::codec) const CHUNK_EXIT: u8 = 1;
    pub(in crate::codec) const CHUNK_TIMER: u8 = 2;
    pub(in crate::codec) const CHUNK_KICK: u8 = 3;
    pub(in crate::codec) const CONSOLE: u8 = 16;
    pub(in crate::codec) const FILE: u8 = 17;
    pub(in crate::codec) const OUTPUT_STEP: u8 = 18;
    pub(in crate::codec) const CLOCK: u8 = 19;
    pub(in crate::codec) const DEVICE: u8 = 20;
}

/// What a chunk's exit is. The accesses have the space in bit 3 and the size less one below it.
pub(super) mod exit_tag {
    pub(in crate::codec) const CUT: u8 = 0;
    pub(in crate::codec) const EXCEPTION: u8 = 1;
    pub(in crate::codec) const FATAL: u8 = 2;
    pub(in crate::codec) const HALT: u8 = 3;
    pub(in crate::codec) const WINDOW: u8 = 4;
    pub(in crate::codec) const MSR_WRITE: u8 = 5;
    pub(in crate::codec) const MSR_READ: u8 = 6;
    pub(in crate::codec) const WRITE: u8 = 0x10;
    pub(in crate::codec) const READ: u8 = 0x20;
    pub(in crate::codec) const READ_INPUT: u8 = 0x30;
    pub(in crate::codec) const PORT: u8 = 0x08;
    pub(in crate::codec) const SIZE_MASK: u8 = 0x07;
    pub(in crate::codec) const ACCESS_MASK: u8 = 0x0f;
}

/// Where a body goes: into a buffer, or only counted, so that the buffer is right from the start.
pub(super) trait Sink {
    fn bytes(&mut self, bytes: &[u8]);

    fn byte(&mut self, byte: u8) {
        self.bytes(&[byte]);
    }

    fn varint(&mut self, value: u64) {
        let (digits, count) = varint(value);
        self.bytes(&digits[..count]);
    }
}

impl Sink for BytesMut {
    fn bytes(&mut self, bytes: &[u8]) {
        self.put_slice(bytes);
    }
}

struct Count(usize);

impl Sink for Count {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// How many bytes [`body`] writes.
pub(super) fn body_bytes(frame: &Frame) -> usize {
    let mut count = Count(0);
    body(frame, &mut count);
    count.0
}

/// Writes a frame's body.
pub(super) fn body(frame: &Frame, out: &mut impl Sink) {
    match frame {
        Frame::SnapshotStart(start) => snapshot_start(start, out),
        Frame::SnapshotPages(pages) => out.bytes(pages.encoded()),
        Frame::DiskRange(range) => disk_range(range, out),
        Frame::SnapshotEnd(digest) | Frame::Digest(digest) => state_digest(digest, out),
        Frame::Record(record) => self::record(record, out),
    }
}

fn snapshot_start(start: &SnapshotStart, out: &mut impl Sink) {
    out.byte(start.shape.vcpu_count);
    out.varint(start.shape.memory_bytes);
    out.varint(start.seq.0);
    out.varint(start.guest_time.0);
    out.varint(u64::from(start.state_version));
    for state in start.vcpus.iter().chain([&start.devices]) {
        out.varint(state.len() as u64);
        out.bytes(state);
    }
}

fn disk_range(range: &DiskRange, out: &mut impl Sink) {
    assert!(
        range.end().is_some(),
        "{} bytes at {} of a disk",
        range.bytes.len(),
        range.offset
    );
    out.byte(range.disk);
    out.varint(range.offset);
    out.bytes(&range.bytes);
}

fn state_digest(digest: &StateDigest, out: &mut impl Sink) {
    out.varint(digest.seq.0);
    out.bytes(&digest.digest.to_le_bytes());
}

fn record(record: &Record, out: &mut impl Sink) {
    out.varint(record.seq.0);
    out.varint(record.guest_time.0);
    match &record.commit {
        Commit::Chunk(chunk) => {
            assert!(
                chunk.started_after < record.seq,
                "chunk {} starts after itself",
                record.seq
            );
            self::chunk(chunk, record.seq.0 - chunk.started_after.0, out);
        }
        Commit::Order(_) => panic!(
            "chunk {} is in order form, which has frames of its own",
            record.seq
        ),
        Commit::Input(Input::Console(bytes)) => {
            out.byte(tag::CONSOLE);
            out.bytes(bytes);
        }
        Commit::Input(Input::File { vcpu, bytes }) => {
            out.bytes(&[tag::FILE, vcpu.0]);
            out.bytes(bytes);
        }
        Commit::Input(Input::OutputStep { vcpu }) => out.bytes(&[tag::OUTPUT_STEP, vcpu.0]),
        Commit::Input(Input::Clock) => out.byte(tag::CLOCK),
        Commit::Input(Input::Device { device, bytes }) => {
            out.bytes(&[tag::DEVICE, device.0]);
            out.bytes(bytes);
        }
    }
}

fn chunk(chunk: &Chunk, distance: u64, out: &mut impl Sink) {
    let tag = match chunk.boundary {
        Boundary::Exit => tag::CHUNK_EXIT,
        Boundary::Timer => tag::CHUNK_TIMER,
        Boundary::Kick => tag::CHUNK_KICK,
    };
    out.bytes(&[tag, chunk.vcpu.0]);
    out.varint(distance);
    exit(&chunk.exit, out);
    out.bytes(&chunk.digest.to_le_bytes());
    let effects = &chunk.effects;
    out.varint(effects.vcpu.encoded().len() as u64);
    out.bytes(effects.vcpu.encoded());
    out.bytes(effects.memory.encoded());
}

fn exit(exit: &Exit, out: &mut impl Sink) {
    match *exit {
        Exit::Cut => out.byte(exit_tag::CUT),
        Exit::Halt => out.byte(exit_tag::HALT),
        Exit::Window => out.byte(exit_tag::WINDOW),
        Exit::Write {
            space: Space::Msr,
            address,
            value,
            ..
        } => {
            out.byte(exit_tag::MSR_WRITE);
            out.varint(address);
            out.varint(value);
        }
        Exit::Read {
            space: Space::Msr,
            address,
            ..
        } => {
            out.byte(exit_tag::MSR_READ);
            out.varint(address);
        }
        Exit::Write {
            space,
            address,
            size,
            value,
        } => {
            out.byte(access(exit_tag::WRITE, space, size));
            out.varint(address);
            out.varint(value);
        }
        Exit::Read {
            space,
            address,
            size,
            input,
        } => {
            let tag = if input.is_some() {
                exit_tag::READ_INPUT
            } else {
                exit_tag::READ
            };
            out.byte(access(tag, space, size));
            out.varint(address);
            if let Some(input) = input {
                out.bytes(&input.to_le_bytes());
            }
        }
        Exit::Exception {
            vector,
            error_code,
            rip,
            cr2,
        } => {
            out.bytes(&[exit_tag::EXCEPTION, vector]);
            out.varint(error_code);
            out.bytes(&rip.to_le_bytes());
            out.bytes(&cr2.to_le_bytes());
        }
        Exit::Fatal { rip, ref reason } => {
            let reason = &reason[..reason.floor_char_boundary(Exit::REASON_BYTES_MAX)];
            out.byte(exit_tag::FATAL);
            out.bytes(&rip.to_le_bytes());
            out.varint(reason.len() as u64);
            out.bytes(reason.as_bytes());
        }
    }
}

fn access(tag: u8, space: Space, size: u8) -> u8 {
    assert!((1..=8).contains(&size), "a device access of {size} bytes");
    let space = match space {
        Space::Port => exit_tag::PORT,
        Space::Mmio | Space::Msr => 0,
    };
    tag | space | (size - 1)
}
