//! What a link can carry on this machine; printed, with a floor that only a broken link misses.

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{BASE, Hosts};
use samsara_commitlog::CommitSeq;
use samsara_replication::protocol::PrimaryEvent;
use samsara_replication::transport::LinkEvent;
use samsara_replication::{Quantiles, Room};

const STREAM_BYTES: usize = 256 << 20;
const COMMITS: u64 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throughput() {
    let mut hosts = Hosts::new();
    let (mut primary, mut backup) = hosts.start().await;
    let started = Instant::now();
    let producer = std::thread::spawn(move || {
        let record = Bytes::from(vec![9; 4096]);
        for _ in 0..STREAM_BYTES / record.len() {
            assert_eq!(primary.queue.wait_for_room(None), Room::Ready);
            primary.commit(record.clone());
        }
        primary
    });
    let mut count = 0;
    while count < STREAM_BYTES {
        let batch = backup.commits.recv().await.expect("commits");
        count += batch.iter().map(Bytes::len).sum::<usize>();
    }
    let rate = count as f64 / started.elapsed().as_secs_f64() / 1e6;
    println!("commit stream: {rate:.0} MB/s");
    drop(producer.join().expect("producer"));
    assert!(rate > 10.0, "{rate} MB/s");
}

/// From a commit to its acknowledgement, one commit at a time: what an output waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latency() {
    let mut hosts = Hosts::new();
    let (mut primary, mut backup) = hosts.start().await;
    let handle = backup.handle.clone();
    tokio::spawn(async move {
        let mut position = BASE;
        while backup.commits.recv().await.is_some() {
            position = position.next();
            handle.report(position, position);
        }
    });
    let mut times = Quantiles::new();
    for seq in 1..=COMMITS {
        let committed = Instant::now();
        primary.commit(Bytes::from_static(&[3; 100]));
        let target = CommitSeq(BASE.0 + seq);
        loop {
            let event = primary.events.recv().await.expect("link");
            if matches!(event, LinkEvent::Session(PrimaryEvent::Ack { verified, .. }) if verified == target)
            {
                break;
            }
        }
        times.record_duration(committed.elapsed());
    }
    let times = times.summary();
    println!("commit to acknowledgement, ns: {times:?}");
    assert!(
        Duration::from_nanos(times.p50) < Duration::from_millis(20),
        "{times:?}"
    );
}
