//! Commit records: what happened, in one total order.

use bytes::Bytes;

use crate::{ByteRuns, CommitSeq, GuestTime, VcpuIndex};

/// One step of the committed history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The record's place in the order.
    pub seq: CommitSeq,
    /// The guest clock from this commit on.
    pub guest_time: GuestTime,
    /// What was committed.
    pub commit: Commit,
}

/// What a record commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    /// A vCPU ran from one boundary to the next without conflict.
    Chunk(Chunk),
    /// Something from outside the machine, or a step of a device.
    Input(Input),
}

/// A committed chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The vCPU that ran it.
    pub vcpu: VcpuIndex,
    /// The last commit that the chunk's start had seen; chunks whose spans overlap ran in parallel.
    pub started_after: CommitSeq,
    /// Where the chunk ended.
    pub boundary: Boundary,
    /// The exit that ended it; devices act on it in `apply`.
    pub exit: Exit,
    /// How a consumer gets the chunk's result.
    pub result: ChunkResult,
    /// Digest of the chunk's effects and of the vCPU's whole state after it (xxh3-64).
    pub digest: u64,
}

/// How the end of a chunk is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// A synchronous exit: the guest's own instruction ended the chunk.
    Exit,
    /// The chunk timer ended it.
    Timer,
    /// A request from outside the vCPU ended it.
    Kick,
}

/// How a consumer gets a chunk's result. Results in order form (re-execution) will be a variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChunkResult {
    /// The bytes that changed.
    Effects(Effects),
}

/// The bytes that a chunk changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Guest memory; run addresses are guest physical addresses.
    pub memory: ByteRuns,
    /// The vCPU's state; run addresses are offsets into its canonical byte form.
    pub vcpu: ByteRuns,
}

/// An address space of device registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Guest physical addresses that are not memory.
    Mmio,
    /// x86 I/O ports.
    Port,
}

/// The exit that ended a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// None: the chunk was cut by its timer or a kick.
    Cut,
    /// A store to a device register.
    Write {
        /// Address space of `address`.
        space: Space,
        /// The register.
        address: u64,
        /// Access size: 1, 2, 4 or 8 bytes.
        size: u8,
        /// The value, zero-extended.
        value: u64,
    },
    /// A load from a device register. The vCPU's state in the result already has the value.
    Read {
        /// Address space of `address`.
        space: Space,
        /// The register.
        address: u64,
        /// Access size: 1, 2, 4 or 8 bytes.
        size: u8,
        /// What came from outside the machine to answer it (random bits), if anything did.
        input: Option<u64>,
    },
    /// An exception that the guest has no handler for.
    Exception {
        /// Vector, 0 to 31.
        vector: u8,
        /// The error code, 0 where the vector has none.
        error_code: u64,
        /// Address of the instruction.
        rip: u64,
        /// The faulting address of the last page fault.
        cr2: u64,
    },
    /// The vCPU cannot go on (triple fault, or an instruction that KVM cannot run).
    Fatal {
        /// Address of the instruction.
        rip: u64,
        /// KVM's word for it.
        reason: String,
    },
}

/// Something that reaches the machine from outside, or lets a device move on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes typed at the console.
    Console(Bytes),
    /// The next bytes of the input file for the INPUT operation of `vcpu`; empty at the end.
    File {
        /// The vCPU whose operation they answer.
        vcpu: VcpuIndex,
        /// At most [`Input::FILE_BYTES_MAX`] bytes.
        bytes: Bytes,
    },
    /// The OUTPUT operation of `vcpu` moves its next piece.
    OutputStep {
        /// The vCPU whose operation it is.
        vcpu: VcpuIndex,
    },
}

impl Input {
    /// The most bytes that one INPUT operation, or one step of an OUTPUT operation, moves.
    pub const FILE_BYTES_MAX: usize = 1 << 20;
    /// The most bytes in one console input.
    pub const CONSOLE_BYTES_MAX: usize = 4096;
}
