//! Finding the bytes that differ between two pages.

use samsara_commitlog::{ByteRunsBuilder, PAGE_BYTES};

const WORDS: usize = PAGE_BYTES / 8;

/// A private copy of a page, taken so that it can be looked at as ordinary memory.
#[repr(C, align(64))]
pub(crate) struct PageCopy(pub(crate) [u64; WORDS]);

impl PageCopy {
    pub(crate) fn zeroed() -> Self {
        Self([0; WORDS])
    }

    pub(crate) fn as_bytes(&self) -> &[u8; PAGE_BYTES] {
        // SAFETY: same size, weaker alignment, every bit pattern is valid.
        unsafe { &*(&raw const self.0).cast() }
    }
}

/// Words whose comparison is kept in one mask.
const GROUP: usize = 64;

/// One bit a word: which differ.
fn changed_words(old: &PageCopy, new: &PageCopy) -> [u64; WORDS / GROUP] {
    let mut masks = [0; WORDS / GROUP];
    let groups = old.0.chunks_exact(GROUP).zip(new.0.chunks_exact(GROUP));
    for (mask, (old, new)) in masks.iter_mut().zip(groups) {
        for (bit, (old, new)) in old.iter().zip(new).enumerate() {
            *mask |= u64::from(old != new) << bit;
        }
    }
    masks
}

/// Adds the runs of `new` that differ from `old` to `out`, at `address` and up. Neighbouring
/// changed words of a group are one run; its ends are trimmed to the byte.
pub(crate) fn push_changed_runs(
    address: u64,
    old: &PageCopy,
    new: &PageCopy,
    out: &mut ByteRunsBuilder,
) {
    for (group, mut mask) in changed_words(old, new).into_iter().enumerate() {
        while mask != 0 {
            let first_bit = mask.trailing_zeros();
            let count = (mask >> first_bit).trailing_ones();
            mask &= u64::MAX.checked_shl(first_bit + count).unwrap_or(0);
            let first = group * GROUP + first_bit as usize;
            let last = first + count as usize - 1;
            let head = (old.0[first] ^ new.0[first]).trailing_zeros() as usize / 8;
            let tail = (old.0[last] ^ new.0[last]).leading_zeros() as usize / 8;
            let start = first * 8 + head;
            out.push(
                address + start as u64,
                &new.as_bytes()[start..last * 8 + 8 - tail],
            );
        }
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
        push_changed_runs(0x1000, &old, &new, &mut out);
        out.finish()
            .iter()
            .map(|(address, bytes)| (address, bytes.to_vec()))
            .collect()
    }

    #[test]
    fn runs_are_trimmed_to_the_byte() {
        assert_eq!(runs(&[]), vec![]);
        assert_eq!(runs(&[(13, 7)]), vec![(0x100d, vec![7])]);
        assert_eq!(runs(&[(7, 1), (8, 2)]), vec![(0x1007, vec![1, 2])]);
        assert_eq!(
            runs(&[(0, 1), (4095, 2)]),
            vec![(0x1000, vec![1]), (0x1fff, vec![2])]
        );
    }
}
