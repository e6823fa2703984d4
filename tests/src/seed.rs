//! Random moments that can be repeated.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use samsara_testing::number_from_env;

/// `SplitMix64`: small, and the same for ever, so that a seed written down stays good.
#[derive(Clone, Debug)]
pub struct Seeded {
    state: u64,
}

impl Seeded {
    /// A generator for this seed.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; 0 if that is 0.
    pub const fn below(&mut self, limit: u64) -> u64 {
        ((self.bits() as u128 * limit as u128) >> 64) as u64
    }

    /// A time up to `limit`, to the microsecond.
    pub fn up_to(&mut self, limit: Duration) -> Duration {
        Duration::from_micros(self.below(limit.as_micros() as u64 + 1))
    }

    /// Fills bytes, the last few less randomly.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            piece.copy_from_slice(&self.bits().to_le_bytes()[..piece.len()]);
        }
    }
}

/// The seed of this run: `SAMSARA_SEED`, or another one each time.
pub fn run_seed() -> u64 {
    number_from_env("SAMSARA_SEED").unwrap_or_else(|| {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Seeded::new(now.as_nanos() as u64).below(1_000_000_000)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_for_ever() {
        let mut seeded = Seeded::new(1);
        assert_eq!(seeded.bits(), 0x910A_2DEC_8902_5CC1);
        let mut bytes = [0; 11];
        seeded.fill(&mut bytes);
        assert!(bytes.iter().any(|byte| *byte != 0));
        assert!((0..1000).all(|_| seeded.below(7) < 7));
        assert_eq!(seeded.below(0), 0);
        let limit = Duration::from_millis(3);
        assert!((0..1000).all(|_| seeded.up_to(limit) <= limit));
    }
}
