//! Taking turns: vCPUs whose chunks keep conflicting run one after the other, in the order in which
//! they come, while the others run beside them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct Tickets {
    next: u64,
    served: u64,
}

/// Whose turn it is among those that conflict. First come, first served: a vCPU that waits for a
/// store of another must not take every turn itself.
#[derive(Debug, Default)]
pub(super) struct Rotation {
    tickets: Mutex<Tickets>,
    changed: Condvar,
}

/// A turn; over when dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(&'a Rotation);

impl Rotation {
    /// Waits for a turn.
    pub(super) fn enter(&self) -> Turn<'_> {
        let mut tickets = self.lock();
        let ticket = tickets.next;
        tickets.next += 1;
        while tickets.served != ticket {
            let waited = self.changed.wait(tickets);
            tickets = waited.unwrap_or_else(PoisonError::into_inner);
        }
        Turn(self)
    }

    fn lock(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().served += 1;
        self.0.changed.notify_all();
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
