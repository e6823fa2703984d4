//! What the recorder does, and what the guest shows.

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{DurationHistogram, Snapshot, advance, register};

/// Chunks, commits, conflicts, bytes.
pub struct EngineMetrics {
    commits: IntCounter,
    chunks: IntCounterVec,
    results: IntCounterVec,
    fetched: IntCounter,
    rerun_divergences: IntCounterVec,
    squashes: IntCounter,
    exclusive: IntCounter,
    faults_avoided: IntCounter,
    effect_bytes: IntCounter,
    log_bytes: IntCounter,
    order_bytes: IntCounter,
    chunk_seconds: DurationHistogram,
    commit_seconds: DurationHistogram,
    mark: IntGauge,
    guest_seconds: Gauge,
}

impl EngineMetrics {
    /// Registers the group.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name, help| register(registry, IntCounter::new(name, help)?);
        let counters = |name, help, label| {
            register(
                registry,
                IntCounterVec::new(Opts::new(name, help), &[label])?,
            )
        };
        let durations = |name, help| register(registry, DurationHistogram::new(name, help)?);
        Ok(Self {
            commits: counter("samsara_commits_total", "Commits made or applied.")?,
            chunks: counters("samsara_chunks_total", "Chunks committed, by vCPU.", "vcpu")?,
            results: counters(
                "samsara_chunk_results_total",
                "Chunk results, by form: order (an ending only) or effects (changed bytes).",
                "form",
            )?,
            fetched: counter(
                "samsara_effects_fetched_total",
                "Effects that a backup asked for, because it came to something else.",
            )?,
            rerun_divergences: counters(
                "samsara_rerun_divergences_total",
                "Chunks that came out differently when they were run again here, by cause.",
                "cause",
            )?,
            squashes: counter(
                "samsara_squashes_total",
                "Chunks run again because of a conflict.",
            )?,
            exclusive: counter(
                "samsara_exclusive_chunks_total",
                "Chunks run while the other vCPUs waited.",
            )?,
            faults_avoided: counter(
                "samsara_faults_avoided_total",
                "Pages that chunks changed without a fault, because they were held already.",
            )?,
            effect_bytes: counter("samsara_effect_bytes_total", "Bytes of effects in commits.")?,
            order_bytes: counter(
                "samsara_order_bytes_total",
                "Bytes of encoded records of chunks in order form.",
            )?,
            log_bytes: counter(
                "samsara_log_bytes_total",
                "Bytes of encoded commit records.",
            )?,
            chunk_seconds: durations(
                "samsara_chunk_seconds",
                "Time from the start of a chunk to the end of its commit.",
            )?,
            commit_seconds: durations("samsara_commit_seconds", "Time a commit took.")?,
            mark: register(
                registry,
                IntGauge::new("samsara_mark", "The guest's last MARK.")?,
            )?,
            guest_seconds: register(
                registry,
                Gauge::new("samsara_guest_seconds", "The guest clock, since its boot.")?,
            )?,
        })
    }

    /// Moves the group.
    pub fn update(&self, snapshot: &Snapshot) {
        let counters = &snapshot.status.counters;
        advance(&self.commits, counters.commits);
        for (vcpu, chunks) in counters.chunks_by_vcpu.iter().enumerate() {
            advance(&self.chunks.with_label_values(&[vcpu.to_string()]), *chunks);
        }
        advance(
            &self.results.with_label_values(&["order"]),
            counters.chunks_order_form,
        );
        advance(
            &self.results.with_label_values(&["effects"]),
            counters.chunks_effects_form,
        );
        advance(&self.fetched, counters.effects_fetched);
        for (cause, count) in &counters.rerun_divergences {
            advance(&self.rerun_divergences.with_label_values(&[cause]), *count);
        }
        advance(&self.squashes, counters.squashes);
        advance(&self.exclusive, counters.exclusive_chunks);
        advance(&self.faults_avoided, counters.faults_avoided);
        advance(&self.effect_bytes, counters.effect_bytes);
        advance(&self.log_bytes, counters.log_bytes);
        advance(&self.order_bytes, counters.order_bytes);
        self.chunk_seconds.set(&snapshot.chunk_durations);
        self.commit_seconds.set(&snapshot.commit_durations);
        self.mark
            .set(i64::try_from(snapshot.status.mark).unwrap_or(i64::MAX));
        self.guest_seconds
            .set(snapshot.status.guest_time_ns as f64 / 1e9);
    }
}
