//! The most frequent of many things, in bounded memory.

/// A thing, how often it came, and what is kept of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ranked<K, V> {
    pub(crate) key: K,
    /// How often, at most.
    pub(crate) count: u64,
    /// The count may be so much too high.
    pub(crate) over: u64,
    pub(crate) value: V,
}

/// Space-saving (Metwally, Agrawal and El Abbadi, ICDT 2005): what is new takes the place of what was least frequent, and
/// its count with it. Of `n` notes, whatever came more than `n / MAX` times is there, and no count is more than `n / MAX` too high.
#[derive(Debug)]
pub(crate) struct Top<K, V, const MAX: usize> {
    ranked: Vec<Ranked<K, V>>,
}

impl<K, V, const MAX: usize> Default for Top<K, V, MAX> {
    fn default() -> Self {
        const { assert!(MAX > 0) };
        Self { ranked: Vec::new() }
    }
}

impl<K: Copy + Eq, V: Default, const MAX: usize> Top<K, V, MAX> {
    /// Counts it; gives what is kept of it.
    pub(crate) fn note(&mut self, key: K) -> &mut V {
        let place = self.ranked.iter().position(|known| known.key == key);
        let place = place.unwrap_or_else(|| self.make_place(key));
        let ranked = &mut self.ranked[place];
        ranked.count += 1;
        &mut ranked.value
    }

    fn make_place(&mut self, key: K) -> usize {
        let mut new = Ranked {
            key,
            count: 0,
            over: 0,
            value: V::default(),
        };
        if self.ranked.len() < MAX {
            self.ranked.push(new);
            return self.ranked.len() - 1;
        }
        let places = self.ranked.iter().enumerate();
        let (place, least) = places
            .min_by_key(|(_, known)| known.count)
            .map_or((0, 0), |(place, known)| (place, known.count));
        (new.count, new.over) = (least, least);
        self.ranked[place] = new;
        place
    }

    /// All that are there, in any order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Ranked<K, V>> {
        self.ranked.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const MAX: usize = 8;

    /// A few things that come often among many that do not.
    fn stream(seed: u64) -> impl Iterator<Item = u64> {
        let mut state = seed;
        std::iter::repeat_with(move || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let random = state >> 33;
            if random.is_multiple_of(3) {
                random % 1000
            } else {
                random / 3 % 5
            }
        })
    }

    #[test]
    fn what_is_frequent_is_there_and_no_count_is_too_low_or_far_too_high() {
        for seed in 0..50 {
            let mut top = Top::<u64, u64, MAX>::default();
            let mut true_counts = HashMap::<u64, u64>::new();
            for (index, key) in stream(seed).take(20 + seed as usize * 40).enumerate() {
                *top.note(key) += 1;
                *true_counts.entry(key).or_default() += 1;
                let notes = index as u64 + 1;
                assert!(top.iter().count() <= MAX);
                let bound = notes / MAX as u64;
                for ranked in top.iter() {
                    let count = true_counts[&ranked.key];
                    assert!(ranked.count >= count && ranked.count - ranked.over <= count);
                    assert!(ranked.over <= bound);
                    assert!(
                        ranked.value <= count,
                        "what is kept is of its own notes only"
                    );
                }
                for (key, count) in &true_counts {
                    let is_there = top.iter().any(|ranked| ranked.key == *key);
                    assert!(is_there || *count <= bound, "{key} came {count} times");
                }
            }
        }
    }

    #[test]
    fn few_things_are_counted_exactly() {
        let mut top = Top::<_, (), MAX>::default();
        for round in 0..100 {
            top.note(round % MAX);
        }
        for ranked in top.iter() {
            let expected = if ranked.key < 100 % MAX { 13 } else { 12 };
            assert_eq!((ranked.count, ranked.over), (expected, 0));
        }
    }
}
