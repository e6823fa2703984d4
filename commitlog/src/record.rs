//! Commit records: what happened, in one total order.

use bytes::Bytes;

use crate::{ByteRuns, CommitSeq, DeviceIndex, GuestTime, PAGE_BYTES, VcpuIndex};

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

impl Record {
    /// The chunk, if the record is one.
    pub fn chunk(&self) -> Option<&Chunk> {
        match &self.commit {
            Commit::Chunk(chunk) => Some(chunk),
            Commit::Order(_) | Commit::Input(_) => None,
        }
    }

    /// The vCPU whose chunk the record is, in whatever form, if it is one.
    pub fn chunk_vcpu(&self) -> Option<VcpuIndex> {
        match &self.commit {
            Commit::Chunk(chunk) => Some(chunk.vcpu),
            Commit::Order(chunk) => Some(chunk.vcpu),
            Commit::Input(_) => None,
        }
    }

    /// Whether the record is a chunk in order form.
    pub fn is_order(&self) -> bool {
        matches!(self.commit, Commit::Order(_))
    }

    /// Whether the record is a chunk that `vcpu` ran.
    pub fn is_chunk_of(&self, vcpu: VcpuIndex) -> bool {
        self.chunk_vcpu() == Some(vcpu)
    }

    /// Bytes of encoded effects in the record.
    pub fn effect_bytes(&self) -> usize {
        self.chunk()
            .map_or(0, |chunk| chunk.effects.encoded_bytes())
    }
}

/// What a record commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    /// A vCPU ran from one boundary to the next without conflict: what it changed.
    Chunk(Chunk),
    /// The same, as the order to run there again: what it changes is for the consumer to find.
    Order(OrderChunk),
    /// Something from outside the machine, or a step of a device.
    Input(Input),
}

/// A committed chunk in effects form: it can be applied anywhere.
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
    /// What it changed.
    pub effects: Effects,
    /// Digest of how far the chunk moves the digest of memory and of the vCPU's whole state after it (xxh3-64).
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

/// A committed chunk in order form: from the state that the commits before it give, the vCPU runs again
/// until it is where the chunk ended. Effects and exit follow from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderChunk {
    /// The vCPU that ran it.
    pub vcpu: VcpuIndex,
    /// As in [`Chunk::started_after`]: any state from there on gives the same chunk.
    pub started_after: CommitSeq,
    /// What ended the chunk.
    pub boundary: Boundary,
    /// How far the vCPU got. None where an exit of its own ended the chunk: the first one that comes is it.
    pub progress: Option<Progress>,
    /// How much further the vCPU's TSC is at the chunk's end than at its last commit; 0 where the state has
    /// none.
    pub tsc_gain: u64,
    /// What came from outside the machine to answer the load that ended the chunk, if anything did.
    pub input: Option<u64>,
    /// As in [`Chunk::digest`].
    pub digest: u64,
}

/// How far a vCPU got in a chunk, as a counter that does not err tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What was counted since the chunk's start: single steps, or retired branches.
    pub count: u64,
    /// Where between two counts, if more than one instruction goes by on one count.
    pub place: Option<Place>,
}

/// A place that a vCPU passes once between two branches, or once for each RCX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The next instruction.
    pub rip: u64,
    /// What a string instruction counts down.
    pub rcx: u64,
}

/// The bytes that a chunk changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Guest memory; run addresses are guest physical addresses.
    pub memory: ByteRuns,
    /// The vCPU's state; run addresses are offsets into its canonical byte form.
    pub vcpu: ByteRuns,
}

impl Effects {
    /// The most pages that one chunk may write. Whoever runs a chunk ends it before it has written
    /// more. 64 MiB of pages: far more than a chunk of some milliseconds gets to, and the record of
    /// it can still be held in memory, more than once, by both sides.
    pub const PAGES_MAX: usize = 16384;
    /// The most bytes of encoded `memory`. The longest encoding of a page is every other byte
    /// changed, three bytes for every two, and the distance to it; so any [`Self::PAGES_MAX`] pages
    /// fit if runs are pushed whole, at most cut at page boundaries.
    pub const MEMORY_BYTES_MAX: usize = Self::PAGES_MAX * (PAGE_BYTES / 2 * 3 + 16);

    /// Bytes of both encodings together.
    pub fn encoded_bytes(&self) -> usize {
        self.memory.encoded().len() + self.vcpu.encoded().len()
    }
}

/// An address space of device registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Guest physical addresses that are not memory.
    Mmio,
    /// x86 I/O ports.
    Port,
    /// Model-specific registers that the machine emulates itself; accesses have 8 bytes.
    Msr,
}

/// The exit that ended a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// None: the chunk was cut by its timer or a kick.
    Cut,
    /// HLT: the vCPU waits for an interrupt.
    Halt,
    /// The vCPU can take the interrupt that waits for it.
    Window,
    /// A store to a device register.
    Write {
        /// Address space of `address`.
        space: Space,
        /// The register.
        address: u64,
        /// Access size: 1 to 8 bytes. KVM splits an access that crosses a page, so odd sizes
        /// happen; they are the device's to refuse.
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
        /// Access size: 1 to 8 bytes. KVM splits an access that crosses a page, so odd sizes
        /// happen; they are the device's to refuse.
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
        /// KVM's word for it; encoded up to [`Exit::REASON_BYTES_MAX`] bytes.
        reason: String,
    },
}

impl Exit {
    /// The most bytes of a [`Self::Fatal`] reason that reach a log or a backup: a line of text.
    pub const REASON_BYTES_MAX: usize = 1024;
    /// The highest exception vector.
    pub const VECTOR_MAX: u8 = 31;
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
    /// Nothing but time: the guest clock moves, and timers that are due fire.
    Clock,
    /// What a device waits for: a received frame, random bytes, or no bytes where it only is to go
    /// on with its work.
    Device {
        /// The device.
        device: DeviceIndex,
        /// At most [`Input::FILE_BYTES_MAX`] bytes; what they are is the device's to know.
        bytes: Bytes,
    },
}

impl Input {
    /// The most bytes that one INPUT operation, or one step of an OUTPUT operation, moves.
    pub const FILE_BYTES_MAX: usize = 1 << 20;
    /// The most bytes in one console input.
    pub const CONSOLE_BYTES_MAX: usize = 4096;
}
