//! Who this host is, and by whose leave.

use prometheus::{IntCounter, IntGauge, IntGaugeVec, Opts, Registry};
use samsara_config::Role;

use super::{Snapshot, advance, register};
use crate::status::GateMode;

/// Role, term, protection, arbiter.
pub struct FailoverMetrics {
    role: IntGaugeVec,
    protected: IntGauge,
    term: IntGauge,
    gate: IntGaugeVec,
    arbiter_reachable: IntGauge,
    failovers: IntCounter,
    role_changes: IntCounter,
    ended: IntGauge,
    build: IntGaugeVec,
}

impl FailoverMetrics {
    /// Registers the group.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name, help| register(registry, IntGauge::new(name, help)?);
        let counter = |name, help| register(registry, IntCounter::new(name, help)?);
        let gauges = |name, help, labels: &[&str]| {
            register(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        Ok(Self {
            role: gauges("samsara_role", "1 for the role of this host.", &["role"])?,
            protected: gauge(
                "samsara_protected",
                "1 while the loss of a host is survived.",
            )?,
            term: gauge(
                "samsara_term",
                "Term of the primary that this host is or follows.",
            )?,
            gate: gauges(
                "samsara_output_gate",
                "1 for what the output gate does.",
                &["mode"],
            )?,
            arbiter_reachable: gauge(
                "samsara_arbiter_reachable",
                "1 if the arbiter answered last time.",
            )?,
            failovers: counter(
                "samsara_failovers_total",
                "Times this host went live after the loss of the primary.",
            )?,
            role_changes: counter("samsara_role_changes_total", "Changes of role.")?,
            ended: gauge("samsara_ended", "1 once the guest has ended.")?,
            build: gauges(
                "samsara_info",
                "1, with the version, the isolation and the progress counter in use.",
                &["version", "isolation", "counter"],
            )?,
        })
    }

    /// Moves the group.
    pub fn update(&self, snapshot: &Snapshot) {
        let status = &snapshot.status;
        for role in Role::ALL {
            self.role
                .with_label_values(&[role.as_str()])
                .set(i64::from(role == status.role));
        }
        self.protected.set(i64::from(status.protected));
        self.term
            .set(i64::try_from(status.term).unwrap_or(i64::MAX));
        for mode in GateMode::ALL {
            self.gate
                .with_label_values(&[mode.as_str()])
                .set(i64::from(mode == status.gate.mode));
        }
        let arbiter = status.arbiter.as_ref();
        self.arbiter_reachable
            .set(i64::from(arbiter.is_some_and(|arbiter| arbiter.reachable)));
        advance(&self.failovers, status.counters.failovers);
        advance(&self.role_changes, status.role_changes.len() as u64);
        self.ended.set(i64::from(status.ended.is_some()));
        self.build.reset();
        let labels = [&status.version, &status.isolation, &status.counter];
        self.build.with_label_values(&labels).set(1);
    }
}
