//! The guest's service is used over one TCP connection while the primary is killed, at any moment from the guest's boot on: the
//! connection lasts, and every value that was acknowledged can be read.
//!
//! One kill, or some in each test with `SAMSARA_TESTS=full`; `SAMSARA_KILLS=n` kills n times. `SAMSARA_SEED=s` repeats a run.

use std::time::{Duration, Instant};

use samsara_testing::{by_effort, number_from_env};
use samsara_tests::Wire;
use samsara_tests::linux::check_disk;
use samsara_tests::seed::{Seeded, run_seed};
use samsara_tests::service::{Client, Service};
use samsara_tests::store::StoreClient;

use crate::disks::assert_equal;
use crate::{BOUND, Told, Turn, UP, console, turn_or_skip};

const SERVING: &str = "samsara: serving";
/// Answers before a kill and after it.
const ANSWERS: u64 = 30;
/// A kill comes so much later than the answers before it, at most.
const KILL_WITHIN: Duration = Duration::from_millis(1500);
/// A kill during the boot comes so much later than protection, at most, and at once when user space is up.
const BOOT_KILL_WITHIN: Duration = Duration::from_secs(8);
/// A kill that is meant for a value on its way to the disk comes so much later than that was sent, at most: less than it takes.
const SET_KILL_WITHIN: Duration = Duration::from_millis(15);

/// A file is written nearly all the time, and little else is done.
const DISK_JOB: &str = "mixed rest_ms=200 sleep_ms=100 pause_ms=1";

/// A service, and the moments at which its hosts are killed.
struct Run {
    service: Service,
    seeded: Seeded,
    kills: u64,
    _told: Told,
    _turn: Turn,
}

impl Run {
    /// None for no kills, too.
    fn start_or_skip(test: &str, job: &str, kills: u64) -> Option<Self> {
        let kills = number_from_env("SAMSARA_KILLS").unwrap_or(kills);
        if kills == 0 {
            return None;
        }
        let turn = turn_or_skip(test)?;
        let wire = Wire::new_or_skip(test)?;
        let seed = run_seed();
        println!("{test}: seed {seed}, {kills} kills");
        let told = Told(format!(
            "SAMSARA_SEED={seed} SAMSARA_KILLS={kills} cargo test --package samsara-tests --test linux -- --nocapture {test}"
        ));
        Some(Self {
            service: Service::start(turn.guest, job, wire).unwrap(),
            seeded: Seeded::new(seed),
            kills,
            _told: told,
            _turn: turn,
        })
    }

    fn connect(
        &mut self,
        step: impl FnMut(&mut StoreClient) -> std::io::Result<()> + Send + 'static,
    ) -> Client {
        crate::wait_said(&self.service.pair.primary, SERVING);
        let values = Seeded::new(self.seeded.bits());
        Client::start_with(&self.service.wire, values, step).unwrap()
    }

    /// A random moment is the one thing that is slept until here.
    fn sleep_up_to(&mut self, limit: Duration) {
        std::thread::sleep(self.seeded.up_to(limit));
    }

    /// Kills the primary while the client waits for answers, and protects the survivor.
    fn kill(&mut self, client: &Client) {
        let name = self.service.pair.primary.name().to_owned();
        let at: Instant = self.service.pair.kill_primary().unwrap();
        client.wait_more(1).unwrap();
        let away = at.elapsed();
        println!("  {name} killed; the next answer came within {away:.2?}");
        client.wait_more(ANSWERS).unwrap();
        self.protect_again();
    }

    fn protect_again(&mut self) {
        let (took, bytes) = self.service.protect_again().unwrap();
        println!("  protected again after {took:.1?}, {bytes} bytes of disk");
    }

    fn finish(self, client: Client) {
        let seen = client.finish(&self.service.wire).unwrap();
        assert_eq!(seen.pauses.failures, 0, "{:?}", seen.pauses.errors);
        println!(
            "  {} answers, {} values set, {} read back; longest pause {:.2?}",
            seen.pauses.answers, seen.sets, seen.keys, seen.pauses.longest
        );
        assert_ended_alike(self.service);
    }
}

#[test]
fn a_connection_outlives_the_hosts_that_serve_it() {
    const TEST: &str = "a_connection_outlives_the_hosts_that_serve_it";
    let Some(mut run) = Run::start_or_skip(TEST, "serve", by_effort(1, 3)) else {
        return;
    };
    let client = run.connect(StoreClient::step);
    for _ in 0..run.kills {
        run.service.wait_protected().unwrap();
        client.wait_more(ANSWERS).unwrap();
        run.sleep_up_to(KILL_WITHIN);
        run.kill(&client);
    }
    run.finish(client);
}

/// The first kills come before the guest serves anybody, the others as ever. With all tests only, or `SAMSARA_KILLS`.
#[test]
fn a_boot_outlives_the_hosts_it_began_on() {
    const TEST: &str = "a_boot_outlives_the_hosts_it_began_on";
    let Some(mut run) = Run::start_or_skip(TEST, "serve", by_effort(0, 4)) else {
        return;
    };
    let in_boot = (0..run.kills.div_ceil(2)).take_while(|_| kill_in_boot(&mut run));
    let in_boot = in_boot.count() as u64;
    assert!(in_boot > 0, "the guest served before the first kill");
    let client = run.connect(StoreClient::step);
    for _ in in_boot..run.kills {
        client.wait_more(ANSWERS).unwrap();
        run.sleep_up_to(KILL_WITHIN);
        run.kill(&client);
    }
    run.finish(client);
}

/// Kills the primary before the guest serves, and protects the survivor; does nothing if the guest serves.
fn kill_in_boot(run: &mut Run) -> bool {
    run.service.wait_protected().unwrap();
    let moment = run.seeded.up_to(BOOT_KILL_WITHIN);
    let pair = &mut run.service.pair;
    let is_up = pair.primary.output().wait(moment, |bytes| {
        String::from_utf8_lossy(bytes).contains(UP).then_some(())
    });
    if console(&pair.primary).contains(SERVING) {
        return false;
    }
    pair.kill_primary().unwrap();
    let said = console(&pair.primary);
    assert!(!said.contains(SERVING), "it serves by now: {said}");
    let why = is_up.map_or_else(
        || format!("{moment:.2?} after protection"),
        |()| "when user space was up".to_owned(),
    );
    println!(
        "  {} killed {why}, before the guest served",
        pair.primary.name()
    );
    let is_live = |status: &samsara_tests::Status| status.counters.failovers == 1;
    pair.backup
        .wait_status("going live", BOUND, is_live)
        .unwrap();
    run.protect_again();
    true
}

/// The client only sets values, and the guest writes a file of its own all the time; kills come while a value is on its way to the disk.
/// With all tests only, or `SAMSARA_KILLS`.
#[test]
fn writes_to_a_disk_outlive_the_hosts_that_do_them() {
    const TEST: &str = "writes_to_a_disk_outlive_the_hosts_that_do_them";
    let Some(mut run) = Run::start_or_skip(TEST, DISK_JOB, by_effort(0, 6)) else {
        return;
    };
    let client = run.connect(StoreClient::step_set);
    let mut in_a_set = 0;
    for _ in 0..run.kills {
        run.service.wait_protected().unwrap();
        client.wait_more(ANSWERS).unwrap();
        run.sleep_up_to(KILL_WITHIN);
        client.wait_set_outstanding().unwrap();
        run.sleep_up_to(SET_KILL_WITHIN);
        in_a_set += u64::from(client.is_set_outstanding());
        run.kill(&client);
    }
    println!(
        "  {in_a_set} of {} kills fell into a value that was not acknowledged yet",
        run.kills
    );
    assert!(in_a_set > 0, "no kill fell into a value that was being set");
    run.finish(client);
}

/// Both hosts end as the guest did, and have the same disk.
pub(crate) fn assert_ended_alike(mut service: Service) {
    for host in [&mut service.pair.primary, &mut service.pair.backup] {
        assert_eq!(host.wait_code(BOUND).unwrap(), 0, "{}", host.name());
        assert_eq!(host.report().unwrap().divergences, 0, "{}", host.name());
    }
    let [alpha, beta] = &service.images;
    check_disk(alpha).unwrap();
    assert_equal(alpha, beta);
}
