//! QUIC endpoints with the right sizes and times.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::udp::{UdpSockRef, UdpSocketState};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
};

use super::config::LinkConfig;
use super::tls::TlsIdentity;

/// Socket buffers, as far as the kernel grants them: a burst of a full congestion window must
/// not overflow them.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// A round trip before one is measured. Hosts of a pair are near each other; the standard's third
/// of a second would make every lost first packet cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(10);
/// What may be sent before the first acknowledgement: a near peer takes this much.
const INITIAL_WINDOW_BYTES: u64 = 256 << 10;
/// Jumbo frames are used where the path carries them; probing finds out.
const MTU_MAX: u16 = 8900;
/// Control messages and commits share the connection's window; control must always fit.
const CONTROL_WINDOW_BYTES: u32 = 1 << 20;
/// Questions for effects that wait for their answers.
const FETCHES_MAX: u8 = 16;
/// Heartbeats are small and only the newest matter.
const DATAGRAM_BUFFER_BYTES: usize = 16 << 10;

/// Who opens streams: the backup one control stream and those that ask for effects, the primary one commit stream.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Primary,
    Backup,
}

fn transport(config: &LinkConfig, side: Side) -> Arc<TransportConfig> {
    let (bidi, uni) = match side {
        Side::Primary => (1 + FETCHES_MAX, 0u8),
        Side::Backup => (0, 1),
    };
    let mut cubic = CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW_BYTES);
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_MAX);
    let idle = u32::try_from(config.idle_timeout.as_millis()).unwrap_or(u32::MAX);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from(bidi))
        .max_concurrent_uni_streams(VarInt::from(uni))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle))))
        .keep_alive_interval(Some(config.keep_alive))
        .initial_rtt(INITIAL_RTT)
        .stream_receive_window(VarInt::from_u32(config.window_bytes))
        .receive_window(VarInt::from_u32(
            config.window_bytes.saturating_add(CONTROL_WINDOW_BYTES),
        ))
        .send_window(u64::from(config.window_bytes) + u64::from(CONTROL_WINDOW_BYTES))
        .congestion_controller_factory(Arc::new(cubic))
        .mtu_discovery_config(Some(mtu))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES);
    Arc::new(transport)
}

pub(super) fn server_config(config: &LinkConfig, tls: &TlsIdentity) -> ServerConfig {
    let mut server = ServerConfig::with_crypto(tls.quic_server.clone());
    server.transport_config(transport(config, Side::Primary));
    // A backup's address is part of how it is known.
    server.migration(false);
    server
}

pub(super) fn client_config(config: &LinkConfig, tls: &TlsIdentity) -> ClientConfig {
    let mut client = ClientConfig::new(tls.quic_client.clone());
    client.transport_config(transport(config, Side::Backup));
    client
}

/// An endpoint on its own UDP socket.
pub(super) fn open(address: SocketAddr, server: Option<ServerConfig>) -> io::Result<Endpoint> {
    let socket = UdpSocket::bind(address)?;
    grow_buffers(&socket);
    let mut config = EndpointConfig::default();
    let accepted = config.max_udp_payload_size(MTU_MAX);
    accepted.map_err(|error| io::Error::other(error.to_string()))?;
    Endpoint::new(config, server, socket, Arc::new(TokioRuntime))
}

/// Best effort: with small buffers QUIC is slower, not wrong.
fn grow_buffers(socket: &UdpSocket) {
    let reference = UdpSockRef::from(socket);
    if let Ok(state) = UdpSocketState::new(UdpSockRef::from(socket)) {
        let _ = state.set_recv_buffer_size(reference, SOCKET_BUFFER_BYTES);
        let _ = state.set_send_buffer_size(UdpSockRef::from(socket), SOCKET_BUFFER_BYTES);
    }
}
