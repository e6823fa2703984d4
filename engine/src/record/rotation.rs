//! Taking turns: vCPUs whose chunks keep conflicting run one after the other, in the order in which
//! they come, while the others run beside them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a vCPU looks for its turn before it sleeps: being woken takes about as long as a short
/// chunk.
const SPIN: Duration = Duration::from_micros(100);

/// Whose turn it is among those that conflict. First come, first served: a vCPU that waits for a
/// store of another must not take every turn itself.
#[derive(Debug, Default)]
pub(super) struct Rotation {
    next: AtomicU64,
    served: AtomicU64,
    /// How many sleep.
    sleepers: Mutex<usize>,
    changed: Condvar,
}

/// A turn; over when dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Rotation);

impl Rotation {
    /// Waits for a turn.
    pub(super) fn enter(&self) -> Turn<'_> {
        let ticket = self.next.fetch_add(1, Ordering::SeqCst);
        let since = Instant::now();
        while !self.is_served(ticket) {
            if since.elapsed() >= SPIN {
                self.sleep_until_served(ticket);
                break;
            }
            std::hint::spin_loop();
        }
        Turn(self)
    }

    fn is_served(&self, ticket: u64) -> bool {
        self.served.load(Ordering::SeqCst) == ticket
    }

    fn sleep_until_served(&self, ticket: u64) {
        let mut sleepers = self.lock();
        *sleepers += 1;
        while !self.is_served(ticket) {
            let waited = self.changed.wait(sleepers);
            sleepers = waited.unwrap_or_else(PoisonError::into_inner);
        }
        *sleepers -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Under the lock, so that nobody falls asleep between its last look and this.
        let sleepers = self.0.lock();
        self.0.served.fetch_add(1, Ordering::SeqCst);
        if *sleepers > 0 {
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
