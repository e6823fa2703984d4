//! Typed configuration, validated at the edge.
//!
//! A configuration is a TOML file, `--set key=value` items on top of it, or both: the items reach every key, so no file
//! is needed. [`Config::load`] yields a value in which every key is within its range and keys that depend on each
//! other agree; [`Config::check`] then says whether a [`Role`] has all it needs. Nothing downstream checks again.
//!
//! What a key is called, means, accepts and defaults to is in [`KEYS`], which also makes the documented example
//! ([`example`]) and the error texts. A test holds it to the fields of the types here.

mod check;
mod devices;
mod error;
mod example;
mod guest;
mod keys;
mod load;
mod values;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use check::Role;
pub use devices::{DISKS_MAX, DiskConfig, MacAddress, NETS_MAX, NetConfig, VIRTIO_DEVICES_MAX};
pub use error::{ConfigError, Origin};
pub use example::example;
pub use keys::{KEYS, Key};
pub use values::{
    AckPolicy, ArbiterKind, ByteSize, Console, ConsoleDevice, ConsoleInput, Counter, CpuModel,
    Isolation, PeerAddress, RecordingForm, RecordingMode, StartPolicy,
};

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The virtual machine.
    pub vm: VmConfig,
    /// How it is recorded.
    pub recording: RecordingConfig,
    /// What is kept of the log of `--record DIRECTORY`.
    pub log: LogConfig,
    /// How commits reach the other host.
    pub replication: ReplicationConfig,
    /// Certificates.
    pub tls: TlsConfig,
    /// When and by whose leave a host carries on alone.
    pub failover: FailoverConfig,
    /// Prometheus endpoint.
    pub metrics: MetricsConfig,
    /// Control socket.
    pub control: ControlConfig,
}

/// `[vm]`: the virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmConfig {
    /// Name in messages, metrics and status.
    #[serde(deserialize_with = "values::name")]
    pub name: String,
    /// The bare program: a static ELF64 file.
    #[serde(deserialize_with = "values::some_path")]
    pub program: Option<PathBuf>,
    /// The Linux kernel: a bzImage or an ELF file.
    #[serde(deserialize_with = "values::some_path")]
    pub kernel: Option<PathBuf>,
    /// Its initial file system.
    #[serde(deserialize_with = "values::some_path")]
    pub initrd: Option<PathBuf>,
    /// Its command line: no NUL, at most 2047 bytes.
    #[serde(deserialize_with = "values::cmdline")]
    pub cmdline: String,
    /// Which processor features the guest is shown.
    pub cpu: CpuModel,
    /// Count of vCPUs, 1 to 16.
    #[serde(deserialize_with = "values::ranged::<_, u32, 1, 16>")]
    pub vcpus: u32,
    /// Guest memory, 16 MiB to 64 GiB, whole pages.
    #[serde(deserialize_with = "values::memory")]
    pub memory: ByteSize,
    /// Parameter string for the guest: no NUL, at most 4095 bytes.
    #[serde(deserialize_with = "values::params")]
    pub params: String,
    /// The file that INPUT reads.
    #[serde(deserialize_with = "values::some_path")]
    pub input: Option<PathBuf>,
    /// Where console output goes.
    pub console: Console,
    /// Where console input comes from.
    pub console_input: ConsoleInput,
    /// What a Linux guest's console is.
    pub console_device: ConsoleDevice,
    /// Disks, in the order in which the guest sees them.
    #[serde(deserialize_with = "devices::list::<_, _, DISKS_MAX>")]
    pub disks: Vec<DiskConfig>,
    /// Network cards, in the order in which the guest sees them.
    #[serde(deserialize_with = "devices::list::<_, _, NETS_MAX>")]
    pub net: Vec<NetConfig>,
    /// A Linux guest has a device that gives it random numbers.
    pub entropy: bool,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            name: "vm".to_owned(),
            program: None,
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            cpu: CpuModel::Baseline,
            vcpus: 1,
            memory: ByteSize::mib(64),
            params: String::new(),
            input: None,
            console: Console::Stdout,
            console_input: ConsoleInput::None,
            console_device: ConsoleDevice::Serial,
            disks: Vec::new(),
            net: Vec::new(),
            entropy: true,
        }
    }
}

/// `[recording]`: how the machine is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecordingConfig {
    /// Recorded, or an ordinary VM.
    pub mode: RecordingMode,
    /// How vCPUs are kept apart.
    pub isolation: Isolation,
    /// In which form chunks travel.
    pub form: RecordingForm,
    /// What counts the progress of vCPUs.
    pub counter: Counter,
    /// Shortest chunk timer, microseconds.
    #[serde(deserialize_with = "values::ranged::<_, u64, 10, 1_000_000>")]
    pub chunk_min_us: u64,
    /// Longest chunk timer, microseconds.
    #[serde(deserialize_with = "values::ranged::<_, u64, 10, 1_000_000>")]
    pub chunk_max_us: u64,
    /// Commits between two digests of the whole machine; 0: never.
    #[serde(deserialize_with = "values::ranged::<_, u64, 0, 1_000_000_000>")]
    pub digest_every: u64,
    /// Most held pages in a view; 0: chosen automatically.
    #[serde(deserialize_with = "values::ranged::<_, u64, 0, 16_777_216>")]
    pub held_pages_max: u64,
    /// Squashes in a row after which a chunk runs exclusively.
    #[serde(deserialize_with = "values::ranged::<_, u32, 1, 1000>")]
    pub squashes_before_exclusive: u32,
}

impl Default for RecordingConfig {
    fn default() -> Self {
        Self {
            mode: RecordingMode::On,
            isolation: Isolation::Auto,
            form: RecordingForm::Auto,
            counter: Counter::Auto,
            chunk_min_us: 200,
            chunk_max_us: 5000,
            digest_every: 256,
            held_pages_max: 0,
            squashes_before_exclusive: 4,
        }
    }
}

/// `[log]`: what is kept of a log that is recorded to a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Seconds between two checkpoints.
    #[serde(deserialize_with = "values::ranged::<_, u32, 1, 86_400>")]
    pub checkpoint_every_s: u32,
    /// Minutes that are kept; 0: no segment is removed for its age.
    #[serde(deserialize_with = "values::ranged::<_, u32, 0, 5_256_000>")]
    pub keep_minutes: u32,
    /// Bytes that are kept; `None`: any number.
    #[serde(deserialize_with = "values::some_log_bytes")]
    pub max_bytes: Option<ByteSize>,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            checkpoint_every_s: 30,
            keep_minutes: 0,
            max_bytes: None,
        }
    }
}

/// `[replication]`: how commits reach the other host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplicationConfig {
    /// UDP address on which a primary takes a backup's connection.
    pub listen: Option<SocketAddr>,
    /// The other host, to which a backup connects.
    pub peer: Option<PeerAddress>,
    /// Name that the peer's certificate must carry; `None`: the host part of `peer`, on the connecting side.
    #[serde(deserialize_with = "values::some_host_name")]
    pub peer_name: Option<String>,
    /// Name of this host; `None`: the system's host name.
    #[serde(deserialize_with = "values::some_host_name")]
    pub host_name: Option<String>,
    /// What releases outputs.
    pub ack: AckPolicy,
    /// Bound of the queue between vCPUs and network.
    #[serde(deserialize_with = "values::queue")]
    pub queue_bytes: ByteSize,
    /// How long a commit may wait to be verified before vCPUs wait too, milliseconds.
    #[serde(deserialize_with = "values::ranged::<_, u64, 1, 60_000>")]
    pub lag_max_ms: u64,
    /// Time between two signs of life, milliseconds.
    #[serde(deserialize_with = "values::ranged::<_, u64, 1, 60_000>")]
    pub heartbeat_ms: u64,
}

impl Default for ReplicationConfig {
    fn default() -> Self {
        Self {
            listen: None,
            peer: None,
            peer_name: None,
            host_name: None,
            ack: AckPolicy::Verified,
            queue_bytes: ByteSize::mib(64),
            lag_max_ms: 20,
            heartbeat_ms: 30,
        }
    }
}

/// `[tls]`: certificates, PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificate of the operator's CA.
    #[serde(deserialize_with = "values::some_path")]
    pub ca: Option<PathBuf>,
    /// This host's certificate.
    #[serde(deserialize_with = "values::some_path")]
    pub cert: Option<PathBuf>,
    /// Its key.
    #[serde(deserialize_with = "values::some_path")]
    pub key: Option<PathBuf>,
}

/// `[failover]`: when and by whose leave a host carries on alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FailoverConfig {
    /// What settles who may run alone.
    pub arbiter: Option<ArbiterKind>,
    /// Directory of the file arbiter, the same one for both hosts.
    #[serde(deserialize_with = "values::some_path")]
    pub arbiter_dir: Option<PathBuf>,
    /// Silence after which the other host counts as dead, milliseconds.
    #[serde(deserialize_with = "values::ranged::<_, u64, 2, 600_000>")]
    pub dead_after_ms: u64,
    /// Whether the guest's first instruction waits for a backup.
    pub start: StartPolicy,
}

impl Default for FailoverConfig {
    fn default() -> Self {
        Self {
            arbiter: None,
            arbiter_dir: None,
            dead_after_ms: 150,
            start: StartPolicy::Protected,
        }
    }
}

/// `[metrics]`: Prometheus endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// TCP address of `/metrics` and `/healthz`; `None`: no endpoint.
    pub listen: Option<SocketAddr>,
}

/// `[control]`: control socket.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlConfig {
    /// Unix socket for `samsaractl`; `None`: no socket.
    #[serde(deserialize_with = "values::some_path")]
    pub socket: Option<PathBuf>,
}
