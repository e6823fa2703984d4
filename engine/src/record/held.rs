//! The pages that a view holds: private, writable, and compared with the image at each chunk's end.

use std::sync::atomic::{AtomicU64, Ordering};

use samsara_machine::memory::PageIndex;

/// One bit a page; written by its lane, read by committers that look for chunks to kick.
#[derive(Debug)]
pub(super) struct PageSet {
    words: Box<[AtomicU64]>,
}

impl PageSet {
    pub(super) fn new(page_count: u32) -> Self {
        Self {
            words: (0..page_count.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
        }
    }

    pub(super) fn contains(&self, page: PageIndex) -> bool {
        self.words[page.0 as usize / 64].load(Ordering::Relaxed) & bit(page) != 0
    }

    /// Adds a page; says whether it is new.
    fn insert(&self, page: PageIndex) -> bool {
        self.words[page.0 as usize / 64].fetch_or(bit(page), Ordering::Relaxed) & bit(page) == 0
    }

    fn remove(&self, page: PageIndex) {
        self.words[page.0 as usize / 64].fetch_and(!bit(page), Ordering::Relaxed);
    }
}

fn bit(page: PageIndex) -> u64 {
    1 << (page.0 % 64)
}

#[derive(Clone, Copy, Debug)]
struct Held {
    page: PageIndex,
    changed_at: u32,
    is_dense: bool,
}

/// What is known of a held page before it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) page: PageIndex,
    /// It changed as a whole when it last changed. Now and then nothing is said of it, to find out whether that still holds.
    pub(super) is_dense: bool,
}

/// Of so many chunks one looks at a dense page as at any other.
pub(super) const DOUBT_EVERY: u32 = 16;

/// The held pages of one view, in page order, with the chunk that last changed each.
#[derive(Debug, Default)]
pub(super) struct HeldPages {
    pages: Vec<Held>,
    new: Vec<PageIndex>,
    now: u32,
}

impl HeldPages {
    /// Notes a page that became private in the running chunk.
    pub(super) fn insert(&mut self, set: &PageSet, page: PageIndex) {
        if set.insert(page) {
            self.new.push(page);
        }
    }

    /// A chunk has ended: pages that it did not change are older now.
    pub(super) fn end_chunk(&mut self) {
        self.now = self.now.wrapping_add(1);
        self.sort_in();
    }

    /// Sorts in what was inserted. Call before any look at the pages.
    pub(super) fn sort_in(&mut self) {
        if !self.new.is_empty() {
            let now = self.now;
            self.pages.extend(self.new.drain(..).map(|page| Held {
                page,
                changed_at: now,
                is_dense: false,
            }));
            self.pages.sort_unstable_by_key(|held| held.page);
        }
    }

    /// The chunk changed these held pages (rising), as a whole or not; how many of them were held before it, and cost no
    /// fault.
    pub(super) fn changed(&mut self, pages: impl Iterator<Item = (PageIndex, bool)>) -> usize {
        let mut rewritten = 0;
        let mut changed = pages.peekable();
        for held in &mut self.pages {
            if let Some((_, is_dense)) = changed.next_if(|(page, _)| *page == held.page) {
                rewritten += usize::from(held.changed_at != self.now);
                held.changed_at = self.now;
                held.is_dense = is_dense;
            }
        }
        rewritten
    }

    /// The pages, with what is known of them.
    pub(super) fn known(&self) -> impl Iterator<Item = Known> {
        self.pages.iter().map(|held| Known {
            page: held.page,
            is_dense: held.is_dense
                && !held
                    .page
                    .0
                    .wrapping_add(self.now)
                    .is_multiple_of(DOUBT_EVERY),
        })
    }

    pub(super) fn pages(&self) -> impl Iterator<Item = PageIndex> {
        self.pages.iter().map(|held| held.page)
    }

    pub(super) fn count(&self) -> usize {
        self.pages.len()
    }

    /// Forgets pages (rising) that were dropped from the view.
    pub(super) fn remove(&mut self, set: &PageSet, dropped: &[PageIndex]) {
        if dropped.is_empty() {
            return;
        }
        for &page in dropped {
            set.remove(page);
        }
        self.pages.retain(|held| set.contains(held.page));
    }

    /// The pages that have not changed for `age` chunks, in order.
    pub(super) fn colder_than(&self, age: u32) -> Vec<PageIndex> {
        let is_cold = |held: &&Held| self.now.wrapping_sub(held.changed_at) >= age;
        self.pages
            .iter()
            .filter(is_cold)
            .map(|held| held.page)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(held: &mut HeldPages, pages: &[u32]) -> usize {
        held.changed(pages.iter().map(|&page| (PageIndex(page), false)))
    }

    #[test]
    fn pages_that_were_held_before_the_chunk_are_written_without_a_fault() {
        let set = PageSet::new(100);
        let mut held = HeldPages::default();
        held.insert(&set, PageIndex(5));
        held.end_chunk();
        assert_eq!(changed(&mut held, &[5]), 0, "new in this chunk");
        held.insert(&set, PageIndex(6));
        held.end_chunk();
        assert_eq!(changed(&mut held, &[5, 6]), 1);
        held.end_chunk();
        assert_eq!(changed(&mut held, &[5, 6]), 2);
    }

    #[test]
    fn pages_age_until_they_change() {
        let set = PageSet::new(100);
        let mut held = HeldPages::default();
        for page in [7, 3, 99, 7] {
            held.insert(&set, PageIndex(page));
        }
        held.end_chunk();
        assert_eq!(
            held.pages().map(|page| page.0).collect::<Vec<_>>(),
            [3, 7, 99]
        );
        held.end_chunk();
        assert_eq!(changed(&mut held, &[3]), 1);
        let cold = held.colder_than(1);
        assert_eq!(cold, [PageIndex(7), PageIndex(99)]);
        held.remove(&set, &cold);
        assert_eq!(held.count(), 1);
        assert!(!set.contains(PageIndex(99)));
    }
}
