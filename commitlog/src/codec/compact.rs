//! Chunks in order form: compact frames, each coded against the record before it.
//!
//! | | |
//! |---|---|
//! | head | `u8`: the highest bit; how the chunk ended, in bits 5 and 6 (`end`); `STEPS`; the vCPU in the lower four bits |
//! | start | varint, seq - `started_after` |
//! | guest time | varint; with `STEPS`, [`TIME_STEP`]s since the last one that had begun at the record before; else nanoseconds since then |
//! | TSC | varint, `tsc_gain`; with `STEPS`, in [`TSC_STEP`]s |
//! | progress | of a chunk that was cut: varint, twice the count, and one if a place follows: varints RIP and RCX |
//! | input | `u64`, if the exit that ended the chunk has one |
//! | digest | `u64` |
//! | check | in files: `u16`, of the xxh3-64 of all before it |
//!
//! The place in the order is the next one. A frame has `STEPS` if both its times are steps. Where it ends follows from its fields.
//! A check of 16 bits is enough to find where a file was damaged: what it
//! lets through, the digest finds at replay. On the network the transport has checked every byte.

use bytes::{BufMut, Bytes, BytesMut};
use twox_hash::XxHash3_64;

use super::decode::Body;
use super::encode::Sink as _;
use super::{DecodeError, Fault};
use crate::varint::skip_varint;
use crate::{
    Boundary, Commit, CommitSeq, GuestTime, OrderChunk, Place, Progress, Record, Shape, VcpuIndex,
};

/// What producers round guest time of chunks down to, in nanoseconds, where the guest's clock may be so coarse.
pub const TIME_STEP: u64 = 1 << 10;
/// What producers round the TSC up to: some 50 microseconds.
pub const TSC_STEP: u64 = 1 << 17;

const MARK: u8 = 0x80;
const END: u8 = 0x60;
const STEPS: u8 = 0x10;
const VCPU: u8 = 0x0f;

/// How a chunk ended: its boundary, and what follows from that.
mod end {
    pub(super) const EXIT: u8 = 0x00;
    pub(super) const EXIT_INPUT: u8 = 0x20;
    pub(super) const TIMER: u8 = 0x40;
    pub(super) const KICK: u8 = 0x60;
}

const DIGEST_BYTES: usize = 8;
const INPUT_BYTES: usize = 8;
const CHECK_BYTES: usize = 2;

/// What a stream of frames is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// A file, which may be damaged: each frame has a check.
    File,
    /// A connection that checks every byte: a compact frame has no check of its own.
    Network,
}

impl Medium {
    fn check_bytes(self) -> usize {
        match self {
            Self::File => CHECK_BYTES,
            Self::Network => 0,
        }
    }
}

/// The record that a compact frame follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Before {
    pub(crate) seq: CommitSeq,
    pub(crate) guest_time: GuestTime,
}

/// Whether a compact frame begins here.
pub(crate) fn is_compact(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|head| head & MARK != 0)
}

/// Bytes of the compact frame that begins here; `None` if these are too few to tell.
pub(super) fn frame_bytes(bytes: &[u8], medium: Medium) -> Option<usize> {
    let (&head, mut rest) = bytes.split_first()?;
    let mut fixed = DIGEST_BYTES + medium.check_bytes();
    for _start_time_tsc in 0..3 {
        skip_varint(&mut rest)?;
    }
    match head & END {
        end::EXIT => {}
        end::EXIT_INPUT => fixed += INPUT_BYTES,
        _ => {
            let has_place = rest.first()? & 1 != 0;
            skip_varint(&mut rest)?;
            if has_place {
                skip_varint(&mut rest)?;
                skip_varint(&mut rest)?;
            }
        }
    }
    Some(bytes.len() - rest.len() + fixed)
}

/// Whether so many compact frames of a file begin here, one after the other: more than chance makes of anything else.
pub(crate) fn is_chain(mut bytes: &[u8], count: usize) -> bool {
    for _ in 0..count {
        if !is_compact(bytes) {
            return false;
        }
        let frame_bytes = frame_bytes(bytes, Medium::File).unwrap_or(usize::MAX);
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

/// Whether a frame of a file has the check that it ends with.
fn is_whole(frame: &[u8]) -> bool {
    let parts = frame.split_last_chunk();
    parts.is_some_and(|(covered, found)| *found == check(covered))
}

fn check(covered: &[u8]) -> [u8; CHECK_BYTES] {
    (XxHash3_64::oneshot(covered) as u16).to_le_bytes()
}

pub(super) fn encode(before: Before, record: &Record, chunk: &OrderChunk, medium: Medium) -> Bytes {
    assert_eq!(record.seq, before.seq.next(), "records have no gaps");
    let start = record.seq.0.checked_sub(chunk.started_after.0);
    let start = start.filter(|&start| start > 0);
    let start = start.unwrap_or_else(|| panic!("chunk {} starts after itself", record.seq));
    let (time, last) = (record.guest_time.0, before.guest_time.0);
    assert!(time >= last, "time goes back at commit {}", record.seq);
    assert!(chunk.vcpu.0 < Shape::VCPUS_MAX, "vCPU {}", chunk.vcpu);
    let end = match (chunk.boundary, chunk.progress, chunk.input) {
        (Boundary::Exit, None, None) => end::EXIT,
        (Boundary::Exit, None, Some(_)) => end::EXIT_INPUT,
        (Boundary::Timer, Some(_), None) => end::TIMER,
        (Boundary::Kick, Some(_), None) => end::KICK,
        _ => panic!("no chunk ends as {} does: {chunk:?}", record.seq),
    };
    let is_steps = are_steps(time, chunk.tsc_gain);
    let steps = if is_steps { STEPS } else { 0 };
    let mut out = BytesMut::with_capacity(32);
    out.put_u8(MARK | end | steps | chunk.vcpu.0);
    out.varint(start);
    if is_steps {
        out.varint(time / TIME_STEP - last / TIME_STEP);
        out.varint(chunk.tsc_gain / TSC_STEP);
    } else {
        out.varint(time - last);
        out.varint(chunk.tsc_gain);
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
    if medium == Medium::File {
        let check = check(&out);
        out.put_slice(&check);
    }
    out.freeze()
}

fn are_steps(guest_time: u64, tsc_gain: u64) -> bool {
    guest_time.is_multiple_of(TIME_STEP) && tsc_gain.is_multiple_of(TSC_STEP)
}

/// Decodes a whole frame that starts at `offset`.
pub(super) fn decode(
    mut frame: Bytes,
    offset: u64,
    medium: Medium,
    before: Option<(Before, Shape)>,
) -> Result<Record, DecodeError> {
    if medium == Medium::File {
        if !is_whole(&frame) {
            // Where it ends may be what is wrong.
            let fault = Fault::HeaderDamaged;
            return Err(DecodeError { offset, fault });
        }
        frame.truncate(frame.len() - CHECK_BYTES);
    }
    let (before, shape) = before.ok_or(DecodeError {
        offset,
        fault: Fault::NothingBefore,
    })?;
    let mut body = Body::new(frame, offset);
    let seq = before.seq.next();
    if seq == CommitSeq(u64::MAX) {
        return body.out_of_range("commit", seq.0);
    }
    let head = body.byte("head")?;
    let vcpu = VcpuIndex(head & VCPU);
    if vcpu.0 >= shape.vcpu_count {
        return body.fail(Fault::NoSuchVcpu(vcpu));
    }
    let started_after = body.started_after(seq)?;
    let (guest_time, tsc_gain) = times(&mut body, head & STEPS != 0, before.guest_time)?;
    let (boundary, progress, input) = match head & END {
        end::EXIT => (Boundary::Exit, None, None),
        end::EXIT_INPUT => (Boundary::Exit, None, Some(body.u64("read input")?)),
        end::TIMER => (Boundary::Timer, Some(progress(&mut body)?), None),
        _ => (Boundary::Kick, Some(progress(&mut body)?), None),
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

/// Guest time, and what the TSC gained.
fn times(
    body: &mut Body,
    is_steps: bool,
    GuestTime(last): GuestTime,
) -> Result<(GuestTime, u64), DecodeError> {
    let time = body.number("guest time", |coded| {
        if is_steps {
            let time = (last / TIME_STEP).checked_add(coded)?;
            time.checked_mul(TIME_STEP).filter(|&time| time >= last)
        } else {
            last.checked_add(coded)
        }
    })?;
    let tsc_gain = body.number("TSC", |coded| {
        if is_steps {
            coded.checked_mul(TSC_STEP)
        } else {
            Some(coded).filter(|&gain| !are_steps(time, gain))
        }
    })?;
    Ok((GuestTime(time), tsc_gain))
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
