//! How far the backup is, and what waits for it.

use prometheus::{GaugeVec, IntCounter, IntGauge, IntGaugeVec, Opts, Registry};

use super::{DurationHistogram, Snapshot, advance, register};

/// Positions, lag, outputs held, divergences.
pub struct ReplicationMetrics {
    position: IntGaugeVec,
    lag_commits: IntGaugeVec,
    lag_bytes: IntGaugeVec,
    lag_seconds: GaugeVec,
    peer_connected: IntGauge,
    peer_in_sync: IntGauge,
    hold_seconds: DurationHistogram,
    held: IntGauge,
    held_bytes: IntGauge,
    digests: IntCounter,
    divergences: IntCounter,
    disk_sync_bytes: IntCounter,
}

impl ReplicationMetrics {
    /// Registers the group.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name, help| register(registry, IntGauge::new(name, help)?);
        let at = ["position"];
        let gauges = |name, help| register(registry, IntGaugeVec::new(Opts::new(name, help), &at)?);
        let lag = "samsara_lag_seconds";
        let lag = Opts::new(
            lag,
            "Age of the oldest commit that is not yet received or verified.",
        );
        Ok(Self {
            position: gauges(
                "samsara_position_commits",
                "Place in the commit order: committed here, received and verified by the backup.",
            )?,
            lag_commits: gauges(
                "samsara_lag_commits",
                "Commits not yet received or verified.",
            )?,
            lag_bytes: gauges(
                "samsara_lag_bytes",
                "Record bytes not yet received or verified.",
            )?,
            lag_seconds: register(registry, GaugeVec::new(lag, &at)?)?,
            peer_connected: gauge(
                "samsara_peer_connected",
                "1 while the other host is connected.",
            )?,
            peer_in_sync: gauge("samsara_peer_in_sync", "1 while the backup is in sync.")?,
            hold_seconds: register(
                registry,
                DurationHistogram::new("samsara_output_hold_seconds", "Time outputs were held.")?,
            )?,
            held: gauge("samsara_outputs_held", "Outputs that wait now.")?,
            held_bytes: gauge(
                "samsara_outputs_held_bytes",
                "Bytes of outputs that wait now.",
            )?,
            digests: register(
                registry,
                IntCounter::new(
                    "samsara_digests_compared_total",
                    "Digests compared with the other host's.",
                )?,
            )?,
            divergences: register(
                registry,
                IntCounter::new("samsara_divergences_total", "Digests that did not agree.")?,
            )?,
            disk_sync_bytes: register(
                registry,
                IntCounter::new(
                    "samsara_disk_sync_bytes_total",
                    "Bytes of disks sent to bring a backup's up to date.",
                )?,
            )?,
        })
    }

    /// Moves the group.
    pub fn update(&self, snapshot: &Snapshot) {
        let status = &snapshot.status;
        let positions = status.positions;
        let place = |name, value| self.position.with_label_values(&[name]).set(signed(value));
        place("committed", positions.committed);
        place("received", positions.received);
        place("verified", positions.verified);
        for (name, lag) in [
            ("received", status.lag.received),
            ("verified", status.lag.verified),
        ] {
            self.lag_commits
                .with_label_values(&[name])
                .set(signed(lag.commits));
            self.lag_bytes
                .with_label_values(&[name])
                .set(signed(lag.bytes));
            self.lag_seconds.with_label_values(&[name]).set(lag.seconds);
        }
        let peer = status.peer.as_ref();
        self.peer_connected
            .set(i64::from(peer.is_some_and(|peer| peer.connected)));
        self.peer_in_sync
            .set(i64::from(peer.is_some_and(|peer| peer.in_sync)));
        self.hold_seconds.set(&snapshot.output_holds);
        self.held.set(signed(status.gate.held_outputs));
        self.held_bytes.set(signed(status.gate.held_bytes));
        advance(&self.digests, status.counters.digests_compared);
        advance(&self.divergences, status.counters.divergences);
        advance(&self.disk_sync_bytes, status.counters.disk_sync_bytes);
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
