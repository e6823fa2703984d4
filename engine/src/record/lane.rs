//! What other threads may touch of a vCPU: the pages that others committed, and its kick.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use samsara_commitlog::VcpuIndex;
use samsara_machine::memory::{PageIndex, Residency, View};

use super::held::PageSet;

/// A lane's place among the lanes: in parallel isolation its vCPU's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LaneIndex(pub(super) usize);

/// Who makes a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// A vCPU, with a chunk that ended at `rip`.
    Chunk {
        lane: LaneIndex,
        vcpu: VcpuIndex,
        rip: u64,
    },
    /// A device, or something from outside.
    Input,
}

impl By {
    /// The lane that shows what was committed already.
    pub(super) fn lane(self) -> Option<LaneIndex> {
        match self {
            Self::Chunk { lane, .. } => Some(lane),
            Self::Input => None,
        }
    }
}

/// What one commit wrote, or several whose makers are not told apart.
#[derive(Clone, Debug)]
pub(super) struct Published {
    /// Rising, each once.
    pub(super) pages: Arc<[PageIndex]>,
    pub(super) by: Option<By>,
    /// What others translated by these pages may be wrong now.
    pub(super) voids_translations: bool,
}

/// Above this many pages a committer does not look into other views' page tables; it only asks
/// which of them are held.
const LOOK_PAGES_MAX: usize = 64;

/// Write sets that wait in a lane before they are merged into one: a vCPU that is long in a device
/// operation must not make them pile up.
const INCOMING_MAX: usize = 1024;

/// The write sets of others since this vCPU last looked.
#[derive(Debug, Default)]
struct Incoming {
    sets: Vec<Published>,
    /// The vCPU does not run, and its view shows nothing but the image.
    is_retired: bool,
    /// There were others' commits while it was retired.
    has_missed: bool,
}

impl Incoming {
    fn push(&mut self, commit: Published) {
        if commit.pages.is_empty() {
            return;
        }
        if self.is_retired {
            self.has_missed = true;
            return;
        }
        if self.sets.len() >= INCOMING_MAX {
            let sets = std::mem::take(&mut self.sets);
            self.sets.push(Published {
                pages: merge(&sets).into(),
                by: None,
                voids_translations: sets.iter().any(|set| set.voids_translations),
            });
        }
        self.sets.push(commit);
    }
}

/// All pages of some write sets, rising, each once.
pub(super) fn merge(sets: &[Published]) -> Vec<PageIndex> {
    let mut pages: Vec<_> = sets
        .iter()
        .flat_map(|set| set.pages.iter().copied())
        .collect();
    pages.sort_unstable();
    pages.dedup();
    pages
}

/// What others may touch of a view and of whoever runs in it.
pub(super) struct Lane {
    pub(super) view: Arc<View>,
    pub(super) held: PageSet,
    incoming: Mutex<Incoming>,
    kick: Box<dyn Fn() + Send + Sync>,
    /// Microseconds since `epoch` at which the running chunk began; 0 between chunks.
    running_since: AtomicU64,
    epoch: Instant,
    /// For how many chunks, or milliseconds, others have asked this vCPU to take turns with them.
    turns_asked: AtomicU32,
}

impl Lane {
    pub(super) fn new(view: Arc<View>, kick: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            held: PageSet::new(view.layout().page_count()),
            view,
            incoming: Mutex::default(),
            kick,
            running_since: AtomicU64::new(0),
            epoch: Instant::now(),
            turns_asked: AtomicU32::new(0),
        }
    }

    /// Another vCPU loses its chunks to this one, if it holds any of these pages, and takes turns for
    /// so many of them: turns that only one takes change nothing.
    pub(super) fn ask_for_turns(&self, chunks: u32, pages: &[PageIndex]) {
        if pages.iter().any(|&page| self.held.contains(page)) {
            self.turns_asked.fetch_max(chunks, Ordering::Relaxed);
        }
    }

    /// Takes what others have asked for since the last call.
    pub(super) fn take_turns_asked(&self) -> u32 {
        self.turns_asked.swap(0, Ordering::Relaxed)
    }

    /// A commit changed these pages, and the view does not show it. Called under the commit lock.
    pub(super) fn publish(&self, commit: Published) {
        self.incoming().push(commit);
    }

    /// Takes what others have committed since the last call, oldest first.
    pub(super) fn take_incoming(&self) -> Vec<Published> {
        std::mem::take(&mut self.incoming().sets)
    }

    /// Whether others have committed since they were last taken.
    pub(super) fn has_incoming(&self) -> bool {
        !self.incoming().sets.is_empty()
    }

    /// Whether the vCPU has halted.
    pub(super) fn is_retired(&self) -> bool {
        self.incoming().is_retired
    }

    /// The pages of the same, rising, each once, without taking it.
    pub(super) fn peek_incoming(&self) -> Vec<PageIndex> {
        merge(&self.incoming().sets)
    }

    /// The vCPU has halted, or has not run yet: it takes nothing.
    pub(super) fn retire(&self) {
        *self.incoming() = Incoming {
            is_retired: true,
            ..Incoming::default()
        };
    }

    /// The vCPU is about to run, and takes what others commit from here on. Whether it has missed anything.
    pub(super) fn enlist(&self) -> bool {
        let mut incoming = self.incoming();
        incoming.is_retired = false;
        std::mem::take(&mut incoming.has_missed)
    }

    fn incoming(&self) -> std::sync::MutexGuard<'_, Incoming> {
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
            let _ = self
                .view
                .residency(pages, |_, found| is_lost |= found != Residency::Absent);
        }
        if is_lost {
            self.kick();
        }
    }
}

#[cfg(test)]
mod tests {
    use samsara_commitlog::Shape;
    use samsara_machine::memory::Image;

    use super::super::held::HeldPages;
    use super::*;

    #[test]
    fn turns_are_asked_of_those_that_hold_the_pages() {
        let shape = Shape {
            vcpu_count: 1,
            memory_bytes: 16 << 20,
        };
        let image = Arc::new(Image::new(shape).unwrap());
        let lane = Lane::new(Arc::new(View::new(&image).unwrap()), Box::new(|| ()));
        HeldPages::default().insert(&lane.held, PageIndex(7));
        lane.ask_for_turns(5, &[PageIndex(6), PageIndex(8)]);
        assert_eq!(lane.take_turns_asked(), 0);
        lane.ask_for_turns(5, &[PageIndex(6), PageIndex(7)]);
        lane.ask_for_turns(3, &[PageIndex(7)]);
        assert_eq!(lane.take_turns_asked(), 5);
        assert_eq!(lane.take_turns_asked(), 0);
    }

    fn published(pages: &[PageIndex], voids_translations: bool) -> Published {
        Published {
            pages: pages.into(),
            by: Some(By::Input),
            voids_translations,
        }
    }

    #[test]
    fn write_sets_do_not_pile_up() {
        let mut incoming = Incoming::default();
        for round in 0..10 * INCOMING_MAX as u32 {
            let pages = [PageIndex(round % 7), PageIndex(100 + round % 5)];
            incoming.push(published(&pages, round == 5));
        }
        assert!(incoming.sets.len() <= INCOMING_MAX);
        let pages: Vec<_> = merge(&incoming.sets).iter().map(|page| page.0).collect();
        assert_eq!(pages, [0, 1, 2, 3, 4, 5, 6, 100, 101, 102, 103, 104]);
        let sizes: usize = incoming.sets.iter().map(|set| set.pages.len()).sum();
        assert!(sizes <= 2 * INCOMING_MAX + 12);
        let voids = |set: &Published| set.voids_translations;
        assert!(voids(&incoming.sets[0]) && !incoming.sets[1..].iter().any(voids));
        incoming.is_retired = true;
        let before = incoming.sets.len();
        incoming.push(published(&[PageIndex(9)], false));
        assert_eq!(incoming.sets.len(), before);
    }
}
