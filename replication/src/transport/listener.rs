//! The primary's open door: admits one backup at a time.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::config::LinkConfig;
use super::driver::{CODE_DONE, CODE_NAME, CODE_VIOLATION, Wires};
use super::endpoint;
use super::error::{BindError, ListenError, certificate_problem, explain};
use super::handshake::{ControlStream, HandshakeError};
use super::lifeline::{self, Lifeline, Presented};
use super::link::{PrimaryLink, lock};
use super::names::{check_name, peer_chain};
use super::tls::TlsIdentity;
use crate::protocol::{
    Admission, ControlError, HeartbeatConfig, Hello, Message, Refusal, RefuseReason, SessionError,
    SessionToken, Welcome, admit,
};

/// Handshakes at a time, each of QUIC and TCP. There is one peer; the rest are strangers.
const HANDSHAKES_MAX: usize = 8;
/// Time for each step of a handshake.
const STEP_TIME: Duration = Duration::from_secs(3);
/// Time for a refusal to be read.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// Events that wait to be fetched; beyond, peers wait.
const EVENTS_MAX: usize = 16;
/// Tries to find a port number that is free for both UDP and TCP when any will do.
const PORT_TRIES: usize = 16;
/// Pause after the kernel refuses to accept (out of descriptors), instead of a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Someone dialled.
pub enum ListenerEvent {
    /// A backup, admitted.
    Backup(Box<PrimaryLink>),
    /// Someone who was not taken, and why.
    Rejected {
        /// Where it dialled from.
        remote: SocketAddr,
        /// Why.
        error: ListenError,
    },
}

/// Listens on one port number, UDP and TCP. Dropping it stops listening; started links live on.
pub struct Listener {
    local: SocketAddr,
    shared: Arc<Shared>,
    events: mpsc::Receiver<ListenerEvent>,
    _tasks: JoinSet<()>,
}

struct Shared {
    config: LinkConfig,
    tls: TlsIdentity,
    admission: Mutex<Admission>,
    /// The backup that has the one place.
    backup: Mutex<Option<String>>,
    /// Sessions that wait for their lifeline.
    lifelines: Mutex<HashMap<SessionToken, oneshot::Sender<Presented>>>,
    events: mpsc::Sender<ListenerEvent>,
}

/// The one place for a backup; free again when dropped.
pub(super) struct Slot(Arc<Shared>);

impl Drop for Slot {
    fn drop(&mut self) {
        *lock(&self.0.backup) = None;
    }
}

/// Forgets a session that no longer waits for its lifeline.
struct Awaited<'a>(&'a Shared, SessionToken);

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        lock(&self.0.lifelines).remove(&self.1);
    }
}

impl Listener {
    /// Listens. Must be called in a tokio runtime.
    pub fn bind(
        config: LinkConfig,
        tls: TlsIdentity,
        admission: Admission,
    ) -> Result<Self, BindError> {
        let (endpoint, tcp) = bind_both(&config, &tls)?;
        let local = tcp.local_addr();
        let local = local.map_err(|error| BindError::new(config.listen, "tcp", error))?;
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let shared = Arc::new(Shared {
            config,
            tls,
            admission: Mutex::new(admission),
            backup: Mutex::new(None),
            lifelines: Mutex::default(),
            events: sender,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept_quic(endpoint, shared.clone()));
        tasks.spawn(accept_tcp(tcp, shared.clone()));
        Ok(Self {
            local,
            shared,
            events,
            _tasks: tasks,
        })
    }

    /// Where it listens; the port is a real one even if 0 was configured.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// From now on, answers by this.
    pub fn set_admission(&self, admission: Admission) {
        *lock(&self.shared.admission) = admission;
    }

    /// The next event. Cancel-safe.
    pub async fn next(&mut self) -> ListenerEvent {
        match self.events.recv().await {
            Some(event) => event,
            // This side holds a sender, in `shared`.
            None => std::future::pending().await,
        }
    }
}

fn bind_both(config: &LinkConfig, tls: &TlsIdentity) -> Result<(Endpoint, TcpListener), BindError> {
    let mut tries = if config.listen.port() == 0 {
        PORT_TRIES
    } else {
        1
    };
    loop {
        tries -= 1;
        match bind_once(config, tls) {
            Err(BindError::PortInUse { .. }) if tries > 0 => {}
            result => return result,
        }
    }
}

fn bind_once(config: &LinkConfig, tls: &TlsIdentity) -> Result<(Endpoint, TcpListener), BindError> {
    let udp_error = |error| BindError::new(config.listen, "udp", error);
    let endpoint = endpoint::open(config.listen, Some(endpoint::server_config(config, tls)));
    let endpoint = endpoint.map_err(udp_error)?;
    let address = endpoint.local_addr().map_err(udp_error)?;
    let tcp = listen_tcp(address).map_err(|error| BindError::new(address, "tcp", error))?;
    Ok((endpoint, tcp))
}

fn listen_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

async fn accept_quic(endpoint: Endpoint, shared: Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = endpoint.accept().await {
        match permits.clone().try_acquire_owned() {
            Ok(permit) => drop(tokio::spawn(greet(incoming, shared.clone(), permit))),
            Err(_) => incoming.refuse(),
        }
    }
}

async fn accept_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        match listener.accept().await {
            Ok((tcp, remote)) => {
                if let Ok(permit) = permits.clone().try_acquire_owned() {
                    tokio::spawn(take_lifeline(tcp, remote, shared.clone(), permit));
                }
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// A stranger's lifeline is dropped in silence: its QUIC side has the error.
async fn take_lifeline(
    tcp: TcpStream,
    remote: SocketAddr,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
) {
    let Ok(name) = shared.config.expected_name(Some(remote.ip())) else {
        return;
    };
    let presented = timeout(STEP_TIME, lifeline::accept(tcp, &shared.tls, &name)).await;
    if let Ok(Ok(presented)) = presented
        && let Some(session) = lock(&shared.lifelines).remove(&presented.token)
    {
        // The session may have given up waiting.
        let _ = session.send(presented);
    }
}

async fn greet(incoming: Incoming, shared: Arc<Shared>, _permit: OwnedSemaphorePermit) {
    let remote = incoming.remote_address();
    let event = match receive(incoming, &shared).await {
        Ok(link) => ListenerEvent::Backup(Box::new(link)),
        Err(error) => ListenerEvent::Rejected { remote, error },
    };
    // Nobody listens any more.
    let _ = shared.events.send(event).await;
}

async fn step<T, E>(
    name: &'static str,
    future: impl Future<Output = Result<T, E>>,
    to_error: impl FnOnce(E) -> ListenError,
) -> Result<T, ListenError> {
    match timeout(STEP_TIME, future).await {
        Ok(result) => result.map_err(to_error),
        Err(_) => Err(ListenError::Timeout(name)),
    }
}

fn lost(step: &'static str, problem: &impl ToString) -> ListenError {
    ListenError::Lost {
        step,
        problem: problem.to_string(),
    }
}

/// From the first packet to an admitted backup.
async fn receive(incoming: Incoming, shared: &Arc<Shared>) -> Result<PrimaryLink, ListenError> {
    let connection = step("the TLS handshake", incoming.into_future(), |error| {
        ListenError::Handshake(certificate_problem(&error).unwrap_or_else(|| explain(&error)))
    })
    .await?;
    check_client(&connection, &shared.config)?;
    let stream = step("the control stream", connection.accept_bi(), |error| {
        lost("the control stream", &explain(&error))
    });
    let mut control = ControlStream::new(stream.await?);
    let hello = match read_hello(&mut control).await {
        Err(ListenError::Protocol(SessionError::Control(error @ ControlError::Version { .. }))) => {
            return Err(refuse(&connection, control, version_refusal(shared, &error)).await);
        }
        result => result?,
    };
    let (welcome, slot) = match take_slot(shared, &hello)? {
        Ok(admitted) => admitted,
        Err(refusal) => return Err(refuse(&connection, control, refusal).await),
    };
    let lifeline = await_lifeline(shared, &connection, &mut control, welcome).await?;
    let (send, recv, rest) = control.into_parts();
    let data_seen = Arc::new(AtomicBool::new(false));
    Ok(PrimaryLink {
        hello,
        remote: connection.remote_address(),
        heartbeat: HeartbeatConfig {
            interval: shared.config.heartbeat_interval,
        },
        wires: Wires {
            quic: connection,
            send,
            recv,
            rest,
            lifeline,
            data_seen,
            _slot: Some(slot),
        },
    })
}

/// QUIC has verified the chain; the name is this host's to check.
fn check_client(connection: &Connection, config: &LinkConfig) -> Result<(), ListenError> {
    let chain = peer_chain(connection);
    let name = config.expected_name(Some(connection.remote_address().ip()));
    let checked = name.and_then(|name| check_name(&chain, &name));
    checked.map_err(|error| {
        connection.close(CODE_NAME, format!("{error}").as_bytes());
        ListenError::Name(error)
    })
}

async fn read_hello(control: &mut ControlStream) -> Result<Hello, ListenError> {
    let message = step("Hello", control.read(), |error| match error {
        HandshakeError::Control(error) => error.into(),
        other => lost("Hello", &other),
    });
    match message.await? {
        Message::Hello(hello) => Ok(hello),
        other => {
            let unexpected = SessionError::Unexpected {
                message: other.name(),
                role: "peer",
            };
            Err(unexpected.into())
        }
    }
}

/// Admits a backup into the one place, or says why not.
fn take_slot(
    shared: &Arc<Shared>,
    hello: &Hello,
) -> Result<Result<(Welcome, Slot), Refusal>, ListenError> {
    let token = shared
        .tls
        .new_token()
        .map_err(|error| lost("Welcome", &error))?;
    let admission = lock(&shared.admission);
    let mut backup = lock(&shared.backup);
    Ok(
        admit(&admission, backup.as_deref(), hello, token).map(|welcome| {
            *backup = Some(hello.host.clone());
            (welcome, Slot(shared.clone()))
        }),
    )
}

/// Sends a refusal and gives the peer time to read it.
async fn refuse(
    connection: &Connection,
    mut control: ControlStream,
    refusal: Refusal,
) -> ListenError {
    let message = Message::Refuse(refusal.clone());
    if control.write(&message).await.is_ok() && control.send.finish().is_ok() {
        let _ = timeout(REFUSAL_TIME, connection.closed()).await;
    }
    connection.close(CODE_DONE, b"refused");
    ListenError::Refused(refusal)
}

fn version_refusal(shared: &Shared, error: &ControlError) -> Refusal {
    let (host, term) = match &*lock(&shared.admission) {
        Admission::Primary(identity) => (identity.host.clone(), identity.term),
        Admission::NotPrimary { host, term, .. } => (host.clone(), *term),
    };
    let text = format!("seen from {host}, the dialling host {error}");
    Refusal {
        reason: RefuseReason::WrongVersion,
        term,
        text,
    }
}

/// Welcomes the backup and waits for its lifeline.
async fn await_lifeline(
    shared: &Shared,
    connection: &Connection,
    control: &mut ControlStream,
    welcome: Welcome,
) -> Result<Lifeline, ListenError> {
    const STEP: &str = "the lifeline";
    let token = welcome.token;
    let (sender, receiver) = oneshot::channel();
    lock(&shared.lifelines).insert(token, sender);
    let _awaited = Awaited(shared, token);
    let welcomed = async {
        control
            .write(&Message::Welcome(welcome))
            .await
            .map_err(|error| lost(STEP, &error))?;
        let presented = tokio::select! {
            presented = receiver => presented.map_err(|error| lost(STEP, &error))?,
            error = connection.closed() => return Err(lost(STEP, &explain(&error))),
        };
        presented
            .confirm()
            .await
            .map_err(|error| lost(STEP, &error))
    };
    let lifeline = step(STEP, welcomed, |error| error).await;
    if lifeline.is_err() {
        connection.close(
            CODE_VIOLATION,
            b"no lifeline: is the TCP port open as well?",
        );
    }
    lifeline
}
