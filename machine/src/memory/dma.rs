//! Which pages devices write: rust-vmm's crates store through `vm-memory`, which tells a bitmap.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use samsara_commitlog::PAGE_BYTES;
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use super::layout::PageIndex;

/// Guest memory as rust-vmm's crates know it, with a log of what is written through it.
pub type GuestMemory = GuestMemoryMmap<DmaLog>;

/// The pages that were written since somebody last took them. Clones share one log.
///
/// A list and not a bitmap: a device writes a handful of pages at a time, and a bitmap of all of
/// memory would have to be searched for them.
#[derive(Clone, Debug, Default)]
pub struct DmaLog {
    pages: Arc<Mutex<Vec<PageIndex>>>,
    /// Where the logged part of memory starts, in the memory file.
    base: usize,
}

impl DmaLog {
    /// The same log, for the part of memory from this offset on.
    pub(super) fn at_offset(&self, base: usize) -> Self {
        Self {
            pages: Arc::clone(&self.pages),
            base,
        }
    }

    /// Adds what was written since the last call to `written`; pages may repeat.
    pub(super) fn take(&self, written: &mut Vec<PageIndex>) {
        written.append(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PageIndex>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WithBitmapSlice<'_> for DmaLog {
    type S = Self;
}

impl BitmapSlice for DmaLog {}

impl Bitmap for DmaLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let start = self.base + offset;
        let pages = (start / PAGE_BYTES) as u32..(start + len).div_ceil(PAGE_BYTES) as u32;
        let mut log = self.lock();
        for page in pages.map(PageIndex) {
            if log.last() != Some(&page) {
                log.push(page);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = PageIndex(((self.base + offset) / PAGE_BYTES) as u32);
        self.lock().contains(&page)
    }

    fn slice_at(&self, offset: usize) -> Self {
        self.at_offset(self.base + offset)
    }
}

#[cfg(test)]
mod tests {
    use samsara_commitlog::Shape;
    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::memory::Image;

    #[test]
    fn what_devices_write_is_noted_by_page() {
        let image = Image::new(Shape {
            vcpu_count: 1,
            memory_bytes: 16 << 20,
        });
        let image = image.unwrap();
        let memory = image.guest_memory();
        memory.write_slice(&[1; 10], GuestAddress(0x1ffb)).unwrap();
        memory.write_obj(7_u64, GuestAddress(0x9000)).unwrap();
        let mut written = Vec::new();
        image.take_dma(&mut written);
        assert_eq!(written, [PageIndex(1), PageIndex(2), PageIndex(9)]);
        written.clear();
        image.take_dma(&mut written);
        assert!(written.is_empty());
    }
}
