//! The guest's service is used over one TCP connection while the primary is killed: the connection lasts, and every
//! value that was acknowledged can be read.
//!
//! One kill, or three with `SAMSARA_TESTS=full`; `SAMSARA_KILLS=n` kills n times. `SAMSARA_SEED=s` repeats a run.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use samsara_testing::{by_effort, number_from_env};
use samsara_tests::linux::{LinuxMachine, check_disk, disk_setting, make_disk, net_setting};
use samsara_tests::seed::{Seeded, run_seed};
use samsara_tests::store::StoreClient;
use samsara_tests::wire::{GUEST, PREFIX_BITS, TAP_A, TAP_B};
use samsara_tests::{Pair, PauseMeter, Seat, Site, Wire};

use crate::disks::assert_equal;
use crate::{BOUND, turn_or_skip};

const PORT: u16 = 7000;
const DISK_MIB: u32 = 16;
/// From one request's begin to the next one's.
const PERIOD: Duration = Duration::from_millis(5);
/// Answers before a kill and after it.
const ANSWERS: u64 = 30;
/// A kill comes so much later than the answers before it, at most.
const KILL_WITHIN: Duration = Duration::from_millis(1500);
/// Longer than a survivor and the client's own retransmissions may ever take.
const ANSWER_BOUND: Duration = Duration::from_mins(2);

/// A pair on a wire, each host with a disk and a tap.
struct Service {
    // Dropped in this order: the daemons first.
    pair: Pair,
    images: [PathBuf; 2],
    site: Site,
    wire: Wire,
}

impl Service {
    fn start(turn: &crate::Turn, wire: Wire) -> Self {
        let site = Site::new().unwrap();
        let job = format!("job=serve ip={GUEST}/{PREFIX_BITS}");
        let machine = LinuxMachine::new(turn.guest, &job)
            .vcpus(2)
            .device()
            .device();
        let images = [site.path("disk-alpha"), site.path("disk-beta")];
        make_disk(&images[0], DISK_MIB).unwrap();
        // A new backup's image needs the right size only.
        let bytes = fs::metadata(&images[0]).unwrap().len();
        fs::File::create(&images[1])
            .unwrap()
            .set_len(bytes)
            .unwrap();
        let mut seats = site.seats().unwrap();
        seat_at(&mut seats.0, &wire, &images[0], TAP_A);
        seat_at(&mut seats.1, &wire, &images[1], TAP_B);
        let pair = Pair::start_at(&site, &seats, machine.settings(), &[]).unwrap();
        Self {
            pair,
            images,
            site,
            wire,
        }
    }

    /// The survivor becomes the pair's primary, the killed host comes back as its backup.
    fn protect_again(&mut self) {
        let pair = &mut self.pair;
        std::mem::swap(&mut pair.primary, &mut pair.backup);
        let (survivor, killed) = (pair.primary.seat().clone(), pair.backup.seat().clone());
        pair.backup = pair
            .restart_as_backup(&self.site, &killed, &survivor)
            .unwrap();
        let begin = Instant::now();
        let is_protected = |status: &samsara_tests::Status| status.protected;
        let status = pair
            .primary
            .wait_status("protection again", BOUND, is_protected);
        let bytes = status.unwrap().disk_sync_bytes;
        println!(
            "  protected again after {:.1?}, {bytes} bytes of disk",
            begin.elapsed()
        );
    }
}

fn seat_at(seat: &mut Seat, wire: &Wire, image: &std::path::Path, tap: &str) {
    seat.own = vec![disk_setting(image), net_setting(tap)];
    seat.prefix = wire.hosts.command_prefix().to_vec();
}

/// Says on a panic how to repeat it.
struct Told(String);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to repeat this: {}", self.0);
        }
    }
}

#[test]
fn a_connection_outlives_the_hosts_that_serve_it() {
    const TEST: &str = "a_connection_outlives_the_hosts_that_serve_it";
    let Some(turn) = turn_or_skip(TEST) else {
        return;
    };
    let Some(wire) = Wire::new_or_skip(TEST) else {
        return;
    };
    let kills = number_from_env("SAMSARA_KILLS").unwrap_or_else(|| by_effort(1, 3));
    let seed = run_seed();
    println!("{TEST}: seed {seed}, {kills} kills");
    let _told = Told(format!(
        "SAMSARA_SEED={seed} SAMSARA_KILLS={kills} cargo test --package samsara-tests --test linux -- --nocapture {TEST}"
    ));
    let mut seeded = Seeded::new(seed);
    let mut service = Service::start(&turn, wire);
    crate::wait_said(&service.pair.primary, "samsara: serving");
    let client = Client::start(&service.wire, Seeded::new(seeded.bits()));
    for _ in 0..kills {
        kill_once(&mut service, &client, &mut seeded);
    }
    client.finish(&service.wire);
    assert_ended_alike(service);
}

fn kill_once(service: &mut Service, client: &Client, seeded: &mut Seeded) {
    let is_protected = |status: &samsara_tests::Status| status.protected;
    let primary = &mut service.pair.primary;
    primary
        .wait_status("protection", BOUND, is_protected)
        .unwrap();
    client.wait_more(ANSWERS);
    // A random moment is the one thing that is slept until here.
    std::thread::sleep(seeded.up_to(KILL_WITHIN));
    let name = primary.name().to_owned();
    let at = service.pair.kill_primary().unwrap();
    client.wait_more(1);
    let away = at.elapsed();
    println!("  {name} killed; the next answer came within {away:.2?}");
    client.wait_more(ANSWERS);
    service.protect_again();
}

/// The client, whose requests a meter makes.
struct Client {
    store: Arc<Mutex<StoreClient>>,
    meter: PauseMeter,
}

impl Client {
    fn start(wire: &Wire, seeded: Seeded) -> Self {
        let address = SocketAddr::from((GUEST, PORT));
        let connect = || StoreClient::connect(address, ANSWER_BOUND, seeded);
        let store = wire.client.run(connect).unwrap().unwrap();
        let store = Arc::new(Mutex::new(store));
        let stepped = Arc::clone(&store);
        let step = move || stepped.lock().unwrap().step();
        let meter = PauseMeter::start(&wire.client, PERIOD, step);
        Self { store, meter }
    }

    /// Waits for so many more answers; fails at once when one fails.
    fn wait_more(&self, count: u64) {
        let wanted = self.meter.pauses().answers + count;
        let deadline = Instant::now() + ANSWER_BOUND + BOUND;
        loop {
            let pauses = self.meter.pauses();
            assert_eq!(pauses.failures, 0, "{:?}", pauses.errors);
            if pauses.answers >= wanted {
                return;
            }
            assert!(Instant::now() < deadline, "no answers: {pauses:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Reads everything back, and stops the guest.
    fn finish(self, wire: &Wire) {
        let pauses = self.meter.stop().unwrap();
        assert_eq!(pauses.failures, 0, "{:?}", pauses.errors);
        let end = move || {
            let mut store = self.store.lock().unwrap();
            let (keys, sets) = (store.check_all().unwrap(), store.sets());
            store.stop().unwrap();
            (keys, sets)
        };
        let (keys, sets) = wire.client.run(end).unwrap();
        println!(
            "  {} answers, {sets} values set, {keys} read back; longest pause {:.2?}",
            pauses.answers, pauses.longest
        );
    }
}

/// Both hosts end as the guest did, and have the same disk.
fn assert_ended_alike(mut service: Service) {
    for host in [&mut service.pair.primary, &mut service.pair.backup] {
        assert_eq!(host.wait_code(BOUND).unwrap(), 0, "{}", host.name());
        assert_eq!(host.report().unwrap().divergences, 0, "{}", host.name());
    }
    let [alpha, beta] = &service.images;
    check_disk(alpha).unwrap();
    assert_equal(alpha, beta);
}
