//! A peer whose process is killed: the kernel closes the lifeline, and the other side knows.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Hosts, closed, config, hello, load};
use samsara_replication::transport::{CloseCause, Dialer, ListenerEvent, TlsFiles};

const ROLE: &str = "SAMSARA_TEST_BACKUP";
const NOTICED_IN: Duration = Duration::from_millis(50);

/// Not a test of its own: the backup that the test below starts, and kills.
#[tokio::test]
async fn backup_process() {
    let Ok(arguments) = std::env::var(ROLE) else {
        return;
    };
    let [address, ca, cert, key] = arguments.split('|').collect::<Vec<_>>()[..] else {
        panic!("{arguments}");
    };
    let files = TlsFiles {
        ca: ca.into(),
        cert: cert.into(),
        key: key.into(),
    };
    let address = address.parse().expect("address");
    let dialer = Dialer::new(config(Some(address), "alpha"), load(&files));
    let link = dialer.dial(hello()).await.expect("link");
    let mut backup = link.start(None);
    println!("started");
    std::io::stdout().flush().expect("stdout");
    let cause = closed(&mut backup.events).await;
    println!("closed: {cause}");
}

fn spawn_backup(hosts: &Hosts) -> Child {
    let files = hosts.ca.issue(&["beta"]);
    let arguments = format!(
        "{}|{}|{}|{}",
        hosts.listener.local_addr(),
        files.ca.display(),
        files.cert.display(),
        files.key.display()
    );
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "backup_process", "--nocapture"])
        .env(ROLE, arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process")
}

#[tokio::test]
async fn a_killed_peer_is_noticed_at_once() {
    let mut hosts = Hosts::new();
    let mut noticed = Vec::new();
    for _ in 0..3 {
        let mut child = spawn_backup(&hosts);
        let ListenerEvent::Backup(link) = hosts.listener.next().await else {
            panic!("rejected")
        };
        let mut primary = common::Primary::start(*link);
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert!(lines.any(|line| line.expect("text").contains("started")));
        let killed = Instant::now();
        child.kill().expect("SIGKILL");
        assert_eq!(closed(&mut primary.events).await, CloseCause::ProcessEnded);
        noticed.push(killed.elapsed());
        child.wait().expect("ended");
    }
    println!("noticed after {noticed:?}");
    assert!(noticed.iter().all(|time| *time < NOTICED_IN), "{noticed:?}");
}

/// A frozen host closes nothing: heartbeats stop, and QUIC gives up after its idle time.
#[tokio::test]
async fn a_frozen_peer_falls_silent_and_is_given_up() {
    let mut hosts = Hosts::new();
    let mut child = spawn_backup(&hosts);
    let ListenerEvent::Backup(link) = hosts.listener.next().await else {
        panic!("rejected")
    };
    let mut primary = common::Primary::start(*link);
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert!(lines.any(|line| line.expect("text").contains("started")));
    let stop = Command::new("kill")
        .args(["-STOP", &child.id().to_string()])
        .status();
    assert!(stop.expect("kill").success());
    let frozen = Instant::now();
    let cause = closed(&mut primary.events).await;
    let after = frozen.elapsed();
    child.kill().expect("SIGKILL");
    child.wait().expect("ended");
    assert_eq!(cause, CloseCause::Lost("timed out".into()));
    assert!(
        after > Duration::from_secs(1) && after < Duration::from_secs(4),
        "{after:?}"
    );
}

#[tokio::test]
async fn a_peer_that_leaves_is_not_taken_for_a_dead_one() {
    for _ in 0..10 {
        let mut hosts = Hosts::new();
        let (primary, mut backup) = hosts.start().await;
        primary
            .handle
            .close("switchover".into())
            .await
            .expect("open");
        assert_eq!(
            closed(&mut backup.events).await,
            CloseCause::Goodbye("switchover".into())
        );
    }
}
