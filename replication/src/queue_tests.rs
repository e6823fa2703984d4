use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::*;

const LIMITS: QueueLimits = QueueLimits {
    bytes: 1000,
    frames: 10,
};
const VCPUS: usize = 4;

fn frame(len: usize) -> Bytes {
    Bytes::from(vec![7; len])
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn push(queue: &CommitQueue, seq: u64, len: usize) -> Pushed {
    queue.push(CommitSeq(seq), frame(len), Instant::now())
}

/// Real vCPU threads against a slow consumer: order kept, nothing lost, both bounds respected up
/// to one record a vCPU.
fn storm(consume: impl FnOnce(Arc<CommitQueue>) -> Vec<u64>) {
    const RECORDS: u64 = 5000;
    let queue = Arc::new(CommitQueue::new(LIMITS, CommitSeq::BOOT));
    let commit_lock = Arc::new(Mutex::new(0u64));
    let overshot = Arc::new(AtomicBool::new(false));
    let producers: Vec<_> = (0..VCPUS)
        .map(|_| {
            let (queue, commit_lock) = (queue.clone(), commit_lock.clone());
            let overshot = overshot.clone();
            thread::spawn(move || {
                loop {
                    assert_eq!(queue.wait_for_room(Some(far())), Room::Ready);
                    let mut last = commit_lock.lock().unwrap();
                    if *last == RECORDS {
                        return;
                    }
                    *last += 1;
                    push(&queue, *last, 100 + (*last % 50) as usize);
                    let depth = queue.depth();
                    let frames_max = LIMITS.frames + VCPUS;
                    let bytes_max = LIMITS.bytes + VCPUS * 150;
                    overshot.fetch_or(
                        depth.frames > frames_max || depth.bytes > bytes_max,
                        Ordering::Relaxed,
                    );
                }
            })
        })
        .collect();
    let closer = {
        let queue = queue.clone();
        thread::spawn(move || {
            for producer in producers {
                producer.join().unwrap();
            }
            queue.finish();
        })
    };
    let seqs = consume(queue);
    closer.join().unwrap();
    assert!(
        !overshot.load(Ordering::Relaxed),
        "the queue grew past its limits"
    );
    assert!(seqs.iter().copied().eq(1..=RECORDS));
}

#[test]
fn threads_to_a_thread() {
    storm(|queue| {
        let mut seqs = Vec::new();
        while let Some(batch) = queue.pop_batch_blocking(500, Some(far())) {
            assert!(!batch.is_empty(), "timed out");
            assert!(batch.iter().map(|f| f.bytes.len()).sum::<usize>() <= 500);
            seqs.extend(batch.iter().map(|f| f.seq.0));
        }
        seqs
    });
}

#[test]
fn threads_to_an_async_task() {
    storm(|queue| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut seqs = Vec::new();
            loop {
                let batch = tokio::time::timeout(Duration::from_secs(20), queue.pop_batch(500));
                let Some(batch) = batch.await.expect("a wakeup was lost") else {
                    break;
                };
                seqs.extend(batch.iter().map(|f| f.seq.0));
                if seqs.len() % 7 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            seqs
        })
    });
}

#[test]
fn a_full_queue_makes_producers_wait_by_bytes_and_by_frames() {
    let queue = CommitQueue::new(LIMITS, CommitSeq(41));
    assert_eq!(push(&queue, 42, 999), Pushed::Queued);
    assert_eq!(queue.wait_for_room(Some(soon())), Room::Ready);
    assert_eq!(push(&queue, 43, 1), Pushed::Queued);
    assert_eq!(queue.wait_for_room(Some(soon())), Room::TimedOut);
    let batch = queue.pop_batch_blocking(10, Some(soon())).unwrap();
    assert_eq!(batch.len(), 1, "at least one frame, however large");
    for seq in 44..53 {
        assert_eq!(queue.wait_for_room(Some(soon())), Room::Ready);
        push(&queue, seq, 0);
    }
    assert_eq!(queue.wait_for_room(Some(soon())), Room::TimedOut);
    assert_eq!(queue.depth().frames, 10);
}

#[test]
fn close_releases_waiters_and_drops() {
    let queue = Arc::new(CommitQueue::new(LIMITS, CommitSeq::BOOT));
    push(&queue, 1, 2000);
    let waiter = {
        let queue = queue.clone();
        thread::spawn(move || queue.wait_for_room(None))
    };
    thread::sleep(Duration::from_millis(20));
    queue.close();
    assert_eq!(waiter.join().unwrap(), Room::Closed);
    assert_eq!(push(&queue, 77, 1), Pushed::Dropped);
    assert_eq!(queue.depth().bytes, 0);
    assert!(queue.pop_batch_blocking(100, None).is_none());
}

#[test]
fn interrupt_lets_waiting_producers_go_until_resume() {
    let queue = Arc::new(CommitQueue::new(LIMITS, CommitSeq::BOOT));
    queue.interrupt();
    assert_eq!(
        queue.wait_for_room(Some(soon())),
        Room::Ready,
        "who need not wait is not interrupted"
    );
    push(&queue, 1, 2000);
    assert_eq!(queue.wait_for_room(None), Room::Interrupted);
    queue.resume();
    let waiter = {
        let queue = queue.clone();
        thread::spawn(move || queue.wait_for_room(None))
    };
    thread::sleep(Duration::from_millis(20));
    queue.interrupt();
    assert_eq!(waiter.join().unwrap(), Room::Interrupted);
}

#[test]
fn finish_gives_the_rest_then_the_end() {
    let queue = CommitQueue::new(LIMITS, CommitSeq::BOOT);
    queue.push_between(frame(5), Instant::now());
    push(&queue, 1, 1);
    queue.push_between(frame(9), Instant::now());
    queue.finish();
    assert_eq!(push(&queue, 2, 1), Pushed::Dropped);
    let seqs: Vec<u64> = queue
        .pop_batch_blocking(100, None)
        .unwrap()
        .iter()
        .map(|f| f.seq.0)
        .collect();
    assert_eq!(seqs, [0, 1, 1]);
    assert!(queue.pop_batch_blocking(100, None).is_none());
}

#[test]
fn an_idle_thread_consumer_gets_an_empty_batch_at_its_deadline() {
    let queue = CommitQueue::new(LIMITS, CommitSeq::BOOT);
    assert_eq!(
        queue
            .pop_batch_blocking(100, Some(soon()))
            .map(|batch| batch.len()),
        Some(0)
    );
}

#[test]
#[should_panic(expected = "without gaps")]
fn a_gap_is_a_bug() {
    let queue = CommitQueue::new(LIMITS, CommitSeq::BOOT);
    push(&queue, 1, 1);
    push(&queue, 3, 1);
}

#[test]
fn a_queue_begins_again_at_a_later_commit() {
    let queue = CommitQueue::new(LIMITS, CommitSeq(5));
    queue.push_between(frame(9), Instant::now());
    queue.rebase(CommitSeq(70));
    queue.push_between(frame(9), Instant::now());
    push(&queue, 71, 1);
    let batch = queue.pop_batch_blocking(100, None).unwrap();
    let seqs: Vec<u64> = batch.iter().map(|frame| frame.seq.0).collect();
    assert_eq!(seqs, [5, 70, 71]);
}

#[test]
#[should_panic(expected = "begins again")]
fn a_queue_does_not_go_back() {
    let queue = CommitQueue::new(LIMITS, CommitSeq(5));
    queue.rebase(CommitSeq(4));
}
