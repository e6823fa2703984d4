//! Addresses for daemons that run on this machine only: in benchmarks and tests.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

/// Ports below those that the system gives to whoever connects, so that nobody takes one in between.
pub const PORTS: Range<u16> = 12000..30000;

/// An address that nobody uses, neither for UDP nor for TCP; not given twice in a process. Nothing if all are in use.
pub fn free_address() -> Option<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // Processes that run at the same time begin at different places.
    let first = (std::process::id().wrapping_mul(97) % u32::from(count)) as u16;
    let next = || NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(first) % count;
    let addresses =
        (0..count).map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, PORTS.start + next())));
    let is_free = |address: &SocketAddr| {
        UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok()
    };
    addresses.into_iter().find(is_free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_free_and_differ() {
        let taken = free_address().unwrap();
        let _socket = UdpSocket::bind(taken).unwrap();
        let others: Vec<SocketAddr> = (0..50).map(|_| free_address().unwrap()).collect();
        assert!(!others.contains(&taken));
        let mut distinct = others.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), others.len());
    }
}
