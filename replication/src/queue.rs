//! The one bounded queue between vCPU threads and whoever takes the commits away: the network
//! task of a backup, or the thread that writes a log file.
//!
//! Producers call [`CommitQueue::wait_for_room`] *before* they take the commit lock and
//! [`CommitQueue::push`] *under* it, so records enter in commit order and the lock is never held
//! across a wait. A push never blocks and never refuses; the queue overshoots its limits by at
//! most one record a vCPU. One consumer takes batches, async or from a thread.
//!
//! Ends: [`CommitQueue::finish`] lets the consumer have the rest; [`CommitQueue::close`] drops it
//! (the backup is lost), and from then on pushes are dropped and nobody waits.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use samsara_commitlog::CommitSeq;
use tokio::sync::Notify;

/// How much may wait in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Encoded bytes.
    pub bytes: usize,
    /// Frames.
    pub frames: usize,
}

/// Answer of [`CommitQueue::wait_for_room`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// There is room for one more record of this producer.
    Ready,
    /// The deadline passed first.
    TimedOut,
    /// [`CommitQueue::interrupt`] was called: producers have something else to look at.
    Interrupted,
    /// The queue is closed or finished; a push would be dropped.
    Closed,
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// The consumer will get it.
    Queued,
    /// The queue is closed.
    Dropped,
}

/// One frame on its way.
#[derive(Clone, Debug)]
pub struct QueuedFrame {
    /// The commit the frame holds, or, for a frame between commits, the commit before it.
    pub seq: CommitSeq,
    /// When it was pushed: the time of the commit.
    pub at: Instant,
    /// The encoded frame.
    pub bytes: Bytes,
}

/// How full a queue is and what went through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    /// Frames waiting.
    pub frames: usize,
    /// Bytes waiting.
    pub bytes: usize,
    /// The last commit pushed.
    pub last: CommitSeq,
    /// Bytes ever pushed.
    pub pushed_bytes: u64,
    /// When the oldest waiting frame was pushed.
    pub oldest: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Finished,
    Closed,
}

#[derive(Debug)]
struct State {
    frames: VecDeque<QueuedFrame>,
    bytes: usize,
    last: CommitSeq,
    pushed_bytes: u64,
    phase: Phase,
    interrupted: bool,
    waiting_producers: usize,
    consumer_thread_waits: bool,
}

enum Taken {
    Batch(Vec<QueuedFrame>),
    End,
    Nothing,
}

/// See the module's description.
#[derive(Debug)]
pub struct CommitQueue {
    limits: QueueLimits,
    state: Mutex<State>,
    room: Condvar,
    data: Condvar,
    data_async: Notify,
}

impl CommitQueue {
    /// An empty queue whose first record will be the commit after `last`.
    pub fn new(limits: QueueLimits, last: CommitSeq) -> Self {
        let state = State {
            frames: VecDeque::new(),
            bytes: 0,
            last,
            pushed_bytes: 0,
            phase: Phase::Open,
            interrupted: false,
            waiting_producers: 0,
            consumer_thread_waits: false,
        };
        Self {
            limits,
            state: Mutex::new(state),
            room: Condvar::new(),
            data: Condvar::new(),
            data_async: Notify::new(),
        }
    }

    /// The most encoded bytes that wait before producers do.
    pub fn bytes_max(&self) -> usize {
        self.limits.bytes
    }

    /// Blocks the calling thread until there is room, the queue ends, producers are interrupted or
    /// the deadline passes.
    pub fn wait_for_room(&self, deadline: Option<Instant>) -> Room {
        let mut state = self.lock();
        loop {
            if state.phase != Phase::Open {
                return Room::Closed;
            }
            if state.bytes < self.limits.bytes && state.frames.len() < self.limits.frames {
                return Room::Ready;
            }
            if state.interrupted {
                return Room::Interrupted;
            }
            if deadline.is_some_and(|at| at <= Instant::now()) {
                return Room::TimedOut;
            }
            state.waiting_producers += 1;
            state = wait(&self.room, state, deadline);
            state.waiting_producers -= 1;
        }
    }

    /// Appends the record of commit `seq`. Never blocks.
    ///
    /// # Panics
    /// When the queue is open and `seq` does not follow the last one: commits have no gaps.
    pub fn push(&self, seq: CommitSeq, bytes: Bytes, now: Instant) -> Pushed {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Pushed::Dropped;
        }
        assert_eq!(
            seq,
            state.last.next(),
            "commits enter the queue in order, without gaps"
        );
        state.last = seq;
        self.append(
            state,
            QueuedFrame {
                seq,
                at: now,
                bytes,
            },
        )
    }

    /// The first record will be the commit after `last`, as the snapshot that is about to be pushed is
    /// of a later commit than the queue was made for.
    ///
    /// # Panics
    /// When `last` is before the present one.
    pub fn rebase(&self, last: CommitSeq) {
        let mut state = self.lock();
        assert!(
            last >= state.last,
            "a queue at commit {} begins again at {last}",
            state.last
        );
        state.last = last;
    }

    /// Appends a frame that is no commit (part of a snapshot, a digest). Never blocks; producers
    /// of many such frames wait for room between them.
    pub fn push_between(&self, bytes: Bytes, now: Instant) -> Pushed {
        let state = self.lock();
        if state.phase != Phase::Open {
            return Pushed::Dropped;
        }
        let seq = state.last;
        self.append(
            state,
            QueuedFrame {
                seq,
                at: now,
                bytes,
            },
        )
    }

    /// Takes what waits, at most `max_bytes` but at least one frame, as soon as there is anything;
    /// `None` at the end. Cancel-safe: a batch is taken only when it is returned.
    pub async fn pop_batch(&self, max_bytes: usize) -> Option<Vec<QueuedFrame>> {
        loop {
            let taken = self.take(&mut self.lock(), max_bytes);
            match taken {
                Taken::Batch(batch) => return Some(batch),
                Taken::End => return None,
                Taken::Nothing => {}
            }
            self.data_async.notified().await;
        }
    }

    /// [`CommitQueue::pop_batch`] for a thread; an empty batch when the deadline passes first.
    pub fn pop_batch_blocking(
        &self,
        max_bytes: usize,
        deadline: Option<Instant>,
    ) -> Option<Vec<QueuedFrame>> {
        let mut state = self.lock();
        loop {
            match self.take(&mut state, max_bytes) {
                Taken::Batch(batch) => return Some(batch),
                Taken::End => return None,
                Taken::Nothing if deadline.is_some_and(|at| at <= Instant::now()) => {
                    return Some(Vec::new());
                }
                Taken::Nothing => {}
            }
            state.consumer_thread_waits = true;
            state = wait(&self.data, state, deadline);
            state.consumer_thread_waits = false;
        }
    }

    /// No more will be pushed; the consumer gets the rest and then the end.
    pub fn finish(&self) {
        self.end(Phase::Finished);
    }

    /// Drops what waits and all that will be pushed; releases every waiter.
    pub fn close(&self) {
        self.end(Phase::Closed);
    }

    /// Makes producers that wait or would wait return [`Room::Interrupted`], until
    /// [`CommitQueue::resume`].
    pub fn interrupt(&self) {
        self.lock().interrupted = true;
        self.room.notify_all();
    }

    /// Ends an [`CommitQueue::interrupt`].
    pub fn resume(&self) {
        self.lock().interrupted = false;
    }

    /// Whether pushes are dropped.
    pub fn is_closed(&self) -> bool {
        self.lock().phase != Phase::Open
    }

    /// How full the queue is.
    pub fn depth(&self) -> QueueDepth {
        let state = self.lock();
        QueueDepth {
            frames: state.frames.len(),
            bytes: state.bytes,
            last: state.last,
            pushed_bytes: state.pushed_bytes,
            oldest: state.frames.front().map(|frame| frame.at),
        }
    }

    fn append(&self, mut state: MutexGuard<'_, State>, frame: QueuedFrame) -> Pushed {
        let was_empty = state.frames.is_empty();
        state.bytes += frame.bytes.len();
        state.pushed_bytes += frame.bytes.len() as u64;
        state.frames.push_back(frame);
        let wake_thread = state.consumer_thread_waits;
        drop(state);
        if was_empty {
            self.data_async.notify_one();
        }
        if wake_thread {
            self.data.notify_one();
        }
        Pushed::Queued
    }

    fn take(&self, state: &mut State, max_bytes: usize) -> Taken {
        if state.frames.is_empty() {
            return if state.phase == Phase::Open {
                Taken::Nothing
            } else {
                Taken::End
            };
        }
        let mut batch_bytes = 0;
        let count = state
            .frames
            .iter()
            .take_while(|frame| {
                batch_bytes += frame.bytes.len();
                batch_bytes <= max_bytes
            })
            .count();
        let batch: Vec<_> = state.frames.drain(..count.max(1)).collect();
        state.bytes -= batch.iter().map(|frame| frame.bytes.len()).sum::<usize>();
        if state.waiting_producers > 0 {
            self.room.notify_all();
        }
        Taken::Batch(batch)
    }

    fn end(&self, phase: Phase) {
        let mut state = self.lock();
        if state.phase != Phase::Closed {
            state.phase = phase;
        }
        if phase == Phase::Closed {
            state.frames = VecDeque::new();
            state.bytes = 0;
        }
        drop(state);
        self.room.notify_all();
        self.data.notify_all();
        self.data_async.notify_one();
    }

    /// A panic while the lock is held can only be the assertion in `push`, before it changes
    /// anything: the state is sound.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits once, at most until the deadline.
fn wait<'a>(
    condvar: &Condvar,
    guard: MutexGuard<'a, State>,
    deadline: Option<Instant>,
) -> MutexGuard<'a, State> {
    let Some(deadline) = deadline else {
        return condvar.wait(guard).unwrap_or_else(PoisonError::into_inner);
    };
    let left = deadline.saturating_duration_since(Instant::now());
    condvar
        .wait_timeout(guard, left)
        .unwrap_or_else(PoisonError::into_inner)
        .0
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
