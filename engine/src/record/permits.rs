//! How many may run at the same time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A number of permits.
#[derive(Debug)]
pub(super) struct Permits {
    left: Mutex<usize>,
    returned: Condvar,
}

/// One of them, until dropped.
#[derive(Debug)]
pub(super) struct Permit<'a>(&'a Permits);

impl Permits {
    pub(super) fn new(count: usize) -> Self {
        Self {
            left: Mutex::new(count.max(1)),
            returned: Condvar::new(),
        }
    }

    /// Waits for one.
    pub(super) fn take(&self) -> Permit<'_> {
        let mut left = self.lock();
        while *left == 0 {
            let woken = self.returned.wait(left);
            left = woken.unwrap_or_else(PoisonError::into_inner);
        }
        *left -= 1;
        Permit(self)
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.0.lock() += 1;
        self.0.returned.notify_one();
    }
}
