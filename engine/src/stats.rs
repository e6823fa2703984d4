//! What the engine counts as it runs. Plain atomics: read at any time, by anyone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use samsara_commitlog::VcpuIndex;

use crate::conflicts::{Conflict, Conflicts};
use crate::record::DivergenceCause;
use crate::spent::{Phase, Spent, Times};

/// Counts of one vCPU.
#[derive(Debug, Default)]
pub struct LaneStats {
    /// Chunks committed.
    pub chunks: AtomicU64,
    /// Chunks squashed.
    pub squashes: AtomicU64,
    /// Chunks that ran alone.
    pub exclusive_chunks: AtomicU64,
    /// Chunks squashed because they changed more than a record carries.
    pub too_large: AtomicU64,
    /// What its thread spent its time on.
    pub spent: Spent,
    conflicts: Mutex<Conflicts>,
}

impl LaneStats {
    /// Only the vCPU itself, when it squashes a chunk, and whoever asks.
    pub(crate) fn conflicts(&self) -> MutexGuard<'_, Conflicts> {
        self.conflicts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Buckets of a histogram: bucket `i` counts durations below 2^i microseconds that fit no lower one;
/// the last also takes all that are longer.
pub const DURATION_BUCKETS: usize = 26;

/// Counts by bucket, and the sum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DurationCounts {
    /// Counts by bucket.
    pub counts: [u64; DURATION_BUCKETS],
    /// Sum, in microseconds.
    pub sum_us: u64,
}

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Durations {
    counts: [AtomicU64; DURATION_BUCKETS],
    sum_ns: AtomicU64,
}

impl Durations {
    /// Adds one.
    pub fn add(&self, duration: Duration) {
        let us = duration.as_micros() as u64;
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        self.counts[bucket.min(DURATION_BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns
            .fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
    }

    /// What there is so far.
    pub fn read(&self) -> DurationCounts {
        DurationCounts {
            counts: std::array::from_fn(|bucket| load(&self.counts[bucket])),
            sum_us: load(&self.sum_ns) / 1000,
        }
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
    /// Pages that committed chunks changed without a fault, because they were held already.
    pub faults_avoided: AtomicU64,
    /// Whole-state digests taken.
    pub digests: AtomicU64,
    /// Chunks that came out differently when they were run again, by cause.
    divergences: [AtomicU64; DivergenceCause::ALL.len()],
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
    /// Chunks squashed because they changed more than a record carries.
    pub too_large: u64,
    /// What the vCPUs' threads spent their time on, by [`Phase`](crate::Phase).
    pub spent: Times,
    /// Encoded bytes of effects.
    pub effect_bytes: u64,
    /// Pages that committed chunks changed without a fault, because they were held already.
    pub faults_avoided: u64,
    /// Whole-state digests taken.
    pub digests: u64,
    /// Durations of committed chunks.
    pub chunk: DurationCounts,
    /// How long commits held the commit lock.
    pub commit: DurationCounts,
}

impl StatsSnapshot {
    /// What the vCPUs' threads spent on this.
    pub fn spent_on(&self, phase: Phase) -> Duration {
        self.spent[phase as usize]
    }
}

impl Stats {
    /// Counts of a machine that has not run.
    pub fn new(vcpu_count: u8) -> Self {
        let lanes = (0..vcpu_count).map(|_| LaneStats::default()).collect();
        Self {
            lanes,
            ..Self::default()
        }
    }

    /// Chunks that came out differently, by this cause.
    pub fn divergences(&self, cause: DivergenceCause) -> &AtomicU64 {
        &self.divergences[cause as usize]
    }

    /// What vCPUs have lost their chunks by, the most frequent first: at most [`CONFLICTS_MAX`] of each.
    ///
    /// [`CONFLICTS_MAX`]: crate::CONFLICTS_MAX
    pub fn conflicts(&self) -> Vec<Conflict> {
        let lanes = (0..).map(VcpuIndex).zip(&self.lanes);
        let of =
            |(vcpu, lane): (VcpuIndex, &LaneStats)| lane.conflicts().of(vcpu).collect::<Vec<_>>();
        let mut all: Vec<_> = lanes.flat_map(of).collect();
        all.sort_by_key(|one| (std::cmp::Reverse(one.squashes), one.page, one.loser));
        all
    }

    /// All counts now.
    pub fn snapshot(&self) -> StatsSnapshot {
        let sum = |of: fn(&LaneStats) -> &AtomicU64| {
            self.lanes
                .iter()
                .map(|lane| of(lane).load(Ordering::Relaxed))
                .sum()
        };
        let mut spent = Times::default();
        for lane in &self.lanes {
            for (sum, time) in spent.iter_mut().zip(lane.spent.read()) {
                *sum += time;
            }
        }
        StatsSnapshot {
            spent,
            chunks_by_vcpu: self.lanes.iter().map(|lane| load(&lane.chunks)).collect(),
            commits: load(&self.commits),
            squashes: sum(|lane| &lane.squashes),
            exclusive_chunks: sum(|lane| &lane.exclusive_chunks),
            too_large: sum(|lane| &lane.too_large),
            effect_bytes: load(&self.effect_bytes),
            faults_avoided: load(&self.faults_avoided),
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
