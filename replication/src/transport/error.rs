//! What goes wrong between two hosts, in one line each.

use std::io;
use std::net::SocketAddr;

use quinn::ConnectionError;

use super::names::NameError;
use crate::protocol::{ControlError, Refusal, SessionError, TEXT_BYTES_MAX};

/// This host cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Someone else does.
    #[error(
        "replication.listen {address}: the {protocol} port is in use; stop who uses it or set another port"
    )]
    PortInUse {
        /// The address.
        address: SocketAddr,
        /// UDP or TCP.
        protocol: &'static str,
    },
    /// Another reason.
    #[error("replication.listen {address}: cannot listen ({protocol})")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// UDP or TCP.
        protocol: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl BindError {
    pub(super) fn new(address: SocketAddr, protocol: &'static str, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::AddrInUse {
            Self::PortInUse { address, protocol }
        } else {
            Self::Socket {
                address,
                protocol,
                source,
            }
        }
    }
}

/// Why this host does not become the backup of the one it dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No address to dial.
    #[error("replication.peer is not set")]
    NoPeer,
    /// The address has no meaning here.
    #[error("replication.peer {peer}: cannot be resolved")]
    Resolve {
        /// The peer as configured.
        peer: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A socket to dial from cannot be had.
    #[error("cannot open a socket to dial {peer}")]
    Socket {
        /// The peer.
        peer: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody answers.
    #[error("{peer}: not reachable ({step}): {problem}")]
    Unreachable {
        /// The peer.
        peer: String,
        /// How far it came.
        step: &'static str,
        /// What happened.
        problem: String,
    },
    /// The peer's certificate, or ours in its eyes, is not good.
    #[error("{peer}: {problem}")]
    Certificate {
        /// The peer.
        peer: String,
        /// Whose certificate, and what is wrong with it.
        problem: String,
    },
    /// The configured name is none.
    #[error("{peer}")]
    Name {
        /// The peer.
        peer: String,
        /// What is wrong with the name.
        #[source]
        source: NameError,
    },
    /// It will not have this host as its backup.
    #[error("{peer} refuses: {refusal}")]
    Refused {
        /// The peer.
        peer: String,
        /// Its words.
        refusal: Refusal,
    },
    /// It does not speak the protocol.
    #[error("{peer}")]
    Protocol {
        /// The peer.
        peer: String,
        /// What it did.
        #[source]
        source: SessionError,
    },
}

impl DialError {
    /// Dialling again cannot help before someone changes something.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::NoPeer | Self::Certificate { .. } | Self::Name { .. } | Self::Protocol { .. } => {
                true
            }
            Self::Refused { refusal, .. } => refusal.is_permanent(),
            Self::Resolve { .. } | Self::Socket { .. } | Self::Unreachable { .. } => false,
        }
    }
}

/// Why a host that dialled this one was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Its connection did not come about.
    #[error("{0}")]
    Handshake(String),
    /// Its certificate is not for it.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It was refused.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// It does not speak the protocol.
    #[error(transparent)]
    Protocol(#[from] SessionError),
    /// It did not get to the next step in time.
    #[error("silent while {0} was awaited")]
    Timeout(&'static str),
    /// Its connection ended.
    #[error("connection lost while {step} was awaited: {problem}")]
    Lost {
        /// What was awaited.
        step: &'static str,
        /// What happened.
        problem: String,
    },
}

impl From<ControlError> for ListenError {
    fn from(error: ControlError) -> Self {
        Self::Protocol(error.into())
    }
}

/// Why a link is no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseCause {
    /// The peer's kernel closed the lifeline: its process is gone.
    #[error("the peer's process ended (its lifeline closed)")]
    ProcessEnded,
    /// The peer said goodbye.
    #[error("the peer left: {0}")]
    Goodbye(String),
    /// The peer will not have this session after all.
    #[error("the peer refuses: {0}")]
    Refused(Refusal),
    /// The peer broke the protocol; the link was closed.
    #[error("the peer {0}")]
    Violation(String),
    /// QUIC lost the peer.
    #[error("connection lost: {0}")]
    Lost(String),
    /// This side closed it.
    #[error("closed by this host")]
    Local,
}

/// TLS alerts as QUIC error codes (0x100 + alert).
const ALERT_BASE: u64 = 0x100;
const BAD_CERTIFICATE: u64 = ALERT_BASE + 42;
const CERTIFICATE_EXPIRED: u64 = ALERT_BASE + 45;
const CERTIFICATE_UNKNOWN: u64 = ALERT_BASE + 46;
const UNKNOWN_CA: u64 = ALERT_BASE + 48;
const DECRYPT_ERROR: u64 = ALERT_BASE + 51;
const CERTIFICATE_REQUIRED: u64 = ALERT_BASE + 116;
const NO_APPLICATION_PROTOCOL: u64 = ALERT_BASE + 120;

/// If a handshake failed because of a certificate: whose, and what is wrong.
pub(super) fn certificate_problem(error: &ConnectionError) -> Option<String> {
    match error {
        ConnectionError::TransportError(error) => match u64::from(error.code) {
            // A CA that has the name of the right one fails by its signature.
            UNKNOWN_CA | DECRYPT_ERROR => {
                Some("its certificate is not signed by a CA in tls.ca".into())
            }
            CERTIFICATE_EXPIRED => Some("its certificate has expired or is not valid yet".into()),
            CERTIFICATE_REQUIRED => Some("it presented no certificate".into()),
            BAD_CERTIFICATE | CERTIFICATE_UNKNOWN => Some(error.reason.clone()),
            _ => None,
        },
        ConnectionError::ConnectionClosed(close) => match u64::from(close.error_code) {
            UNKNOWN_CA | DECRYPT_ERROR => {
                Some("it does not trust the CA that signed this host's tls.cert".into())
            }
            CERTIFICATE_EXPIRED => {
                Some("it says that this host's tls.cert has expired or is not valid yet".into())
            }
            BAD_CERTIFICATE | CERTIFICATE_UNKNOWN | CERTIFICATE_REQUIRED => {
                Some("it does not accept this host's tls.cert".into())
            }
            _ => None,
        },
        _ => None,
    }
}

/// A connection error for people.
pub(super) fn explain(error: &ConnectionError) -> String {
    if let Some(problem) = certificate_problem(error) {
        return problem;
    }
    match error {
        ConnectionError::ApplicationClosed(close) => printable(&close.reason),
        ConnectionError::TransportError(error)
            if u64::from(error.code) == NO_APPLICATION_PROTOCOL =>
        {
            "it does not speak samsara/1: is it another service?".into()
        }
        ConnectionError::ConnectionClosed(close)
            if u64::from(close.error_code) == NO_APPLICATION_PROTOCOL =>
        {
            "it does not speak samsara/1: is it another service?".into()
        }
        other => printable(other.to_string().as_bytes()),
    }
}

/// A peer's text in one line.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(TEXT_BYTES_MAX)]);
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
