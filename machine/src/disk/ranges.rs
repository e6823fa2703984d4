//! Which parts of a disk were changed, in ranges of fixed size.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a range: what is compared and sent as one. Small enough that a guest's small write costs
/// little to repeat elsewhere, large enough that the marks of a terabyte take 2 MiB.
pub const RANGE_BYTES: u64 = 64 << 10;

const WORD_BITS: u64 = u64::BITS as u64;

/// A range of a disk by its place: it starts at byte `index * RANGE_BYTES`. The last one of a disk
/// may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RangeIndex(pub u32);

impl RangeIndex {
    /// Where it starts.
    pub fn offset(self) -> u64 {
        u64::from(self.0) * RANGE_BYTES
    }
}

/// How many ranges a disk of this size has.
pub fn range_count(disk_bytes: u64) -> u32 {
    u32::try_from(disk_bytes.div_ceil(RANGE_BYTES)).unwrap_or(u32::MAX)
}

/// A set of a disk's ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    words: Vec<u64>,
}

impl RangeSet {
    /// An empty set for a disk of `count` ranges.
    pub fn new(count: u32) -> Self {
        Self {
            words: vec![0; u64::from(count).div_ceil(WORD_BITS) as usize],
        }
    }

    /// Adds a range. One that the disk does not have is ignored.
    pub fn insert(&mut self, range: RangeIndex) {
        let (word, bit) = place(range.0);
        if let Some(word) = self.words.get_mut(word) {
            *word |= bit;
        }
    }

    /// Whether it has this range.
    pub fn contains(&self, range: RangeIndex) -> bool {
        let (word, bit) = place(range.0);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Adds all of `other`, a set of the same disk's ranges.
    pub fn union(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// How many it has.
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Its ranges, rising.
    pub fn iter(&self) -> impl Iterator<Item = RangeIndex> {
        let words = (0u32..).zip(&self.words);
        words.flat_map(|(index, &word)| {
            let bits = (0..u64::BITS).filter(move |bit| word >> bit & 1 != 0);
            bits.map(move |bit| RangeIndex(index * u64::BITS + bit))
        })
    }

    /// Its ranges as runs of neighbours, each of at most `longest`: first range and count.
    pub fn runs(&self, longest: u32) -> impl Iterator<Item = (RangeIndex, u32)> {
        let mut ranges = self.iter().peekable();
        std::iter::from_fn(move || {
            let first = ranges.next()?;
            let mut count = 1;
            while count < longest
                && ranges
                    .next_if(|next| first.0.checked_add(count) == Some(next.0))
                    .is_some()
            {
                count += 1;
            }
            Some((first, count))
        })
    }
}

fn place(range: u32) -> (usize, u64) {
    let range = u64::from(range);
    ((range / WORD_BITS) as usize, 1 << (range % WORD_BITS))
}

/// The marks that writers leave.
#[derive(Debug)]
pub(super) struct Marks {
    words: Vec<AtomicU64>,
}

impl Marks {
    pub(super) fn new(count: u32) -> Self {
        let words = u64::from(count).div_ceil(WORD_BITS) as usize;
        Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Notes that bytes were written; not before they are.
    pub(super) fn mark(&self, offset: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let last = offset.saturating_add(bytes - 1) / RANGE_BYTES;
        for range in offset / RANGE_BYTES..=last {
            let Some(word) = self.words.get((range / WORD_BITS) as usize) else {
                return;
            };
            word.fetch_or(1 << (range % WORD_BITS), Ordering::AcqRel);
        }
    }
}

/// Knows the ranges of a disk that were written since it was made, or since they were last taken.
/// Tracking ends when it is dropped.
#[derive(Debug)]
pub struct Tracker(pub(super) Arc<Marks>);

impl Tracker {
    /// Takes what was written: it counts as unchanged from here on. Bytes that are read after this
    /// are those of the writes that were taken, or newer ones that will be marked again.
    pub fn take_changed(&self) -> RangeSet {
        let take = |word: &AtomicU64| word.swap(0, Ordering::AcqRel);
        RangeSet {
            words: self.0.words.iter().map(take).collect(),
        }
    }

    /// Looks at what was written, and leaves it marked.
    pub fn changed(&self) -> RangeSet {
        let look = |word: &AtomicU64| word.load(Ordering::Acquire);
        RangeSet {
            words: self.0.words.iter().map(look).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_is_a_set_and_its_runs_cover_it(
            ranges in prop::collection::vec(0u32..200, 0..80),
            longest in 1u32..20,
        ) {
            let mut set = RangeSet::new(200);
            for &range in &ranges {
                set.insert(RangeIndex(range));
            }
            let model: BTreeSet<u32> = ranges.into_iter().collect();
            prop_assert_eq!(set.count(), model.len() as u64);
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert!(set.iter().map(|range| range.0).eq(model.iter().copied()));
            let runs: Vec<_> = set.runs(longest).collect();
            prop_assert!(runs.iter().all(|&(_, count)| (1..=longest).contains(&count)));
            let covered = runs.iter().flat_map(|&(first, count)| first.0..first.0 + count);
            prop_assert!(covered.eq(model.iter().copied()));
            let agrees = |range| set.contains(RangeIndex(range)) == model.contains(&range);
            prop_assert!((0..210).all(agrees));
        }

        #[test]
        fn marks_are_the_ranges_that_writes_touch(
            writes in prop::collection::vec((0..100 * RANGE_BYTES, 0..3 * RANGE_BYTES), 0..20),
        ) {
            let tracker = Tracker(Arc::new(Marks::new(100)));
            let mut model = BTreeSet::new();
            for (offset, bytes) in writes {
                let bytes = bytes.min(100 * RANGE_BYTES - offset);
                tracker.0.mark(offset, bytes);
                let touched = (0..100).filter(|range| {
                    let start = range * RANGE_BYTES;
                    bytes > 0 && offset < start + RANGE_BYTES && offset + bytes > start
                });
                model.extend(touched);
            }
            let seen = tracker.changed();
            prop_assert!(seen.iter().map(|range| u64::from(range.0)).eq(model.iter().copied()));
            prop_assert_eq!(tracker.take_changed(), seen);
            prop_assert!(tracker.take_changed().is_empty());
        }
    }

    #[test]
    fn sizes_round_up_and_end_with_the_index() {
        assert_eq!(range_count(0), 0);
        assert_eq!(range_count(512), 1);
        assert_eq!(range_count(RANGE_BYTES), 1);
        assert_eq!(range_count(RANGE_BYTES + 512), 2);
        assert_eq!(range_count(u64::MAX), u32::MAX);
        Marks::new(1).mark(u64::MAX - 3, u64::MAX);
    }
}
