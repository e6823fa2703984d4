//! How the next segment reaches the log's writer, at the right commit.
//!
//! ```text
//! Idle -> Promised (under the commit lock, before anything commits after the checkpoint) -> Ready -> Idle
//!                                                                                 \-> Failed -> Idle
//! ```
//!
//! The writer goes on with its segment up to the checkpoint's commit. When it has a later one it waits for the new segment
//! to be ready, or stays with its own if that has failed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use samsara_commitlog::{CommitSeq, LogWriter};

/// No segment is promised.
const NEVER: u64 = u64::MAX;

#[derive(Debug, Default)]
enum Next {
    #[default]
    Idle,
    Promised,
    Ready(LogWriter),
    Failed,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Handoff {
    next: Mutex<Next>,
    changed: Condvar,
    /// The last commit before the next segment.
    last: AtomicU64,
    /// Segments that are complete and not yet on stable storage.
    retired: Mutex<Vec<LogWriter>>,
    /// Bytes of the segment that is being written.
    bytes: AtomicU64,
    is_closed: AtomicBool,
}

impl Default for Handoff {
    fn default() -> Self {
        Self {
            next: Mutex::default(),
            changed: Condvar::new(),
            last: AtomicU64::new(NEVER),
            retired: Mutex::default(),
            bytes: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        }
    }
}

impl Handoff {
    /// A segment begins after this commit, which is the last one so far.
    pub(super) fn promise(&self, last: CommitSeq) {
        *self.next() = Next::Promised;
        self.last.store(last.0, Ordering::Release);
    }

    /// What was promised is there, up to its first record.
    pub(super) fn ready(&self, segment: LogWriter) {
        *self.next() = Next::Ready(segment);
        self.changed.notify_all();
    }

    /// What was promised, if anything, does not come.
    pub(super) fn fail(&self) {
        let mut next = self.next();
        if matches!(*next, Next::Promised) {
            *next = Next::Failed;
            self.changed.notify_all();
        }
    }

    /// The segment that begins with the record of this commit, if one does.
    pub(super) fn next_for(&self, seq: CommitSeq) -> Option<LogWriter> {
        if seq.0 <= self.last.load(Ordering::Acquire) {
            return None;
        }
        let mut next = self.next();
        while matches!(*next, Next::Promised) {
            next = self
                .changed
                .wait(next)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.last.store(NEVER, Ordering::Release);
        match std::mem::take(&mut *next) {
            Next::Ready(segment) => {
                self.note_bytes(segment.log_bytes());
                Some(segment)
            }
            Next::Idle | Next::Promised | Next::Failed => None,
        }
    }

    /// Whether the writer has yet to take what was promised.
    pub(super) fn is_pending(&self) -> bool {
        !matches!(*self.next(), Next::Idle)
    }

    /// A segment has all that belongs to it.
    pub(super) fn retire(&self, segment: LogWriter) {
        self.retired_segments().push(segment);
    }

    /// Segments that were retired since the last call.
    pub(super) fn take_retired(&self) -> Vec<LogWriter> {
        std::mem::take(&mut self.retired_segments())
    }

    pub(super) fn note_bytes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of the segment that is being written.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Nothing is written any more.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retired_segments(&self) -> MutexGuard<'_, Vec<LogWriter>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_next_segment_begins_where_it_was_promised() {
        let folder = tempfile::tempdir().unwrap();
        let segment = |name: &str| LogWriter::create(folder.path().join(name)).unwrap();
        let handoff = Arc::new(Handoff::default());
        assert!(handoff.next_for(CommitSeq(u64::MAX)).is_none());
        handoff.promise(CommitSeq(5));
        assert!(handoff.next_for(CommitSeq(5)).is_none() && handoff.is_pending());
        let waiting = Arc::clone(&handoff);
        let writer = std::thread::spawn(move || waiting.next_for(CommitSeq(6)));
        // That it waits is seen only by waiting.
        std::thread::sleep(Duration::from_millis(20));
        assert!(!writer.is_finished());
        handoff.ready(segment("next"));
        let next = writer.join().unwrap().unwrap();
        assert_eq!(next.path(), folder.path().join("next"));
        assert_eq!(handoff.bytes(), next.log_bytes());
        assert!(handoff.next_for(CommitSeq(7)).is_none() && !handoff.is_pending());

        handoff.retire(next);
        assert_eq!(handoff.take_retired().len(), 1);
        assert!(handoff.take_retired().is_empty());
    }

    #[test]
    fn a_segment_that_fails_is_not_waited_for() {
        let handoff = Handoff::default();
        // Nothing was promised.
        handoff.fail();
        assert!(!handoff.is_pending());
        handoff.promise(CommitSeq(5));
        handoff.fail();
        assert!(handoff.next_for(CommitSeq(6)).is_none());
        assert!(!handoff.is_pending());
    }
}
