//! What hosts tell each other of their disks.
//!
//! Each host has its own images. In its `Hello` a backup says how large they are and where they are in the
//! history of the VM. What differs is found out before the snapshot, while the guest runs: the primary asks for the
//! digests of a piece of a disk ([`super::Message::AskDigests`]), the backup answers
//! ([`super::Message::DiskDigests`]), one question at a time, so that neither has to hold more than a piece; what
//! differs then travels in the commit stream. When the primary knows what it has written since the backup's
//! position, it asks nothing.

use std::fmt;

use samsara_commitlog::CommitSeq;

/// Most disks of a machine.
pub const DISKS_MAX: usize = 16;
/// Most ranges that one question asks for: 16 KiB of digests, 64 MiB of a disk with ranges of 64 KiB.
pub const DIGESTS_MAX: u32 = 1024;

/// A disk, as far as both hosts must have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskShape {
    /// Its size.
    pub bytes: u64,
    /// The guest cannot write it.
    pub read_only: bool,
}

impl fmt::Display for DiskShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.read_only { ", read-only" } else { "" };
        write!(f, "{} bytes{access}", self.bytes)
    }
}

/// A history that is written to disks: one guest, from its start or from a failover on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskHistory {
    /// Later histories have higher terms. At least the term that its primary won, and higher than that of any
    /// history that was on its disk before.
    pub term: u64,
    /// Random: which process made it.
    pub incarnation: u128,
}

/// Where a host's disks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskPosition {
    /// The history that they were last part of.
    pub history: DiskHistory,
    /// They have all that was written up to this commit. Of later ones they may have some.
    pub commit: CommitSeq,
}

impl DiskPosition {
    /// Whether disks there have what disks at `other` lack. Disks without a position are older than
    /// all that have one.
    pub fn is_newer_than(&self, other: Option<&Self>) -> bool {
        let age = |position: &Self| (position.history.term, position.commit);
        other.is_none_or(|other| age(self) > age(other))
    }
}

impl fmt::Display for DiskPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {}, commit {}", self.history.term, self.commit)
    }
}

/// A position for people, where there may be none.
pub(super) fn place(position: Option<&DiskPosition>) -> String {
    position.map_or_else(|| "no known place".to_owned(), ToString::to_string)
}

/// The disks of a host that is no primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptDisks {
    /// The VM that they are of.
    pub vm: String,
    /// Where they are.
    pub position: DiskPosition,
}

/// A question for digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestQuestion {
    /// The disk.
    pub disk: u8,
    /// The first range.
    pub first: u32,
    /// How many ranges; at least one, at most [`DIGESTS_MAX`].
    pub count: u32,
}

/// Contents of the ranges of a disk, in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeDigests {
    /// So many ranges have nothing but zeros: as many as were asked for, or more.
    Zero(u32),
    /// Digest of each range, xxh3-128.
    Each(Vec<u128>),
}

impl RangeDigests {
    /// How many ranges it is about.
    pub fn count(&self) -> u32 {
        match self {
            Self::Zero(count) => *count,
            Self::Each(digests) => u32::try_from(digests.len()).unwrap_or(u32::MAX),
        }
    }

    /// Whether it answers this question.
    pub(super) fn answers(&self, question: &DigestQuestion) -> bool {
        match self {
            Self::Zero(count) => *count >= question.count,
            Self::Each(_) => self.count() == question.count,
        }
    }
}

/// The first difference between two hosts' disks, in words.
pub(super) fn difference(
    (mine, my_disks): (&str, &[DiskShape]),
    (theirs, their_disks): (&str, &[DiskShape]),
) -> Option<String> {
    let differs = my_disks
        .iter()
        .zip(their_disks)
        .enumerate()
        .find(|(_, (mine, theirs))| mine != theirs);
    if let Some((index, (my_disk, their_disk))) = differs {
        return Some(format!(
            "disk {index} has {my_disk} on {mine}, {their_disk} on {theirs}: make the images of \
             vm.disks the same size on both hosts"
        ));
    }
    let (my_count, their_count) = (my_disks.len(), their_disks.len());
    (my_count != their_count).then(|| {
        format!(
            "{my_count} disks on {mine}, {their_count} on {theirs}: set vm.disks alike on both hosts"
        )
    })
}
