//! Digest of guest memory: the sum of its pages' digests, kept up to date page by page.

use std::sync::atomic::{AtomicU64, Ordering};

use samsara_commitlog::PAGE_BYTES;
use twox_hash::{XxHash3_64, XxHash3_128};

use super::image::Image;
use super::layout::PageIndex;

/// xxh3-64 of some bytes.
pub fn bytes_digest(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// Digest of a page's place and contents. A page of zeros counts as nothing, so memory that was never touched need not
/// be read.
pub(super) fn page_digest(page: PageIndex, bytes: &[u8; PAGE_BYTES]) -> u128 {
    if bytes
        .as_chunks::<64>()
        .0
        .iter()
        .all(|part| *part == [0; 64])
    {
        return 0;
    }
    XxHash3_128::oneshot_with_seed(page.0.into(), bytes)
}

/// The digests of all pages, 16 bytes each. Only whoever holds the commit lock writes them; others may read them at any
/// time, and must not trust what they read before they have checked that no commit came between.
#[derive(Debug)]
pub(super) struct PageDigests(Box<[[AtomicU64; 2]]>);

impl PageDigests {
    /// Those of zeros.
    pub(super) fn new(page_count: u32) -> Self {
        // Zeros that the kernel gives when they are touched: most pages of a large machine never are.
        let zeros = Box::new_zeroed_slice(page_count as usize);
        // SAFETY: an integer may be zero.
        Self(unsafe { zeros.assume_init() })
    }

    pub(super) fn get(&self, page: PageIndex) -> u128 {
        let [low, high] = &self.0[page.0 as usize];
        let [low, high] = [low, high].map(|half| u128::from(half.load(Ordering::Relaxed)));
        high << 64 | low
    }

    fn set(&self, page: PageIndex, digest: u128) {
        let [low, high] = &self.0[page.0 as usize];
        low.store(digest as u64, Ordering::Relaxed);
        high.store((digest >> 64) as u64, Ordering::Relaxed);
    }
}

/// The digest of an image, for whoever commits to it.
#[derive(Debug)]
pub struct MemoryDigest(u128);

impl MemoryDigest {
    /// The digest of an image as it is.
    pub fn new(image: &Image) -> Self {
        let mut digest = Self(0);
        for page in image.touched_pages() {
            let found = image.digest_page(page);
            image.digests().set(page, found);
            digest.0 = digest.0.wrapping_add(found);
        }
        digest
    }

    /// A page has changed, and its digest is this now.
    pub fn replace(&mut self, image: &Image, page: PageIndex, digest: u128) {
        let digests = image.digests();
        self.0 = self.0.wrapping_sub(digests.get(page)).wrapping_add(digest);
        digests.set(page, digest);
    }

    /// A page has changed.
    pub fn refresh(&mut self, image: &Image, page: PageIndex) {
        self.replace(image, page, image.digest_page(page));
    }

    /// The digest of the memory as it is now.
    pub fn get(&self) -> u128 {
        self.0
    }
}
