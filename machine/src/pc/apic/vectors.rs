//! A set of interrupt vectors, as the 256-bit registers of a local APIC have it.

use serde::{Deserialize, Serialize};

/// One bit for each of the 256 vectors.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vectors(pub(super) [u32; 8]);

impl Vectors {
    /// Adds a vector.
    pub fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] |= bit(vector);
    }

    /// Takes a vector out.
    pub fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 5)] &= !bit(vector);
    }

    /// Whether a vector is in the set.
    pub fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & bit(vector) != 0
    }

    /// Whether no vector is.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 8]
    }

    /// The vector of the highest priority.
    pub fn highest(&self) -> Option<u8> {
        let (index, word) = self.0.iter().enumerate().rfind(|(_, word)| **word != 0)?;
        let high = 31 - word.leading_zeros();
        Some((index as u8) << 5 | high as u8)
    }

    /// The vectors from `index` * 32 on, as one register.
    pub fn word(&self, index: usize) -> u32 {
        self.0.get(index).copied().unwrap_or(0)
    }

    /// Adds the vectors of another set.
    pub fn merge(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word |= other;
        }
    }

    /// Takes over from `other` whether each vector of `mask` is in the set.
    pub fn replace(&mut self, other: &Self, mask: &Self) {
        for ((word, other), mask) in self.0.iter_mut().zip(other.0).zip(mask.0) {
            *word = *word & !mask | other & mask;
        }
    }
}

fn bit(vector: u8) -> u32 {
    1 << (vector & 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_vector_is_found_in_any_word() {
        let mut vectors = Vectors::default();
        assert_eq!(vectors.highest(), None);
        for vector in [0, 31, 32, 100, 255] {
            vectors.insert(vector);
            assert_eq!(vectors.highest(), Some(vector));
        }
        vectors.remove(255);
        assert_eq!(vectors.highest(), Some(100));
        assert_eq!(vectors.word(3), 1 << 4);
    }
}
