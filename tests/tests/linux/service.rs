//! The guest's service is used over one TCP connection while the primary is killed: the connection lasts, and every
//! value that was acknowledged can be read.
//!
//! One kill, or three with `SAMSARA_TESTS=full`; `SAMSARA_KILLS=n` kills n times. `SAMSARA_SEED=s` repeats a run.

use std::time::{Duration, Instant};

use samsara_testing::{by_effort, number_from_env};
use samsara_tests::Wire;
use samsara_tests::linux::check_disk;
use samsara_tests::seed::{Seeded, run_seed};
use samsara_tests::service::{Client, Service};

use crate::disks::assert_equal;
use crate::{BOUND, Told, turn_or_skip};

/// Answers before a kill and after it.
const ANSWERS: u64 = 30;
/// A kill comes so much later than the answers before it, at most.
const KILL_WITHIN: Duration = Duration::from_millis(1500);

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
    let mut service = Service::start(turn.guest, "serve", wire).unwrap();
    crate::wait_said(&service.pair.primary, "samsara: serving");
    let client = Client::start(&service.wire, Seeded::new(seeded.bits())).unwrap();
    for _ in 0..kills {
        kill_once(&mut service, &client, &mut seeded);
    }
    let summary = client.finish(&service.wire).unwrap();
    println!(
        "  {} answers, {} values set, {} read back; longest pause {:.2?}",
        summary.pauses.answers, summary.sets, summary.keys, summary.pauses.longest
    );
    assert_ended_alike(service);
}

fn kill_once(service: &mut Service, client: &Client, seeded: &mut Seeded) {
    service.wait_protected().unwrap();
    client.wait_more(ANSWERS).unwrap();
    // A random moment is the one thing that is slept until here.
    std::thread::sleep(seeded.up_to(KILL_WITHIN));
    let name = service.pair.primary.name().to_owned();
    let at: Instant = service.pair.kill_primary().unwrap();
    client.wait_more(1).unwrap();
    let away = at.elapsed();
    println!("  {name} killed; the next answer came within {away:.2?}");
    client.wait_more(ANSWERS).unwrap();
    let (took, bytes) = service.protect_again().unwrap();
    println!("  protected again after {took:.1?}, {bytes} bytes of disk");
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
