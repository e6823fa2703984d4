//! Bringing a backup's disks up to date, while the guest goes on writing this host's.
//!
//! 1. From [`DiskSync::begin`] on every write is tracked.
//! 2. What differs is sent: what is known to have been written since the backup's position, or else what
//!    has another digest there.
//! 3. What was written meanwhile is sent, in rounds, until little is left ([`DiskSync::send_changed`]).
//! 4. The guest is paused, and the rest is sent ([`DiskSync::send_rest`]) before the snapshot.
//!
//! A range that is written while it is read may be sent torn: it is marked then, and sent again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use samsara_commitlog::{DiskRange, Frame};
use samsara_machine::disk::{DiskFile, RANGE_BYTES, RangeIndex, RangeSet, Tracker, zero_digest};
use samsara_machine::pc::virtio::Blocks as _;
use samsara_replication::protocol::{DIGESTS_MAX, DigestQuestion, RangeDigests};
use samsara_replication::{CommitQueue, Room};

/// How often a full queue is looked at.
const ROOM_LOOK: Duration = Duration::from_millis(100);
/// Ranges in one frame.
const FRAME_RANGES: u32 = (DiskRange::BYTES_MAX as u64 / RANGE_BYTES) as u32;
/// So many changed ranges are left to the pause: 4 MiB, a small part of what memory takes.
const REST_RANGES: u64 = 64;
/// Rounds before the guest is paused all the same. Each takes as long as it took to write what it sends;
/// a guest that writes faster than the network carries gains nothing by more of them.
const ROUNDS_MAX: usize = 10;

/// Why disks were not brought up to date.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    /// This host's disk failed.
    #[error("{0}")]
    Disk(#[from] io::Error),
    /// The backup is gone.
    #[error("the backup is gone")]
    Closed,
    /// The backup does not answer.
    #[error("it does not say what its disks have")]
    Silent,
    /// Nobody may write it, here or there.
    #[error("disk {disk} is read-only and has different contents on the two hosts: copy the image")]
    ReadOnlyDiffers {
        /// The disk.
        disk: usize,
    },
}

/// A backup that answers what its disks have.
pub(crate) trait Peer {
    /// Asks; there is one question at a time.
    fn ask(&mut self, question: DigestQuestion) -> Result<(), SyncError>;
    /// Waits for the answer.
    fn answer(&mut self) -> Result<RangeDigests, SyncError>;
}

/// See the module's description.
pub(crate) struct DiskSync {
    disks: Vec<Arc<DiskFile>>,
    trackers: Vec<Tracker>,
    queue: Arc<CommitQueue>,
    sent_bytes: Arc<AtomicU64>,
}

impl DiskSync {
    /// Begins to track. What is sent goes to `queue`, and is counted.
    pub(crate) fn begin(
        disks: &[Arc<DiskFile>],
        queue: Arc<CommitQueue>,
        sent_bytes: Arc<AtomicU64>,
    ) -> Self {
        Self {
            disks: disks.to_vec(),
            trackers: disks.iter().map(|disk| disk.track()).collect(),
            queue,
            sent_bytes,
        }
    }

    /// Sends these ranges, by disk.
    pub(crate) fn send(&self, changed: &[RangeSet]) -> Result<(), SyncError> {
        for (disk, ranges) in changed.iter().enumerate() {
            self.send_ranges(disk, ranges)?;
        }
        Ok(())
    }

    /// Sends what has another digest on the backup.
    pub(crate) fn send_differing(&self, peer: &mut impl Peer) -> Result<(), SyncError> {
        for (disk, file) in self.disks.iter().enumerate() {
            let mut first = 0;
            while first < file.range_count() {
                first += self.compare(disk, first, peer)?;
            }
        }
        Ok(())
    }

    /// Compares a piece of a disk, both hosts computing at the same time, and sends what differs.
    /// Gives how many ranges it was.
    fn compare(&self, disk: usize, first: u32, peer: &mut impl Peer) -> Result<u32, SyncError> {
        let file = &self.disks[disk];
        let left = file.range_count() - first;
        let count = left.min(DIGESTS_MAX);
        peer.ask(DigestQuestion {
            disk: disk as u8,
            first,
            count,
        })?;
        let mine = file.digests(RangeIndex(first), count)?;
        let (compared, differing) = match peer.answer()? {
            RangeDigests::Each(theirs) => {
                let differs = |place: usize| mine[place] != theirs[place];
                (
                    count,
                    self.differing(disk, first, mine.len().min(theirs.len()), differs),
                )
            }
            RangeDigests::Zero(zeros) => {
                let zeros = zeros.min(left);
                let mut differing = self.non_zero(disk, first, &mine);
                let mut at = first + count;
                while at < first + zeros {
                    // Holes here too need not be gone through.
                    at = at.saturating_add(file.hole_ranges(RangeIndex(at))?);
                    let more = DIGESTS_MAX.min((first + zeros).saturating_sub(at));
                    let mine = file.digests(RangeIndex(at), more)?;
                    differing.union(&self.non_zero(disk, at, &mine));
                    at = at.saturating_add(more);
                }
                (zeros, differing)
            }
        };
        self.send_ranges(disk, &differing)?;
        Ok(compared)
    }

    fn non_zero(&self, disk: usize, first: u32, mine: &[u128]) -> RangeSet {
        let file = &self.disks[disk];
        let zero = |place: usize| zero_digest(file.range_bytes(RangeIndex(first + place as u32)));
        self.differing(disk, first, mine.len(), |place| mine[place] != zero(place))
    }

    fn differing(
        &self,
        disk: usize,
        first: u32,
        count: usize,
        differs: impl Fn(usize) -> bool,
    ) -> RangeSet {
        let mut ranges = RangeSet::new(self.disks[disk].range_count());
        for place in (0..count).filter(|&place| differs(place)) {
            ranges.insert(RangeIndex(first + place as u32));
        }
        ranges
    }

    /// Sends what was written since it was read, again and again, until little is left.
    pub(crate) fn send_changed(&self) -> Result<(), SyncError> {
        for _ in 0..ROUNDS_MAX {
            let left: u64 = self
                .trackers
                .iter()
                .map(|tracker| tracker.changed().count())
                .sum();
            if left <= REST_RANGES {
                break;
            }
            self.send_rest()?;
        }
        Ok(())
    }

    /// Sends what was written since it was read: all that differs, if nothing commits meanwhile.
    pub(crate) fn send_rest(&self) -> Result<(), SyncError> {
        let changed: Vec<_> = self.trackers.iter().map(Tracker::take_changed).collect();
        self.send(&changed)
    }

    fn send_ranges(&self, disk: usize, ranges: &RangeSet) -> Result<(), SyncError> {
        let file = &self.disks[disk];
        if file.is_read_only() && !ranges.is_empty() {
            return Err(SyncError::ReadOnlyDiffers { disk });
        }
        for (first, count) in ranges.runs(FRAME_RANGES) {
            let last = RangeIndex(first.0 + count - 1);
            let end = last.offset() + file.range_bytes(last);
            let mut bytes = vec![0; (end - first.offset()) as usize];
            file.read(first.offset(), &mut bytes)?;
            let count = bytes.len() as u64;
            let frame = Frame::DiskRange(DiskRange {
                disk: disk as u8,
                offset: first.offset(),
                bytes: bytes.into(),
            });
            self.push(&frame)?;
            self.sent_bytes.fetch_add(count, Ordering::Relaxed);
        }
        Ok(())
    }

    fn push(&self, frame: &Frame) -> Result<(), SyncError> {
        let encoded = frame.encode();
        loop {
            match self.queue.wait_for_room(Some(Instant::now() + ROOM_LOOK)) {
                Room::Closed => return Err(SyncError::Closed),
                Room::TimedOut => {}
                Room::Ready | Room::Interrupted => break,
            }
        }
        self.queue.push_between(encoded, Instant::now());
        Ok(())
    }
}

/// Answers what this host's disk has; nothing if it has no such ranges.
pub(crate) fn answer(
    disks: &[Arc<DiskFile>],
    question: &DigestQuestion,
) -> Option<io::Result<RangeDigests>> {
    let file = disks.get(usize::from(question.disk))?;
    let end = question.first.checked_add(question.count)?;
    if end > file.range_count() {
        return None;
    }
    let first = RangeIndex(question.first);
    Some(match file.hole_ranges(first) {
        Ok(holes) if holes >= question.count => Ok(RangeDigests::Zero(holes)),
        Ok(_) => file.digests(first, question.count).map(RangeDigests::Each),
        Err(error) => Err(error),
    })
}

#[cfg(test)]
mod tests;
