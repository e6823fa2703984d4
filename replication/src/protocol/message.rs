//! Control messages.

use std::fmt;

use samsara_commitlog::CommitSeq;

use super::disk::{DigestQuestion, DiskHistory, DiskPosition, DiskShape, RangeDigests};

/// Bytes in a name (of a VM or host).
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes in a text for people; longer ones are cut when encoded.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Bytes in a session token.
pub const TOKEN_BYTES: usize = 32;

/// Versions of the protocol a host speaks.
///
/// What may change within a version: fields are appended to messages (older readers ignore
/// them), and kinds from 0x8000 up are added (older readers skip them). Anything else is a new
/// version; `Hello`'s version range and the whole of `Refuse` stay as they are for ever, so that
/// any two versions can tell each other why they part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

/// The versions of this build.
pub const PROTOCOL_VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };

impl VersionRange {
    /// The newest version both speak.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.min)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

/// What the dialling host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerRole {
    /// It wants to be the backup.
    Backup,
    /// It is, or is about to be, primary and asks whether the other is too.
    Primary,
}

/// The first message of the host that dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Protocol versions it speaks.
    pub protocol: VersionRange,
    /// Version of the commit log it reads.
    pub log_version: u32,
    /// What it is.
    pub role: PeerRole,
    /// Name of the virtual machine.
    pub vm: String,
    /// Its name.
    pub host: String,
    /// The highest term it knows of.
    pub term: u64,
    /// It has the program and could boot the machine from the start.
    pub can_boot: bool,
    /// vCPUs it can run.
    pub vcpu_max: u8,
    /// Guest memory it can hold, in bytes.
    pub memory_bytes_max: u64,
    /// Length of its input file.
    pub input_bytes: Option<u64>,
    /// Its disks; at most [`super::DISKS_MAX`].
    pub disks: Vec<DiskShape>,
    /// Where they are, if they are anywhere.
    pub disk_position: Option<DiskPosition>,
    /// Digest of the processor that it shows its guest, without the count of vCPUs.
    pub cpu_digest: Option<u64>,
    /// Rate of its vCPUs' TSC in kHz, if that is steady.
    pub tsc_khz: Option<u64>,
}

/// The primary's answer to a backup it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The protocol version of this session.
    pub protocol: u16,
    /// The primary's name.
    pub host: String,
    /// The primary's term.
    pub term: u64,
    /// vCPUs of the machine.
    pub vcpu_count: u8,
    /// Guest memory of the machine, in bytes.
    pub memory_bytes: u64,
    /// Length of the input file.
    pub input_bytes: Option<u64>,
    /// Binds the lifeline to this session.
    pub token: SessionToken,
    /// The history that the machine's disks are part of, if it has disks.
    pub disk_history: Option<DiskHistory>,
    /// No chunk travels as the order to run it again. One that does not say so may send orders.
    pub effects_only: bool,
}

/// A backup's right to go live in the next term, if it wins that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// The term in which it was in sync.
    pub term: u64,
    /// Which of the primary's tellings the right comes from.
    pub mark: u64,
}

/// A random value that only the two ends of a session know.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionToken(pub [u8; TOKEN_BYTES]);

impl fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionToken(..)")
    }
}

/// Why a host refuses a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefuseReason {
    /// No common version of the protocol or the commit log.
    WrongVersion,
    /// Another virtual machine.
    WrongVm,
    /// Both are primary.
    AlsoPrimary,
    /// The host that was dialled is no primary.
    NotPrimary,
    /// It has a backup already.
    Busy,
    /// More vCPUs or memory than the backup can run.
    ShapeNotSupported,
    /// Input files of different length.
    InputMismatch,
    /// Both hosts have one name.
    SameName,
    /// Disks of different sizes.
    DiskMismatch,
    /// A disk has what would be lost.
    NewerDisk,
    /// Guests are shown different processors.
    CpuMismatch,
    /// TSCs of different rates.
    TscMismatch,
    /// A reason of a newer version; the text says it.
    Other(u16),
}

/// A refusal, with a text that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The reason, for programs.
    pub reason: RefuseReason,
    /// The refusing host's term.
    pub term: u64,
    /// The reason, for people.
    pub text: String,
}

impl Refusal {
    /// Dialling again cannot help before someone changes something.
    pub fn is_permanent(&self) -> bool {
        match self.reason {
            RefuseReason::Busy | RefuseReason::NotPrimary => false,
            RefuseReason::WrongVersion
            | RefuseReason::WrongVm
            | RefuseReason::AlsoPrimary
            | RefuseReason::ShapeNotSupported
            | RefuseReason::InputMismatch
            | RefuseReason::SameName
            | RefuseReason::DiskMismatch
            | RefuseReason::NewerDisk
            | RefuseReason::CpuMismatch
            | RefuseReason::TscMismatch
            | RefuseReason::Other(_) => true,
        }
    }
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The dialling host presents itself.
    Hello(Hello),
    /// The primary accepts.
    Welcome(Welcome),
    /// Either side will not have this session.
    Refuse(Refusal),
    /// The backup has loaded the snapshot of this commit.
    SyncDone {
        /// The snapshot's commit.
        seq: CommitSeq,
    },
    /// The backup takes its place, after the primary's `Welcome`.
    Join {
        /// The right to go live that it gave up by joining, if it had one.
        gave_up: Option<Right>,
    },
    /// The primary holds outputs for this backup: it may go live if it wins the next term.
    InSync(Right),
    /// The backup's positions.
    Ack {
        /// It has all commits up to this one.
        received: CommitSeq,
        /// It has applied all up to this one and their digests agreed.
        verified: CommitSeq,
    },
    /// The primary has emitted the outputs of all commits up to this one.
    Released {
        /// The position.
        seq: CommitSeq,
    },
    /// The backup's digest differs.
    Diverged {
        /// The commit after which the digests were compared.
        seq: CommitSeq,
        /// The primary's digest.
        expected: u128,
        /// The backup's digest.
        found: u128,
    },
    /// The primary asks for what the backup's disk has.
    AskDigests(DigestQuestion),
    /// The backup's answer.
    DiskDigests {
        /// The disk.
        disk: u8,
        /// The first range.
        first: u32,
        /// What it and those that follow have.
        digests: RangeDigests,
    },
    /// The guest has ended and everything it emitted has left.
    Ended {
        /// Its exit status.
        status: u8,
    },
    /// The sender leaves on purpose.
    Goodbye {
        /// Why.
        reason: String,
    },
}

impl Message {
    /// The message's name, for texts.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Welcome(_) => "Welcome",
            Self::Refuse(_) => "Refuse",
            Self::SyncDone { .. } => "SyncDone",
            Self::Join { .. } => "Join",
            Self::InSync(_) => "InSync",
            Self::Ack { .. } => "Ack",
            Self::Released { .. } => "Released",
            Self::Diverged { .. } => "Diverged",
            Self::AskDigests(_) => "AskDigests",
            Self::DiskDigests { .. } => "DiskDigests",
            Self::Ended { .. } => "Ended",
            Self::Goodbye { .. } => "Goodbye",
        }
    }
}
