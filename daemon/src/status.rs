//! What a running daemon says about itself: to `samsaractl status`, to the metrics, to systemd.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use samsara_config::{ArbiterKind, Config, Counter, Isolation, RecordingMode, Role};
use serde::{Deserialize, Serialize};

use crate::net::{DeviceCounts, Lost};

/// Everything there is to say, at one moment. Units end the names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the VM.
    pub vm: String,
    /// Name of this host.
    pub host: String,
    /// Version of samsarad.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Role now; a backup that went live is primary.
    pub role: Role,
    /// Fencing number; 0 before the first is won.
    pub term: u64,
    /// Whether the loss of either host would be survived.
    pub protected: bool,
    /// One sentence: what is going on, and why.
    pub state: String,
    /// When that sentence became true, Unix time.
    pub since_unix_ms: u64,
    /// Count of vCPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory_bytes: u64,
    /// Whether the VM is recorded.
    pub recording: RecordingMode,
    /// How vCPUs are kept apart: `parallel` or `serial`; `auto` until a backup knows what guest it has.
    pub isolation: String,
    /// What kind of KVM the host has, once that was found out.
    #[serde(default)]
    pub kvm: Option<HostKvm>,
    /// What the guest may trip over on this host.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Progress counter in use for the order form, or why there is none.
    pub counter: String,
    /// Guest clock, nanoseconds since boot.
    pub guest_time_ns: u64,
    /// The guest's last MARK.
    pub mark: u64,
    /// Places in the commit order.
    pub positions: Positions,
    /// How far the backup is behind.
    pub lag: Lag,
    /// The output gate.
    pub gate: Gate,
    /// What has been counted since the start of this process.
    pub counters: Counters,
    /// The other host.
    pub peer: Option<Peer>,
    /// The arbiter.
    pub arbiter: Option<Arbiter>,
    /// The guest's network devices.
    #[serde(default)]
    pub network: Vec<NetworkDevice>,
    /// Changes of role, oldest first.
    pub role_changes: Vec<RoleChange>,
    /// How the guest ended, once it has.
    pub ended: Option<Ended>,
}

/// Places in the commit order: the last commit that is ...
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    /// ... committed here.
    pub committed: u64,
    /// ... held by the backup.
    pub received: u64,
    /// ... applied by the backup, with a digest that agreed.
    pub verified: u64,
}

/// How far the backup is behind the last commit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// Committed minus received.
    pub received: LagAmount,
    /// Committed minus verified.
    pub verified: LagAmount,
}

/// A distance in the commit order, in three units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LagAmount {
    /// Commits.
    pub commits: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// Age of the oldest of them.
    pub seconds: f64,
}

/// Whether outputs leave the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GateMode {
    /// At once: this host runs alone, by right.
    Open,
    /// When the backup has acknowledged their commit.
    Guarded,
    /// Not at all, for now.
    #[default]
    Held,
}

impl GateMode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Open, Self::Guarded, Self::Held];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Guarded => "guarded",
            Self::Held => "held",
        }
    }
}

/// The output gate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// What it does.
    pub mode: GateMode,
    /// Why, in words.
    pub why: String,
    /// Outputs that wait.
    pub held_outputs: u64,
    /// Their bytes.
    pub held_bytes: u64,
}

/// Counts since the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Commits made or applied.
    pub commits: u64,
    /// Chunks committed, by vCPU.
    pub chunks_by_vcpu: Vec<u64>,
    /// Chunks that went to a backup, or came here, as orders to run them again.
    pub chunks_order_form: u64,
    /// Chunks that did so as the bytes that they changed.
    pub chunks_effects_form: u64,
    /// Effects that a backup asked for, because it came to something else.
    #[serde(default)]
    pub effects_fetched: u64,
    /// Chunks that came out differently when they were run again here, by cause: `halted`, `no-counter`, `late`,
    /// `exit`, `state`, or `failed` where this host could not run them.
    #[serde(default)]
    pub rerun_divergences: BTreeMap<String, u64>,
    /// Chunks run again because of a conflict.
    pub squashes: u64,
    /// Chunks run while the others waited.
    pub exclusive_chunks: u64,
    /// Pages that chunks changed without a fault, because they were held already.
    #[serde(default)]
    pub faults_avoided: u64,
    /// What vCPUs' threads on this host spent their time on, milliseconds, all together: `guest` in chunks that were committed, `find`
    /// their changes, `lock` waiting to commit them, `commit`, `upkeep` of views, `lost` chunks, waiting for a `turn` or for the
    /// `backup`, `rest`.
    #[serde(default)]
    pub vcpu_ms: BTreeMap<String, u64>,
    /// Bytes of effects.
    pub effect_bytes: u64,
    /// Bytes of encoded records.
    pub log_bytes: u64,
    /// Those of chunks that went to a backup as orders.
    #[serde(default)]
    pub order_bytes: u64,
    /// Digests compared with the other host's.
    pub digests_compared: u64,
    /// Comparisons or re-executions that did not agree.
    pub divergences: u64,
    /// Times this host went live after the loss of the primary.
    pub failovers: u64,
    /// Bytes of disks sent to backups, to bring theirs up to date.
    #[serde(default)]
    pub disk_sync_bytes: u64,
}

impl Counters {
    /// Chunks of all vCPUs.
    pub fn chunks(&self) -> u64 {
        self.chunks_by_vcpu.iter().sum()
    }
}

/// The other host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its address, once known.
    pub address: Option<String>,
    /// Whether there is a connection.
    pub connected: bool,
    /// Whether the backup, on whichever side, is in sync.
    pub in_sync: bool,
}

/// The arbiter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arbiter {
    /// Which.
    pub kind: ArbiterKind,
    /// Whether it answered last time.
    pub reachable: bool,
    /// What it said last, in words.
    pub detail: String,
}

/// What kind of KVM a host has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostKvm {
    /// Who walks the guest's page tables: `second-level` (the processor) or `shadow` (KVM keeps its own).
    pub paging: String,
    /// What CPUID tells programs in the guest: `masked` (as configured) or `native` (the host's own).
    pub cpuid: String,
    /// The guest's time stamp counter: `movable` or `fixed` (the host's own).
    pub tsc: String,
}

impl fmt::Display for HostKvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { paging, cpuid, tsc } = self;
        write!(f, "KVM with {paging} paging, CPUID {cpuid}, TSC {tsc}")
    }
}

/// What a network device of the guest came to, since the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDevice {
    /// Its number among the guest's devices.
    pub device: u8,
    /// Its tap on this host.
    pub tap: String,
    /// Frames that the guest took.
    pub frames_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Frames of the guest that the network took.
    pub frames_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Frames that got no further, by reason: `standby`, `no_room`, `gone`, `full`, `down`, `refused`.
    pub lost: BTreeMap<String, u64>,
    /// Frames that told the network that the guest is here now.
    pub announcements: u64,
    /// Times that the tap could not be read.
    pub read_errors: u64,
}

impl NetworkDevice {
    /// From what was counted.
    pub fn new(tap: &str, counts: &DeviceCounts) -> Self {
        let lost = Lost::ALL.map(|reason| (reason.as_str().to_owned(), counts.lost_for(reason)));
        Self {
            device: counts.device.0,
            tap: tap.to_owned(),
            frames_in: counts.frames_in,
            bytes_in: counts.bytes_in,
            frames_out: counts.frames_out,
            bytes_out: counts.bytes_out,
            lost: lost.into(),
            announcements: counts.announcements,
            read_errors: counts.read_errors,
        }
    }
}

/// A change of role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleChange {
    /// When, Unix time.
    pub at_unix_ms: u64,
    /// When, since the start of the process.
    pub at_ms: u64,
    /// The role from then on.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// Why.
    pub reason: String,
}

/// How the guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its exit status; none if it was stopped.
    pub exit_status: Option<u8>,
    /// In words: `exit`, `halt`, or the fault.
    pub how: String,
}

impl Status {
    /// The status of a daemon that has just read its configuration and done nothing yet.
    pub fn new(config: &Config, role: Role, host: &str) -> Self {
        Self {
            vm: config.vm.name.clone(),
            host: host.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            role,
            term: 0,
            protected: false,
            state: "starting".to_owned(),
            since_unix_ms: unix_ms(),
            vcpus: config.vm.vcpus,
            memory_bytes: config.vm.memory.bytes(),
            recording: config.recording.mode,
            isolation: isolation_word(config.recording.isolation).to_owned(),
            kvm: None,
            warnings: Vec::new(),
            counter: counter_word(config.recording.counter).to_owned(),
            guest_time_ns: 0,
            mark: 0,
            positions: Positions::default(),
            lag: Lag::default(),
            gate: Gate::default(),
            counters: Counters {
                chunks_by_vcpu: vec![0; config.vm.vcpus as usize],
                ..Counters::default()
            },
            peer: None,
            arbiter: None,
            network: Vec::new(),
            role_changes: Vec::new(),
            ended: None,
        }
    }

    /// Replaces the sentence; the time since when it is true moves only if the sentence changes.
    pub fn set_state(&mut self, state: impl Into<String>) {
        let state = state.into();
        if state != self.state {
            self.state = state;
            self.since_unix_ms = unix_ms();
        }
    }
}

const fn counter_word(counter: Counter) -> &'static str {
    match counter {
        Counter::Auto | Counter::Exits => "none: chunks that are cut travel as effects",
        Counter::SingleStep => "single-step",
    }
}

const fn isolation_word(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Parallel => "parallel",
        Isolation::Serial => "serial",
        Isolation::Auto => "auto",
    }
}

/// Milliseconds of Unix time.
pub fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
