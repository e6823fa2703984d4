//! Pairs whose chunks travel as orders: the backup runs them again, and fetches what came out differently.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends at the first error")]

use std::time::Duration;

use samsara_testing::by_effort;
use samsara_tests::{Guest, Pair, Site, kvm_or_skip, run_to_end};
use samsarad::exit::ExitCode;

const BOUND: Duration = Duration::from_mins(2);
const ORDERS: [&str; 2] = ["recording.form=order", "recording.counter=exits"];

fn native(site: &Site, guest: &Guest) -> String {
    let mut settings = guest.settings();
    settings.push("recording.mode=off".to_owned());
    let seat = site.seat("solo").unwrap();
    let mut host = run_to_end(site.binaries(), &seat, &settings, BOUND).unwrap();
    assert_eq!(host.wait_code(BOUND).unwrap(), 0);
    String::from_utf8(host.output().bytes()).unwrap()
}

/// Runs a pair to its end; the primary's and the backup's report.
fn to_the_end(
    site: &Site,
    guest: &Guest,
    extra: &[&str],
) -> (String, samsara_tests::Report, samsara_tests::Report) {
    site.clear_arbiter().unwrap();
    let mut pair = Pair::start(site, guest, extra).unwrap();
    assert_eq!(pair.primary.wait_code(BOUND).unwrap(), 0);
    assert_eq!(pair.backup.wait_code(BOUND).unwrap(), 0);
    let reports = (
        pair.primary.report().unwrap(),
        pair.backup.report().unwrap(),
    );
    let output = String::from_utf8(pair.primary.output().bytes()).unwrap();
    (output, reports.0, reports.1)
}

/// A guest whose chunks end by exits of its own sends hardly anything but orders.
#[test]
fn a_guest_that_yields_travels_as_orders() {
    let Some(_machine) = kvm_or_skip("orders") else {
        return;
    };
    let site = Site::new().unwrap();
    let n = by_effort(1000, 10_000);
    let guest = Guest::new(&site, "registers", &format!("n={n} loops=20000")).unwrap();
    let expected = native(&site, &guest);
    let (output, sent, followed) = to_the_end(&site, &guest, &ORDERS);
    assert_eq!(output, expected);
    assert!(sent.digest.is_some() && sent.digest == followed.digest);
    assert_eq!((sent.divergences, followed.divergences), (0, 0));
    let (orders, effects) = (sent.chunks_order_form, sent.chunks_effects_form);
    println!(
        "{orders} orders, {effects} effects, {} bytes, {} fetched",
        sent.log_bytes, sent.effects_fetched
    );
    assert!(orders >= 9 * effects, "{orders} orders, {effects} effects");
}

/// A vCPU that computes, and ends its chunks itself when they are as long as the chunk timer would have them, ships less
/// than 3000 bytes a second.
#[test]
fn a_guest_that_computes_ships_next_to_nothing() {
    let Some(_machine) = kvm_or_skip("orders") else {
        return;
    };
    let site = Site::new().unwrap();
    let n = by_effort(600, 3000);
    let guest = Guest::new(&site, "compute", &format!("n={n}M pace=5000")).unwrap();
    let guest = guest.vcpus(1);
    let expected = native(&site, &guest);
    // On a busy machine the timer comes first now and then, and chunks that it cuts travel as effects.
    let late_timer = [
        "recording.chunk_min_us=10000",
        "recording.chunk_max_us=50000",
    ];
    for timer in [&[][..], &late_timer] {
        let (output, sent, followed) = to_the_end(&site, &guest, &[&ORDERS[..], timer].concat());
        assert_eq!(output, expected);
        assert!(sent.digest.is_some() && sent.digest == followed.digest);
        let (orders, seconds) = (sent.chunks_order_form as f64, sent.guest_seconds);
        let bytes_an_order = sent.order_bytes as f64 / orders;
        let rates = [sent.order_bytes, sent.log_bytes].map(|bytes| bytes as f64 / seconds);
        let [orders_rate, all_rate] = rates;
        println!(
            "{orders} orders of {bytes_an_order:.1} bytes and {} effects in {seconds:.1} s: {orders_rate:.0} bytes \
             of orders a second, {all_rate:.0} of all",
            sent.chunks_effects_form
        );
        assert!(orders > 100.0 * seconds, "{orders} orders in {seconds} s");
        assert!(bytes_an_order <= 14.0, "{bytes_an_order} bytes an order");
        assert!(orders_rate < 3000.0, "{orders_rate} bytes a second");
        if timer == late_timer {
            assert!(all_rate < 3000.0, "{all_rate} bytes a second");
        }
    }
}

/// The TSC is no part of any order: a chunk that read it is fetched, and the machines stay equal. The primary is killed in the
/// middle, the survivor comes to the right answer.
#[test]
fn what_read_the_tsc_is_fetched() {
    let Some(_machine) = kvm_or_skip("orders") else {
        return;
    };
    let site = Site::new().unwrap();
    let n = by_effort(1000, 10_000);
    let guest = Guest::new(&site, "tsc", &format!("n={n} every=16")).unwrap();
    let expected = native(&site, &guest);
    let extra = [&ORDERS[..], &["recording.digest_every=32"]].concat();
    let (output, sent, followed) = to_the_end(&site, &guest, &extra);
    assert_eq!(output, expected);
    assert!(sent.effects_fetched > 0, "nothing came out differently");
    let diverged: u64 = followed.rerun_divergences.values().sum();
    println!("{diverged} diverged, {} fetched", sent.effects_fetched);
    assert_eq!(diverged, sent.effects_fetched);
    assert_eq!((sent.divergences, followed.divergences), (0, 0));
    assert!(sent.digest.is_some() && sent.digest == followed.digest);

    site.clear_arbiter().unwrap();
    let mut pair = Pair::start(&site, &guest, &extra).unwrap();
    pair.wait_protected().unwrap();
    pair.primary
        .wait_status("half of it", BOUND, |status| status.mark >= n / 2)
        .unwrap();
    pair.kill_primary().unwrap();
    assert_eq!(pair.backup.wait_code(BOUND).unwrap(), 0);
    let output = String::from_utf8(pair.backup.output().bytes()).unwrap();
    assert_eq!(output, expected);
    let report = pair.backup.report().unwrap();
    assert_eq!(report.divergences, 0);
    let diverged: u64 = report.rerun_divergences.values().sum();
    assert!(diverged > 0, "the kill came before anything was fetched");
}

/// A backup that has no room for the views that orders take says so before its primary relies on it. Where the primary
/// sends effects only it needs none.
#[test]
fn a_backup_that_cannot_run_orders_is_never_in_sync() {
    let Some(_machine) = kvm_or_skip("orders") else {
        return;
    };
    let site = Site::new().unwrap();
    let guest = Guest::new(&site, "registers", "n=1000000 loops=20000").unwrap();
    // Address space for the image several times, not for a view of each vCPU.
    let guest = guest.vcpus(8).memory("1GiB");
    let (alpha, mut beta) = site.seats().unwrap();
    beta.prefix = ["prlimit", &format!("--as={}", 4_u64 << 30)]
        .map(str::to_owned)
        .to_vec();
    let seats = (alpha, beta);
    let pair = |form: &str| {
        site.clear_arbiter().unwrap();
        let form = format!("recording.form={form}");
        Pair::start_at(&site, &seats, guest.settings(), &[&form]).unwrap()
    };

    let mut able = pair("effects");
    able.wait_protected().unwrap();
    drop(able);

    let mut unable = pair("auto");
    let code = unable.backup.wait_code(BOUND).unwrap();
    assert_eq!(code, ExitCode::Kvm.code());
    let log = unable.backup.log_text();
    let why = ["cannot run chunks again", "recording.form", "cannot create"];
    for text in why {
        assert!(log.contains(text), "no {text:?} in: {log}");
    }
    assert!(!unable.primary.status().unwrap().protected);
    assert_eq!(unable.backup.report().unwrap().divergences, 0);
}
