//! What the daemon shows of itself, gathered when somebody looks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use samsara_commitlog::{GuestTime, Shape};
use samsara_config::{Config, Role};
use samsara_engine::{DivergenceCause, Phase, Stats};
use samsara_replication::transport::LinkStats;
use samsara_replication::{Lag, QuantileSummary, Quantiles};

use crate::contention::{Contention, GuestFile};
use crate::metrics::{DurationCounts, Observed, Snapshot};
use crate::net::Network;
use crate::report::{QuantilesCommits, QuantilesUs, Report};
use crate::status::{self, NetworkDevice, RoleChange, Status, unix_ms};
use crate::world::World;

/// What a backup's follower counts.
#[derive(Debug, Default)]
pub struct Following {
    /// Commits received.
    pub received: AtomicU64,
    /// Commits applied with equal digests.
    pub verified: AtomicU64,
    /// Guest clock at the last of them.
    pub guest_time_ns: AtomicU64,
    /// The guest's mark at the last of them.
    pub mark: AtomicU64,
    /// Chunks applied from their effects.
    pub chunks: AtomicU64,
    /// Chunks that came as orders.
    pub orders: AtomicU64,
    /// How they were run again.
    pub reruns: Arc<Stats>,
    /// Encoded bytes received.
    pub bytes: AtomicU64,
    /// Whole-state digests that were equal.
    pub digests_compared: AtomicU64,
}

/// What is shown of a guest that runs here.
#[derive(Clone, Copy, Debug, Default)]
pub struct GuestView {
    /// Its clock.
    pub time: GuestTime,
    /// Its last MARK.
    pub mark: u64,
}

/// The one place that knows how the daemon is.
pub struct Board {
    started: Instant,
    status: Mutex<Status>,
    world: Arc<World>,
    stats: Arc<Stats>,
    network: Arc<Network>,
    taps: Vec<String>,
    guest: Mutex<Option<Box<dyn Fn() -> GuestView + Send>>>,
    guest_file: GuestFile,
    /// Latencies of links that are gone.
    past: Mutex<[Quantiles; 2]>,
    /// Counts of a backup.
    pub following: Following,
    /// Bytes of disks sent to backups, to bring theirs up to date.
    pub disk_sync_bytes: Arc<AtomicU64>,
}

impl Board {
    /// A board of a daemon that has done nothing.
    pub fn new(
        config: &Config,
        role: Role,
        host: &str,
        world: Arc<World>,
        stats: Arc<Stats>,
        network: Arc<Network>,
    ) -> Self {
        let taps = config.vm.net.iter().map(|net| net.tap.clone());
        Self {
            network,
            taps: taps.collect(),
            started: Instant::now(),
            status: Mutex::new(Status::new(config, role, host)),
            world,
            stats,
            guest: Mutex::default(),
            guest_file: GuestFile::new(config),
            past: Mutex::default(),
            following: Following {
                reruns: Arc::new(Stats::new(Shape::VCPUS_MAX)),
                ..Following::default()
            },
            disk_sync_bytes: Arc::default(),
        }
    }

    /// Changes what is shown.
    pub fn update<T>(&self, change: impl FnOnce(&mut Status) -> T) -> T {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A role and term begin.
    pub fn role_changed(&self, role: Role, term: u64, reason: &str) {
        let at_ms = self.started.elapsed().as_millis() as u64;
        self.update(|status| {
            (status.role, status.term) = (role, term);
            let reason = reason.to_owned();
            status.role_changes.push(RoleChange {
                at_unix_ms: unix_ms(),
                at_ms,
                role,
                term,
                reason,
            });
        });
    }

    /// How to look at the guest that runs here from now on.
    pub fn set_guest(&self, look: impl Fn() -> GuestView + Send + 'static) {
        *self.guest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(look));
    }

    fn guest(&self) -> Option<GuestView> {
        let guest = self.guest.lock().unwrap_or_else(PoisonError::into_inner);
        guest.as_ref().map(|look| look())
    }

    /// A link to a backup is gone: its latencies are kept.
    pub fn link_ended(&self, link: &samsara_replication::transport::PrimaryHandle) {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let [received, verified] = &mut *past;
        link.merge_latencies(received, verified);
    }

    /// Everything, now.
    pub fn status(&self) -> Status {
        let mut status = self.update(|status| status.clone());
        let counts = self.stats.snapshot();
        status.counters.commits = counts.commits;
        status.counters.chunks_by_vcpu = counts.chunks_by_vcpu;
        let vcpus = status.vcpus as usize;
        status.counters.chunks_by_vcpu.truncate(vcpus);
        status.counters.squashes = counts.squashes;
        status.counters.exclusive_chunks = counts.exclusive_chunks;
        status.counters.effect_bytes = counts.effect_bytes;
        status.counters.faults_avoided = counts.faults_avoided;
        let spent = Phase::ALL.into_iter().zip(counts.spent);
        let spent = spent.map(|(phase, time)| (phase.as_str().to_owned(), time.as_millis() as u64));
        status.counters.vcpu_ms = spent.collect();
        [status.counters.log_bytes, status.counters.order_bytes] = self.world.sent_bytes();
        let following = &self.following;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        status.counters.digests_compared = load(&following.digests_compared);
        status.counters.disk_sync_bytes = load(&self.disk_sync_bytes);
        let taps = self.taps.iter().zip(self.network.counts());
        let devices = taps.map(|(tap, counts)| NetworkDevice::new(tap, &counts));
        status.network = devices.collect();
        let [committed, received, verified] = self.world.positions().map(|seq| seq.0);
        status.positions = status::Positions {
            committed,
            received,
            verified,
        };
        let (_, held_outputs, held_bytes) = self.world.gate();
        (status.gate.held_outputs, status.gate.held_bytes) = (held_outputs, held_bytes);
        if let Some(link) = self.world.backup() {
            status.lag = lag(&link.stats(Instant::now()));
        }
        if let Some(guest) = self.guest() {
            (status.guest_time_ns, status.mark) = (guest.time.0, guest.mark);
        } else if status.role == Role::Backup {
            status.guest_time_ns = load(&following.guest_time_ns);
            status.mark = load(&following.mark);
            status.counters.commits += load(&following.verified);
            status.counters.log_bytes += load(&following.bytes);
            status.positions.received = load(&following.received);
            status.positions.verified = load(&following.verified);
            status.positions.committed = status.positions.verified;
        }
        let [orders, effects, fetched] = self.world.forms();
        let counters = &mut status.counters;
        counters.chunks_order_form = orders + load(&following.orders);
        counters.chunks_effects_form = effects + load(&following.chunks);
        counters.effects_fetched = fetched;
        counters.rerun_divergences = DivergenceCause::ALL
            .map(|cause| {
                (
                    cause.as_str().to_owned(),
                    load(following.reruns.divergences(cause)),
                )
            })
            .into();
        status
    }

    /// What vCPUs have lost their chunks by. Reads the guest's file, if there is something to name.
    pub fn contention(&self) -> Contention {
        let status = self.update(|status| status.clone());
        Contention::new(&status, &self.stats, &self.guest_file)
    }

    /// The report of the run, as far as it is known here.
    pub fn report(&self, stop: &str) -> Report {
        let status = self.status();
        let mut report = Report::new(&status, self.started.elapsed().as_secs_f64(), stop);
        let (holds, ..) = self.world.gate();
        report.output_hold_us = quantiles(holds.summary());
        if let Some(link) = self.world.backup() {
            self.link_ended(&link);
        }
        let [received, verified] = self.world.lag_commits().map(|lag| lag.summary());
        report.lag_received_commits = commits(received);
        report.lag_verified_commits = commits(verified);
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        report.lag_received_us = quantiles(past[0].summary());
        report.lag_verified_us = quantiles(past[1].summary());
        report.conflicts = self.contention().conflicts;
        report.conflicts.truncate(Report::CONFLICTS_MAX);
        report
    }
}

impl Observed for Board {
    fn snapshot(&self) -> Snapshot {
        let counts = self.stats.snapshot();
        let convert = |counts: samsara_engine::DurationCounts| DurationCounts {
            counts: counts.counts,
            sum_us: counts.sum_us,
        };
        Snapshot {
            status: self.status(),
            chunk_durations: convert(counts.chunk),
            commit_durations: convert(counts.commit),
            output_holds: self.world.holds(),
            network: self.network.counts(),
            unwired_frames: self.network.unwired_frames(),
        }
    }
}

fn quantiles(summary: QuantileSummary) -> QuantilesUs {
    QuantilesUs::from_ns(summary.count, summary.p50, summary.p99, summary.max)
}

fn commits(summary: QuantileSummary) -> QuantilesCommits {
    let QuantileSummary {
        count,
        p50,
        p99,
        max,
        ..
    } = summary;
    QuantilesCommits {
        count,
        p50,
        p99,
        max,
    }
}

fn lag(stats: &LinkStats) -> status::Lag {
    let amount = |lag: &Lag| status::LagAmount {
        commits: lag.commits,
        bytes: lag.bytes,
        seconds: lag.age.as_secs_f64(),
    };
    status::Lag {
        received: amount(&stats.received_lag),
        verified: amount(&stats.verified_lag),
    }
}
