//! Types of values, and the checks that one value needs by itself.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PAGE_BYTES: u64 = 4096;
/// The parameter string and its NUL fit in the page that the bare guest contract sets aside.
const PARAMS_BYTES_MAX: usize = 4095;
/// Longest kernel command line: x86 kernels keep 2048 bytes, its NUL among them, and cut off the rest.
const CMDLINE_BYTES_MAX: usize = 2047;
/// Longest DNS name, and longest label of one.
const HOST_NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// A count of bytes, written as `65536`, `"64KiB"`, `"64MiB"` or `"2GiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many MiB.
    pub(crate) const fn mib(count: u64) -> Self {
        Self(count * MIB)
    }

    /// The count of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
            if self.0 > 0 && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl FromStr for ByteSize {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = match text[digits.len()..].trim_start() {
            "" | "B" => 1,
            "KiB" => KIB,
            "MiB" => MIB,
            "GiB" => GIB,
            _ => return Err(()),
        };
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(());
        }
        let count: u64 = digits.parse().map_err(drop)?;
        count.checked_mul(unit).map(Self).ok_or(())
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

struct ByteSizeVisitor;

impl Visitor<'_> for ByteSizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"64MiB\"")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<ByteSize, E> {
        let bytes = u64::try_from(value);
        bytes
            .map(ByteSize)
            .map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse()
            .map_err(|()| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ByteSizeVisitor)
    }
}

/// `host:port` of the other host; the host is a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerAddress {
    host: String,
    port: u16,
}

impl PeerAddress {
    /// The host: a name or an address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl TryFrom<String> for PeerAddress {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let (host, port) = text.rsplit_once(':').ok_or("no port")?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or("bad port")?;
        let bracketed = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let valid = match bracketed {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_host_name(host),
        };
        if !valid {
            return Err("bad host");
        }
        Ok(Self {
            host: bracketed.unwrap_or(host).to_owned(),
            port,
        })
    }
}

impl From<PeerAddress> for String {
    fn from(address: PeerAddress) -> Self {
        address.to_string()
    }
}

/// Where console output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Console {
    /// Standard output of the daemon; nothing else is written there.
    Stdout,
    /// A file.
    File(PathBuf),
}

impl TryFrom<String> for Console {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "stdout" => Ok(Self::Stdout),
            _ if is_path(&text) => Ok(Self::File(text.into())),
            _ => Err("not a path"),
        }
    }
}

impl From<Console> for String {
    fn from(console: Console) -> Self {
        match console {
            Console::Stdout => "stdout".to_owned(),
            Console::File(path) => path.to_string_lossy().into_owned(),
        }
    }
}

/// Declares an enum whose variants are written as words, with hyphens between them.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$doc])* $variant),+ }
    };
}

words! {
    /// Where console input comes from.
    ConsoleInput {
        /// Nowhere: the guest reads "no input".
        None,
        /// Standard input of the daemon.
        Stdin,
    }
}
words! {
    /// Which processor features the guest is shown.
    CpuModel {
        /// A fixed set that hosts of the last ten years share, so that the VM can move between them.
        Baseline,
        /// Whatever this host has.
        Host,
    }
}
words! {
    /// The device that a Linux guest's console is.
    ConsoleDevice {
        /// The serial port COM1, `ttyS0`.
        Serial,
        /// A virtio console, `hvc0`.
        Virtio,
    }
}
words! {
    /// How vCPUs are kept apart while they run.
    Isolation {
        /// Each in a view of its own, at the same time.
        Parallel,
        /// One after the other, in one view.
        Serial,
        /// What suits the host and the guest.
        Auto,
    }
}
words! {
    /// In which form chunks travel.
    RecordingForm {
        /// As orders to run them again where that sends less and the backup keeps up, otherwise as effects.
        Auto,
        /// As the bytes that they changed.
        Effects,
        /// As orders to run them again, wherever their ends can be found.
        Order,
    }
}
words! {
    /// What counts the progress of vCPUs, so that a chunk that was cut can be run again.
    Counter {
        /// What the host has; nothing, if it has nothing.
        Auto,
        /// Nothing: only chunks that end by exits of their own are run again.
        Exits,
        /// The guest is stepped, instruction by instruction: for tests.
        SingleStep,
    }
}
words! {
    /// Whether the machine is recorded.
    RecordingMode {
        /// Chunks, commits, a log: what replication needs.
        On,
        /// An ordinary VM, nothing recorded: the baseline for comparisons.
        Off,
    }
}
words! {
    /// Which acknowledgement of a commit releases its outputs.
    AckPolicy {
        /// The backup has applied it and its digest agreed.
        Verified,
        /// The backup has the record.
        Received,
    }
}
words! {
    /// What settles who may run alone.
    ArbiterKind {
        /// A directory that both hosts see.
        File,
        /// The operator, with `samsaractl promote`.
        Manual,
    }
}
words! {
    /// Whether the guest's first instruction waits for a backup.
    StartPolicy {
        /// It waits until a backup is in sync.
        Protected,
        /// It does not wait.
        Alone,
    }
}

fn is_path(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}

/// Letters, digits, `-` and `.`, as in a certificate's DNS name or an IPv4 address; labels are not empty.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= HOST_NAME_BYTES_MAX && text.split('.').all(label)
}

/// Deserializes a whole number from `MIN` to `MAX`.
pub(crate) fn ranged<'de, D, T, const MIN: u64, const MAX: u64>(de: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: TryFrom<u64>,
{
    let value = u64::deserialize(de)?;
    if !(MIN..=MAX).contains(&value) {
        return Err(Error::custom("out of range"));
    }
    T::try_from(value).map_err(|_| Error::custom("out of range"))
}

pub(crate) fn checked<'de, D: Deserializer<'de>>(
    de: D,
    valid: fn(&str) -> bool,
) -> Result<String, D::Error> {
    let text = String::deserialize(de)?;
    if valid(&text) {
        Ok(text)
    } else {
        Err(Error::custom("not valid"))
    }
}

/// Deserializes the name of a VM.
pub(crate) fn name<'de, D: Deserializer<'de>>(de: D) -> Result<String, D::Error> {
    checked(de, |text| {
        text.len() <= LABEL_BYTES_MAX && is_host_name(text)
    })
}

/// Deserializes a host name of an optional key.
pub(crate) fn some_host_name<'de, D: Deserializer<'de>>(de: D) -> Result<Option<String>, D::Error> {
    checked(de, is_host_name).map(Some)
}

/// Deserializes a path of an optional key.
pub(crate) fn some_path<'de, D: Deserializer<'de>>(de: D) -> Result<Option<PathBuf>, D::Error> {
    checked(de, is_path).map(|text| Some(text.into()))
}

/// Deserializes a path.
pub(crate) fn path<'de, D: Deserializer<'de>>(de: D) -> Result<PathBuf, D::Error> {
    checked(de, is_path).map(PathBuf::from)
}

/// Deserializes the command line of a kernel.
pub(crate) fn cmdline<'de, D: Deserializer<'de>>(de: D) -> Result<String, D::Error> {
    checked(de, |text| {
        text.len() <= CMDLINE_BYTES_MAX && !text.contains('\0')
    })
}

/// Deserializes the parameter string.
pub(crate) fn params<'de, D: Deserializer<'de>>(de: D) -> Result<String, D::Error> {
    checked(de, |text| {
        text.len() <= PARAMS_BYTES_MAX && !text.contains('\0')
    })
}

fn sized<'de, D: Deserializer<'de>>(de: D, min: u64, max: u64) -> Result<ByteSize, D::Error> {
    let size = ByteSize::deserialize(de)?;
    let fits = (min..=max).contains(&size.bytes()) && size.bytes().is_multiple_of(PAGE_BYTES);
    if fits {
        Ok(size)
    } else {
        Err(Error::custom("out of range, or not whole pages"))
    }
}

/// Deserializes the size of guest memory.
pub(crate) fn memory<'de, D: Deserializer<'de>>(de: D) -> Result<ByteSize, D::Error> {
    sized(de, 16 * MIB, 64 * GIB)
}

/// Deserializes how much of a log is kept.
pub(crate) fn some_log_bytes<'de, D: Deserializer<'de>>(
    de: D,
) -> Result<Option<ByteSize>, D::Error> {
    sized(de, MIB, 1024 * GIB).map(Some)
}

/// Deserializes the size of the queue between vCPUs and network.
pub(crate) fn queue<'de, D: Deserializer<'de>>(de: D) -> Result<ByteSize, D::Error> {
    sized(de, MIB, 16 * GIB)
}
