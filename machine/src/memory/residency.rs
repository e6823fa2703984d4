//! Residency: which pages of a view its page table holds. It is the read set of a chunk.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::image::MemoryError;
use super::layout::PageIndex;

const ENTRY_BYTES: usize = 8;
const PRESENT: u64 = 1 << 63;
/// Swapped out, or being migrated: it was touched, so it counts.
const NOT_PRESENT_BUT_USED: u64 = 1 << 62;
const FILE_PAGE: u64 = 1 << 61;
/// Pages not asked for that are read along to save a system call.
const GAP_PAGES: u32 = 32;
/// Entries in one read.
const RUN_PAGES: u32 = 512;

/// What a view's page table says of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// No entry: the vCPU has not touched it since it was last dropped.
    Absent,
    /// The image's own page: it may have been read, and always shows the image.
    Image,
    /// A private copy: it may have been read and written, and does not follow the image.
    Private,
}

impl Residency {
    fn from_entry(entry: u64) -> Self {
        if entry & (PRESENT | NOT_PRESENT_BUT_USED) == 0 {
            Self::Absent
        } else if entry & FILE_PAGE != 0 {
            Self::Image
        } else {
            Self::Private
        }
    }
}

/// Reads page table entries of a mapping at `base` for `pages`, which must rise.
pub(super) fn scan(
    pagemap: &File,
    base: u64,
    pages: &[PageIndex],
    mut found: impl FnMut(PageIndex, Residency),
) -> Result<(), MemoryError> {
    let mut buffer = [0u8; RUN_PAGES as usize * ENTRY_BYTES];
    let mut rest = pages;
    while let Some(&first) = rest.first() {
        let count = run_length(rest);
        let (run, tail) = rest.split_at(count);
        rest = tail;
        let span = (run[count - 1].0 - first.0 + 1) as usize;
        let entries = &mut buffer[..span * ENTRY_BYTES];
        let position = (base / 4096 + u64::from(first.0)) * ENTRY_BYTES as u64;
        pagemap
            .read_exact_at(entries, position)
            .map_err(MemoryError::Pagemap)?;
        for &page in run {
            let at = (page.0 - first.0) as usize * ENTRY_BYTES;
            let mut entry = [0; ENTRY_BYTES];
            entry.copy_from_slice(&entries[at..at + ENTRY_BYTES]);
            found(page, Residency::from_entry(u64::from_le_bytes(entry)));
        }
    }
    Ok(())
}

/// How many of `pages` (not empty, rising) one read takes in.
fn run_length(pages: &[PageIndex]) -> usize {
    let first = pages[0].0;
    let mut count = 1;
    while let Some(next) = pages.get(count) {
        let previous = pages[count - 1].0;
        debug_assert!(next.0 > previous, "pages must rise");
        if next.0 - previous > GAP_PAGES || next.0 - first >= RUN_PAGES {
            break;
        }
        count += 1;
    }
    count
}
