//! Durations counted in power-of-two buckets of microseconds: a few instructions to record, exact to merge and to export.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, Metric, MetricFamily, MetricType};

/// Bucket `i` counts durations below 2^i microseconds that fit no lower one; the last also takes all above 16 seconds.
pub const BUCKETS: usize = 26;

/// Counts by bucket, and the sum, since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DurationCounts {
    /// Counts by bucket.
    pub counts: [u64; BUCKETS],
    /// Sum of the durations, microseconds.
    pub sum_us: u64,
}

impl DurationCounts {
    /// The bucket of a duration in microseconds: for recorders that keep their own atomics.
    pub const fn bucket(us: u64) -> usize {
        let bits = (u64::BITS - us.leading_zeros()) as usize;
        if bits < BUCKETS { bits } else { BUCKETS - 1 }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// A recorder that any thread may use.
#[derive(Debug, Default)]
pub struct Durations {
    counts: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
}

impl Durations {
    /// Records one duration.
    pub fn record(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.counts[DurationCounts::bucket(us)].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// What has been recorded.
    pub fn counts(&self) -> DurationCounts {
        DurationCounts {
            counts: std::array::from_fn(|index| self.counts[index].load(Ordering::Relaxed)),
            sum_us: self.sum_us.load(Ordering::Relaxed),
        }
    }
}

/// A Prometheus histogram in seconds whose counts are set, not observed.
#[derive(Clone)]
pub struct DurationHistogram {
    desc: Desc,
    counts: Arc<Mutex<DurationCounts>>,
}

impl DurationHistogram {
    /// A histogram of that name; nothing counted yet.
    pub fn new(name: &str, help: &str) -> prometheus::Result<Self> {
        let desc = Desc::new(name.to_owned(), help.to_owned(), Vec::new(), HashMap::new())?;
        Ok(Self {
            desc,
            counts: Arc::default(),
        })
    }

    /// Replaces the counts.
    pub fn set(&self, counts: &DurationCounts) {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts.clone();
    }

    fn histogram(&self) -> Histogram {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cumulative = 0;
        let buckets = counts
            .counts
            .iter()
            .enumerate()
            .take(BUCKETS - 1)
            .map(|(index, count)| {
                cumulative += count;
                let mut bucket = Bucket::default();
                bucket.set_cumulative_count(cumulative);
                bucket.set_upper_bound((1_u64 << index) as f64 / 1e6);
                bucket
            });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(counts.count());
        histogram.set_sample_sum(counts.sum_us as f64 / 1e6);
        histogram
    }
}

impl Collector for DurationHistogram {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut metric = Metric::from_label(self.desc.const_label_pairs.clone());
        metric.set_histogram(self.histogram());
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(vec![metric]);
        vec![family]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_end_at_powers_of_two() {
        assert_eq!(
            [0, 1, 2, 3, 4, 7, 8].map(DurationCounts::bucket),
            [0, 1, 2, 2, 3, 3, 4]
        );
        assert_eq!(DurationCounts::bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(DurationCounts::bucket((1 << 24) - 1), 24);
        assert_eq!(DurationCounts::bucket(1 << 24), BUCKETS - 1);
    }

    #[test]
    fn exported_counts_are_cumulative_and_in_seconds() {
        let durations = Durations::default();
        for us in [0, 3, 3, 900, 100_000_000] {
            durations.record(Duration::from_micros(us));
        }
        let metric = DurationHistogram::new("samsara_test_seconds", "Test.").unwrap();
        metric.set(&durations.counts());
        let families = metric.collect();
        let histogram = families[0].get_metric()[0].get_histogram();
        let below = |bound: f64| {
            let bucket = histogram
                .get_bucket()
                .iter()
                .find(|b| b.upper_bound() >= bound)
                .unwrap();
            bucket.cumulative_count()
        };
        assert_eq!(
            (
                below(1e-6),
                below(2e-6),
                below(4e-6),
                below(1e-3),
                below(10.0)
            ),
            (1, 1, 3, 4, 4)
        );
        assert_eq!(histogram.get_sample_count(), 5);
        assert!((histogram.get_sample_sum() - 100.000_906).abs() < 1e-9);
    }
}
