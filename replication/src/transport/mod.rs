//! The protocol over QUIC with mutual TLS, and the tasks that drive it.
//!
//! ```text
//!   primary: Listener --(admitted)--> PrimaryLink --start(queue)--> PrimaryHandle + events
//!   backup:  Dialer   ---- dial ----> BackupLink  --start()-------> BackupHandle + events + bytes
//! ```
//!
//! One QUIC connection carries the control stream (both ways), the commit stream (primary to
//! backup) and heartbeats (datagrams). Beside it stands the *lifeline*: a TCP connection to the
//! same port number that carries nothing. A process that is killed says nothing over QUIC, but
//! its kernel closes its TCP connections, so the other side knows at once.
//!
//! The tasks here move bytes; what they mean is decided in [`crate::protocol`].

mod config;
mod dial;
mod driver;
mod endpoint;
mod error;
mod fetch;
mod handshake;
mod lifeline;
mod link;
mod listener;
mod names;
mod tls;

pub use config::LinkConfig;
pub use dial::{Backoff, Dialer};
pub use error::{BindError, CloseCause, DialError, ListenError};
pub use link::{
    BackupHandle, BackupLink, LinkClosed, LinkEvent, LinkStats, PrimaryHandle, PrimaryLink,
    StartedBackup,
};
pub use listener::{Listener, ListenerEvent};
pub use names::NameError;
pub use tls::{TlsError, TlsFiles, TlsIdentity};
