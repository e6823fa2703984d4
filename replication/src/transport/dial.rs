//! The backup's way to its primary.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use quinn::{Connection, ConnectionError};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::config::LinkConfig;
use super::driver::Wires;
use super::endpoint;
use super::error::{DialError, certificate_problem, explain};
use super::handshake::{ControlStream, HandshakeError};
use super::lifeline;
use super::link::BackupLink;
use super::tls::TlsIdentity;
use crate::protocol::{HeartbeatConfig, Hello, Message, SessionError, Welcome};

/// Time for each step of a dial. Hosts of a pair are near each other.
const STEP_TIME: Duration = Duration::from_secs(2);
/// First and longest pause between tries.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Pauses between tries: each twice the last, up to a bound.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: PAUSE_MIN }
    }
}

impl Backoff {
    /// The pause after one more failure.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(PAUSE_MAX);
        pause
    }
}

/// Dials the peer of a configuration.
#[derive(Clone, Debug)]
pub struct Dialer {
    config: LinkConfig,
    tls: TlsIdentity,
}

impl Dialer {
    /// A dialler that has not dialled.
    pub fn new(config: LinkConfig, tls: TlsIdentity) -> Self {
        Self { config, tls }
    }

    /// Dials until it has a link. `hello` is asked anew for every try, `on_failure` hears of each
    /// failure and of the pause that follows, and may end the tries. Cancel-safe.
    pub async fn dial_until(
        &self,
        mut hello: impl FnMut() -> Hello,
        mut on_failure: impl FnMut(&DialError, Duration) -> ControlFlow<()>,
    ) -> Result<BackupLink, DialError> {
        let mut backoff = Backoff::default();
        loop {
            let error = match self.dial(hello()).await {
                Ok(link) => return Ok(link),
                Err(error) => error,
            };
            let pause = backoff.pause();
            if on_failure(&error, pause).is_break() {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Dials once, every address the peer's name has, until one answers. A host that starts as
    /// primary dials too, with that role in its `Hello`: the answer is always an error, and
    /// [`DialError::Refused`] tells whether the peer is primary already, and in which term.
    pub async fn dial(&self, hello: Hello) -> Result<BackupLink, DialError> {
        let peer = self.config.peer.clone().ok_or(DialError::NoPeer)?;
        let name = self.config.expected_name(None);
        let name = name.map_err(|source| DialError::Name {
            peer: peer.clone(),
            source,
        })?;
        let resolve = |source| DialError::Resolve {
            peer: peer.clone(),
            source,
        };
        let addresses = tokio::net::lookup_host(&peer).await.map_err(resolve)?;
        let nothing = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let mut last = resolve(nothing);
        for address in addresses {
            let dial = Dial {
                dialer: self,
                peer: &peer,
                name: &name,
                address,
            };
            match dial.run(&hello).await {
                Err(error @ DialError::Unreachable { .. }) => last = error,
                result => return result,
            }
        }
        Err(last)
    }
}

/// One try with one address.
struct Dial<'a> {
    dialer: &'a Dialer,
    peer: &'a str,
    name: &'a ServerName<'static>,
    address: SocketAddr,
}

impl Dial<'_> {
    async fn run(&self, hello: &Hello) -> Result<BackupLink, DialError> {
        let config = &self.dialer.config;
        let tcp = lifeline::connect(self.address, self.source());
        let tcp = self
            .step("tcp", tcp, |error| self.unreachable("tcp", &error))
            .await?;
        let quic = self.connect().await?;
        let (control, welcome) = self.present(&quic, hello).await?;
        let lifeline = self.lifeline(tcp, &quic, &welcome).await?;
        let (send, recv, rest) = control.into_parts();
        let data_seen = Arc::new(AtomicBool::new(false));
        Ok(BackupLink {
            welcome,
            remote: self.address,
            heartbeat: HeartbeatConfig {
                interval: config.heartbeat_interval,
            },
            wires: Wires {
                quic,
                send,
                recv,
                rest,
                lifeline,
                data_seen,
                _slot: None,
            },
        })
    }

    /// Dials from the address this host listens on, so that the peer sees the address it may
    /// expect in the certificate.
    fn source(&self) -> SocketAddr {
        let listen = self.dialer.config.listen.ip();
        let any: IpAddr = match self.address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let same = listen.is_ipv4() == self.address.is_ipv4();
        SocketAddr::new(if same { listen } else { any }, 0)
    }

    async fn step<T, E>(
        &self,
        name: &'static str,
        future: impl Future<Output = Result<T, E>>,
        to_error: impl FnOnce(E) -> DialError,
    ) -> Result<T, DialError> {
        match timeout(STEP_TIME, future).await {
            Ok(result) => result.map_err(to_error),
            Err(_) => Err(self.unreachable(name, &"no answer in time")),
        }
    }

    fn unreachable(&self, step: &'static str, problem: &impl ToString) -> DialError {
        DialError::Unreachable {
            peer: self.peer.to_owned(),
            step,
            problem: problem.to_string(),
        }
    }

    /// A failed connection, told apart by whether a certificate was the reason.
    fn failed(&self, step: &'static str, error: &ConnectionError) -> DialError {
        let closed_by_name = matches!(error, ConnectionError::ApplicationClosed(close)
            if close.error_code == super::driver::CODE_NAME);
        let peer = self.peer.to_owned();
        if closed_by_name {
            let problem = format!(
                "it does not accept this host's tls.cert: {}",
                explain(error)
            );
            return DialError::Certificate { peer, problem };
        }
        match certificate_problem(error) {
            Some(problem) => DialError::Certificate { peer, problem },
            None => self.unreachable(step, &explain(error)),
        }
    }

    async fn connect(&self) -> Result<Connection, DialError> {
        let Dialer { config, tls } = self.dialer;
        let socket = |source| DialError::Socket {
            peer: self.peer.to_owned(),
            source,
        };
        let endpoint = endpoint::open(self.source(), None).map_err(socket)?;
        let name = self.name.to_str();
        let connecting = endpoint
            .connect_with(endpoint::client_config(config, tls), self.address, &name)
            .map_err(|error| self.unreachable("quic", &error))?;
        self.step("quic", connecting, |error| self.failed("quic", &error))
            .await
    }

    async fn present(
        &self,
        quic: &Connection,
        hello: &Hello,
    ) -> Result<(ControlStream, Welcome), DialError> {
        let opened = self.step("Hello", quic.open_bi(), |error| {
            self.failed("Hello", &error)
        });
        let mut control = ControlStream::new(opened.await?);
        let asked = async {
            control.write(&Message::Hello(hello.clone())).await?;
            control.read().await
        };
        let answer = self
            .step("Welcome", asked, |error| self.no_answer(error))
            .await?;
        let peer = self.peer.to_owned();
        match answer {
            Message::Welcome(welcome) => Ok((control, welcome)),
            Message::Refuse(refusal) => Err(DialError::Refused { peer, refusal }),
            other => {
                let source = SessionError::Unexpected {
                    message: other.name(),
                    role: "primary",
                };
                Err(DialError::Protocol { peer, source })
            }
        }
    }

    fn no_answer(&self, error: HandshakeError) -> DialError {
        match error {
            HandshakeError::Control(error) => DialError::Protocol {
                peer: self.peer.to_owned(),
                source: error.into(),
            },
            HandshakeError::Read(quinn::ReadError::ConnectionLost(error))
            | HandshakeError::Write(quinn::WriteError::ConnectionLost(error)) => {
                self.failed("Welcome", &error)
            }
            other => self.unreachable("Welcome", &other),
        }
    }

    async fn lifeline(
        &self,
        tcp: TcpStream,
        quic: &Connection,
        welcome: &Welcome,
    ) -> Result<lifeline::Lifeline, DialError> {
        let presented = lifeline::present(tcp, &self.dialer.tls, self.name.clone(), welcome.token);
        let lifeline = self
            .step("lifeline", presented, |error| {
                self.unreachable("lifeline", &error)
            })
            .await;
        if lifeline.is_err() {
            quic.close(super::driver::CODE_VIOLATION, b"no lifeline");
        }
        lifeline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..7).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
    }
}
