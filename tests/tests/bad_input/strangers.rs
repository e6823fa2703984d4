//! Hosts that must not get together, and noise where a host listens.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use samsara_commitlog::{CommitSeq, StreamHeader};
use samsara_replication::protocol::{
    Admission, Hello, PROTOCOL_VERSIONS, PeerRole, PrimaryIdentity, VersionRange,
};
use samsara_replication::transport::{
    Dialer, LinkConfig, Listener, ListenerEvent, TlsFiles, TlsIdentity,
};
use samsara_replication::{CommitQueue, QueueLimits};
use samsara_tests::{Guest, Host, Pair, Seat, Site, kvm_or_skip, kvm_shared_or_skip};
use samsarad::exit::ExitCode::{Certificate, Config, Input, Internal, Network};

use crate::logs::recorded;
use crate::ran::{BOUND, Ran};

/// A primary that waits for its backup, and both seats.
struct Waiting {
    site: Site,
    alpha: Seat,
    beta: Seat,
    primary: Host,
    settings: Vec<String>,
}

impl Waiting {
    fn new() -> Self {
        let site = Site::new().expect("site");
        let (alpha, beta) = site.seats().expect("seats");
        let input = site.write("input", b"to be read").expect("written");
        let guest = Guest::new(&site, "hello", "").expect("guest").input(&input);
        let mut settings = guest.settings();
        settings.push("failover.arbiter=file".to_owned());
        settings.push(format!("failover.arbiter_dir={}", site.arbiter().display()));
        let mut own = settings.clone();
        own.extend(alpha.settings(&beta));
        let mut primary = Host::spawn(site.binaries(), &alpha, "primary", &own).expect("start");
        let waits = |status: &samsara_tests::Status| status.state.contains("waiting for a backup");
        primary
            .wait_status("waiting for a backup", BOUND, waits)
            .expect("waits");
        Self {
            site,
            alpha,
            beta,
            primary,
            settings,
        }
    }

    /// A backup that differs in these settings.
    fn backup(&self, different: &[String]) -> Ran {
        let mut settings = self.settings.clone();
        settings.extend(self.beta.settings(&self.alpha));
        settings.extend_from_slice(different);
        let mut host =
            Host::spawn(self.site.binaries(), &self.beta, "backup", &settings).expect("start");
        Ran::of(&mut host)
    }

    /// The primary said so, and is still well.
    fn primary_said(&mut self, part: &str) {
        self.primary.wait_log(part, BOUND).expect("it says so");
        assert!(
            !self.primary.has_ended().expect("asked"),
            "the primary goes on"
        );
        assert!(
            self.primary.output().bytes().is_empty(),
            "nothing leaves an unprotected start"
        );
    }
}

fn certificate(of: &Seat, ca: &Path) -> Vec<String> {
    let file = |end: &str| {
        of.directory
            .join(format!("{}.{end}", of.name))
            .display()
            .to_string()
    };
    vec![
        format!("tls.ca={}", ca.display()),
        format!("tls.cert={}", file("pem")),
        format!("tls.key={}", file("key")),
    ]
}

#[test]
fn another_ca() {
    let Some(_machine) = kvm_shared_or_skip("another CA") else {
        return;
    };
    let mut hosts = Waiting::new();
    let elsewhere = Site::new().expect("site");
    let stranger = elsewhere.seat("beta").expect("seat");
    let theirs = stranger.directory.join("ca.pem");
    let address = hosts.alpha.address.to_string();
    hosts
        .backup(&certificate(&stranger, &theirs))
        .failed(Certificate, &[&address, "not signed by a CA in tls.ca"]);
    hosts.primary_said("does not trust the CA");
    // One that trusts the primary, but is not trusted.
    let mut both = fs::read(&theirs).expect("CA");
    both.extend(fs::read(hosts.beta.directory.join("ca.pem")).expect("CA"));
    let both = hosts.site.write("both.pem", &both).expect("written");
    hosts.backup(&certificate(&stranger, &both)).failed(
        Certificate,
        &[&address, "does not trust the CA", "tls.cert"],
    );
    hosts.primary_said("not signed by a CA in tls.ca");
}

#[test]
fn other_names() {
    let Some(_machine) = kvm_shared_or_skip("other names") else {
        return;
    };
    let mut hosts = Waiting::new();
    let ca = hosts.beta.directory.join("ca.pem");
    let address = hosts.alpha.address.to_string();
    // This backup is not the one that the primary expects.
    let gamma = hosts.site.seat("gamma").expect("seat");
    let mut own = certificate(&gamma, &ca);
    own.push("replication.host_name=gamma".to_owned());
    hosts
        .backup(&own)
        .failed(Certificate, &[&address, "gamma", "expected beta"]);
    hosts.primary_said("expected beta");
    // The primary is not the one that this backup expects.
    let expects = "replication.peer_name=zeta".to_owned();
    hosts
        .backup(&[expects])
        .failed(Certificate, &[&address, "zeta", "alpha"]);
    // The same certificate on both hosts, and the same name.
    hosts
        .backup(&certificate(&hosts.alpha, &ca))
        .failed(Certificate, &["alpha", "expected beta"]);
    let same = "replication.host_name=alpha".to_owned();
    hosts
        .backup(&[same])
        .failed(Config, &["both hosts are called alpha"]);
    hosts.primary_said("both hosts are called alpha");
}

#[test]
fn another_vm() {
    let Some(_machine) = kvm_shared_or_skip("another VM") else {
        return;
    };
    let mut hosts = Waiting::new();
    hosts
        .backup(&["vm.name=other".to_owned()])
        .failed(Config, &["other", "vm.name"]);
    hosts.primary_said("other");
    let input = hosts
        .site
        .write("other", b"something else to be read")
        .expect("written");
    let input = format!("vm.input={}", input.display());
    hosts.backup(&[input]).failed(
        Input,
        &["10 bytes on alpha", "25 bytes on beta", "vm.input"],
    );
    hosts.primary_said("25 bytes on beta");
}

fn identity(seat: &Seat) -> TlsIdentity {
    let file = |name: String| seat.directory.join(name);
    TlsIdentity::load(&TlsFiles {
        ca: file("ca.pem".into()),
        cert: file(format!("{}.pem", seat.name)),
        key: file(format!("{}.key", seat.name)),
    })
    .expect("certificates")
}

fn link(own: &Seat, peer: &Seat) -> LinkConfig {
    let mut config = LinkConfig::new(own.address, Some(peer.address.to_string()));
    config.peer_name = Some(peer.name.clone());
    config
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime")
}

#[test]
fn a_backup_of_another_version() {
    let Some(_machine) = kvm_shared_or_skip("another version") else {
        return;
    };
    let mut hosts = Waiting::new();
    let hello = Hello {
        protocol: VersionRange { min: 70, max: 77 },
        log_version: StreamHeader::CURRENT.version,
        role: PeerRole::Backup,
        vm: "vm".into(),
        host: "beta".into(),
        term: 0,
        can_boot: false,
        vcpu_max: 16,
        memory_bytes_max: 1 << 36,
        input_bytes: None,
        disks: Vec::new(),
        disk_position: None,
        cpu_digest: None,
        tsc_khz: None,
    };
    let dialer = Dialer::new(link(&hosts.beta, &hosts.alpha), identity(&hosts.beta));
    let told = runtime()
        .block_on(dialer.dial(hello))
        .err()
        .expect("refused")
        .to_string();
    assert!(told.contains("70 to 77"), "{told}");
    hosts.primary_said("70 to 77");
}

/// A primary that is not one of ours: what it presents, and the stream that it sends.
fn fake_primary(
    seats: [&Seat; 2],
    log_version: u32,
    stream: Option<Vec<u8>>,
) -> tokio::runtime::Runtime {
    let runtime = runtime();
    let [own, peer] = seats;
    let identity_of_vm = PrimaryIdentity {
        vm: "vm".into(),
        host: own.name.clone(),
        term: 1,
        log_version,
        vcpu_count: 2,
        memory_bytes: 16 << 20,
        input_bytes: None,
        disks: Vec::new(),
        disk_history: None,
        effects_only: false,
        disk_term: None,
        cpu_digest: None,
        tsc_khz: None,
    };
    let (config, tls) = (link(own, peer), identity(own));
    let listener =
        runtime.block_on(async { Listener::bind(config, tls, Admission::Primary(identity_of_vm)) });
    let mut listener = listener.expect("bound");
    runtime.spawn(async move {
        let mut kept = Vec::new();
        loop {
            let ListenerEvent::Backup(mut link) = listener.next().await else {
                continue;
            };
            if link.joined().await.is_err() {
                continue;
            }
            let limits = QueueLimits {
                bytes: 256 << 20,
                frames: 1 << 16,
            };
            let queue = Arc::new(CommitQueue::new(limits, CommitSeq::BOOT));
            for piece in stream.iter().flat_map(|stream| stream.chunks(4096)) {
                queue.push_between(Bytes::copy_from_slice(piece), Instant::now());
            }
            kept.push((link.start(Arc::clone(&queue), CommitSeq::BOOT), queue));
        }
    });
    runtime
}

fn backup_settings(site: &Site, seats: [&Seat; 2]) -> Vec<String> {
    let mut settings = seats[1].settings(seats[0]);
    settings.push("failover.arbiter=file".to_owned());
    settings.push(format!("failover.arbiter_dir={}", site.arbiter().display()));
    settings
}

#[test]
fn a_primary_of_another_version() {
    let Some(_machine) = kvm_shared_or_skip("another version") else {
        return;
    };
    assert_eq!(PROTOCOL_VERSIONS.max, 1);
    let site = Site::new().expect("site");
    let (alpha, beta) = site.seats().expect("seats");
    let _primary = fake_primary([&alpha, &beta], 99, None);
    let settings = backup_settings(&site, [&alpha, &beta]);
    let mut backup = Host::spawn(site.binaries(), &beta, "backup", &settings).expect("start");
    Ran::of(&mut backup).failed(Network, &[&alpha.address.to_string(), "version", "99"]);
}

/// A commit stream with a flipped bit: the backup says so, and does not go on from what it has.
#[test]
fn a_damaged_commit_stream() {
    let Some(_machine) = kvm_shared_or_skip("damaged stream") else {
        return;
    };
    let site = Site::new().expect("site");
    let log = recorded(&site);
    let (alpha, beta) = site.seats().expect("seats");
    let settings = backup_settings(&site, [&alpha, &beta]);
    for share in [0, 3, 50, 97] {
        let mut damaged = log.clone();
        damaged[log.len() / 100 * share + 20] ^= 0x10;
        let primary = fake_primary(
            [&alpha, &beta],
            StreamHeader::CURRENT.version,
            Some(damaged),
        );
        let mut backup = Host::spawn(site.binaries(), &beta, "backup", &settings).expect("start");
        Ran::of(&mut backup).failed(Internal, &["cannot follow its primary", "offset"]);
        assert!(backup.output().bytes().is_empty());
        primary.shutdown_timeout(Duration::from_secs(5));
    }
}

/// The same stream undamaged is followed, so it is the damage that was noticed above.
#[test]
fn a_whole_commit_stream() {
    let Some(_machine) = kvm_shared_or_skip("whole stream") else {
        return;
    };
    let site = Site::new().expect("site");
    let log = recorded(&site);
    let (alpha, beta) = site.seats().expect("seats");
    let _primary = fake_primary([&alpha, &beta], StreamHeader::CURRENT.version, Some(log));
    let settings = backup_settings(&site, [&alpha, &beta]);
    let mut backup = Host::spawn(site.binaries(), &beta, "backup", &settings).expect("start");
    let followed = |status: &samsara_tests::Status| status.positions.verified > 200;
    backup
        .wait_status("all of it", BOUND, followed)
        .expect("followed");
    assert!(backup.output().bytes().is_empty());
}

fn noise(n: u8) -> Vec<u8> {
    (0..1200u32)
        .map(|i| (i as u8).wrapping_mul(n).rotate_left(3) ^ n)
        .collect()
}

/// Strangers who send noise to every port while a pair works: the guest does not notice.
#[test]
fn noise_everywhere() {
    let Some(_machine) = kvm_or_skip("noise") else {
        return;
    };
    let site = Site::new().expect("site");
    let guest = Guest::new(&site, "outputs", "n=300 delay=200000").expect("guest");
    let mut pair = Pair::start(&site, &guest, &[]).expect("pair");
    pair.wait_protected().expect("protected");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("socket");
    let seats = [pair.primary.seat().clone(), pair.backup.seat().clone()];
    let mut kept = Vec::new();
    for n in 0..40u8 {
        for seat in &seats {
            udp.send_to(&noise(n), seat.address).expect("sent");
            for address in [seat.address, seat.metrics] {
                let mut tcp = TcpStream::connect(address).expect("connected");
                let _ = tcp.write_all(&noise(n));
                kept.push(tcp);
            }
            let mut unix = UnixStream::connect(seat.socket()).expect("connected");
            let _ = unix.write_all(&noise(n));
            let _ = unix.write_all(b"\n{\"request\":\"explode\"}\n[]\n");
        }
    }
    let status = pair.primary.status().expect("it still answers");
    assert_eq!(
        (status.term, status.counters.divergences),
        (1, 0),
        "{}",
        status.state
    );
    assert_eq!(pair.primary.wait_code(BOUND).expect("its end"), 0);
    assert_eq!(pair.backup.wait_code(BOUND).expect("its end"), 0);
    let output = String::from_utf8(pair.primary.output().bytes()).expect("text");
    let lines: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with("line "))
        .collect();
    assert_eq!(lines.len(), 300);
    assert!(
        !pair.primary.log_text().contains("panicked")
            && !pair.backup.log_text().contains("panicked")
    );
    drop(kept);
}

/// What the control socket answers to nonsense.
#[test]
fn nonsense_on_the_control_socket() {
    let Some(_machine) = kvm_shared_or_skip("nonsense") else {
        return;
    };
    let mut hosts = Waiting::new();
    let ask = |words: &[u8]| {
        let mut socket = UnixStream::connect(hosts.alpha.socket()).expect("connected");
        socket.set_read_timeout(Some(BOUND)).expect("timeout");
        let _ = socket.write_all(words);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer);
        answer
    };
    for words in [
        &b"explode\n"[..],
        b"{}\n",
        b"{\"request\":\"explode\"}\n",
        b"\xff\xfe\n",
    ] {
        let answer = ask(words);
        assert!(answer.contains("refused") || answer.is_empty(), "{answer}");
    }
    let endless = vec![b'x'; 4 << 20];
    let answer = ask(&endless);
    assert!(answer.len() < 4096, "{}", answer.len());
    assert!(ask(b"{\"request\":\"status\"}\n").contains("waiting for a backup"));
    let refused = hosts.site.ctl(&[
        "promote",
        "--socket",
        &hosts.alpha.socket().to_string_lossy(),
    ]);
    let refused = refused.expect_err("refused").to_string();
    assert!(
        refused.contains("promote is for failover.arbiter = \"manual\""),
        "{refused}"
    );
    hosts.primary_said("waiting for a backup");
}
