//! The TCP connection that shows when a peer's process ends.
//!
//! The backup opens it and presents its session's token; the primary answers with one byte.
//! Nothing else is ever sent: what a side reads next is the end of the other.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::names::check_name;
use super::tls::TlsIdentity;
use crate::protocol::{SessionToken, TOKEN_BYTES};

/// The primary's answer to a token it knows.
const ACCEPTED: u8 = 1;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One end of a lifeline.
pub(super) struct Lifeline(Box<dyn Stream>);

impl Lifeline {
    /// Returns when the other end is closed, by its process or by its kernel.
    pub(super) async fn closed(&mut self) {
        let mut byte = [0];
        // A peer that does send something has not closed.
        while matches!(self.0.read(&mut byte).await, Ok(1..)) {}
    }
}

/// The first step of a dial: whether anyone listens is known at once.
pub(super) async fn connect(address: SocketAddr, from: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.bind(from)?;
    socket.connect(address).await
}

/// The last step of a dial.
pub(super) async fn present(
    tcp: TcpStream,
    tls: &TlsIdentity,
    name: ServerName<'static>,
    token: SessionToken,
) -> io::Result<Lifeline> {
    let connector = TlsConnector::from(tls.lifeline_client.clone());
    let mut stream = connector.connect(name, tcp).await?;
    stream.write_all(&token.0).await?;
    stream.flush().await?;
    if stream.read_u8().await? == ACCEPTED {
        Ok(Lifeline(Box::new(stream)))
    } else {
        Err(io::Error::other("the lifeline was not accepted"))
    }
}

/// A lifeline on the primary whose token has been read.
pub(super) struct Presented {
    pub(super) token: SessionToken,
    stream: tokio_rustls::server::TlsStream<TcpStream>,
}

/// Reads the token of a peer with a good certificate for `name`.
pub(super) async fn accept(
    tcp: TcpStream,
    tls: &TlsIdentity,
    name: &ServerName<'_>,
) -> io::Result<Presented> {
    tcp.set_nodelay(true)?;
    let acceptor = TlsAcceptor::from(Arc::clone(&tls.lifeline_server));
    let mut stream = acceptor.accept(tcp).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    check_name(chain, name).map_err(io::Error::other)?;
    let mut token = [0; TOKEN_BYTES];
    stream.read_exact(&mut token).await?;
    Ok(Presented {
        token: SessionToken(token),
        stream,
    })
}

impl Presented {
    /// Tells the backup that its lifeline stands.
    pub(super) async fn confirm(mut self) -> io::Result<Lifeline> {
        self.stream.write_u8(ACCEPTED).await?;
        self.stream.flush().await?;
        Ok(Lifeline(Box::new(self.stream)))
    }
}
