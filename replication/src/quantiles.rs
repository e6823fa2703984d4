//! Quantiles of durations and sizes in constant memory.

use std::time::Duration;

/// Buckets a power of two is split into: the error of a quantile is at most 1/16 of its value.
const SUB_BUCKETS: u64 = 16;
const SUB_BITS: u32 = SUB_BUCKETS.trailing_zeros();
/// Values below `SUB_BUCKETS` have a bucket each; every power of two above has `SUB_BUCKETS`.
const BUCKETS: usize = ((64 - SUB_BITS as usize) + 1) * SUB_BUCKETS as usize;

/// A histogram with logarithmic buckets over the whole range of `u64`.
///
/// It never grows (about 8 KiB), recording is a few instructions, and two of them merge without
/// loss. Durations are recorded in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantiles {
    buckets: Box<[u64]>,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

/// The numbers worth reporting, as plain integers in the unit that was recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct QuantileSummary {
    /// Number of samples; everything else is 0 when this is.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: u64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Greatest sample, exact.
    pub max: u64,
}

impl Default for Quantiles {
    fn default() -> Self {
        Self::new()
    }
}

impl Quantiles {
    /// An empty histogram.
    pub fn new() -> Self {
        Self {
            buckets: vec![0; BUCKETS].into_boxed_slice(),
            count: 0,
            sum: 0,
            min: u64::MAX,
            max: 0,
        }
    }

    /// Records one sample.
    pub fn record(&mut self, value: u64) {
        self.buckets[bucket_of(value)] += 1;
        self.count += 1;
        self.sum += u128::from(value);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Records a duration, in nanoseconds; 584 years and more count as the greatest value.
    pub fn record_duration(&mut self, duration: Duration) {
        self.record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The value that a share `q` (0 to 1) of the samples does not exceed, to within 1/16;
    /// `None` without samples.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let rank = ((q.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= rank {
                return Some(upper_bound(index).clamp(self.min, self.max));
            }
        }
        Some(self.max)
    }

    /// Adds the samples of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// The numbers worth reporting.
    pub fn summary(&self) -> QuantileSummary {
        let mean = self.sum.checked_div(u128::from(self.count)).unwrap_or(0);
        QuantileSummary {
            count: self.count,
            mean: mean as u64,
            p50: self.quantile(0.5).unwrap_or(0),
            p90: self.quantile(0.9).unwrap_or(0),
            p99: self.quantile(0.99).unwrap_or(0),
            max: self.max,
        }
    }
}

fn bucket_of(value: u64) -> usize {
    if value < SUB_BUCKETS {
        return value as usize;
    }
    let shift = value.ilog2() - SUB_BITS;
    let sub = (value >> shift) - SUB_BUCKETS;
    ((u64::from(shift) + 1) * SUB_BUCKETS + sub) as usize
}

/// The greatest value that falls into a bucket.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB_BUCKETS {
        return bucket;
    }
    let shift = bucket / SUB_BUCKETS - 1;
    let low = (bucket % SUB_BUCKETS + SUB_BUCKETS) << shift;
    low + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_bucket_ends_where_the_next_begins() {
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(upper_bound(bucket)), bucket);
            if bucket + 1 < BUCKETS {
                assert_eq!(bucket_of(upper_bound(bucket) + 1), bucket + 1);
            }
        }
        assert_eq!(upper_bound(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn nothing_recorded_is_all_zero() {
        assert_eq!(Quantiles::new().quantile(0.5), None);
        assert_eq!(Quantiles::new().summary(), QuantileSummary::default());
    }

    proptest! {
        #[test]
        fn close_to_the_exact_quantile_and_merge_loses_nothing(
            left in prop::collection::vec(any::<u64>().prop_map(|v| v >> (v % 60)), 1..200),
            right in prop::collection::vec(0u64..10_000, 0..200),
            percent in 0u32..=100,
        ) {
            let (mut a, mut b, mut both) = (Quantiles::new(), Quantiles::new(), Quantiles::new());
            for &v in &left { a.record(v); both.record(v); }
            for &v in &right { b.record(v); both.record(v); }
            a.merge(&b);
            prop_assert_eq!(&a, &both);

            let mut exact: Vec<u64> = left.iter().chain(&right).copied().collect();
            exact.sort_unstable();
            let q = f64::from(percent) / 100.0;
            let rank = ((q * exact.len() as f64).ceil() as usize).max(1);
            let (want, got) = (exact[rank - 1], a.quantile(q).unwrap());
            prop_assert!(got >= want && got - want <= want / 16, "{got} for {want}");
        }
    }
}
