//! What lies outside the machine: where commits and outputs go, and where inputs come from.

use std::time::Duration;

use bytes::Bytes;
use samsara_commitlog::{CommitSeq, DeviceIndex, Input, OrderChunk, Record, StateDigest};
use samsara_machine::pc::{Want, virtio};
use samsara_machine::{Machine, Output};

use crate::EngineError;

/// Something for the commit log, in its order.
#[derive(Clone, Debug)]
pub enum Item {
    /// A commit; and if it is a chunk that can be run again, the order to do so.
    Record(Record, Option<OrderChunk>),
    /// Digest of the whole state after the record before it.
    Digest(StateDigest),
}

/// The outside, as the engine sees it.
pub trait Outside: Send + Sync + 'static {
    /// Waits until the log has room for more. This is the only back-pressure. Called without any
    /// lock, before a chunk or a step of a device. Whoever stops a recorder first sees to it
    /// that this returns: a vCPU's thread that waits here cannot end.
    fn wait_for_room(&self);

    /// Takes the next items of the log and what the commit wants to emit. Called under the commit
    /// lock, in commit order: must not block.
    fn committed(&self, seq: CommitSeq, items: Vec<Item>, outputs: Vec<Output>);

    /// Whether anybody reads the bytes that chunks change. While nobody does they are not collected. Who begins to
    /// does so while nothing commits.
    fn has_readers(&self) -> bool {
        true
    }

    /// Reads at most `bytes` bytes of the input file at `offset`; none at its end.
    fn read_input(&self, offset: u64, bytes: usize) -> std::io::Result<Bytes>;

    /// A vCPU thread has ended by an error: the machine stands still. Called on that thread, which
    /// the recorder must not be stopped or dropped on.
    fn failed(&self, error: EngineError);

    /// 64 random bits.
    fn random(&self) -> u64;
}

/// A guest can set timers to fire every nanosecond. So the clock is not made to move by itself sooner
/// than this after the last time: what falls between fires together.
pub(crate) const CLOCK_PAUSE: Duration = Duration::from_micros(100);

/// What the devices wait for next: each has its turn after the one that was served last, or a disk that is
/// always busy would keep the others waiting.
pub(crate) fn next_want(machine: &Machine, last: Option<DeviceIndex>) -> Option<Want> {
    let after = machine.wants().find(|want| Some(want.device) > last);
    after.or_else(|| machine.wants().next())
}

/// The input that a device waits for.
pub(crate) fn answer(outside: &dyn Outside, want: Want) -> Input {
    let bytes = match want.what {
        virtio::Want::Step => Vec::new(),
        virtio::Want::Random(bytes) => {
            let words = bytes.div_ceil(8).min(Input::FILE_BYTES_MAX / 8);
            let random = (0..words).flat_map(|_| outside.random().to_le_bytes());
            random.take(bytes).collect()
        }
    };
    Input::Device {
        device: want.device,
        bytes: bytes.into(),
    }
}
