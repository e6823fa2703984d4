//! Which changes of memory change what a processor may have translated.
//!
//! Any page may be one of page tables. Looked at is only what pages have in them: whether a page is one of tables that
//! are in use would have to be known of all roots that a hypervisor may still keep.

use samsara_commitlog::PAGE_BYTES;

use super::diff::ChangedWords;
use super::layout::{HOLE_END, Layout};

const WORDS: usize = PAGE_BYTES / 8;
const PRESENT: u64 = 1 << 0;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A page that may have entries of long-mode page tables in it.
struct Table {
    words: *const u64,
    /// At and above this physical address there is nothing: neither memory nor, below 4 GiB, devices.
    end: u64,
}

impl Table {
    fn word(&self, at: usize) -> u64 {
        debug_assert!(at < WORDS);
        // SAFETY: a word of the page, of which `voids_translations` was promised that it is readable.
        unsafe { self.words.wrapping_add(at).read_volatile() }
    }

    fn leads_somewhere(&self, entry: u64) -> bool {
        entry & ADDRESS < self.end
    }

    /// Whether a translation may have been made by this entry, and kept: none is before it is marked as accessed.
    fn may_be_kept(&self, entry: u64) -> bool {
        const USED: u64 = PRESENT | ACCESSED;
        entry & USED == USED && self.leads_somewhere(entry)
    }

    /// Whether it looks like a page of tables: all that is present leads somewhere. Other data does not look so for long:
    /// it has pointers and texts in it.
    fn is_one(&self) -> bool {
        let mut words = (0..WORDS).map(|at| self.word(at));
        words.all(|word| word & PRESENT == 0 || self.leads_somewhere(word))
    }

    fn is_in_use(&self) -> bool {
        (0..WORDS).any(|at| self.may_be_kept(self.word(at)))
    }
}

/// Whether translations that were right with a page's old contents may be wrong with its new ones, if it is a page of page
/// tables in long mode.
///
/// # Safety
/// Both are readable pages. They may change meanwhile: the answer then tells nothing.
pub(super) unsafe fn voids_translations(
    layout: Layout,
    old: *const u64,
    new: *const u64,
    changed: &ChangedWords,
) -> bool {
    let end = layout.end().max(HOLE_END);
    let [old, new] = [old, new].map(|words| Table { words, end });
    let is_void = |at| {
        let (old_entry, new_entry) = (old.word(at), new.word(at));
        // A processor marks the entries that it uses.
        old.may_be_kept(old_entry) && new_entry != old_entry | new_entry & DIRTY
    };
    // What stops to look like tables is not followed any more, so whatever was kept must go.
    let stops = || !new.is_one() && old.is_in_use();
    old.is_one() && (changed.iter().any(is_void) || stops())
}

#[cfg(test)]
mod tests {
    use samsara_commitlog::Shape;

    use super::super::diff::{PageCopy, changed_words};
    use super::*;

    const LARGE: u64 = 1 << 7;
    const NO_EXECUTE: u64 = 1 << 63;
    const USED: u64 = PRESENT | ACCESSED;

    /// Whether translations become void when a page with these words, and no others, gets those.
    fn voids(old: &[(usize, u64)], new: &[(usize, u64)]) -> bool {
        let layout = Layout::new(Shape {
            vcpu_count: 1,
            memory_bytes: 16 << 20,
        });
        let [old, new] = [old, new].map(|words| {
            let mut page = PageCopy::zeroed();
            for &(at, word) in words {
                page.0[at] = word;
            }
            page
        });
        let (old, new) = (old.0.as_ptr(), new.0.as_ptr());
        // SAFETY: two pages of our own.
        let changed = unsafe { changed_words(old, new) }.unwrap();
        // SAFETY: as above.
        unsafe { voids_translations(layout, old, new, &changed) }
    }

    #[test]
    fn an_entry_that_may_be_kept_goes() {
        let entry = 0x12_3000 | USED;
        for old in [
            entry,
            entry | DIRTY | NO_EXECUTE,
            entry & !ADDRESS | LARGE,
            0xfee0_0000 | USED,
        ] {
            assert!(voids(&[(511, old)], &[(511, 0)]), "{old:x}");
            assert!(voids(&[(511, old)], &[(511, old ^ NO_EXECUTE)]), "{old:x}");
            assert!(voids(&[(511, old)], &[(511, old & !ACCESSED)]), "{old:x}");
            assert!(
                voids(&[(0, old), (7, 0)], &[(0, old + 0x1000), (7, entry)]),
                "{old:x}"
            );
        }
        assert!(voids(&[(3, entry | DIRTY)], &[(3, entry)]));
    }

    #[test]
    fn what_cannot_be_kept_may_go() {
        let entry = 0x12_3000 | USED;
        // Nothing was there; it was swapped out; it was not used yet.
        assert!(!voids(&[(4, entry)], &[(4, entry), (5, entry)]));
        assert!(!voids(&[(5, 0x7_7000 | ACCESSED)], &[(5, entry)]));
        assert!(!voids(&[(5, 0x7_7000 | PRESENT)], &[(5, entry)]));
        // The processor marked what it used.
        assert!(!voids(
            &[(5, 0x7_7000 | PRESENT)],
            &[(5, 0x7_7000 | USED | DIRTY)]
        ));
        assert!(!voids(&[(5, entry)], &[(5, entry | DIRTY)]));
        // It led to where nothing is.
        assert!(!voids(&[(5, 1 << 32 | USED)], &[(5, 0)]));
    }

    #[test]
    fn other_data_does_not_look_like_tables() {
        const POINTER: u64 = 0xffff_8880_0123_4021;
        let entry = 0x12_3000 | USED;
        assert!(!voids(&[(5, entry), (9, POINTER)], &[(9, POINTER)]));
        // A page that stops to look so has entries that nobody follows from then on.
        assert!(voids(&[(5, entry)], &[(5, entry), (9, POINTER)]));
        assert!(!voids(&[(5, 0x12_3000)], &[(5, entry), (9, POINTER)]));
        assert!(!voids(&[(9, POINTER)], &[(5, entry)]));
    }
}
