//! Pages that have caused squashes lately. They are dropped from the view after each chunk that did
//! not change them, so that they count as read only when they were.

use samsara_machine::memory::PageIndex;

/// More would cost more faults than they save squashes.
const PAGES_MAX: usize = 64;
/// Commits without a squash after which a page is forgotten.
const FORGET_AFTER: u32 = 256;

/// The contended pages of one view.
#[derive(Debug, Default)]
pub(super) struct Contended {
    pages: Vec<(PageIndex, u32)>,
    now: u32,
}

impl Contended {
    /// A squash was caused by `page`.
    pub(super) fn insert(&mut self, page: PageIndex) {
        if let Some(known) = self.pages.iter_mut().find(|(known, _)| *known == page) {
            known.1 = self.now;
        } else if self.pages.len() < PAGES_MAX {
            self.pages.push((page, self.now));
        }
    }

    /// A chunk committed. Gives the pages, rising.
    pub(super) fn after_commit(&mut self) -> Vec<PageIndex> {
        self.now = self.now.wrapping_add(1);
        let now = self.now;
        self.pages
            .retain(|&(_, since)| now.wrapping_sub(since) < FORGET_AFTER);
        let mut pages: Vec<_> = self.pages.iter().map(|&(page, _)| page).collect();
        pages.sort_unstable();
        pages
    }
}
