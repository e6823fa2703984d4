//! What a link needs to know.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustls_pki_types::ServerName;

use super::names::NameError;

/// Addresses, names and times of a link. Both hosts may have the same but for the addresses.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Where a primary listens, UDP and TCP; a backup dials from this address's IP.
    pub listen: SocketAddr,
    /// The other host, `host:port` or `[v6]:port`. Needed to dial.
    pub peer: Option<String>,
    /// The name in the other host's certificate, if it is not the host part of `peer`.
    pub peer_name: Option<String>,
    /// Time between heartbeats.
    pub heartbeat_interval: Duration,
    /// Time after which an idle connection sends something.
    pub keep_alive: Duration,
    /// Time without any packet after which QUIC gives a connection up. Longer than the time
    /// after which failover counts the peer as lost.
    pub idle_timeout: Duration,
    /// Bytes of the commit stream that may be under way: at least bandwidth times round trip.
    pub window_bytes: u32,
}

impl LinkConfig {
    /// The defaults, for these addresses.
    pub fn new(listen: SocketAddr, peer: Option<String>) -> Self {
        Self {
            listen,
            peer,
            peer_name: None,
            heartbeat_interval: Duration::from_millis(20),
            keep_alive: Duration::from_millis(100),
            idle_timeout: Duration::from_secs(2),
            window_bytes: 16 << 20,
        }
    }

    /// The name the certificate of a peer must have: as configured, or the host part of its
    /// address as configured, or else the address it comes from.
    pub(super) fn expected_name(
        &self,
        remote: Option<IpAddr>,
    ) -> Result<ServerName<'static>, NameError> {
        let configured = self
            .peer_name
            .as_deref()
            .or(self.peer.as_deref().map(host_part));
        match (configured, remote) {
            (Some(name), _) => {
                ServerName::try_from(name.to_owned()).map_err(|_| NameError::NotAName {
                    name: name.to_owned(),
                })
            }
            (None, Some(address)) => Ok(ServerName::from(address.to_canonical())),
            (None, None) => Err(NameError::NotAName {
                name: String::new(),
            }),
        }
    }
}

/// `beta` of `beta:7600`, `::1` of `[::1]:7600`.
fn host_part(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_expected_of_a_peer() {
        let mut config = LinkConfig::new(([127, 0, 0, 1], 0).into(), None);
        let remote = Some("::ffff:10.0.0.7".parse().unwrap());
        assert_eq!(config.expected_name(remote).unwrap().to_str(), "10.0.0.7");
        config.peer = Some("[fd00::2]:7600".into());
        assert_eq!(config.expected_name(remote).unwrap().to_str(), "fd00::2");
        config.peer = Some("beta.example:7600".into());
        assert_eq!(config.expected_name(None).unwrap().to_str(), "beta.example");
        config.peer_name = Some("beta".into());
        assert_eq!(config.expected_name(remote).unwrap().to_str(), "beta");
        config.peer_name = Some("no name".into());
        assert!(config.expected_name(remote).is_err());
    }
}
