//! The few pages that keep causing squashes: locks, queues, barriers. They are dropped from the view
//! after each chunk that did not change them, so that they count as read only when they were.
//!
//! Dropping costs a fault when the page is touched again, so this is for a handful of pages that come up
//! again and again, not for data that changes hands now and then.

use samsara_machine::memory::PageIndex;

/// So many pages at most.
const PAGES_MAX: usize = 8;
/// Squashes after which a page is one of them.
const SQUASHES: u32 = 2;
/// Commits after its last squash until it is forgotten.
const FORGET_AFTER: u32 = 128;

#[derive(Clone, Copy, Debug)]
struct Cause {
    page: PageIndex,
    squashes: u32,
    last: u32,
}

/// The contended pages of one view.
#[derive(Debug, Default)]
pub(super) struct Contended {
    causes: Vec<Cause>,
    now: u32,
}

impl Contended {
    /// A squash was caused by `pages`. Many at once are data, not a lock.
    pub(super) fn squashed(&mut self, pages: impl ExactSizeIterator<Item = PageIndex>) {
        if pages.len() > PAGES_MAX {
            return;
        }
        for page in pages {
            let now = self.now;
            if let Some(known) = self.causes.iter_mut().find(|known| known.page == page) {
                known.squashes += 1;
                known.last = now;
            } else if self.causes.len() < PAGES_MAX {
                self.causes.push(Cause {
                    page,
                    squashes: 1,
                    last: now,
                });
            }
        }
    }

    /// A chunk committed that changed some pages. Gives the others that are to be dropped, rising.
    pub(super) fn after_commit(
        &mut self,
        has_changed: impl Fn(PageIndex) -> bool,
    ) -> Vec<PageIndex> {
        self.now = self.now.wrapping_add(1);
        let now = self.now;
        self.causes
            .retain(|cause| now.wrapping_sub(cause.last) < FORGET_AFTER);
        let contended = self
            .causes
            .iter()
            .filter(|cause| cause.squashes >= SQUASHES);
        let mut pages: Vec<_> = contended
            .map(|cause| cause.page)
            .filter(|&page| !has_changed(page))
            .collect();
        pages.sort_unstable();
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(numbers: &[u32]) -> Vec<PageIndex> {
        numbers.iter().copied().map(PageIndex).collect()
    }

    #[test]
    fn a_page_is_contended_from_its_second_squash_until_it_has_been_quiet() {
        let mut contended = Contended::default();
        contended.squashed(pages(&[7, 3]).into_iter());
        assert_eq!(contended.after_commit(|_| false), []);
        contended.squashed(pages(&[7]).into_iter());
        assert_eq!(contended.after_commit(|_| false), pages(&[7]));
        assert_eq!(
            contended.after_commit(|page| page.0 == 7),
            [],
            "it was used"
        );
        for _ in 0..FORGET_AFTER {
            contended.after_commit(|_| false);
        }
        contended.squashed(pages(&[7]).into_iter());
        assert_eq!(contended.after_commit(|_| false), [], "forgotten");
    }

    #[test]
    fn data_that_changes_hands_is_not_contended() {
        let mut contended = Contended::default();
        for _ in 0..3 {
            contended.squashed((0..100).map(PageIndex).collect::<Vec<_>>().into_iter());
        }
        assert_eq!(contended.after_commit(|_| false), []);
    }
}
