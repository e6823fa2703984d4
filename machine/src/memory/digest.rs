//! Digest of guest memory, kept up to date page by page.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use super::diff::PageCopy;
use super::image::Image;
use super::layout::PageIndex;

/// xxh3-64 of some bytes.
pub fn bytes_digest(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The sum of all pages' digests. Only pages that changed since the last look are digested again,
/// so a digest of the whole costs what was written, not what there is.
///
/// Holds 16 bytes a page.
#[derive(Debug)]
pub struct MemoryDigest {
    pages: Vec<u128>,
    changed: Vec<PageIndex>,
    is_changed: Vec<bool>,
    sum: u128,
}

impl MemoryDigest {
    /// The digest of an image: every page that was ever touched is to be looked at.
    pub fn new(image: &Image) -> Self {
        let count = image.layout().page_count() as usize;
        let mut digest = Self {
            pages: vec![0; count],
            changed: Vec::new(),
            is_changed: vec![false; count],
            sum: 0,
        };
        image.touched_pages().for_each(|page| digest.mark(page));
        digest
    }

    /// Notes that a page has changed.
    pub fn mark(&mut self, page: PageIndex) {
        let is_changed = &mut self.is_changed[page.0 as usize];
        if !*is_changed {
            *is_changed = true;
            self.changed.push(page);
        }
    }

    /// The digest of the memory as it is now.
    pub fn update(&mut self, image: &Image) -> u128 {
        let mut copy = PageCopy::zeroed();
        for page in self.changed.drain(..) {
            image.copy_page(page, &mut copy);
            let digest = page_digest(page, &copy);
            let slot = &mut self.pages[page.0 as usize];
            self.sum = self.sum.wrapping_sub(*slot).wrapping_add(digest);
            *slot = digest;
            self.is_changed[page.0 as usize] = false;
        }
        self.sum
    }
}

/// A page of zeros counts as nothing, so memory that was never touched need not be read.
fn page_digest(page: PageIndex, copy: &PageCopy) -> u128 {
    if copy.0.iter().all(|&word| word == 0) {
        return 0;
    }
    xxh3_128_with_seed(copy.as_bytes(), u64::from(page.0))
}
