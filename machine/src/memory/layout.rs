//! Where guest memory is: `[0, 3 GiB)` and, beyond that, from 4 GiB on.

use std::ops::Range;

use samsara_commitlog::{Gpa, PAGE_BYTES, Shape};

/// Start of the hole between low and high memory, where devices live.
pub const HOLE_START: u64 = 3 << 30;
/// End of the hole.
pub const HOLE_END: u64 = 4 << 30;

/// A page of guest memory, counted without the hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u32);

impl PageIndex {
    /// The page's first byte in the memory file.
    pub fn offset(self) -> usize {
        self.0 as usize * PAGE_BYTES
    }
}

/// Translates guest physical addresses to places in the memory file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    bytes: u64,
}

impl Layout {
    /// The layout of a machine's memory.
    pub fn new(shape: Shape) -> Self {
        Self {
            bytes: shape.memory_bytes,
        }
    }

    /// Bytes of memory.
    pub fn bytes(self) -> u64 {
        self.bytes
    }

    /// Pages of memory.
    pub fn page_count(self) -> u32 {
        (self.bytes / PAGE_BYTES as u64) as u32
    }

    /// The address ranges of memory with their offsets in the memory file, lowest first.
    pub fn regions(self) -> impl Iterator<Item = (Range<u64>, u64)> {
        let low = self.bytes.min(HOLE_START);
        let high = self.bytes - low;
        let high = (high > 0).then_some((HOLE_END..HOLE_END + high, low));
        std::iter::once((0..low, 0)).chain(high)
    }

    /// One past the highest address of memory.
    pub fn end(self) -> u64 {
        self.regions().last().map_or(0, |(range, _)| range.end)
    }

    /// The offset in the memory file of `[gpa, gpa + bytes)`, if all of it is memory without a
    /// hole in it.
    pub fn offset_of(self, gpa: Gpa, bytes: u64) -> Option<usize> {
        let end = gpa.0.checked_add(bytes)?;
        let low = self.bytes.min(HOLE_START);
        if end <= low {
            return Some(gpa.0 as usize);
        }
        let is_high = gpa.0 >= HOLE_END && end <= HOLE_END + (self.bytes - low);
        is_high.then(|| (gpa.0 - HOLE_END + low) as usize)
    }

    /// The page that holds `gpa`, if it is memory.
    pub fn page_of(self, gpa: Gpa) -> Option<PageIndex> {
        self.offset_of(gpa, 1)
            .map(|offset| PageIndex((offset / PAGE_BYTES) as u32))
    }

    /// The guest physical address of a page.
    pub fn gpa_of(self, page: PageIndex) -> Gpa {
        let offset = page.offset() as u64;
        if offset < HOLE_START {
            Gpa(offset)
        } else {
            Gpa(offset - HOLE_START + HOLE_END)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_continues_above_the_hole() {
        let layout = Layout::new(Shape {
            vcpu_count: 1,
            memory_bytes: 5 << 30,
        });
        assert_eq!(layout.page_of(Gpa(HOLE_START)), None);
        assert_eq!(layout.offset_of(Gpa(HOLE_START - 8), 16), None);
        let page = layout.page_of(Gpa(HOLE_END + 4096)).unwrap();
        assert_eq!(page.offset() as u64, HOLE_START + 4096);
        assert_eq!(layout.gpa_of(page), Gpa(HOLE_END + 4096));
        assert_eq!(layout.end(), HOLE_END + (2 << 30));
        assert_eq!(layout.offset_of(Gpa(u64::MAX), 2), None);
    }
}
