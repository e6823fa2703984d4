//! The backup's side of the output gate.

use std::collections::VecDeque;

use samsara_commitlog::CommitSeq;

/// Outputs of commits that the backup applied and that the primary has not yet said it emitted.
///
/// At promotion they are emitted again, in order: the outside may see a stretch twice, never a
/// gap. Its size follows the primary's gate, which is bounded: an output leaves both.
#[derive(Debug, Default)]
pub struct Retained<O> {
    outputs: VecDeque<(CommitSeq, O, u64)>,
    bytes: u64,
    released: CommitSeq,
}

impl<O> Retained<O> {
    /// Nothing retained.
    pub fn new() -> Self {
        Self {
            outputs: VecDeque::new(),
            bytes: 0,
            released: CommitSeq::BOOT,
        }
    }

    /// Takes an output of the applied commit `seq`, unless the primary has released it already
    /// (it may when it waits for `received` only).
    ///
    /// # Panics
    /// When `seq` is before that of an output taken earlier.
    pub fn hold(&mut self, seq: CommitSeq, output: O, bytes: u64) {
        if let Some((last, ..)) = self.outputs.back() {
            assert!(seq >= *last, "output of commit {seq} after one of {last}");
        }
        if seq > self.released {
            self.bytes += bytes;
            self.outputs.push_back((seq, output, bytes));
        }
    }

    /// The primary has emitted the outputs of all commits up to `seq`.
    pub fn handle_released(&mut self, seq: CommitSeq) {
        self.released = self.released.max(seq);
        while let Some((front, _, bytes)) = self.outputs.front() {
            if *front > self.released {
                break;
            }
            self.bytes -= bytes;
            self.outputs.pop_front();
        }
    }

    /// What is retained, in order.
    pub fn iter(&self) -> impl Iterator<Item = (CommitSeq, &O)> {
        self.outputs.iter().map(|(seq, output, _)| (*seq, output))
    }

    /// At promotion: what must be emitted, in order.
    pub fn into_outputs(self) -> impl Iterator<Item = (CommitSeq, O)> {
        self.outputs
            .into_iter()
            .map(|(seq, output, _)| (seq, output))
    }

    /// Bytes retained.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of outputs retained.
    pub fn count(&self) -> usize {
        self.outputs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emits_in_order_what_was_not_released() {
        let mut retained = Retained::new();
        for seq in [1, 2, 2, 5] {
            retained.hold(CommitSeq(seq), seq, 10);
        }
        retained.handle_released(CommitSeq(1));
        retained.handle_released(CommitSeq(0));
        assert_eq!((retained.bytes(), retained.count()), (30, 3));
        let rest: Vec<u64> = retained.into_outputs().map(|(_, output)| output).collect();
        assert_eq!(rest, [2, 2, 5]);
    }

    #[test]
    fn an_output_released_before_it_was_applied_is_not_kept() {
        let mut retained = Retained::new();
        retained.handle_released(CommitSeq(3));
        retained.hold(CommitSeq(3), (), 1);
        retained.hold(CommitSeq(4), (), 1);
        assert_eq!(retained.count(), 1);
    }
}
