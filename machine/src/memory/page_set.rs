//! A set of pages that is filled page by page and taken whole.

use super::layout::{Layout, PageIndex};

/// Pages of one memory, each once.
#[derive(Debug)]
pub struct PageSet {
    is_in: Vec<bool>,
    pages: Vec<PageIndex>,
}

impl PageSet {
    /// No pages of this memory.
    pub fn new(layout: Layout) -> Self {
        Self {
            is_in: vec![false; layout.page_count() as usize],
            pages: Vec::new(),
        }
    }

    /// Adds a page.
    pub fn insert(&mut self, page: PageIndex) {
        if !std::mem::replace(&mut self.is_in[page.0 as usize], true) {
            self.pages.push(page);
        }
    }

    /// The pages, rising; none are left.
    pub fn take(&mut self) -> Vec<PageIndex> {
        let mut pages = std::mem::take(&mut self.pages);
        for page in &pages {
            self.is_in[page.0 as usize] = false;
        }
        pages.sort_unstable();
        pages
    }
}

#[cfg(test)]
mod tests {
    use samsara_commitlog::Shape;

    use super::*;

    #[test]
    fn every_page_is_taken_once() {
        let mut set = PageSet::new(Layout::new(Shape {
            vcpu_count: 1,
            memory_bytes: 16 << 20,
        }));
        for page in [7, 3, 7, 4095, 3] {
            set.insert(PageIndex(page));
        }
        assert_eq!(set.take(), [3, 7, 4095].map(PageIndex));
        set.insert(PageIndex(7));
        assert_eq!(set.take(), [PageIndex(7)]);
        assert_eq!(set.take(), []);
    }
}
