//! A machine's snapshot as frames of a stream.

use std::time::{Duration, Instant};

use samsara_commitlog::Frame;
use samsara_machine::Machine;
use samsara_machine::memory::MemoryError;
use samsara_replication::{CommitQueue, Room};

/// How often a full queue is looked at.
const ROOM_LOOK: Duration = Duration::from_millis(100);

/// Pushes the whole machine. Nothing may commit meanwhile. Nothing is kept once the queue is closed.
pub(crate) fn push_machine(machine: &mut Machine, queue: &CommitQueue) -> Result<(), MemoryError> {
    let start = Frame::SnapshotStart(machine.snapshot_start());
    queue.push_between(start.encode(), Instant::now());
    let digest = machine.digest();
    for runs in machine.snapshot_pages() {
        let frame = Frame::SnapshotPages(runs?).encode();
        while queue.wait_for_room(Some(Instant::now() + ROOM_LOOK)) == Room::TimedOut {}
        queue.push_between(frame, Instant::now());
    }
    queue.push_between(Frame::SnapshotEnd(digest).encode(), Instant::now());
    Ok(())
}
