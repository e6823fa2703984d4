//! A network for a pair's guest: the taps of both hosts on one bridge, and a client on the same wire.
//!
//! ```text
//! namespace "hosts"                     namespace "client"
//!   lo  127.0.0.1 (both daemons)
//!   br0 ─┬─ tap_a   (alpha's)
//!        ├─ tap_b   (beta's)
//!        └─ uplink ───────────────────── eth0 10.77.0.1/24
//! ```
//!
//! The guest has 10.77.0.2. Namespaces have names, so that `ip netns exec` reaches them; they go when the [`Wire`] is
//! dropped, and those of processes that died before they could are cleared by the next.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{JoinHandle, ScopedJoinHandle};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::HarnessError;

/// Where `ip netns` keeps namespaces.
const DIRECTORY: &str = "/run/netns";
const PREFIX: &str = "samsara-";

/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The bits of both that name their network.
pub const PREFIX_BITS: u8 = 24;
/// Alpha's tap, in the hosts' namespace.
pub const TAP_A: &str = "tap_a";
/// Beta's tap, in the hosts' namespace.
pub const TAP_B: &str = "tap_b";

/// A network namespace with a name. It goes when it is dropped, with all that is in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one, with its loopback up.
    fn new(name: String) -> Result<Self, HarnessError> {
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// What a command line begins with to run within it. The process is the command's own: signals reach it.
    pub fn command_prefix(&self) -> [String; 4] {
        ["ip", "netns", "exec", &self.name].map(str::to_owned)
    }

    /// A command within it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let [first, rest @ ..] = self.command_prefix();
        let mut command = Command::new(first);
        command.args(rest).arg(program);
        command
    }

    /// Runs `ip` on what is within it, with words that spaces part.
    pub fn ip(&self, words: &str) -> Result<(), HarnessError> {
        let mut arguments = vec!["-n", self.name.as_str()];
        arguments.extend(words.split(' '));
        ip(&arguments)
    }

    /// Moves the calling thread into it. Sockets that it makes from then on, and processes and threads that it starts,
    /// are there; sockets that it has stay where they are.
    pub fn enter(&self) -> Result<(), HarnessError> {
        enter(&self.path())
    }

    /// Starts a thread within it.
    pub fn spawn<T: Send + 'static>(
        &self,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<Result<T, HarnessError>> {
        let path = self.path();
        std::thread::spawn(move || enter(&path).map(|()| body()))
    }

    /// Runs something on a thread within it, to its end.
    ///
    /// # Panics
    ///
    /// As `body` does.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T, HarnessError> {
        let result = std::thread::scope(|scope| {
            let thread: ScopedJoinHandle<'_, _> = scope.spawn(|| self.enter().map(|()| body()));
            thread.join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("{}", error.line());
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Wire {
    /// Where both daemons run.
    pub hosts: Namespace,
    /// Where clients of the guest run.
    pub client: Namespace,
}

impl Wire {
    /// Makes the namespaces and what is within them.
    ///
    /// # Errors
    ///
    /// There is no `ip`, it is not permitted, or the kernel lacks a part.
    pub fn new() -> Result<Self, HarnessError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        clear_leftovers();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |what| format!("{PREFIX}{}-{number}-{what}", std::process::id());
        // Dropped, whatever fails below, and with them all that was made within.
        let hosts = Namespace::new(name("hosts"))?;
        let client = Namespace::new(name("client"))?;
        // Ports forward at once, and nothing is held back for want of a listener.
        hosts.ip("link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
        hosts.ip("link set br0 up")?;
        for tap in [TAP_A, TAP_B] {
            hosts.ip(&format!("tuntap add dev {tap} mode tap"))?;
            attach(&hosts, tap)?;
        }
        let peer = client.name();
        hosts.ip(&format!(
            "link add uplink type veth peer name eth0 netns {peer}"
        ))?;
        attach(&hosts, "uplink")?;
        client.ip(&format!("addr add {CLIENT}/{PREFIX_BITS} dev eth0"))?;
        client.ip("link set eth0 up")?;
        Ok(Self { hosts, client })
    }

    /// The same, or none if this machine does not let it: the test is skipped then, which is said.
    pub fn new_or_skip(test: &str) -> Option<Self> {
        static SKIPPED: AtomicU32 = AtomicU32::new(0);
        match Self::new() {
            Ok(wire) => Some(wire),
            Err(error) => {
                let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
                println!("skipped: {test}: {} ({count} skipped so far)", error.line());
                None
            }
        }
    }

    /// Pulls a host's plug, so that its tap reaches nobody.
    pub fn unplug(&self, tap: &str) -> Result<(), HarnessError> {
        self.hosts.ip(&format!("link set {tap} nomaster"))
    }

    /// Plugs it in again.
    pub fn plug(&self, tap: &str) -> Result<(), HarnessError> {
        attach(&self.hosts, tap)
    }
}

fn attach(hosts: &Namespace, port: &str) -> Result<(), HarnessError> {
    hosts.ip(&format!("link set {port} master br0 up"))
}

fn enter(path: &Path) -> Result<(), HarnessError> {
    let file = File::open(path).map_err(HarnessError::file(path))?;
    let moved = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
    moved.map_err(|error| HarnessError::file(path)(error.into()))
}

/// Removes namespaces of processes that are gone.
fn clear_leftovers() {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let is_left = name
            .to_str()
            .and_then(maker)
            .is_some_and(|process| !Path::new("/proc").join(process.to_string()).exists());
        if is_left && let Some(name) = name.to_str() {
            // Another process may have been faster.
            let _ = ip(&["netns", "del", name]);
        }
    }
}

/// The process that made the namespace of this name, if it is one of ours.
fn maker(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let process = parts.next()?.parse().ok()?;
    let is_ours = parts.next()?.parse::<u32>().is_ok()
        && matches!(parts.next()?, "hosts" | "client")
        && parts.next().is_none();
    is_ours.then_some(process)
}

fn ip(arguments: &[&str]) -> Result<(), HarnessError> {
    let failed = |source| HarnessError::Process {
        what: format!("ip {}", arguments.join(" ")),
        source,
    };
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(io::Error::other(said)))
}

#[cfg(test)]
mod tests;
