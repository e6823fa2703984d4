//! What other threads may touch of a vCPU: the pages that others committed, and its kick.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use samsara_machine::memory::{PageIndex, Residency, View};

use super::held::PageSet;

/// Above this many pages a committer does not look into other views' page tables; it only asks
/// which of them are held.
const LOOK_PAGES_MAX: usize = 64;

/// The shared half of a vCPU.
pub(super) struct Lane {
    pub(super) view: View,
    pub(super) held: PageSet,
    incoming: Mutex<Vec<Arc<[PageIndex]>>>,
    kick: Box<dyn Fn() + Send + Sync>,
    /// Microseconds since `epoch` at which the running chunk began; 0 between chunks.
    running_since: AtomicU64,
    epoch: Instant,
}

impl Lane {
    pub(super) fn new(view: View, kick: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            held: PageSet::new(view.layout().page_count()),
            view,
            incoming: Mutex::default(),
            kick,
            running_since: AtomicU64::new(0),
            epoch: Instant::now(),
        }
    }

    /// Another commit changed these pages. Called under the commit lock.
    pub(super) fn publish(&self, pages: &Arc<[PageIndex]>) {
        self.incoming().push(Arc::clone(pages));
    }

    /// Takes what others have committed since the last call.
    pub(super) fn take_incoming(&self) -> Vec<Arc<[PageIndex]>> {
        std::mem::take(&mut *self.incoming())
    }

    fn incoming(&self) -> std::sync::MutexGuard<'_, Vec<Arc<[PageIndex]>>> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin_run(&self) {
        let now = self.epoch.elapsed().as_micros() as u64;
        self.running_since.store(now.max(1), Ordering::Relaxed);
    }

    pub(super) fn end_run(&self) {
        self.running_since.store(0, Ordering::Relaxed);
    }

    /// Ends the running chunk, whatever it does.
    pub(super) fn kick(&self) {
        (self.kick)();
    }

    /// Ends the running chunk if it has run for `at_least`.
    pub(super) fn kick_if_running_for(&self, at_least: Duration) {
        let since = self.running_since.load(Ordering::Relaxed);
        let now = self.epoch.elapsed().as_micros() as u64;
        if since != 0 && now.saturating_sub(since) >= at_least.as_micros() as u64 {
            self.kick();
        }
    }

    /// Ends the running chunk if it is lost, as far as one can tell while it runs.
    pub(super) fn kick_if_stale(&self, pages: &[PageIndex]) {
        if self.running_since.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut is_lost = pages.iter().any(|&page| self.held.contains(page));
        if !is_lost && pages.len() <= LOOK_PAGES_MAX {
            // An unreadable page table costs wasted work here; validation reports it.
            let _ = self.view.residency(pages, |_, found| is_lost |= found != Residency::Absent);
        }
        if is_lost {
            self.kick();
        }
    }
}
