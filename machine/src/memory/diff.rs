//! Finding the bytes that differ between two pages.

use std::arch::x86_64 as arch;

use samsara_commitlog::{ByteRunsBuilder, PAGE_BYTES};

const WORDS: usize = PAGE_BYTES / 8;

/// A private copy of a page, taken so that it can be looked at as ordinary memory.
#[repr(C, align(64))]
pub(crate) struct PageCopy(pub(crate) [u64; WORDS]);

impl PageCopy {
    pub(crate) fn zeroed() -> Self {
        Self([0; WORDS])
    }
}

/// Words whose comparison is kept in one mask.
const GROUP: usize = 64;
type Masks = [u64; WORDS / GROUP];

/// Which words of a page differ from another's: at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedWords(Masks);

/// A word of a page that may change meanwhile.
///
/// # Safety
/// The page is readable, and has the word.
unsafe fn word(page: *const u64, at: usize) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { page.wrapping_add(at).read_volatile() }
}

/// Words between two that are looked at by [`differ_here_and_there`].
const STRIDE: usize = 61;

/// Whether some words, from all over the pages, differ. If none does, others may.
///
/// # Safety
/// Both are readable pages. They may change meanwhile: the answer then tells nothing.
pub(crate) unsafe fn differ_here_and_there(old: *const u64, new: *const u64) -> bool {
    (STRIDE / 2..WORDS).step_by(STRIDE).any(|at| {
        // SAFETY: words of the pages.
        let old = unsafe { word(old, at) };
        // SAFETY: as above.
        old != unsafe { word(new, at) }
    })
}

/// Which words differ, if any do.
///
/// # Safety
/// Both are readable pages. They may change meanwhile: the answer then tells nothing.
pub(crate) unsafe fn changed_words(old: *const u64, new: *const u64) -> Option<ChangedWords> {
    let masks = if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2; the pages are as the caller says.
        unsafe { changed_words_avx2(old, new) }
    } else {
        // SAFETY: as above.
        unsafe { changed_words_anywhere(old, new) }
    };
    (masks != Masks::default()).then_some(ChangedWords(masks))
}

/// See [`changed_words`].
unsafe fn changed_words_anywhere(old: *const u64, new: *const u64) -> Masks {
    std::array::from_fn(|group| {
        (0..GROUP).fold(0, |mask, bit| {
            let at = group * GROUP + bit;
            // SAFETY: words of the pages.
            let old = unsafe { word(old, at) };
            // SAFETY: as above.
            let differs = old != unsafe { word(new, at) };
            mask | (u64::from(differs) << bit)
        })
    })
}

/// See [`changed_words`].
#[target_feature(enable = "avx2")]
unsafe fn changed_words_avx2(old: *const u64, new: *const u64) -> Masks {
    const LANES: usize = 4;
    std::array::from_fn(|group| {
        (0..GROUP / LANES).fold(0, |mask, step| {
            let at = group * GROUP + step * LANES;
            let (old, new) = (old.wrapping_add(at), new.wrapping_add(at));
            // SAFETY: four words of the page.
            let old = unsafe { arch::_mm256_loadu_si256(old.cast()) };
            // SAFETY: four words of the page.
            let new = unsafe { arch::_mm256_loadu_si256(new.cast()) };
            let equal = arch::_mm256_cmpeq_epi64(old, new);
            let equal = arch::_mm256_movemask_pd(arch::_mm256_castsi256_pd(equal));
            mask | (u64::from(!equal as u8 & 0xf) << (step * LANES))
        })
    })
}

/// Adds the runs of page `new` that differ from page `old` to `out`, at `address` and up. `changed`
/// are the words that differ: neighbouring ones are one run; its ends are trimmed to the byte.
///
/// # Safety
/// Both are readable pages, and nobody writes `new`. Writes to `old` since they were compared make
/// the runs wrong, nothing worse.
pub(crate) unsafe fn push_changed_runs(
    address: u64,
    old: *const u64,
    new: *const u64,
    changed: &ChangedWords,
    out: &mut ByteRunsBuilder,
) {
    // SAFETY: a page that nobody writes.
    let bytes = unsafe { std::slice::from_raw_parts(new.cast::<u8>(), PAGE_BYTES) };
    // Nothing if somebody wrote `old` since.
    let difference = |at| {
        // SAFETY: words of the pages.
        let old = unsafe { word(old, at) };
        // SAFETY: as above.
        old ^ unsafe { word(new, at) }
    };
    let mut at = 0;
    loop {
        let first = changed.next(at, true);
        if first == WORDS {
            break;
        }
        at = changed.next(first, false);
        let last = at - 1;
        let head = difference(first).trailing_zeros() as usize / 8;
        let tail = difference(last).leading_zeros() as usize / 8;
        let (start, end) = (first * 8 + head, last * 8 + 8 - tail);
        if start < end {
            out.push(address + start as u64, &bytes[start..end]);
        }
    }
}

impl ChangedWords {
    /// The places of the words that have changed.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        let groups = (0..).step_by(GROUP).zip(self.0);
        groups.flat_map(|(base, mask)| {
            (0..GROUP).filter_map(move |bit| (mask >> bit & 1 != 0).then_some(base + bit))
        })
    }

    /// How many words have changed.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|mask| mask.count_ones()).sum()
    }

    /// The first word from `at` on that has changed, or has not; one past the last if there is none.
    fn next(&self, at: usize, has_changed: bool) -> usize {
        let flip = if has_changed { 0 } else { u64::MAX };
        let mut from = at % GROUP;
        for group in at / GROUP..self.0.len() {
            let rest = (self.0[group] ^ flip) >> from;
            if rest != 0 {
                return group * GROUP + from + rest.trailing_zeros() as usize;
            }
            from = 0;
        }
        WORDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(changes: &[(usize, u8)]) -> Vec<(u64, Vec<u8>)> {
        let old = PageCopy::zeroed();
        let mut bytes = [0u8; PAGE_BYTES];
        for &(at, value) in changes {
            bytes[at] = value;
        }
        let mut new = PageCopy::zeroed();
        for (word, chunk) in new.0.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().unwrap());
        }
        let mut out = ByteRunsBuilder::default();
        let (old, new) = (old.0.as_ptr(), new.0.as_ptr());
        // SAFETY: two pages of our own.
        let words = unsafe { changed_words(old, new) };
        assert_eq!(words.is_some(), !changes.is_empty());
        if let Some(words) = words {
            // SAFETY: as above.
            unsafe { push_changed_runs(0x1000, old, new, &words, &mut out) };
        }
        out.finish()
            .iter()
            .map(|(address, bytes)| (address, bytes.to_vec()))
            .collect()
    }

    #[test]
    fn both_ways_of_comparing_agree() {
        let (old, mut new) = (PageCopy::zeroed(), PageCopy::zeroed());
        for word in [0, 3, 64, 255, 256, 510, 511] {
            new.0[word] = 1 << (word % 64);
        }
        let (old, new) = (old.0.as_ptr(), new.0.as_ptr());
        // SAFETY: two pages of our own.
        let ChangedWords(found) = unsafe { changed_words(old, new) }.unwrap();
        // SAFETY: as above.
        assert_eq!(found, unsafe { changed_words_anywhere(old, new) });
        assert_eq!(found.iter().map(|mask| mask.count_ones()).sum::<u32>(), 7);
    }

    #[test]
    fn runs_are_trimmed_to_the_byte() {
        assert_eq!(runs(&[]), vec![]);
        assert_eq!(runs(&[(13, 7)]), vec![(0x100d, vec![7])]);
        assert_eq!(runs(&[(7, 1), (8, 2)]), vec![(0x1007, vec![1, 2])]);
        assert_eq!(runs(&[(511, 1), (512, 2)]), vec![(0x11ff, vec![1, 2])]);
        let all: Vec<_> = (0..PAGE_BYTES).map(|at| (at, 1)).collect();
        assert_eq!(runs(&all), vec![(0x1000, vec![1; PAGE_BYTES])]);
        assert_eq!(
            runs(&[(0, 1), (4095, 2)]),
            vec![(0x1000, vec![1]), (0x1fff, vec![2])]
        );
    }
}
