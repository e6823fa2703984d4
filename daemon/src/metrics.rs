//! Prometheus metrics.
//!
//! Nothing is counted here: the recorder counts in its own atomics, and a scrape brings the metrics up to a [`Snapshot`].
//! Each group registers its own metrics in the registry handed down and moves them in its `update`; a test fails on a
//! metric that no part of a snapshot moves. Every metric carries the labels `vm` and `host`.

mod durations;
mod engine;
mod failover;
mod network;
mod replication;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{IntCounter, Registry, TextEncoder};

pub use durations::{BUCKETS, DurationCounts, DurationHistogram, Durations};
pub use engine::EngineMetrics;
pub use failover::FailoverMetrics;
pub use network::NetworkMetrics;
pub use replication::ReplicationMetrics;

use crate::net::DeviceCounts;
use crate::status::Status;

/// What a scrape shows.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// What the daemon says about itself.
    pub status: Status,
    /// How long chunks ran, from start to the end of their commit.
    pub chunk_durations: DurationCounts,
    /// How long commits took.
    pub commit_durations: DurationCounts,
    /// How long outputs were held.
    pub output_holds: DurationCounts,
    /// What the guest's network devices sent and got.
    pub network: Vec<DeviceCounts>,
    /// Frames of devices that have no tap here.
    pub unwired_frames: u64,
}

impl Snapshot {
    /// A snapshot without durations and frames.
    pub fn new(status: Status) -> Self {
        Self {
            status,
            chunk_durations: DurationCounts::default(),
            commit_durations: DurationCounts::default(),
            output_holds: DurationCounts::default(),
            network: Vec::new(),
            unwired_frames: 0,
        }
    }
}

/// Where snapshots come from: the run loop.
pub trait Observed: Send + Sync + 'static {
    /// The state of things now. Must not block for long: it is asked within a scrape.
    fn snapshot(&self) -> Snapshot;
}

/// All metrics of the daemon.
pub struct Metrics {
    registry: Registry,
    engine: EngineMetrics,
    replication: ReplicationMetrics,
    failover: FailoverMetrics,
    network: NetworkMetrics,
    /// One scrape at a time: counters advance by differences.
    scrape: Mutex<()>,
}

impl Metrics {
    /// Registers everything, for this VM on this host.
    ///
    /// # Errors
    ///
    /// A name that is taken or malformed: a bug.
    pub fn new(vm: &str, host: &str) -> prometheus::Result<Self> {
        let labels = [("vm", vm), ("host", host)];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let registry = Registry::new_custom(None, Some(HashMap::from(labels)))?;
        Ok(Self {
            engine: EngineMetrics::new(&registry)?,
            replication: ReplicationMetrics::new(&registry)?,
            failover: FailoverMetrics::new(&registry)?,
            network: NetworkMetrics::new(&registry)?,
            registry,
            scrape: Mutex::new(()),
        })
    }

    /// The registry, for modules that add metrics of their own.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Brings the metrics up to the snapshot and writes them in Prometheus' text format.
    pub fn render(&self, snapshot: &Snapshot) -> prometheus::Result<String> {
        let _one = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        self.engine.update(snapshot);
        self.replication.update(snapshot);
        self.failover.update(snapshot);
        self.network
            .update(&snapshot.network, snapshot.unwired_frames);
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Registers a metric and hands it back.
fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> prometheus::Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// Brings a counter up to a total kept elsewhere; it never goes back.
fn advance(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests;
