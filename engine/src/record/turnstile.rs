//! Who may run now: many beside each other, or one alone.
//!
//! A reader-writer lock in which whoever wants to be alone keeps new ones out. The standard library's
//! lets a reader that comes back at once overtake a writer that has just been woken, and vCPUs come
//! back at once, chunk after chunk.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    beside: usize,
    is_alone: bool,
    want_alone: usize,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Turnstile {
    state: Mutex<State>,
    changed: Condvar,
}

/// Runs beside others until dropped.
#[derive(Debug)]
pub(super) struct Beside<'a>(&'a Turnstile);

/// Runs alone until dropped.
#[derive(Debug)]
pub(super) struct Alone<'a>(&'a Turnstile);

impl Turnstile {
    /// Waits until nobody is alone, or wants to be.
    pub(super) fn beside(&self) -> Beside<'_> {
        let mut state = self.lock();
        while state.is_alone || state.want_alone > 0 {
            state = self.wait(state);
        }
        state.beside += 1;
        Beside(self)
    }

    /// Keeps new ones out and waits until the others have left.
    pub(super) fn alone(&self) -> Alone<'_> {
        let mut state = self.lock();
        state.want_alone += 1;
        while state.is_alone || state.beside > 0 {
            state = self.wait(state);
        }
        state.want_alone -= 1;
        state.is_alone = true;
        Alone(self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Beside<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.beside -= 1;
        if state.beside == 0 && state.want_alone > 0 {
            self.0.changed.notify_all();
        }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.lock().is_alone = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_that_wants_to_be_alone_is_not_overtaken_for_ever() {
        let turnstile = Arc::new(Turnstile::default());
        let stop = Arc::new(AtomicBool::new(false));
        let running = Arc::new(AtomicUsize::new(0));
        let others: Vec<_> = (0..3)
            .map(|_| {
                let (turnstile, stop, running) = (turnstile.clone(), stop.clone(), running.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::SeqCst) {
                        let _beside = turnstile.beside();
                        running.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_micros(300));
                        running.fetch_sub(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let (sender, turns) = std::sync::mpsc::channel();
        let alone = std::thread::spawn({
            let (turnstile, running) = (turnstile.clone(), running.clone());
            move || {
                for _ in 0..20 {
                    while running.load(Ordering::SeqCst) < 2 {
                        std::thread::yield_now();
                    }
                    let alone = turnstile.alone();
                    let beside = running.load(Ordering::SeqCst);
                    drop(alone);
                    sender.send(beside).unwrap();
                }
            }
        });
        let seen: Vec<_> = (0..20)
            .map_while(|_| turns.recv_timeout(Duration::from_secs(2)).ok())
            .collect();
        stop.store(true, Ordering::SeqCst);
        assert_eq!(seen, [0; 20], "how many ran beside each that was alone");
        for thread in others.into_iter().chain([alone]) {
            thread.join().unwrap();
        }
    }
}
