//! Ways that commits leave by: to a log, and to a backup.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use samsara_commitlog::{
    Commit, CommitSeq, Frame, FrameEncoder, GuestTime, Medium, OrderChunk, Record,
};
use samsara_replication::transport::PrimaryHandle;
use samsara_replication::{Behind, CommitQueue};

use crate::form::FormChooser;

/// A way for commits, and what is known of those that went it.
pub(super) struct Stream {
    pub(super) queue: Arc<CommitQueue>,
    encoder: FrameEncoder,
    /// Chunks that went as orders, and as effects.
    pub(super) forms: [u64; 2],
    /// What went, encoded: all of it, and chunks as orders.
    pub(super) bytes: [u64; 2],
}

impl Stream {
    /// From a machine's state on.
    pub(super) fn new(
        medium: Medium,
        queue: Arc<CommitQueue>,
        (seq, guest_time): (CommitSeq, GuestTime),
    ) -> Self {
        Self {
            queue,
            encoder: FrameEncoder::after(medium, seq, guest_time),
            forms: [0; 2],
            bytes: [0; 2],
        }
    }

    /// Pushes what comes next.
    pub(super) fn push(&mut self, seq: CommitSeq, encoded: &mut Encoded<'_>, now: Instant) {
        let bytes = encoded.get().clone();
        self.encoder.pass(encoded.frame);
        self.push_bytes(seq, encoded.frame, bytes, now);
    }

    /// Pushes what comes next, a chunk in order form.
    pub(super) fn push_order(&mut self, seq: CommitSeq, frame: &Frame, now: Instant) {
        let bytes = self.encoder.encode(frame);
        self.push_bytes(seq, frame, bytes, now);
    }

    fn push_bytes(&mut self, seq: CommitSeq, frame: &Frame, bytes: Bytes, now: Instant) {
        self.bytes[0] += bytes.len() as u64;
        match frame {
            Frame::Record(record) => {
                match record.commit {
                    Commit::Order(_) => {
                        self.forms[0] += 1;
                        self.bytes[1] += bytes.len() as u64;
                    }
                    Commit::Chunk(_) => self.forms[1] += 1,
                    Commit::Input(_) => {}
                }
                self.queue.push(seq, bytes, now);
            }
            _ => {
                self.queue.push_between(bytes, now);
            }
        }
    }
}

/// A frame that is encoded when somebody wants it, once.
pub(super) struct Encoded<'a> {
    pub(super) frame: &'a Frame,
    pub(super) bytes: Option<Bytes>,
}

impl Encoded<'_> {
    pub(super) fn get(&mut self) -> &Bytes {
        self.bytes.get_or_insert_with(|| self.frame.encode())
    }
}

/// The way to the backup, from its snapshot on.
pub(super) struct Backup {
    pub(super) session: u64,
    pub(super) stream: Stream,
    pub(super) form: FormChooser,
    pub(super) handle: PrimaryHandle,
    pub(super) received: CommitSeq,
    pub(super) verified: CommitSeq,
    /// The last commit before outputs were guarded by it.
    pub(super) guarded_after: Option<CommitSeq>,
    /// Of what it guards.
    pub(super) behind: Behind,
}

impl Backup {
    pub(super) fn forms(&self) -> [u64; 3] {
        let [orders, effects] = self.stream.forms;
        [orders, effects, self.handle.effects().fetched()]
    }

    /// Whether it is as far behind as it may be.
    pub(super) fn must_be_waited_for(&self, now: Instant) -> bool {
        self.handle.effects().is_full() || self.behind.is_too_far(now)
    }

    /// Pushes what comes next: a chunk as its order, if it has one and that is the form to choose.
    pub(super) fn push(
        &mut self,
        seq: CommitSeq,
        encoded: &mut Encoded<'_>,
        order: Option<OrderChunk>,
        now: Instant,
    ) {
        if self.guarded_after.is_some() && encoded.frame.record().is_some() {
            self.behind.committed(seq, now);
        }
        let order = order.filter(|_| self.is_order(encoded.frame));
        let Some(order) = order else {
            return self.stream.push(seq, encoded, now);
        };
        // Before the order leaves: the backup may ask at once.
        let effects = self.handle.effects();
        effects.keep(seq, order.vcpu, encoded.get().clone());
        if let Some(order) = as_order(encoded.frame, order) {
            self.stream.push_order(seq, &order, now);
        }
    }

    /// Whether a chunk that can be run again travels as an order.
    fn is_order(&mut self, frame: &Frame) -> bool {
        for vcpu in self.handle.effects().take_fetched() {
            self.form.diverged(vcpu);
        }
        // Before it guards outputs its snapshot is what waits, which says nothing of the network.
        let unsent_bytes = match self.guarded_after {
            Some(_) => self.stream.queue.depth().bytes,
            None => 0,
        };
        let chunk = frame.record().and_then(Record::chunk);
        chunk.is_some_and(|chunk| self.form.is_order(chunk, unsent_bytes))
    }
}

/// The chunk of a frame in order form.
pub(super) fn as_order(frame: &Frame, order: OrderChunk) -> Option<Frame> {
    let record = frame.record()?;
    Some(Frame::Record(Record {
        seq: record.seq,
        guest_time: record.guest_time,
        commit: Commit::Order(order),
    }))
}
