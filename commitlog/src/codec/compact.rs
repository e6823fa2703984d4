//! Chunks in order form: compact frames, each coded against the record before it.
//!
//! | | |
//! |---|---|
//! | length | `u8`: bytes of the body, and the highest bit |
//! | check | `u16`, of the xxh3-64 of length and body |
//! | flags | `u8`: boundary in bits 0 and 1, `INPUT`, `PROGRESS`, the vCPU in the upper four bits |
//! | start | varint, seq - `started_after` |
//! | guest time | varint, nanoseconds since the record before |
//! | TSC | varint, `tsc_gain` in steps of [`TSC_STEP`] if it is one of them, twice that; else twice the gain, and one |
//! | progress | if there is one: varint, twice the count, and one if a place follows: varints RIP and RCX |
//! | input | `u64`, if there is one |
//! | digest | `u64` |
//!
//! The place in the order is the next one. A check of 16 bits is enough to find where a file was damaged: what it
//! lets through, the digest finds at replay. On the network the transport has checked every byte.

use bytes::{BufMut, Bytes, BytesMut};
use twox_hash::XxHash3_64;

use super::decode::Body;
use super::encode::Sink as _;
use super::{DecodeError, Fault};
use crate::{
    Boundary, Commit, CommitSeq, GuestTime, OrderChunk, Place, Progress, Record, Shape, VcpuIndex,
};

/// Bytes before a body.
pub(super) const HEADER_BYTES: usize = 3;
const MARK: u8 = 0x80;
const LENGTH: u8 = 0x7f;

/// What producers round the TSC to, so that it takes a byte or two: some 20 microseconds.
pub const TSC_STEP: u64 = 1 << 16;

const BOUNDARY: u8 = 0x03;
const INPUT: u8 = 0x04;
const PROGRESS: u8 = 0x08;
const VCPU_SHIFT: u32 = 4;

/// The record that a compact frame follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Before {
    pub(crate) seq: CommitSeq,
    pub(crate) guest_time: GuestTime,
}

/// The frame that begins with `bytes`, if it is a compact one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compact {
    body_bytes: usize,
}

impl Compact {
    pub(super) fn at(bytes: &[u8]) -> Option<Self> {
        let first = *bytes.first()?;
        (first & MARK != 0).then_some(Self {
            body_bytes: usize::from(first & LENGTH),
        })
    }

    pub(super) fn frame_bytes(self) -> usize {
        HEADER_BYTES + self.body_bytes
    }
}

fn check(length: u8, body: &[u8]) -> u16 {
    let mut covered = [0; 1 + LENGTH as usize];
    covered[0] = length;
    covered[1..=body.len()].copy_from_slice(body);
    XxHash3_64::oneshot(&covered[..=body.len()]) as u16
}

/// Whether a compact frame begins here.
pub(crate) fn is_compact(bytes: &[u8]) -> bool {
    Compact::at(bytes).is_some()
}

/// Whether so many compact frames begin here, one after the other: more than chance makes of anything else.
pub(crate) fn is_chain(mut bytes: &[u8], count: usize) -> bool {
    for _ in 0..count {
        let frame_bytes = Compact::at(bytes).map_or(usize::MAX, Compact::frame_bytes);
        let Some((frame, rest)) = bytes.split_at_checked(frame_bytes) else {
            return false;
        };
        if !is_whole(frame) {
            return false;
        }
        bytes = rest;
    }
    true
}

/// Whether a whole frame has the check that its header names.
fn is_whole(frame: &[u8]) -> bool {
    let [first, low, high, body @ ..] = frame else {
        return false;
    };
    let length = usize::from(first & LENGTH);
    body.len() == length && u16::from_le_bytes([*low, *high]) == check(*first, body)
}

pub(super) fn encode(before: Before, record: &Record, chunk: &OrderChunk) -> Bytes {
    assert_eq!(record.seq, before.seq.next(), "records have no gaps");
    let (start, time) = (
        record.seq.0.checked_sub(chunk.started_after.0),
        record.guest_time.0.checked_sub(before.guest_time.0),
    );
    let start = start.filter(|&start| start > 0);
    let start = start.unwrap_or_else(|| panic!("chunk {} starts after itself", record.seq));
    let time = time.unwrap_or_else(|| panic!("time goes back at commit {}", record.seq));
    assert!(chunk.vcpu.0 < Shape::VCPUS_MAX, "vCPU {}", chunk.vcpu);
    let boundary = match chunk.boundary {
        Boundary::Exit => 0,
        Boundary::Timer => 1,
        Boundary::Kick => 2,
    };
    let has = |flag, is_there: bool| if is_there { flag } else { 0 };
    let flags = boundary
        | has(INPUT, chunk.input.is_some())
        | has(PROGRESS, chunk.progress.is_some())
        | chunk.vcpu.0 << VCPU_SHIFT;
    let mut out = BytesMut::with_capacity(HEADER_BYTES + LENGTH as usize);
    out.put_bytes(0, HEADER_BYTES);
    out.put_u8(flags);
    out.varint(start);
    out.varint(time);
    match chunk.tsc_gain {
        steps if steps.is_multiple_of(TSC_STEP) => out.varint(steps / TSC_STEP * 2),
        gain => {
            let wide = u128::from(gain) << 1 | 1;
            out.varint(wide as u64);
            out.put_u8((wide >> 64) as u8);
        }
    }
    if let Some(progress) = chunk.progress {
        assert!(progress.count < 1 << 63, "a count of {}", progress.count);
        out.varint(progress.count << 1 | u64::from(progress.place.is_some()));
        if let Some(place) = progress.place {
            out.varint(place.rip);
            out.varint(place.rcx);
        }
    }
    if let Some(input) = chunk.input {
        out.put_u64_le(input);
    }
    out.put_u64_le(chunk.digest);
    let length = MARK | (out.len() - HEADER_BYTES) as u8;
    let check = check(length, &out[HEADER_BYTES..]);
    let mut header = &mut out[..HEADER_BYTES];
    header.put_u8(length);
    header.put_u16_le(check);
    out.freeze()
}

/// Decodes a whole frame that starts at `offset`.
pub(super) fn decode(
    frame: &Bytes,
    offset: u64,
    before: Option<(Before, Shape)>,
) -> Result<Record, DecodeError> {
    if !is_whole(frame) {
        // The length may be what is wrong.
        let fault = Fault::HeaderDamaged;
        return Err(DecodeError { offset, fault });
    }
    let (before, shape) = before.ok_or(DecodeError {
        offset,
        fault: Fault::NothingBefore,
    })?;
    let mut body = Body::new(frame.slice(HEADER_BYTES..), offset + HEADER_BYTES as u64);
    let seq = before.seq.next();
    let flags = body.byte("flags")?;
    let boundary = match flags & BOUNDARY {
        0 => Boundary::Exit,
        1 => Boundary::Timer,
        2 => Boundary::Kick,
        other => return body.out_of_range("boundary", other.into()),
    };
    let vcpu = VcpuIndex(flags >> VCPU_SHIFT);
    if vcpu.0 >= shape.vcpu_count {
        return body.fail(Fault::NoSuchVcpu(vcpu));
    }
    let started_after = body.started_after(seq)?;
    let guest_time = body.number("guest time", |gain| {
        before.guest_time.0.checked_add(gain).map(GuestTime)
    })?;
    let tsc_gain = tsc_gain(&mut body)?;
    let progress = match flags & PROGRESS {
        0 => None,
        _ => Some(progress(&mut body)?),
    };
    let input = match flags & INPUT {
        0 => None,
        _ => Some(body.u64("read input")?),
    };
    let digest = body.u64("digest")?;
    body.finish()?;
    let chunk = OrderChunk {
        vcpu,
        started_after,
        boundary,
        progress,
        tsc_gain,
        input,
        digest,
    };
    Ok(Record {
        seq,
        guest_time,
        commit: Commit::Order(chunk),
    })
}

fn tsc_gain(body: &mut Body) -> Result<u64, DecodeError> {
    let field = "TSC";
    let coded = body.varint(field)?;
    if coded & 1 == 0 {
        let gain = (coded / 2).checked_mul(TSC_STEP);
        return gain.map_or_else(|| body.out_of_range(field, coded), Ok);
    }
    let high = body.byte(field)?;
    let gain = coded >> 1 | u64::from(high) << 63;
    if high > 1 || gain.is_multiple_of(TSC_STEP) {
        return body.out_of_range(field, gain);
    }
    Ok(gain)
}

fn progress(body: &mut Body) -> Result<Progress, DecodeError> {
    let coded = body.varint("progress")?;
    let place = match coded & 1 {
        0 => None,
        _ => Some(Place {
            rip: body.varint("instruction address")?,
            rcx: body.varint("RCX")?,
        }),
    };
    Ok(Progress {
        count: coded >> 1,
        place,
    })
}
