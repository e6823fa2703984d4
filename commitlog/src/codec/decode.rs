//! Bodies of frames, read. `encode.rs` has the layout.

use bytes::Bytes;

use super::encode::{exit_tag, tag};
use super::{DecodeError, Fault, FrameKind};
use crate::limits::{DEVICES_BYTES_MAX, Limits, VCPU_RUNS_BYTES_MAX, VCPU_STATE_BYTES_MAX};
use crate::varint::take_varint;
use crate::{
    Boundary, ByteRuns, Chunk, Commit, CommitSeq, DeviceIndex, DiskRange, Effects, Exit, Frame,
    Gpa, GuestTime, Input, Record, RunsError, Shape, SnapshotStart, Space, StateDigest, VcpuIndex,
};

/// Decodes a body whose checksum is right. `offset` is where it starts in the stream.
pub(super) fn body(
    kind: FrameKind,
    body: Bytes,
    offset: u64,
    limits: Limits,
) -> Result<Frame, DecodeError> {
    let mut body = Body::new(body, offset);
    let frame = match (kind, limits.shape()) {
        (FrameKind::SnapshotStart, expected) => {
            Frame::SnapshotStart(snapshot_start(&mut body, expected)?)
        }
        (FrameKind::DiskRange, _) => Frame::DiskRange(disk_range(&mut body)?),
        (kind, None) => return body.fail(Fault::BeforeSnapshot(kind)),
        (FrameKind::SnapshotPages, Some(shape)) => Frame::SnapshotPages(body.memory_runs(shape)?),
        (FrameKind::SnapshotEnd, Some(_)) => Frame::SnapshotEnd(state_digest(&mut body)?),
        (FrameKind::Digest, Some(_)) => Frame::Digest(state_digest(&mut body)?),
        (FrameKind::Record, Some(shape)) => Frame::Record(record(&mut body, shape)?),
    };
    body.finish()?;
    Ok(frame)
}

fn snapshot_start(body: &mut Body, expected: Option<Shape>) -> Result<SnapshotStart, DecodeError> {
    let start = body.offset;
    let vcpu_count = body.byte("vCPU count")?;
    let memory_bytes = body.varint("memory size")?;
    let shape = Shape::new(vcpu_count, memory_bytes).map_err(|error| DecodeError {
        offset: start,
        fault: Fault::Shape(error),
    })?;
    if let Some(expected) = expected.filter(|&expected| expected != shape) {
        let fault = Fault::ShapeChanged {
            found: shape,
            expected,
        };
        return Err(DecodeError {
            offset: start,
            fault,
        });
    }
    let seq = body.seq()?;
    let guest_time = GuestTime(body.varint("guest time")?);
    let state_version = body.number("state version", |value| u32::try_from(value).ok())?;
    let mut vcpus = Vec::with_capacity(usize::from(vcpu_count));
    for _ in 0..vcpu_count {
        vcpus.push(body.sized("vCPU state", VCPU_STATE_BYTES_MAX)?);
    }
    let devices = body.sized("device state", DEVICES_BYTES_MAX)?;
    Ok(SnapshotStart {
        shape,
        seq,
        guest_time,
        state_version,
        vcpus,
        devices,
    })
}

fn disk_range(body: &mut Body) -> Result<DiskRange, DecodeError> {
    let disk = body.byte("disk")?;
    let offset = body.number("disk offset", |offset| {
        offset
            .is_multiple_of(DiskRange::SECTOR_BYTES)
            .then_some(offset)
    })?;
    let count = body.rest.len() as u64;
    let bytes = body.remaining("disk bytes", DiskRange::BYTES_MAX)?;
    let range = DiskRange {
        disk,
        offset,
        bytes,
    };
    match range.end() {
        Some(_) => Ok(range),
        None => body.out_of_range("disk bytes", count),
    }
}

fn state_digest(body: &mut Body) -> Result<StateDigest, DecodeError> {
    let seq = body.seq()?;
    let digest = u128::from_le_bytes(body.array("digest")?);
    Ok(StateDigest { seq, digest })
}

fn record(body: &mut Body, shape: Shape) -> Result<Record, DecodeError> {
    let start = body.offset;
    let seq = body.seq()?;
    if seq == CommitSeq::BOOT {
        let fault = Fault::OutOfRange {
            field: "commit",
            value: 0,
        };
        return Err(DecodeError {
            offset: start,
            fault,
        });
    }
    let guest_time = GuestTime(body.varint("guest time")?);
    let commit = match body.byte("kind of commit")? {
        tag::CHUNK_EXIT => Commit::Chunk(chunk(body, Boundary::Exit, seq, shape)?),
        tag::CHUNK_TIMER => Commit::Chunk(chunk(body, Boundary::Timer, seq, shape)?),
        tag::CHUNK_KICK => Commit::Chunk(chunk(body, Boundary::Kick, seq, shape)?),
        tag::CONSOLE => {
            let bytes = body.remaining("console input", Input::CONSOLE_BYTES_MAX)?;
            Commit::Input(Input::Console(bytes))
        }
        tag::FILE => {
            let vcpu = body.vcpu(shape)?;
            let bytes = body.remaining("file input", Input::FILE_BYTES_MAX)?;
            Commit::Input(Input::File { vcpu, bytes })
        }
        tag::OUTPUT_STEP => Commit::Input(Input::OutputStep {
            vcpu: body.vcpu(shape)?,
        }),
        tag::CLOCK => Commit::Input(Input::Clock),
        tag::DEVICE => {
            let device = DeviceIndex(body.byte("device")?);
            let bytes = body.remaining("device input", Input::FILE_BYTES_MAX)?;
            Commit::Input(Input::Device { device, bytes })
        }
        other => return body.out_of_range("kind of commit", u64::from(other)),
    };
    Ok(Record {
        seq,
        guest_time,
        commit,
    })
}

fn chunk(
    body: &mut Body,
    boundary: Boundary,
    seq: CommitSeq,
    shape: Shape,
) -> Result<Chunk, DecodeError> {
    let vcpu = body.vcpu(shape)?;
    let started_after = body.started_after(seq)?;
    let exit = exit(body)?;
    let digest = u64::from_le_bytes(body.array("digest")?);
    let offset = body.offset;
    let vcpu_runs = body.sized("vCPU changes", VCPU_RUNS_BYTES_MAX)?;
    let vcpu_runs = ByteRuns::decode(vcpu_runs, VCPU_STATE_BYTES_MAX as u64)
        .map_err(runs_error("vCPU changes", offset))?;
    let memory = body.memory_runs(shape)?;
    let effects = Effects {
        memory,
        vcpu: vcpu_runs,
    };
    Ok(Chunk {
        vcpu,
        started_after,
        boundary,
        exit,
        effects,
        digest,
    })
}

fn exit(body: &mut Body) -> Result<Exit, DecodeError> {
    let tag = body.byte("exit")?;
    let size = (tag & exit_tag::SIZE_MASK) + 1;
    let space = if tag & exit_tag::PORT == 0 {
        Space::Mmio
    } else {
        Space::Port
    };
    Ok(match (tag, tag & !exit_tag::ACCESS_MASK) {
        (exit_tag::CUT, _) => Exit::Cut,
        (exit_tag::HALT, _) => Exit::Halt,
        (exit_tag::WINDOW, _) => Exit::Window,
        (exit_tag::MSR_WRITE, _) => Exit::Write {
            space: Space::Msr,
            address: body.address(Space::Msr)?,
            size: 8,
            value: body.varint("written value")?,
        },
        (exit_tag::MSR_READ, _) => Exit::Read {
            space: Space::Msr,
            address: body.address(Space::Msr)?,
            size: 8,
            input: None,
        },
        (exit_tag::EXCEPTION, _) => Exit::Exception {
            vector: body.vector()?,
            error_code: body.varint("error code")?,
            rip: body.u64("instruction address")?,
            cr2: body.u64("faulting address")?,
        },
        (exit_tag::FATAL, _) => {
            let rip = body.u64("instruction address")?;
            Exit::Fatal {
                rip,
                reason: body.text("reason", Exit::REASON_BYTES_MAX)?,
            }
        }
        (_, exit_tag::WRITE) => {
            let address = body.address(space)?;
            let bits = 8 * u32::from(size);
            let fits = |value: u64| value.checked_shr(bits).unwrap_or(0) == 0;
            let value = body.number("written value", |value| fits(value).then_some(value))?;
            Exit::Write {
                space,
                address,
                size,
                value,
            }
        }
        (_, exit_tag::READ) => Exit::Read {
            space,
            address: body.address(space)?,
            size,
            input: None,
        },
        (_, exit_tag::READ_INPUT) => {
            let address = body.address(space)?;
            Exit::Read {
                space,
                address,
                size,
                input: Some(body.u64("read input")?),
            }
        }
        _ => return body.out_of_range("exit", u64::from(tag)),
    })
}

fn runs_error(field: &'static str, offset: u64) -> impl FnOnce(RunsError) -> DecodeError {
    move |error| DecodeError {
        offset,
        fault: Fault::Runs { field, error },
    }
}

/// What is left of a body.
pub(super) struct Body {
    rest: Bytes,
    /// Where `rest` starts in the stream.
    offset: u64,
}

impl Body {
    pub(super) fn new(rest: Bytes, offset: u64) -> Self {
        Self { rest, offset }
    }

    /// Nothing may be left.
    pub(super) fn finish(&self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            follow => self.fail(Fault::BytesFollow(follow as u64)),
        }
    }

    /// Where the chunk of commit `seq` started.
    pub(super) fn started_after(&mut self, seq: CommitSeq) -> Result<CommitSeq, DecodeError> {
        self.number("start of the chunk", |distance| {
            let start = seq.0.checked_sub(distance);
            start.filter(|_| distance > 0).map(CommitSeq)
        })
    }

    pub(super) fn fail<T>(&self, fault: Fault) -> Result<T, DecodeError> {
        Err(DecodeError {
            offset: self.offset,
            fault,
        })
    }

    pub(super) fn out_of_range<T>(
        &self,
        field: &'static str,
        value: u64,
    ) -> Result<T, DecodeError> {
        self.fail(Fault::OutOfRange { field, value })
    }

    /// The next `count` bytes, not copied.
    fn take(&mut self, field: &'static str, count: usize) -> Result<Bytes, DecodeError> {
        if count > self.rest.len() {
            return self.fail(Fault::FieldBroken(field));
        }
        self.offset += count as u64;
        Ok(self.rest.split_to(count))
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let Some(&array) = self.rest.first_chunk() else {
            return self.fail(Fault::FieldBroken(field));
        };
        self.take(field, N)?;
        Ok(array)
    }

    pub(super) fn byte(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array(field).map(|[byte]| byte)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(super) fn varint(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.number(field, Some)
    }

    /// A varint that `convert` accepts.
    pub(super) fn number<T>(
        &mut self,
        field: &'static str,
        convert: impl FnOnce(u64) -> Option<T>,
    ) -> Result<T, DecodeError> {
        let mut rest: &[u8] = &self.rest;
        let Some(value) = take_varint(&mut rest) else {
            return self.fail(Fault::FieldBroken(field));
        };
        let count = self.rest.len() - rest.len();
        let Some(converted) = convert(value) else {
            return self.out_of_range(field, value);
        };
        self.take(field, count)?;
        Ok(converted)
    }

    /// A place in the commit order that has a next one.
    fn seq(&mut self) -> Result<CommitSeq, DecodeError> {
        self.number("commit", |seq| (seq < u64::MAX).then_some(CommitSeq(seq)))
    }

    fn vcpu(&mut self, shape: Shape) -> Result<VcpuIndex, DecodeError> {
        let start = self.offset;
        let vcpu = VcpuIndex(self.byte("vCPU")?);
        if vcpu.0 >= shape.vcpu_count {
            return Err(DecodeError {
                offset: start,
                fault: Fault::NoSuchVcpu(vcpu),
            });
        }
        Ok(vcpu)
    }

    fn vector(&mut self) -> Result<u8, DecodeError> {
        let field = "exception vector";
        match self.rest.first() {
            Some(&vector) if vector > Exit::VECTOR_MAX => {
                self.out_of_range(field, u64::from(vector))
            }
            _ => self.byte(field),
        }
    }

    fn address(&mut self, space: Space) -> Result<u64, DecodeError> {
        let last = match space {
            Space::Mmio => u64::MAX,
            Space::Port => u64::from(u16::MAX),
            Space::Msr => u64::from(u32::MAX),
        };
        self.number("register address", |address| {
            (address <= last).then_some(address)
        })
    }

    /// Bytes after their length.
    fn sized(&mut self, field: &'static str, bytes_max: usize) -> Result<Bytes, DecodeError> {
        let capped = |length| {
            usize::try_from(length)
                .ok()
                .filter(|&length| length <= bytes_max)
        };
        let length = self.number(field, capped)?;
        self.take(field, length)
    }

    /// All the bytes that are left.
    fn remaining(&mut self, field: &'static str, bytes_max: usize) -> Result<Bytes, DecodeError> {
        match self.rest.len() {
            length if length > bytes_max => self.out_of_range(field, length as u64),
            length => self.take(field, length),
        }
    }

    fn text(&mut self, field: &'static str, bytes_max: usize) -> Result<String, DecodeError> {
        let start = self.offset;
        let bytes = self.sized(field, bytes_max)?;
        String::from_utf8(bytes.into()).map_err(|_| DecodeError {
            offset: start,
            fault: Fault::NotText(field),
        })
    }

    /// Byte runs of guest memory, to the end of the body.
    fn memory_runs(&mut self, shape: Shape) -> Result<ByteRuns, DecodeError> {
        let field = "memory";
        let offset = self.offset;
        let encoded = self.remaining(field, usize::MAX)?;
        ByteRuns::decode_within(encoded, |start, bytes| shape.contains(Gpa(start), bytes))
            .map_err(runs_error(field, offset))
    }
}
