//! A Linux guest that serves a network, protected by a pair on a [`Wire`], and the one client that uses it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::linux::{LinuxGuest, LinuxMachine, disk_setting, make_disk, net_setting};
use crate::seed::Seeded;
use crate::store::{InFlight, StoreClient};
use crate::wire::{GUEST, PREFIX_BITS, TAP_A, TAP_B};
use crate::{HarnessError, Pair, PauseMeter, Pauses, Seat, Site, Status, Wire, wait};

const PORT: u16 = 7000;
const DISK_MIB: u32 = 16;
/// From one request's begin to the next one's.
const PERIOD: Duration = Duration::from_millis(5);
/// Longer than a survivor and the client's own retransmissions may ever take.
const ANSWER_BOUND: Duration = Duration::from_mins(2);
const PROTECTION_BOUND: Duration = Duration::from_mins(4);
/// A killed host's lifeline closes at once. Silence alone is what a machine with much else to do makes of a good host, and
/// would be a failover that nobody counts on.
const DEAD_AFTER: &str = "failover.dead_after_ms=3000";

/// A pair on a wire, each host with a disk and a tap.
pub struct Service {
    // Dropped in this order: the daemons first.
    /// The hosts.
    pub pair: Pair,
    /// The hosts' images of the guest's disk: alpha's, beta's.
    pub images: [PathBuf; 2],
    site: Site,
    /// What connects them with the client.
    pub wire: Wire,
}

impl Service {
    /// Starts both hosts with a guest of two vCPUs that does this job, `serve` or `mixed`.
    pub fn start(guest: &'static LinuxGuest, job: &str, wire: Wire) -> Result<Self, HarnessError> {
        Self::start_with(guest, job, wire, &[])
    }

    /// The same, with settings of both hosts.
    pub fn start_with(
        guest: &'static LinuxGuest,
        job: &str,
        wire: Wire,
        extra: &[&str],
    ) -> Result<Self, HarnessError> {
        let site = Site::new()?;
        let job = format!("job={job} ip={GUEST}/{PREFIX_BITS}");
        let machine = LinuxMachine::new(guest, &job).vcpus(2).device().device();
        let images = [site.path("disk-alpha"), site.path("disk-beta")];
        make_disk(&images[0], DISK_MIB)?;
        // A new backup's image needs the right size only.
        let sized = fs::metadata(&images[0])
            .and_then(|first| fs::File::create(&images[1])?.set_len(first.len()));
        sized.map_err(HarnessError::file(images[1].clone()))?;
        let mut seats = site.seats()?;
        seat_at(&mut seats.0, &wire, &images[0], TAP_A);
        seat_at(&mut seats.1, &wire, &images[1], TAP_B);
        let pair = Pair::start_at(
            &site,
            &seats,
            machine.settings(),
            &[&[DEAD_AFTER], extra].concat(),
        )?;
        Ok(Self {
            pair,
            images,
            site,
            wire,
        })
    }

    /// Waits until the primary is protected; gives its status.
    pub fn wait_protected(&mut self) -> Result<Status, HarnessError> {
        let is_protected = |status: &Status| status.protected;
        self.pair
            .primary
            .wait_status("protection", PROTECTION_BOUND, is_protected)
    }

    /// The survivor becomes the pair's primary, the killed host comes back as its backup. Gives how long
    /// that took, and the bytes of disk that it took.
    pub fn protect_again(&mut self) -> Result<(Duration, u64), HarnessError> {
        let pair = &mut self.pair;
        std::mem::swap(&mut pair.primary, &mut pair.backup);
        let (survivor, killed) = (pair.primary.seat().clone(), pair.backup.seat().clone());
        pair.backup = pair.restart_as_backup(&self.site, &killed, &survivor)?;
        let begin = Instant::now();
        let status = self.wait_protected()?;
        Ok((begin.elapsed(), status.counters.disk_sync_bytes))
    }
}

fn seat_at(seat: &mut Seat, wire: &Wire, image: &Path, tap: &str) {
    seat.own = vec![disk_setting(image), net_setting(tap)];
    seat.prefix = wire.hosts.command_prefix().to_vec();
}

/// The client: one connection, whose requests a meter makes.
pub struct Client {
    store: Arc<Mutex<StoreClient>>,
    meter: PauseMeter,
    in_flight: InFlight,
}

/// What a client saw.
pub struct Seen {
    /// Its requests.
    pub pauses: Pauses,
    /// Values that the guest acknowledged.
    pub sets: u64,
    /// Keys that were read back in the end, each with its last acknowledged value.
    pub keys: usize,
}

impl Client {
    /// Connects to the guest and goes on asking: sets values and reads them.
    pub fn start(wire: &Wire, seeded: Seeded) -> Result<Self, HarnessError> {
        Self::start_with(wire, seeded, StoreClient::step)
    }

    /// Connects to the guest and goes on asking, each time what `step` does.
    pub fn start_with(
        wire: &Wire,
        seeded: Seeded,
        mut step: impl FnMut(&mut StoreClient) -> io::Result<()> + Send + 'static,
    ) -> Result<Self, HarnessError> {
        let address = SocketAddr::from((GUEST, PORT));
        let connect = || StoreClient::connect(address, ANSWER_BOUND, seeded);
        let store = wire.client.run(connect)?.map_err(failed)?;
        let in_flight = store.in_flight();
        let store = Arc::new(Mutex::new(store));
        let stepped = Arc::clone(&store);
        let request = move || {
            let mut store = stepped.lock().unwrap_or_else(PoisonError::into_inner);
            step(&mut store)
        };
        let meter = PauseMeter::start(&wire.client, PERIOD, request);
        Ok(Self {
            store,
            meter,
            in_flight,
        })
    }

    /// Whether it is just setting a value.
    pub fn is_set_outstanding(&self) -> bool {
        self.in_flight.is_set_outstanding()
    }

    /// Waits until it is just setting a value.
    pub fn wait_set_outstanding(&self) -> Result<(), HarnessError> {
        let look = || Ok(self.is_set_outstanding().then_some(()));
        let seen = || format!("{:?}", self.pauses());
        wait::until("a value that is being set", ANSWER_BOUND, look, seen)
    }

    /// What it has seen so far.
    pub fn pauses(&self) -> Pauses {
        self.meter.pauses()
    }

    /// Waits for so many more answers; fails at once when one fails.
    pub fn wait_more(&self, count: u64) -> Result<(), HarnessError> {
        let wanted = self.pauses().answers + count;
        let deadline = Instant::now() + ANSWER_BOUND + PROTECTION_BOUND;
        loop {
            let pauses = self.pauses();
            if pauses.failures > 0 || Instant::now() > deadline {
                return Err(failed(io::Error::other(format!("{pauses:?}"))));
            }
            if pauses.answers >= wanted {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Reads everything back, and stops the guest.
    pub fn finish(self, wire: &Wire) -> Result<Seen, HarnessError> {
        let pauses = self.meter.stop()?;
        let end = move || {
            let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
            let (keys, sets) = (store.check_all()?, store.sets());
            store.stop()?;
            Ok((keys, sets))
        };
        let (keys, sets) = wire.client.run(end)?.map_err(failed)?;
        Ok(Seen { pauses, sets, keys })
    }
}

fn failed(source: io::Error) -> HarnessError {
    HarnessError::Client(source)
}
