//! The output gate: what would leave the host waits here until its commit is acknowledged.
//!
//! Call order, on the primary: [`OutputGate::hold`] under the commit lock, before the record of
//! the commit goes to the backup, so that an acknowledgement never overtakes the output it
//! frees. Then [`OutputGate::handle_ack`] for each acknowledgement and
//! [`OutputGate::poll_release`] until it is empty; the caller emits what it gets and, after that,
//! tells the backup [`OutputGate::released`].
//!
//! ```text
//!            guard(in-sync position)              hold_all()
//!   Open  ---------------------------> Guarded -------------> Held
//!    ^                                    ^                     |
//!    |               open()               |  guard(position)    |
//!    +------------------------------------+---------------------+
//! ```

use std::collections::VecDeque;
use std::time::Instant;

use samsara_commitlog::CommitSeq;

use crate::Quantiles;

/// What the gate lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateMode {
    /// The primary has the right to run alone: outputs leave at once.
    Open,
    /// A backup is in sync: outputs leave when it has acknowledged their commit.
    Guarded,
    /// The backup is lost and the right to go on alone is not won: nothing leaves.
    Held,
}

/// What counts as the acknowledgement of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AckLevel {
    /// The backup has the record.
    Received,
    /// The backup has applied it and its digest agreed.
    #[default]
    Verified,
}

/// What an output takes in memory besides itself and its bytes: a block of the allocator for these.
const BLOCK_BYTES: usize = 64;

#[derive(Debug)]
struct HeldOutput<O> {
    seq: CommitSeq,
    output: O,
    bytes: u64,
    since: Instant,
}

/// Outputs of the primary in commit order, and the rule by which they leave.
#[derive(Debug)]
pub struct OutputGate<O> {
    mode: GateMode,
    level: AckLevel,
    limit_bytes: u64,
    held: VecDeque<HeldOutput<O>>,
    held_bytes: u64,
    acknowledged: CommitSeq,
    last_held: CommitSeq,
    last_released: CommitSeq,
    hold_times: Quantiles,
}

impl<O> OutputGate<O> {
    /// A gate that holds everything until told otherwise. Past `limit_bytes` of memory for held outputs
    /// [`OutputGate::is_full`] asks the vCPUs to wait; `hold` itself never refuses.
    pub fn new(level: AckLevel, limit_bytes: u64) -> Self {
        Self {
            mode: GateMode::Held,
            level,
            limit_bytes,
            held: VecDeque::new(),
            held_bytes: 0,
            acknowledged: CommitSeq::BOOT,
            last_held: CommitSeq::BOOT,
            last_released: CommitSeq::BOOT,
            hold_times: Quantiles::new(),
        }
    }

    /// Lets everything through: the primary has won the right to run alone.
    pub fn open(&mut self) {
        self.mode = GateMode::Open;
    }

    /// Lets through what the backup has acknowledged. `in_sync` is the last commit this backup is
    /// known to have; what an earlier backup acknowledged counts no longer.
    ///
    /// The backup may be told that it is in sync once [`OutputGate::oldest_held`] is past
    /// `in_sync`: of earlier outputs its snapshot knows nothing, so they must have left.
    pub fn guard(&mut self, in_sync: CommitSeq) {
        self.mode = GateMode::Guarded;
        self.acknowledged = in_sync;
    }

    /// Lets nothing through, acknowledged or not.
    pub fn hold_all(&mut self) {
        self.mode = GateMode::Held;
    }

    /// The present mode.
    pub fn mode(&self) -> GateMode {
        self.mode
    }

    /// Takes an output of commit `seq`. A commit may have several outputs.
    ///
    /// # Panics
    /// When `seq` is before that of an output taken earlier: commits are handled in order.
    pub fn hold(&mut self, seq: CommitSeq, output: O, bytes: u64, now: Instant) {
        assert!(
            seq >= self.last_held,
            "output of commit {seq} after one of {}",
            self.last_held
        );
        self.last_held = seq;
        self.held_bytes += bytes;
        self.held.push_back(HeldOutput {
            seq,
            output,
            bytes,
            since: now,
        });
    }

    /// The backup acknowledged. A position that does not advance is ignored.
    pub fn handle_ack(&mut self, received: CommitSeq, verified: CommitSeq) {
        let position = match self.level {
            AckLevel::Received => received,
            AckLevel::Verified => verified,
        };
        self.acknowledged = self.acknowledged.max(position);
    }

    /// The next output that may leave, if any.
    pub fn poll_release(&mut self, now: Instant) -> Option<(CommitSeq, O)> {
        let front = self.held.front()?;
        let free = match self.mode {
            GateMode::Open => true,
            GateMode::Guarded => front.seq <= self.acknowledged,
            GateMode::Held => false,
        };
        if !free {
            return None;
        }
        let front = self.held.pop_front()?;
        self.held_bytes -= front.bytes;
        self.last_released = front.seq;
        self.hold_times
            .record_duration(now.saturating_duration_since(front.since));
        Some((front.seq, front.output))
    }

    /// The outputs of all commits up to this one have been handed out: a backup may forget
    /// them. Tell it only after they were emitted.
    pub fn released(&self) -> CommitSeq {
        match self.held.front() {
            Some(front) if front.seq == self.last_released => {
                CommitSeq(front.seq.0.saturating_sub(1))
            }
            _ => self.last_released,
        }
    }

    /// Commit of the oldest output still held.
    pub fn oldest_held(&self) -> Option<CommitSeq> {
        self.held.front().map(|front| front.seq)
    }

    /// Bytes of held outputs.
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Number of held outputs.
    pub fn held_count(&self) -> usize {
        self.held.len()
    }

    /// vCPUs should wait at their next commit until outputs have left. A serial port makes an output of
    /// each byte, so what holding one costs counts as well.
    pub fn is_full(&self) -> bool {
        let each = size_of::<HeldOutput<O>>() + BLOCK_BYTES;
        self.held_bytes + (self.held.len() * each) as u64 >= self.limit_bytes
    }

    /// How long outputs were held, in nanoseconds.
    pub fn hold_times(&self) -> &Quantiles {
        &self.hold_times
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
