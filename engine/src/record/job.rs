//! Work on many pages in parts, which threads share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long the last parts are waited for before others get the processor: they take less.
const SPIN: Duration = Duration::from_micros(100);

/// Work in parts, done by whoever comes.
pub(super) struct Job {
    parts: usize,
    begun: AtomicUsize,
    finished: AtomicUsize,
    work: Box<dyn Fn(usize) + Send + Sync>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({} parts)", self.parts)
    }
}

/// A part that has begun; finished when dropped, after a panic too, so that nobody waits for it.
struct Part<'a>(&'a Job);

impl Drop for Part<'_> {
    fn drop(&mut self) {
        self.0.finished.fetch_add(1, Ordering::Release);
    }
}

impl Job {
    /// `work` does the part with a number below `parts`.
    pub(super) fn new(parts: usize, work: impl Fn(usize) + Send + Sync + 'static) -> Self {
        Self {
            parts,
            begun: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            work: Box::new(work),
        }
    }

    /// Whether there is a part that nobody has begun.
    pub(super) fn is_open(&self) -> bool {
        self.begun.load(Ordering::Relaxed) < self.parts
    }

    /// Does parts until none is left to begin.
    pub(super) fn help(&self) {
        while self.is_open() {
            let number = self.begun.fetch_add(1, Ordering::Relaxed);
            if number < self.parts {
                let _part = Part(self);
                (self.work)(number);
            }
        }
    }

    /// Does what is left, and waits for what others have begun.
    pub(super) fn finish(&self) {
        self.help();
        let since = Instant::now();
        while self.finished.load(Ordering::Acquire) < self.parts {
            if since.elapsed() < SPIN {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn every_part_is_done_once_before_the_end() {
        for parts in [0, 1, 2, 1000] {
            let done: Arc<[AtomicU64]> = (0..parts).map(|_| AtomicU64::new(0)).collect();
            let job = Arc::new(Job::new(parts, {
                let done = Arc::clone(&done);
                move |number| {
                    std::thread::yield_now();
                    done[number].fetch_add(1, Ordering::Relaxed);
                }
            }));
            let helpers: Vec<_> = (0..3)
                .map(|_| {
                    let job = Arc::clone(&job);
                    std::thread::spawn(move || job.help())
                })
                .collect();
            job.finish();
            assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            assert!(!job.is_open());
            for helper in helpers {
                helper.join().unwrap();
            }
        }
    }
}
