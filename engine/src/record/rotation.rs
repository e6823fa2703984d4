//! Taking turns: vCPUs whose chunks keep conflicting run one after the other, in the order in which
//! they come, while the others run beside them. Those that wait help with what can be shared.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::job::Job;

/// How long a vCPU looks for its turn before it sleeps: being woken takes about as long as a short
/// chunk.
const SPIN: Duration = Duration::from_micros(100);

/// Whose turn it is among those that conflict. First come, first served: a vCPU that waits for a
/// store of another must not take every turn itself.
#[derive(Debug, Default)]
pub(super) struct Rotation {
    next: AtomicU64,
    served: AtomicU64,
    /// Whether there may be a job, to look at without the lock.
    has_job: AtomicBool,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    sleepers: usize,
    job: Option<Arc<Job>>,
}

/// A turn; over when dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Rotation);

impl Rotation {
    /// Waits for a turn.
    pub(super) fn enter(&self) -> Turn<'_> {
        let ticket = self.next.fetch_add(1, Ordering::SeqCst);
        let mut since = Instant::now();
        while !self.is_served(ticket) {
            if let Some(job) = self.open_job() {
                job.help();
                since = Instant::now();
            } else if since.elapsed() >= SPIN {
                self.sleep(ticket);
                since = Instant::now();
            }
            std::hint::spin_loop();
        }
        Turn(self)
    }

    /// Does a job, with those that wait for their turn.
    pub(super) fn share(&self, job: Job) {
        let job = Arc::new(job);
        let is_offered = job.parts() > 1 && self.offer(&job);
        job.finish();
        if is_offered {
            self.has_job.store(false, Ordering::Relaxed);
            self.lock().job = None;
        }
    }

    fn offer(&self, job: &Arc<Job>) -> bool {
        let in_line = self.next.load(Ordering::SeqCst) - self.served.load(Ordering::SeqCst);
        if in_line < 2 {
            return false;
        }
        let mut waiting = self.lock();
        if waiting.job.is_some() {
            return false;
        }
        waiting.job = Some(Arc::clone(job));
        self.has_job.store(true, Ordering::Relaxed);
        if waiting.sleepers > 0 {
            self.changed.notify_all();
        }
        true
    }

    fn open_job(&self) -> Option<Arc<Job>> {
        if !self.has_job.load(Ordering::Relaxed) {
            return None;
        }
        self.lock().open_job()
    }

    fn is_served(&self, ticket: u64) -> bool {
        self.served.load(Ordering::SeqCst) == ticket
    }

    /// Sleeps until the turn has come, or there is something to do.
    fn sleep(&self, ticket: u64) {
        let mut waiting = self.lock();
        waiting.sleepers += 1;
        while !self.is_served(ticket) && waiting.open_job().is_none() {
            let waited = self.changed.wait(waiting);
            waiting = waited.unwrap_or_else(PoisonError::into_inner);
        }
        waiting.sleepers -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn open_job(&self) -> Option<Arc<Job>> {
        self.job.clone().filter(|job| job.is_open())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Under the lock, so that nobody falls asleep between its last look and this.
        let waiting = self.0.lock();
        self.0.served.fetch_add(1, Ordering::SeqCst);
        if waiting.sleepers > 0 {
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn turns_are_exclusive_and_fair() {
        let rotation = Arc::new(Rotation::default());
        let counts: Arc<[AtomicU64; 2]> = Arc::default();
        let busy = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..2)
            .map(|index| {
                let (rotation, counts, busy) = (rotation.clone(), counts.clone(), busy.clone());
                std::thread::spawn(move || {
                    for _ in 0..1000 {
                        let _turn = rotation.enter();
                        assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0);
                        counts[index].fetch_add(1, Ordering::SeqCst);
                        busy.fetch_sub(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(
            counts.each_ref().map(|count| count.load(Ordering::SeqCst)),
            [1000, 1000]
        );
    }
}
