//! How far a backup may be behind.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test ends at the first error")]

use std::time::Duration;

use samsara_testing::by_effort;
use samsara_tests::{Guest, Pair, Site, kvm_or_skip};

const BOUND: Duration = Duration::from_mins(2);

/// A guest that writes faster than its backup applies waits for it, and says so.
#[test]
fn a_slow_backup_slows_the_guest() {
    let Some(_machine) = kvm_or_skip("lag") else {
        return;
    };
    let site = Site::new().unwrap();
    let passes = by_effort(8, 40);
    let guest = Guest::new(&site, "stream", &format!("n=1M passes={passes}")).unwrap();
    let run = |lag_max_ms: u64| {
        site.clear_arbiter().unwrap();
        let bound = format!("replication.lag_max_ms={lag_max_ms}");
        // Larger than what the guest writes: what it waits for is not the queue.
        let queue = "replication.queue_bytes=8GiB";
        let mut pair = Pair::start(&site, &guest, &[&bound, queue]).unwrap();
        assert_eq!(pair.primary.wait_code(BOUND).unwrap(), 0);
        assert_eq!(pair.backup.wait_code(BOUND).unwrap(), 0);
        let reports = [&mut pair.primary, &mut pair.backup].map(|host| host.report().unwrap());
        assert_eq!(reports[0].digest, reports[1].digest);
        let [report, _] = reports;
        let waited = report.vcpu_ms["backup"];
        let most = report.lag_verified_us.p50;
        println!("{lag_max_ms} ms: waited {waited} ms, {most} us behind at the median");
        waited
    };
    let (bounded, free) = (run(1), run(60_000));
    assert!(bounded > free, "{bounded} ms, {free} ms");
}
