//! The host's side of a guest's network.
//!
//! Each network device of the guest has a tap. What the guest sends leaves through it once the
//! output gate lets it, see [`Network::emit`]; what arrives is handed to the recorder as input.
//!
//! ```text
//! open ── start ── go_live ── stop
//!           │         │
//!           │         └─ frames for the guest are taken; the guest is announced
//!           └─ frames for the guest are read and dropped, on a backup for most of its life
//! ```
//!
//! A backup opens its taps when it starts, not when it goes live: a tap has a carrier only while it
//! is open, and a bridge may take a second to notice one.

pub mod announce;
mod counts;
pub mod learned;
mod tap;

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::{EventfdFlags, eventfd};
use samsara_commitlog::DeviceIndex;
use samsara_machine::tap::{Tap, TapError};

pub use counts::{DeviceCounts, Direction, Lost};
pub use learned::{Learned, Mac};
use tap::{Inward, Port};

/// How long threads may take to end: they wait for nothing that lasts, but for the recorder.
const STOP_BOUND: Duration = Duration::from_secs(1);
/// How often they are looked at meanwhile.
const STOP_LOOK: Duration = Duration::from_millis(1);

/// A device and its tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConfig {
    /// The network device.
    pub device: DeviceIndex,
    /// The name of its tap on this host.
    pub tap: String,
    /// The device's Ethernet address, the same on both hosts.
    pub mac: Mac,
}

/// What the recorder did with a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is, or will be, an input.
    Yes,
    /// The guest has no receive buffer now.
    NoRoom,
    /// The guest has ended.
    Gone,
}

/// Hands a frame to the recorder. Called by one thread for each device.
pub type Take = dyn Fn(DeviceIndex, Bytes) -> Taken + Send + Sync;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A tap cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// Two devices would have one tap.
    #[error("tap {0} is named for two network devices")]
    SameTap(String),
    /// Two taps would be one device's.
    #[error("two taps are named for network device {0}")]
    SameDevice(DeviceIndex),
    /// The system has no more of something.
    #[error("cannot start the threads of the network")]
    Threads(#[source] io::Error),
}

/// The taps of a guest. Whoever drops it ends its threads.
#[derive(Debug)]
pub struct Network {
    ports: Vec<Arc<Port>>,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Frames for devices that have no tap.
    unwired: AtomicU64,
}

/// What the threads share.
struct Shared {
    take: Mutex<Option<Arc<Take>>>,
    /// For the reading threads, with `stopping`.
    stop_signal: OwnedFd,
    stopping: AtomicBool,
    /// For the announcing thread: changed when `stopping` is.
    stopped: Condvar,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_live = self.taker().is_some();
        f.debug_struct("Shared")
            .field("is_live", &is_live)
            .field("stopping", &self.stopping)
            .finish_non_exhaustive()
    }
}

impl Network {
    /// Opens the taps, in the calling thread's network namespace.
    pub fn open(taps: &[TapConfig]) -> Result<Self, NetworkError> {
        check(taps)?;
        let open = |config: &TapConfig| {
            let tap = Tap::open(&config.tap)?;
            Ok(Arc::new(Port::new(config.device, config.mac, tap)))
        };
        let ports = taps.iter().map(open).collect::<Result<_, TapError>>()?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let stop_signal = eventfd(0, flags).map_err(|error| NetworkError::Threads(error.into()))?;
        let shared = Shared {
            take: Mutex::new(None),
            stop_signal,
            stopping: AtomicBool::new(false),
            stopped: Condvar::new(),
        };
        Ok(Self {
            ports,
            shared: Arc::new(shared),
            threads: Mutex::default(),
            unwired: AtomicU64::new(0),
        })
    }

    /// Starts reading: once, and long before this host may go live.
    pub fn start(&self) -> Result<(), NetworkError> {
        for port in &self.ports {
            let (port, shared) = (Arc::clone(port), Arc::clone(&self.shared));
            let name = format!("net-{}", port.device);
            self.spawn(name, move || port.read(&*shared))?;
        }
        Ok(())
    }

    /// Hands frames that arrive from now on to `take`, and announces the guest, several times.
    pub fn go_live(&self, take: Arc<Take>) -> Result<(), NetworkError> {
        if self.ports.is_empty() {
            return Ok(());
        }
        for port in &self.ports {
            port.flush();
        }
        *self.shared.taker() = Some(take);
        let (ports, shared) = (self.ports.clone(), Arc::clone(&self.shared));
        self.spawn("net-announcer".to_owned(), move || {
            announce_to_the_end(&ports, &shared);
        })
    }

    fn spawn(
        &self,
        name: String,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), NetworkError> {
        let thread = std::thread::Builder::new().name(name).spawn(body);
        let thread = thread.map_err(NetworkError::Threads)?;
        self.threads().push(thread);
        Ok(())
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn port(&self, device: DeviceIndex) -> Option<&Port> {
        let port = self.ports.iter().find(|port| port.device == device);
        if port.is_none() {
            self.unwired.fetch_add(1, Ordering::Relaxed);
        }
        port.map(|port| &**port)
    }

    /// Sends a frame that the output gate has let through. It never fails and never waits: what the
    /// network does not take is lost, as on a wire, and counted.
    pub fn emit(&self, device: DeviceIndex, frame: &[u8]) {
        if let Some(port) = self.port(device) {
            port.emit(frame);
        }
    }

    /// Learns from a frame that another host emits, so that this one can announce the guest.
    pub fn observe(&self, device: DeviceIndex, frame: &[u8]) {
        if let Some(port) = self.port(device) {
            port.observe(frame);
        }
    }

    /// Ends the threads: nothing more is read or announced. What the gate still lets through is
    /// sent.
    pub fn stop(&self) {
        self.shared.stop();
        let deadline = Instant::now() + STOP_BOUND;
        for thread in self.threads().drain(..) {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(STOP_LOOK);
            }
            if thread.is_finished() {
                // One that panicked has said so.
                let _ = thread.join();
            } else {
                let name = thread.thread().name().unwrap_or_default();
                tracing::warn!("thread {name} did not end within {STOP_BOUND:?}");
            }
        }
    }

    /// Totals by device.
    pub fn counts(&self) -> Vec<DeviceCounts> {
        let totals = |port: &Arc<Port>| port.counters.totals(port.device);
        self.ports.iter().map(totals).collect()
    }

    /// Frames for devices that have no tap: both hosts are to have the same devices.
    pub fn unwired_frames(&self) -> u64 {
        self.unwired.load(Ordering::Relaxed)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn taker(&self) -> MutexGuard<'_, Option<Arc<Take>>> {
        self.take.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        let mut take = self.taker();
        *take = None;
        self.stopping.store(true, Ordering::SeqCst);
        drop(take);
        self.stopped.notify_all();
        // It fails only if it says so already.
        let _ = rustix::io::write(&self.stop_signal, &1u64.to_ne_bytes());
    }

    /// Waits until then; whether to go on.
    fn wait_until(&self, then: Instant) -> bool {
        let mut take = self.taker();
        loop {
            if self.is_stopping() {
                return false;
            }
            let left = then.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            let waited = self.stopped.wait_timeout(take, left);
            take = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Inward for Shared {
    fn take(&self, device: DeviceIndex, frame: Bytes) -> Option<Taken> {
        // The recorder may wait: nobody waits for it here.
        let take = self.taker().clone()?;
        Some(take(device, frame))
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn stop_signal(&self) -> BorrowedFd<'_> {
        self.stop_signal.as_fd()
    }
}

/// Before any is opened: a tap that is made by being opened would come and go.
fn check(taps: &[TapConfig]) -> Result<(), NetworkError> {
    for (index, config) in taps.iter().enumerate() {
        let before = &taps[..index];
        if before.iter().any(|other| other.device == config.device) {
            return Err(NetworkError::SameDevice(config.device));
        }
        if before.iter().any(|other| other.tap == config.tap) {
            return Err(NetworkError::SameTap(config.tap.clone()));
        }
    }
    Ok(())
}

fn announce_to_the_end(ports: &[Arc<Port>], shared: &Shared) {
    let start = Instant::now();
    for delay in announce::DELAYS {
        if !shared.wait_until(start + delay) {
            return;
        }
        for port in ports {
            port.announce();
        }
    }
}

#[cfg(test)]
mod tests;
