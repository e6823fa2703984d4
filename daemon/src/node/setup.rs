//! Putting a host together from its configuration.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use samsara_config::{ArbiterKind, Config, Role, StartPolicy as ConfiguredStart};
use samsara_failover::{
    Arbiter, Decider, FileArbiter, HostName, ManualArbiter, Moment, Phase, Settings, SettledBy,
    Standing, StartPolicy, Term,
};
use samsara_replication::QueueLimits;
use samsara_replication::protocol::Admission;
use samsara_replication::transport::{
    BindError, Dialer, LinkConfig, Listener, TlsFiles, TlsIdentity,
};
use tokio::sync::{mpsc, watch};

use super::event_loop::{Guest, Node};
use super::primary;
use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::guest;
use crate::run::Base;
use crate::status;

/// QUIC gives up much later than failover does.
const IDLE_FACTOR: u32 = 10;

/// Checks everything that can be checked before the first word to anyone.
pub(super) fn node(mut base: Base, role: Role, limits: QueueLimits) -> Result<Node, Failure> {
    let config = &base.config;
    let source = guest::Source::open(config)?;
    let kvm = guest::Kvm::open(config, true)?;
    kvm.introduce(&base, source.as_ref().map(guest::Source::platform));
    let tls = TlsIdentity::load(&tls_files(config)?)
        .map_err(|error| Failure::new(ExitCode::Certificate, &error))?;
    if let (None, Some(name)) = (&config.replication.host_name, tls.name()) {
        name.clone_into(&mut base.host);
        base.board
            .update(|status| name.clone_into(&mut status.host));
    }
    let config = &base.config;
    let settings = settings(config, &base.host, source.is_some())?;
    let own_directory = own_directory(config)?;
    let directory = own_directory.as_ref().map(tempfile::TempDir::path);
    let mut arbiter = arbiter(config, &settings.host, directory)?;
    if role == Role::Primary && own_directory.is_some() {
        begin_terms_by_clock(arbiter.as_mut(), &settings.host)?;
    }
    let (inputs, receiver) = mpsc::unbounded_channel();
    let not_primary = Admission::NotPrimary {
        host: base.host.clone(),
        term: 0,
        disks: base.disks.kept(),
    };
    let (admission, admissions) = watch::channel(not_primary.clone());
    if let Some(listen) = config.replication.listen {
        let listener = Listener::bind(link_config(config, listen), tls.clone(), not_primary)
            .map_err(|error| bind_failure(&error))?;
        tokio::spawn(primary::listen(listener, admissions, inputs.clone()));
    }
    let dialer = config.replication.peer.as_ref().map(|_| {
        let any = ([0, 0, 0, 0], 0).into();
        Dialer::new(
            link_config(config, config.replication.listen.unwrap_or(any)),
            tls,
        )
    });
    let started = Instant::now();
    let now = Moment::from_ms(0);
    let decider = match role {
        Role::Primary => Decider::primary(settings, now),
        _ => Decider::backup(settings, now),
    };
    base.board.update(|status| {
        status.arbiter = config.failover.arbiter.map(|kind| {
            let detail = "not asked yet".to_owned();
            status::Arbiter {
                kind,
                reachable: true,
                detail,
            }
        });
    });
    Ok(Node {
        guest: Guest::None,
        kvm,
        source,
        decider,
        arbiter: Arc::new(Mutex::new(arbiter)),
        inputs,
        receiver,
        admission,
        dialer,
        started,
        limits,
        next_session: 1,
        session: None,
        follow: None,
        dialling: None,
        ended: None,
        was_backup: false,
        _own_directory: own_directory,
        base,
    })
}

fn bind_failure(error: &BindError) -> Failure {
    Failure::new(ExitCode::Network, error)
}

fn tls_files(config: &Config) -> Result<TlsFiles, Failure> {
    let key = |path: &Option<PathBuf>, name: &str| {
        let missing = || Failure::text(ExitCode::Config, format!("{name} is not set"));
        path.clone().ok_or_else(missing)
    };
    Ok(TlsFiles {
        ca: key(&config.tls.ca, "tls.ca")?,
        cert: key(&config.tls.cert, "tls.cert")?,
        key: key(&config.tls.key, "tls.key")?,
    })
}

fn link_config(config: &Config, listen: std::net::SocketAddr) -> LinkConfig {
    let replication = &config.replication;
    let mut link = LinkConfig::new(listen, replication.peer.as_ref().map(ToString::to_string));
    link.peer_name.clone_from(&replication.peer_name);
    link.heartbeat_interval = Duration::from_millis(replication.heartbeat_ms);
    let dead = Duration::from_millis(config.failover.dead_after_ms);
    link.idle_timeout = link.idle_timeout.max(dead * IDLE_FACTOR);
    link
}

fn settings(config: &Config, host: &str, can_boot: bool) -> Result<Settings, Failure> {
    let name =
        |text: &str| HostName::new(text).map_err(|error| Failure::new(ExitCode::Config, &error));
    let replication = &config.replication;
    let peer = replication.peer_name.as_deref();
    let peer = peer.or(replication
        .peer
        .as_ref()
        .map(samsara_config::PeerAddress::host));
    let mut settings = Settings::new(name(host)?, name(peer.unwrap_or("the-backup"))?);
    settings.start = match config.failover.start {
        ConfiguredStart::Protected => StartPolicy::Protected,
        ConfiguredStart::Alone => StartPolicy::Alone,
    };
    settings.settled_by = match config.failover.arbiter {
        Some(ArbiterKind::Manual) => SettledBy::Operator,
        _ => SettledBy::Arbiter,
    };
    settings.can_boot = can_boot;
    Ok(settings)
}

/// The operator's word needs no memory, but terms do: without a directory of the configuration
/// they begin anew with each process.
fn own_directory(config: &Config) -> Result<Option<tempfile::TempDir>, Failure> {
    if config.failover.arbiter_dir.is_some() {
        return Ok(None);
    }
    let directory = tempfile::TempDir::with_prefix("samsarad-");
    directory
        .map(Some)
        .map_err(|error| Failure::new(ExitCode::Arbiter, &error))
}

/// A primary that remembers no term must not take again the number of one that an earlier process of
/// this host had: a backup that could carry on with that one's guest would take this one for it,
/// and give up its right.
fn begin_terms_by_clock(arbiter: &mut dyn Arbiter, host: &HostName) -> Result<(), Failure> {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let term = Term::new(since_epoch.unwrap_or_default().as_secs());
    let before = Standing::new(term, host.clone(), Phase::Ended);
    let begun = arbiter.compare_and_swap(None, &before);
    begun
        .map(drop)
        .map_err(|error| Failure::new(ExitCode::Arbiter, &error))
}

fn arbiter(
    config: &Config,
    host: &HostName,
    own_directory: Option<&Path>,
) -> Result<Box<dyn Arbiter>, Failure> {
    let directory = config.failover.arbiter_dir.as_deref().or(own_directory);
    let directory = directory
        .ok_or_else(|| Failure::text(ExitCode::Config, "failover.arbiter_dir is not set"))?;
    let files = FileArbiter::new(directory, &config.vm.name, host.clone());
    Ok(match config.failover.arbiter {
        Some(ArbiterKind::Manual) => Box::new(ManualArbiter::new(files)),
        _ => Box::new(files),
    })
}
