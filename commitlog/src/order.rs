//! The order of frames in a stream.

use crate::{CommitSeq, Frame, FrameKind, GuestTime, Record, Shape, StateDigest};

/// Checks that frames, each right by itself, make a history: a snapshot (start, pages, end), then
/// records that follow it without a gap, in guest time that never goes back, with digests of the
/// state after the record before them. Contents of disks belong to the snapshot: they come before it or
/// inside it. A snapshot of a machine that ran meanwhile starts more than once, each time at a later state.
#[derive(Clone, Debug, Default)]
pub struct StreamOrder {
    place: Place,
}

#[derive(Clone, Copy, Debug, Default)]
enum Place {
    #[default]
    Start,
    Snapshot(Shape, CommitSeq, GuestTime),
    Records(Shape, CommitSeq, GuestTime),
}

/// A frame that does not follow from those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// A frame of this kind cannot come here.
    #[error("a {found} frame comes {place}")]
    Misplaced {
        /// Its kind.
        found: FrameKind,
        /// Where it comes.
        place: &'static str,
    },
    /// Not the record that comes next.
    #[error("commit {found} follows commit {last}; commit {} is missing", last.next())]
    Gap {
        /// The commit before.
        last: CommitSeq,
        /// The one that was found.
        found: CommitSeq,
    },
    /// A digest of another state than the one it stands behind.
    #[error("a digest of the state after commit {found} comes after commit {last}")]
    DigestElsewhere {
        /// The commit before.
        last: CommitSeq,
        /// The one that the digest is of.
        found: CommitSeq,
    },
    /// The guest clock goes back.
    #[error("the guest clock goes back at commit {at}, from {from} ns to {to} ns",
        from = from.0, to = to.0)]
    TimeGoesBack {
        /// The commit where it does.
        at: CommitSeq,
        /// The clock before it.
        from: GuestTime,
        /// The clock from it on.
        to: GuestTime,
    },
}

impl StreamOrder {
    /// At the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next frame. After an error the place is as it was.
    pub fn handle_frame(&mut self, frame: &Frame) -> Result<(), OrderError> {
        self.place = match (self.place, frame) {
            (Place::Start, Frame::SnapshotStart(start)) => {
                Place::Snapshot(start.shape, start.seq, start.guest_time)
            }
            (Place::Snapshot(_, seq, time), Frame::SnapshotStart(start))
                if start.seq >= seq && start.guest_time >= time =>
            {
                Place::Snapshot(start.shape, start.seq, start.guest_time)
            }
            (Place::Snapshot(..), Frame::SnapshotPages(_))
            | (Place::Start | Place::Snapshot(..), Frame::DiskRange(_)) => self.place,
            (Place::Snapshot(shape, seq, time), Frame::SnapshotEnd(digest)) => {
                digest_is_of(seq, digest)?;
                Place::Records(shape, seq, time)
            }
            (Place::Records(_, seq, _), Frame::Digest(digest)) => {
                digest_is_of(seq, digest)?;
                self.place
            }
            (Place::Records(shape, seq, time), Frame::Record(record)) => {
                follows(seq, time, record)?;
                Place::Records(shape, record.seq, record.guest_time)
            }
            (place, frame) => {
                return Err(OrderError::Misplaced {
                    found: frame.kind(),
                    place: place.text(),
                });
            }
        };
        Ok(())
    }

    /// The last commit whose state the frames so far give; `None` until the snapshot is complete.
    pub fn seq(&self) -> Option<CommitSeq> {
        match self.place {
            Place::Records(_, seq, _) => Some(seq),
            Place::Start | Place::Snapshot(..) => None,
        }
    }

    /// What the next record follows: a commit, and the guest clock at it; `None` until the snapshot is complete.
    pub fn last(&self) -> Option<(CommitSeq, GuestTime)> {
        match self.place {
            Place::Records(_, seq, time) => Some((seq, time)),
            Place::Start | Place::Snapshot(..) => None,
        }
    }

    /// The machine's shape, once the snapshot has started.
    pub fn shape(&self) -> Option<Shape> {
        match self.place {
            Place::Start => None,
            Place::Snapshot(shape, ..) | Place::Records(shape, ..) => Some(shape),
        }
    }
}

impl Place {
    fn text(self) -> &'static str {
        match self {
            Self::Start => "before a snapshot",
            Self::Snapshot(..) => "inside a snapshot",
            Self::Records(..) => "after the snapshot",
        }
    }
}

fn digest_is_of(last: CommitSeq, digest: &StateDigest) -> Result<(), OrderError> {
    if digest.seq != last {
        return Err(OrderError::DigestElsewhere {
            last,
            found: digest.seq,
        });
    }
    Ok(())
}

fn follows(last: CommitSeq, from: GuestTime, record: &Record) -> Result<(), OrderError> {
    if record.seq != last.next() {
        return Err(OrderError::Gap {
            last,
            found: record.seq,
        });
    }
    if record.guest_time < from {
        return Err(OrderError::TimeGoesBack {
            at: record.seq,
            from,
            to: record.guest_time,
        });
    }
    Ok(())
}
