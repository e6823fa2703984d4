//! A view: one vCPU's private mapping of the image. The kernel's copy on write isolates it.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use samsara_commitlog::{ByteRunsBuilder, Gpa, PAGE_BYTES};

use super::diff::{ChangedWords, changed_words, differ_here_and_there, push_changed_runs};
use super::digest::page_digest;
use super::image::{Image, MemoryError};
use super::layout::{Layout, PageIndex};
use super::mapping::{Mapping, NoFaultAround, Sharing};
use super::residency::{self, Residency};
use super::translations::voids_translations;

/// A vCPU's private view of guest memory.
#[derive(Debug)]
pub struct View {
    image: Arc<Image>,
    pagemap: File,
    // Both refer to the mapping, so they are declared, and dropped, before it.
    no_fault_around: Option<NoFaultAround>,
    mapping: Mapping,
}

impl View {
    /// A view without any page of its own.
    ///
    /// Fails where the kernel cannot keep pages resident: without that the read set is not safe.
    pub fn new(image: &Arc<Image>) -> Result<Self, MemoryError> {
        let bytes = image.layout().bytes() as usize;
        let fail = |action| move |source| MemoryError::View { action, source };
        let mapping =
            Mapping::new(image.file(), bytes, Sharing::Private).map_err(fail("create"))?;
        mapping
            .forbid_huge_pages()
            .map_err(fail("split into small pages"))?;
        mapping
            .lock_on_fault()
            .map_err(fail("lock (is RLIMIT_MEMLOCK unlimited?)"))?;
        let pagemap = File::open("/proc/self/pagemap").map_err(MemoryError::Pagemap)?;
        let no_fault_around = NoFaultAround::new(&mapping).ok();
        Ok(Self {
            image: Arc::clone(image),
            pagemap,
            no_fault_around,
            mapping,
        })
    }

    /// Whether a fault maps only the page it is for. If not, neighbours count as read, which costs
    /// false conflicts, never correctness.
    pub fn faults_are_exact(&self) -> bool {
        self.no_fault_around.is_some()
    }

    /// Where memory is.
    pub fn layout(&self) -> Layout {
        self.image.layout()
    }

    /// Which words of a page differ from the image, if any do.
    pub fn changed_words(&self, page: PageIndex) -> Option<ChangedWords> {
        let (old, new) = (self.image.page(page), self.page(page));
        // SAFETY: two pages; the vCPU that could write the view's is not running, and a commit that
        // writes the image's makes the chunk stale.
        unsafe { changed_words(old.cast(), new.cast()) }
    }

    /// Whether some words of a page, from all over it, differ from the image. If none does, others may.
    pub fn differs_here_and_there(&self, page: PageIndex) -> bool {
        let (old, new) = (self.image.page(page), self.page(page));
        // SAFETY: as in `changed_words`.
        unsafe { differ_here_and_there(old.cast(), new.cast()) }
    }

    /// Adds the bytes of a page that differ from the image, in these words, to `out`.
    pub fn push_changes(&self, page: PageIndex, changed: &ChangedWords, out: &mut ByteRunsBuilder) {
        let (old, new) = (self.image.page(page), self.page(page));
        let address = self.layout().gpa_of(page).0;
        // SAFETY: as in `changed_words`.
        unsafe { push_changed_runs(address, old.cast(), new.cast(), changed, out) }
    }

    /// Adds a whole page to `out`, whatever of it differs from the image.
    pub fn push_page(&self, page: PageIndex, out: &mut ByteRunsBuilder) {
        // SAFETY: a page of the mapping; the vCPU that could write it is not running.
        let bytes = unsafe { std::slice::from_raw_parts(self.page(page), PAGE_BYTES) };
        out.push(self.layout().gpa_of(page).0, bytes);
    }

    /// The digest of a page as the view shows it.
    pub fn digest_page(&self, page: PageIndex) -> u128 {
        // SAFETY: a page of the mapping; the vCPU that could write it is not running.
        let bytes = unsafe { &*self.page(page).cast_const().cast() };
        page_digest(page, bytes)
    }

    /// The digest of a page in the image. A commit that changes it makes the chunk stale.
    pub fn digest_before(&self, page: PageIndex) -> u128 {
        self.image.digest_of(page)
    }

    /// Whether what was translated through this page, if it is one of page tables in long mode, may be wrong now that
    /// these words of it differ from the image.
    pub fn voids_translations(&self, page: PageIndex, changed: &ChangedWords) -> bool {
        let (old, new) = (self.image.page(page), self.page(page));
        // SAFETY: as in `changed_words`.
        unsafe { voids_translations(self.layout(), old.cast(), new.cast(), changed) }
    }

    /// Copies a private page into the image. The caller holds the commit lock, and the vCPU stands
    /// still.
    pub(crate) fn copy_to_image(&self, page: PageIndex) {
        // SAFETY: two mappings of 4096 bytes each; readers of the image without the commit
        // lock validate what they read.
        unsafe {
            std::ptr::copy_nonoverlapping(self.page(page), self.image.page(page), PAGE_BYTES);
        }
    }

    /// Makes a private page equal to the image again.
    pub fn refresh(&self, page: PageIndex) {
        if self.equals_image(page) {
            return;
        }
        let source = self.image.page(page);
        // SAFETY: two mappings of 4096 bytes each; the vCPU is not running, and a commit that races
        // with the copy lists the page as stale once more.
        unsafe { std::ptr::copy_nonoverlapping(source, self.page(page), PAGE_BYTES) };
    }

    /// Takes pages out of the view: the next access faults and sees the image. `pages` must rise.
    pub fn drop_pages(&self, pages: &[PageIndex]) -> Result<(), MemoryError> {
        let mut rest = pages;
        while let Some(&first) = rest.first() {
            let together = rest
                .iter()
                .enumerate()
                .take_while(|(i, page)| page.0 == first.0 + *i as u32);
            let count = together.count();
            self.mapping
                .drop_pages(first.offset(), count * PAGE_BYTES)
                .map_err(|source| MemoryError::View {
                    action: "drop pages of",
                    source,
                })?;
            rest = &rest[count..];
        }
        Ok(())
    }

    /// Tells what the page table says of each of `pages`, which must rise.
    pub fn residency(
        &self,
        pages: &[PageIndex],
        found: impl FnMut(PageIndex, Residency),
    ) -> Result<(), MemoryError> {
        residency::scan(&self.pagemap, self.mapping.base() as u64, pages, found)
    }

    /// Tells the pages of which the view has its own copy. Looks at the whole page table.
    pub fn private_pages(&self, mut found: impl FnMut(PageIndex)) -> Result<(), MemoryError> {
        let all: Vec<_> = (0..self.layout().page_count()).map(PageIndex).collect();
        self.residency(&all, |page, residency| {
            if residency == Residency::Private {
                found(page);
            }
        })
    }

    /// Copies bytes out of the view, at an offset of the memory file.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) {
        let source = self.mapping.at(offset, out.len());
        // SAFETY: the source lies in the mapping; the vCPU that could write it is not running.
        unsafe { std::ptr::copy_nonoverlapping(source, out.as_mut_ptr(), out.len()) };
    }

    pub(crate) fn host_address(&self, offset: u64) -> u64 {
        self.mapping.base() as u64 + offset
    }

    /// Loads the 8 bytes at an aligned address, as a made-up vCPU does.
    #[doc(hidden)]
    pub fn load(&self, gpa: Gpa) -> Result<u64, MemoryError> {
        Ok(self.word(gpa)?.load(Ordering::Relaxed))
    }

    /// Stores 8 bytes at an aligned address, as a made-up vCPU does.
    #[doc(hidden)]
    pub fn store(&self, gpa: Gpa, value: u64) -> Result<(), MemoryError> {
        self.word(gpa)?.store(value, Ordering::Relaxed);
        Ok(())
    }

    fn word(&self, gpa: Gpa) -> Result<&AtomicU64, MemoryError> {
        let offset = self
            .layout()
            .offset_of(gpa, 8)
            .filter(|_| gpa.0.is_multiple_of(8));
        let offset = offset.ok_or(MemoryError::Outside { gpa, bytes: 8 })?;
        let word: *mut u64 = self.mapping.at(offset, 8).cast();
        // SAFETY: an aligned word of the mapping, which outlives the result. Other threads copy
        // from the page or into it only while its vCPU, whose made-up code calls this, stands still.
        Ok(unsafe { AtomicU64::from_ptr(word) })
    }

    /// Whether a page of the view shows what the image has.
    pub fn equals_image(&self, page: PageIndex) -> bool {
        let image: *const u8 = self.image.page(page);
        let own: *const u8 = self.page(page);
        // SAFETY: both are 4096 bytes; racing commits are found by the caller's validation.
        unsafe { libc::memcmp(image.cast(), own.cast(), PAGE_BYTES) == 0 }
    }

    fn page(&self, page: PageIndex) -> *mut u8 {
        self.mapping.at(page.offset(), PAGE_BYTES)
    }
}
