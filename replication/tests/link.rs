//! Links over loopback: what two hosts that agree can do, and how a link ends.

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{BASE, Hosts, Primary, closed, hello, next, receive};
use samsara_commitlog::CommitSeq;
use samsara_replication::protocol::{
    BackupEvent, DigestQuestion, PrimaryEvent, RangeDigests, RefuseReason, Right,
};
use samsara_replication::transport::{CloseCause, DialError, LinkEvent, ListenerEvent};

fn primary_sign(event: &PrimaryEvent) -> bool {
    matches!(event, PrimaryEvent::SignOfLife)
}

fn backup_sign(event: &BackupEvent) -> bool {
    matches!(event, BackupEvent::SignOfLife { .. })
}

#[tokio::test]
async fn a_session_from_welcome_to_goodbye() {
    let mut hosts = Hosts::new();
    let (link, backup) = hosts.links().await;
    assert_eq!(
        (link.hello().host.as_str(), backup.welcome().term),
        ("beta", 7)
    );
    let mut primary = Primary::start(*link);
    let mut backup = backup.start(None);

    primary
        .queue
        .push_between(Bytes::from_static(b"snapshot "), std::time::Instant::now());
    for _ in 0..50 {
        primary.commit(Bytes::from_static(b"commit "));
    }
    let bytes = receive(&mut backup.commits, 9 + 50 * 7).await;
    assert_eq!(
        bytes,
        [b"snapshot ".to_vec(), b"commit ".repeat(50)].concat()
    );

    backup.handle.sync_done(BASE).await.expect("open");
    let synced = next(&mut primary.events, primary_sign).await;
    assert_eq!(
        synced,
        LinkEvent::Session(PrimaryEvent::SyncDone { seq: BASE })
    );
    primary
        .handle
        .in_sync(Right { term: 7, mark: 1 })
        .await
        .expect("open");
    let in_sync = next(&mut backup.events, backup_sign).await;
    assert_eq!(
        in_sync,
        LinkEvent::Session(BackupEvent::InSync(Right { term: 7, mark: 1 }))
    );

    let (received, verified) = (CommitSeq(150), CommitSeq(149));
    backup.handle.report(received, verified);
    let ack = next(&mut primary.events, primary_sign).await;
    assert_eq!(
        ack,
        LinkEvent::Session(PrimaryEvent::Ack { received, verified })
    );
    let stats = primary.handle.stats(std::time::Instant::now());
    assert_eq!(
        (stats.received_lag.commits, stats.verified_lag.commits),
        (0, 1)
    );
    assert_eq!((stats.to_received.count, stats.to_verified.count), (50, 49));

    primary.handle.released(verified);
    let released = next(&mut backup.events, backup_sign).await;
    assert_eq!(
        released,
        LinkEvent::Session(BackupEvent::Released { seq: verified })
    );

    primary.handle.ended(3).await.expect("open");
    primary
        .handle
        .close("the guest has ended".into())
        .await
        .expect("open");
    let ended = next(&mut backup.events, backup_sign).await;
    assert_eq!(ended, LinkEvent::Session(BackupEvent::Ended { status: 3 }));
    let goodbye = CloseCause::Goodbye("the guest has ended".into());
    assert_eq!(closed(&mut backup.events).await, goodbye);
    assert_eq!(closed(&mut primary.events).await, CloseCause::Local);
    assert!(primary.queue.is_closed());
    assert_eq!(backup.commits.recv().await, None);
}

#[tokio::test]
async fn heartbeats_show_life_and_measure_the_way() {
    let mut hosts = Hosts::new();
    let (mut primary, mut backup) = hosts.start().await;
    for _ in 0..5 {
        let event = primary.events.recv().await;
        assert_eq!(event, Some(LinkEvent::Session(PrimaryEvent::SignOfLife)));
        let event = backup.events.recv().await;
        let sign = BackupEvent::SignOfLife { committed: BASE };
        assert_eq!(event, Some(LinkEvent::Session(sign)));
    }
    assert!(primary.handle.round_trips().count > 0);
}

#[tokio::test]
async fn one_backup_at_a_time_and_the_next_when_it_has_gone() {
    let mut hosts = Hosts::new();
    let (primary, mut backup) = hosts.start().await;
    let dialer = hosts.dialer.clone();
    let (event, dialled) = hosts.meet(&dialer, hello()).await;
    assert!(matches!(event, ListenerEvent::Rejected { .. }));
    match dialled.err() {
        Some(error @ DialError::Refused { .. }) => {
            assert!(
                error.to_string().contains("has beta as its backup already"),
                "{error}"
            );
            assert!(!error.is_permanent());
        }
        other => panic!("{other:?}"),
    }
    drop(primary);
    let cause = closed(&mut backup.events).await;
    assert!(
        matches!(cause, CloseCause::Goodbye(_) | CloseCause::ProcessEnded),
        "{cause}"
    );
    hosts.links().await;
}

#[tokio::test]
async fn a_slow_backup_fills_the_queue_and_nothing_else() {
    let mut hosts = Hosts::new();
    let (mut primary, mut backup) = hosts.start().await;
    let chunk = Bytes::from(vec![1; 256 << 10]);
    let mut sent = 0;
    loop {
        let deadline = std::time::Instant::now() + Duration::from_millis(300);
        let queue = primary.queue.clone();
        let room = tokio::task::spawn_blocking(move || queue.wait_for_room(Some(deadline)));
        if room.await.expect("thread") == samsara_replication::Room::TimedOut {
            break;
        }
        primary.commit(chunk.clone());
        sent += chunk.len();
        assert!(
            sent < 64 << 20,
            "a backup that reads nothing took {sent} bytes"
        );
    }
    assert_eq!(receive(&mut backup.commits, sent).await.len(), sent);
}

#[tokio::test]
async fn a_lying_backup_is_closed() {
    let mut hosts = Hosts::new();
    let (mut primary, mut backup) = hosts.start().await;
    backup.handle.report(CommitSeq(101), CommitSeq(101));
    let cause = closed(&mut primary.events).await;
    assert!(
        cause.to_string().contains("acknowledged commit 101"),
        "{cause}"
    );
    assert!(primary.queue.is_closed());
    assert!(
        closed(&mut backup.events)
            .await
            .to_string()
            .contains("acknowledged commit 101")
    );
}

#[tokio::test]
async fn a_backup_may_refuse_what_it_is_offered() {
    let mut hosts = Hosts::new();
    let (mut primary, mut backup) = hosts.start().await;
    let refusal = samsara_replication::protocol::Refusal {
        reason: RefuseReason::ShapeNotSupported,
        term: 0,
        text: "no memory for it".into(),
    };
    backup.handle.refuse(refusal.clone()).await.expect("open");
    assert_eq!(
        closed(&mut primary.events).await,
        CloseCause::Refused(refusal)
    );
    assert_eq!(closed(&mut backup.events).await, CloseCause::Local);
}

#[tokio::test]
async fn everything_that_arrived_is_handed_on_after_the_end() {
    // Half a megabyte: less than what arrives while nobody takes it.
    const COMMITS: usize = 50;
    const COMMIT_BYTES: usize = 10_000;
    let mut hosts = Hosts::new();
    let (mut primary, mut backup) = hosts.start().await;
    for _ in 0..COMMITS {
        primary.commit(Bytes::from(vec![5; COMMIT_BYTES]));
    }
    primary.queue.finish();
    // Short waits: a test that was not run for a while has still to handle what arrives.
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    primary.handle.close("done".into()).await.expect("open");
    assert_eq!(
        closed(&mut backup.events).await,
        CloseCause::Goodbye("done".into())
    );
    assert_eq!(
        receive(&mut backup.commits, COMMITS * COMMIT_BYTES)
            .await
            .len(),
        COMMITS * COMMIT_BYTES
    );
    assert_eq!(backup.commits.recv().await, None);
}

#[tokio::test]
async fn disks_are_compared_before_the_snapshot_whose_commit_comes_late() {
    let mut hosts = Hosts::new();
    let (mut primary, mut backup) = hosts.start().await;
    for (first, digests) in [
        (0, RangeDigests::Each((0..1024).collect())),
        (1024, RangeDigests::Zero(5000)),
    ] {
        let question = DigestQuestion {
            disk: 1,
            first,
            count: 1024,
        };
        primary.handle.ask_digests(question).await.unwrap();
        let asked = next(&mut backup.events, backup_sign).await;
        let expected = BackupEvent::DigestsAsked(question);
        assert_eq!(asked, LinkEvent::Session(expected));
        backup.handle.digests(digests.clone()).await.unwrap();
        let answered = next(&mut primary.events, primary_sign).await;
        assert_eq!(answered, LinkEvent::Session(PrimaryEvent::Digests(digests)));
    }
    let disk = Bytes::from_static(b"a part of a disk");
    primary.queue.push_between(disk.clone(), Instant::now());
    assert_eq!(receive(&mut backup.commits, disk.len()).await, disk);
    let base = CommitSeq(BASE.0 + 1000);
    primary.handle.rebase(base);
    primary
        .queue
        .push_between(Bytes::from_static(b"snapshot"), Instant::now());
    receive(&mut backup.commits, 8).await;
    backup.handle.sync_done(base).await.unwrap();
    let done = next(&mut primary.events, primary_sign).await;
    let expected = PrimaryEvent::SyncDone { seq: base };
    assert_eq!(done, LinkEvent::Session(expected));
}
