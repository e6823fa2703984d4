//! Certificates and pairs of hosts for the tests of links.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use samsara_commitlog::CommitSeq;
use samsara_replication::protocol::{
    Admission, Hello, PROTOCOL_VERSIONS, PeerRole, PrimaryEvent, PrimaryIdentity,
};
use samsara_replication::transport::{
    BackupLink, CloseCause, DialError, Dialer, LinkConfig, LinkEvent, Listener, ListenerEvent,
    PrimaryHandle, PrimaryLink, StartedBackup, TlsFiles, TlsIdentity,
};
use samsara_replication::{CommitQueue, QueueLimits};
use tokio::sync::mpsc;
use tokio::time::timeout;

pub const BASE: CommitSeq = CommitSeq(100);
pub const LIMITS: QueueLimits = QueueLimits {
    bytes: 8 << 20,
    frames: 1 << 16,
};
const PATIENCE: Duration = Duration::from_secs(10);

/// A certificate authority in a directory.
pub struct Ca {
    dir: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    pub fn new(dir: &Path) -> Self {
        Self::named(dir, "test CA")
    }

    pub fn named(dir: &Path, name: &str) -> Self {
        fs::create_dir_all(dir).expect("directory");
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("ca");
        fs::write(dir.join("ca.pem"), issuer.pem()).expect("write");
        Self {
            dir: dir.to_owned(),
            issuer,
        }
    }

    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// A host certificate for these names, as files.
    pub fn issue(&self, names: &[&str]) -> TlsFiles {
        self.issue_with(names, |_| {})
    }

    pub fn issue_with(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> TlsFiles {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let stem = names.join("_").replace(':', "-");
        let mut params = CertificateParams::new(names).expect("params");
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate().expect("key");
        let cert = params.signed_by(&key, &self.issuer).expect("certificate");
        let files = TlsFiles {
            ca: self.ca_file(),
            cert: self.dir.join(format!("{stem}.pem")),
            key: self.dir.join(format!("{stem}.key")),
        };
        fs::write(&files.cert, cert.pem()).expect("write");
        fs::write(&files.key, key.serialize_pem()).expect("write");
        files
    }
}

pub fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL_VERSIONS,
        log_version: 1,
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
    }
}

pub fn identity() -> PrimaryIdentity {
    PrimaryIdentity {
        vm: "vm".into(),
        host: "alpha".into(),
        term: 7,
        log_version: 1,
        vcpu_count: 2,
        memory_bytes: 1 << 26,
        input_bytes: None,
        disks: Vec::new(),
        disk_history: None,
        effects_only: false,
        disk_term: None,
        cpu_digest: None,
        tsc_khz: None,
    }
}

pub fn any_port() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A configuration of the host that expects `peer` at the other end.
pub fn config(peer_address: Option<SocketAddr>, peer: &str) -> LinkConfig {
    let mut config = LinkConfig::new(any_port(), peer_address.map(|a| a.to_string()));
    config.peer_name = Some(peer.to_owned());
    config
}

pub fn load(files: &TlsFiles) -> TlsIdentity {
    TlsIdentity::load(files).expect("certificates")
}

/// Alpha listening, and what beta needs to dial it.
pub struct Hosts {
    pub dir: tempfile::TempDir,
    pub ca: Ca,
    pub listener: Listener,
    pub dialer: Dialer,
}

impl Hosts {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let ca = Ca::new(dir.path());
        let alpha = load(&ca.issue(&["alpha"]));
        let admission = Admission::Primary(identity());
        let listener = Listener::bind(config(None, "beta"), alpha, admission).expect("bind");
        let beta = load(&ca.issue(&["beta"]));
        let dialer = Dialer::new(config(Some(listener.local_addr()), "alpha"), beta);
        Self {
            dir,
            ca,
            listener,
            dialer,
        }
    }

    /// Both results of one dial.
    pub async fn meet(
        &mut self,
        dialer: &Dialer,
        hello: Hello,
    ) -> (ListenerEvent, Result<BackupLink, DialError>) {
        let both = async { tokio::join!(self.listener.next(), dialer.dial(hello)) };
        timeout(PATIENCE, both).await.expect("a dial that ends")
    }

    pub async fn links(&mut self) -> (Box<PrimaryLink>, BackupLink) {
        let dialer = self.dialer.clone();
        match self.meet(&dialer, hello()).await {
            (ListenerEvent::Backup(primary), Ok(backup)) => (primary, backup),
            (ListenerEvent::Rejected { error, .. }, other) => {
                panic!("{error}, {:?}", other.err().map(|e| e.to_string()))
            }
            (_, Err(error)) => panic!("{error}"),
        }
    }

    pub async fn start(&mut self) -> (Primary, StartedBackup) {
        let (primary, backup) = self.links().await;
        (Primary::start(*primary), backup.start(None))
    }
}

/// A started primary.
pub struct Primary {
    pub queue: Arc<CommitQueue>,
    pub handle: PrimaryHandle,
    pub events: mpsc::Receiver<LinkEvent<PrimaryEvent>>,
    next: CommitSeq,
}

impl Primary {
    pub fn start(link: PrimaryLink) -> Self {
        let queue = Arc::new(CommitQueue::new(LIMITS, BASE));
        let (handle, events) = link.start(queue.clone(), BASE);
        Self {
            queue,
            handle,
            events,
            next: BASE.next(),
        }
    }

    pub fn commit(&mut self, bytes: Bytes) {
        self.queue.push(self.next, bytes, Instant::now());
        self.next = self.next.next();
    }
}

/// The next event that says more than that the peer lives.
pub async fn next<E: Clone>(
    events: &mut mpsc::Receiver<LinkEvent<E>>,
    is_sign: impl Fn(&E) -> bool,
) -> LinkEvent<E> {
    loop {
        let event = timeout(PATIENCE, events.recv())
            .await
            .expect("an event")
            .expect("a link");
        match &event {
            LinkEvent::Session(inner) if is_sign(inner) => {}
            _ => return event,
        }
    }
}

pub async fn closed<E>(events: &mut mpsc::Receiver<LinkEvent<E>>) -> CloseCause {
    loop {
        match timeout(PATIENCE, events.recv())
            .await
            .expect("an end")
            .expect("a link")
        {
            LinkEvent::Closed(cause) => return cause,
            LinkEvent::Session(_) => {}
        }
    }
}

/// Bytes of the commit stream, until there are `count`.
pub async fn receive(commits: &mut mpsc::Receiver<Vec<Bytes>>, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        let batch = timeout(PATIENCE, commits.recv())
            .await
            .expect("commits")
            .expect("a stream");
        bytes.extend(batch.concat());
    }
    bytes
}
