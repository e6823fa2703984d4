//! What the engine counts as it runs. Plain atomics: read at any time, by anyone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts of one vCPU.
#[derive(Debug, Default)]
pub struct LaneStats {
    /// Chunks committed.
    pub chunks: AtomicU64,
    /// Chunks squashed.
    pub squashes: AtomicU64,
    /// Chunks that ran alone.
    pub exclusive_chunks: AtomicU64,
}

/// Upper bounds of the duration buckets, in microseconds; longer ones are in the last bucket.
pub const DURATION_BUCKETS_US: [u64; 14] =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 50_000];

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Durations {
    buckets: [AtomicU64; DURATION_BUCKETS_US.len() + 1],
    sum_ns: AtomicU64,
}

impl Durations {
    /// Adds one.
    pub fn add(&self, duration: Duration) {
        let us = duration.as_micros() as u64;
        let bucket = DURATION_BUCKETS_US.partition_point(|&bound| bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Counts by bucket, the last for all that is longer, and the sum in nanoseconds.
    pub fn read(&self) -> (Vec<u64>, u64) {
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        (buckets, self.sum_ns.load(Ordering::Relaxed))
    }
}

/// Counts of the whole machine.
#[derive(Debug, Default)]
pub struct Stats {
    /// By vCPU.
    pub lanes: Vec<LaneStats>,
    /// Commits of any kind.
    pub commits: AtomicU64,
    /// Encoded bytes of effects.
    pub effect_bytes: AtomicU64,
    /// Whole-state digests taken.
    pub digests: AtomicU64,
    /// How long committed chunks ran.
    pub chunk: Durations,
    /// How long commits held the commit lock.
    pub commit: Durations,
}

/// All counts at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Committed chunks by vCPU.
    pub chunks_by_vcpu: Vec<u64>,
    /// Commits of any kind.
    pub commits: u64,
    /// Squashed chunks.
    pub squashes: u64,
    /// Chunks that ran alone.
    pub exclusive_chunks: u64,
    /// Encoded bytes of effects.
    pub effect_bytes: u64,
    /// Whole-state digests taken.
    pub digests: u64,
    /// Durations of committed chunks: counts by bucket, and their sum in nanoseconds.
    pub chunk: (Vec<u64>, u64),
    /// Durations of commits: counts by bucket, and their sum in nanoseconds.
    pub commit: (Vec<u64>, u64),
}

impl Stats {
    /// Counts of a machine that has not run.
    pub fn new(vcpu_count: u8) -> Self {
        let lanes = (0..vcpu_count).map(|_| LaneStats::default()).collect();
        Self { lanes, ..Self::default() }
    }

    /// All counts now.
    pub fn snapshot(&self) -> StatsSnapshot {
        let sum = |of: fn(&LaneStats) -> &AtomicU64| {
            self.lanes.iter().map(|lane| of(lane).load(Ordering::Relaxed)).sum()
        };
        StatsSnapshot {
            chunks_by_vcpu: self.lanes.iter().map(|lane| load(&lane.chunks)).collect(),
            commits: load(&self.commits),
            squashes: sum(|lane| &lane.squashes),
            exclusive_chunks: sum(|lane| &lane.exclusive_chunks),
            effect_bytes: load(&self.effect_bytes),
            digests: load(&self.digests),
            chunk: self.chunk.read(),
            commit: self.commit.read(),
        }
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
