//! Waiting for others. vCPUs whose chunks keep conflicting take turns: they run one after the other, in the order in
//! which they come, while the others run beside them. One that can only go on when others have committed rests. Those
//! that wait help with what can be shared.

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
    /// Who sleeps in the line, and who rests.
    sleepers: usize,
    resting: usize,
    job: Option<Arc<Job>>,
}

/// A turn, or a place in the line; over when dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    rotation: &'a Rotation,
    ticket: u64,
}

/// A job that others may take part in; withdrawn when dropped.
struct Offer<'a>(&'a Rotation);

impl Rotation {
    /// Waits for a turn, and does parts of the others' jobs meanwhile.
    pub(super) fn enter(&self) -> Turn<'_> {
        let ticket = self.next.fetch_add(1, Ordering::SeqCst);
        let turn = Turn {
            rotation: self,
            ticket,
        };
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
        turn
    }

    /// Rests until there is news, at most for so long, and does parts of the others' jobs meanwhile. Says whether there is.
    pub(super) fn rest(&self, most: Duration, has_news: impl Fn() -> bool) -> bool {
        let end = Instant::now() + most;
        let mut waiting = self.lock();
        loop {
            if has_news() {
                return true;
            }
            if let Some(job) = waiting.open_job() {
                drop(waiting);
                job.help();
                waiting = self.lock();
                continue;
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                return false;
            };
            waiting.resting += 1;
            let waited = self.changed.wait_timeout(waiting, left);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
            waiting.resting -= 1;
        }
    }

    /// There is news, for those that rest.
    pub(super) fn tell(&self) {
        if self.lock().resting > 0 {
            self.changed.notify_all();
        }
    }

    /// Whether others wait.
    pub(super) fn has_helpers(&self) -> bool {
        // In this order: none that was served is still to come.
        let served = self.served.load(Ordering::SeqCst);
        self.next.load(Ordering::SeqCst) - served >= 2 || self.lock().resting > 0
    }

    /// Does a job, with those that wait.
    pub(super) fn share(&self, job: Job) {
        let job = Arc::new(job);
        let _offer = self.offer(&job);
        job.finish();
    }

    fn offer(&self, job: &Arc<Job>) -> Option<Offer<'_>> {
        if !self.has_helpers() {
            return None;
        }
        let mut waiting = self.lock();
        if waiting.job.is_some() {
            return None;
        }
        waiting.job = Some(Arc::clone(job));
        self.has_job.store(true, Ordering::Relaxed);
        if waiting.sleepers + waiting.resting > 0 {
            self.changed.notify_all();
        }
        Some(Offer(self))
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
        self.sleep_while(|waiting| !self.is_served(ticket) && waiting.open_job().is_none());
    }

    fn sleep_while(&self, is_early: impl Fn(&Waiting) -> bool) {
        let mut waiting = self.lock();
        waiting.sleepers += 1;
        while is_early(&waiting) {
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
        let Self { rotation, ticket } = *self;
        // Whoever leaves the line by a panic waits too: the place after it must come after it.
        rotation.sleep_while(|_| !rotation.is_served(ticket));
        // Under the lock, so that nobody falls asleep between its last look and this.
        let waiting = rotation.lock();
        rotation.served.fetch_add(1, Ordering::SeqCst);
        if waiting.sleepers > 0 {
            rotation.changed.notify_all();
        }
    }
}

impl Drop for Offer<'_> {
    fn drop(&mut self) {
        self.0.has_job.store(false, Ordering::Relaxed);
        self.0.lock().job = None;
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

    /// Waits until so many are in line.
    fn wait_for_line(rotation: &Rotation, count: u64) {
        while rotation.next.load(Ordering::SeqCst) < count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_waits_helps_asleep_or_not() {
        for pause in [Duration::ZERO, SPIN * 20] {
            let rotation = Arc::new(Rotation::default());
            let turn = rotation.enter();
            let waiter = std::thread::spawn({
                let rotation = Arc::clone(&rotation);
                move || drop(rotation.enter())
            });
            wait_for_line(&rotation, 2);
            std::thread::sleep(pause);
            let own = std::thread::current().id();
            let helped = Arc::new(AtomicU64::new(0));
            rotation.share(Job::new(2, {
                let helped = Arc::clone(&helped);
                // The owner does one part, and waits in it for the other to be done.
                move |_| {
                    if std::thread::current().id() == own {
                        while helped.load(Ordering::SeqCst) == 0 {
                            std::thread::yield_now();
                        }
                    } else {
                        helped.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }));
            assert!(rotation.open_job().is_none());
            drop(turn);
            waiter.join().unwrap();
        }
    }

    #[test]
    fn who_rests_helps_until_there_is_news() {
        let rotation = Arc::new(Rotation::default());
        assert!(!rotation.rest(Duration::from_millis(1), || false), "none");
        assert!(!rotation.has_helpers());
        let has_news = Arc::new(AtomicBool::new(false));
        let resting = std::thread::spawn({
            let (rotation, has_news) = (Arc::clone(&rotation), Arc::clone(&has_news));
            move || rotation.rest(Duration::from_hours(1), || has_news.load(Ordering::SeqCst))
        });
        while !rotation.has_helpers() {
            std::thread::yield_now();
        }
        let own = std::thread::current().id();
        let helped = Arc::new(AtomicBool::new(false));
        rotation.share(Job::new(2, {
            let helped = Arc::clone(&helped);
            move |_| {
                helped.fetch_or(std::thread::current().id() != own, Ordering::SeqCst);
                let end = Instant::now() + Duration::from_secs(10);
                while !helped.load(Ordering::SeqCst) {
                    assert!(Instant::now() < end, "nobody helps");
                    std::thread::yield_now();
                }
            }
        }));
        has_news.store(true, Ordering::SeqCst);
        rotation.tell();
        assert!(resting.join().unwrap());
    }

    #[test]
    fn a_helper_that_panics_leaves_the_line() {
        let rotation = Arc::new(Rotation::default());
        let turn = rotation.enter();
        let waiters: Vec<_> = (2..4)
            .map(|in_line| {
                let rotation_there = Arc::clone(&rotation);
                let waiter = std::thread::spawn(move || drop(rotation_there.enter()));
                wait_for_line(&rotation, in_line);
                waiter
            })
            .collect();
        let own = std::thread::current().id();
        let has_panicked = Arc::new(AtomicBool::new(false));
        rotation.share(Job::new(2, {
            let has_panicked = Arc::clone(&has_panicked);
            move |_| {
                if std::thread::current().id() != own {
                    assert!(has_panicked.swap(true, Ordering::SeqCst), "on purpose");
                }
                while !has_panicked.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
            }
        }));
        drop(turn);
        let ends: Vec<_> = waiters
            .into_iter()
            .map(|waiter| waiter.join().is_ok())
            .collect();
        assert_eq!(
            ends.iter().filter(|is_ok| **is_ok).count(),
            1,
            "one panics, both end"
        );
    }
}
