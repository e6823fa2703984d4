//! The control socket: how `samsaractl` talks to a running samsarad.
//!
//! A Unix socket, one JSON object a line in each direction, answers in the order of requests. Whoever can open the socket
//! may control the VM, so only its owner can (mode 0600). It appears under its name only when it is ready for that, and
//! a socket that a dead process left behind is replaced, one that answers is not.

mod client;
mod server;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use client::{CLIENT_TIMEOUT, request};
pub use server::ControlServer;

use crate::contention::Contention;
use crate::status::Status;

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum Request {
    /// How are you?
    Status,
    /// What do vCPUs lose their chunks by?
    Contention,
    /// The operator says that this host may run alone.
    Promote,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "response", content = "content", rename_all = "lowercase")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Contention`].
    Contention(Box<Contention>),
    /// The request is done; in words.
    Done(String),
    /// The request is not possible now; why, and what to do.
    Refused(String),
}

/// Why the control socket does not work.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another daemon answers there.
    #[error("samsarad already runs with the control socket {}: stop it, or choose another control.socket", .path.display())]
    AlreadyRuns {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is in its place.
    #[error("{} is not a socket: remove it, or choose another control.socket", .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("cannot open the control socket {} (control.socket)", .path.display())]
    Open {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody answers.
    #[error("no samsarad answers on {}{}", .path.display(), connect_hint(.source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("samsarad on {} did not answer", .path.display())]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The answer is none that is known here.
    #[error("the answer on {} is not understood: are samsarad and samsaractl the same version?", .path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

fn connect_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            ": there is no such socket; is it running, with control.socket set?"
        }
        io::ErrorKind::ConnectionRefused => ": it was left behind; samsarad is not running",
        io::ErrorKind::PermissionDenied => {
            ": not permitted; run this as the user that runs samsarad"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests;
