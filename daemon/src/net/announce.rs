//! Telling the network that a guest's stations are behind this host now.
//!
//! Switches learn the new port from any frame of the station: a RARP request does, as after a live
//! migration. Neighbours keep the Ethernet address that they have, which is still right; a gratuitous
//! ARP and an unsolicited neighbour advertisement say it once more, for those that gave it up meanwhile.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::learned::{
    Claim, ETHERTYPE_ARP, ETHERTYPE_IPV6, ETHERTYPE_VLAN, ICMPV6, Learned, Mac, NDP_HOP_LIMIT,
    NEIGHBOUR_ADVERTISEMENT, Station,
};

/// When a host that goes live announces, from then on: a switch may lose one, or have its port
/// blocked for a moment.
pub const DELAYS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
];

const BROADCAST: Mac = [0xff; 6];
/// The group of all nodes on the link, and its Ethernet address.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
const ETHERTYPE_RARP: u16 = 0x8035;
/// The least bytes of a frame, without its checksum; what is shorter is padded.
const FRAME_BYTES_MIN: usize = 60;
const ARP_REQUEST: u16 = 1;
const RARP_REQUEST: u16 = 3;

/// Everything to announce for a device with this Ethernet address.
pub fn frames(mac: Mac, learned: &Learned) -> Vec<Vec<u8>> {
    let own = Station { mac, vlan: None };
    let others = learned.stations().filter(|station| *station != own);
    let mut frames: Vec<_> = std::iter::once(own).chain(others).map(rarp).collect();
    let claims = learned.claims();
    frames.extend(claims.iter().map(|claim| match claim.address {
        IpAddr::V4(address) => gratuitous_arp(claim.station, address),
        IpAddr::V6(address) => neighbour_advertisement(claim, address),
    }));
    frames
}

/// A RARP request of a station for its own address.
pub fn rarp(station: Station) -> Vec<u8> {
    let nobody = Ipv4Addr::UNSPECIFIED;
    let body = arp_body(RARP_REQUEST, station.mac, nobody, station.mac, nobody);
    ethernet(BROADCAST, station, ETHERTYPE_RARP, &body)
}

/// An ARP request of a station for its own address: an ARP announcement (RFC 5227).
pub fn gratuitous_arp(station: Station, address: Ipv4Addr) -> Vec<u8> {
    let body = arp_body(ARP_REQUEST, station.mac, address, [0; 6], address);
    ethernet(BROADCAST, station, ETHERTYPE_ARP, &body)
}

fn arp_body(
    operation: u16,
    sender: Mac,
    sender_address: Ipv4Addr,
    target: Mac,
    target_address: Ipv4Addr,
) -> Vec<u8> {
    // Ethernet and IPv4, six and four bytes long.
    let mut body = vec![0, 1, 8, 0, 6, 4];
    body.extend(operation.to_be_bytes());
    body.extend(sender);
    body.extend(sender_address.octets());
    body.extend(target);
    body.extend(target_address.octets());
    body
}

/// An unsolicited neighbour advertisement (RFC 4861) for a station's address.
fn neighbour_advertisement(claim: &Claim, address: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    const ROUTER: u8 = 0x80;
    const TARGET_LINK_ADDRESS: u8 = 2;
    // Said of a router, "no router" would make its neighbours drop their routes.
    let router = if claim.is_router { ROUTER } else { 0 };
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE | router, 0, 0, 0];
    message.extend(address.octets());
    // The option is one unit of eight bytes long.
    message.extend([TARGET_LINK_ADDRESS, 1]);
    message.extend(claim.station.mac);
    let sum = icmpv6_checksum(address, ALL_NODES, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((message.len() as u16).to_be_bytes());
    packet.extend([ICMPV6, NDP_HOP_LIMIT]);
    packet.extend(address.octets());
    packet.extend(ALL_NODES.octets());
    packet.extend(message);
    ethernet(ALL_NODES_MAC, claim.station, ETHERTYPE_IPV6, &packet)
}

/// The Internet checksum of a message with its pseudo-header. The message is short, and of an even
/// number of bytes.
fn icmpv6_checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let mut covered = Vec::from(source.octets());
    covered.extend(destination.octets());
    covered.extend((message.len() as u32).to_be_bytes());
    covered.extend([0, 0, 0, ICMPV6]);
    covered.extend(message);
    let words = covered.as_chunks::<2>().0.iter();
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn ethernet(destination: Mac, station: Station, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::from(destination);
    frame.extend(station.mac);
    if let Some(vlan) = station.vlan {
        frame.extend(ETHERTYPE_VLAN.to_be_bytes());
        frame.extend(vlan.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    if frame.len() < FRAME_BYTES_MIN {
        frame.resize(FRAME_BYTES_MIN, 0);
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    const STATION: Station = Station {
        mac: MAC,
        vlan: None,
    };

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pair = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(pair).collect()
    }

    fn padded(text: &str) -> Vec<u8> {
        let mut frame = hex(text);
        frame.resize(60, 0);
        frame
    }

    #[test]
    fn rarp_is_as_live_migration_sends_it() {
        let wanted = "ffffffffffff 525400123456 8035 0001 0800 06 04 0003 \
                      525400123456 00000000 525400123456 00000000";
        assert_eq!(rarp(STATION), padded(wanted));
    }

    #[test]
    fn gratuitous_arp_names_the_address_twice() {
        let wanted = "ffffffffffff 525400123456 0806 0001 0800 06 04 0001 \
                      525400123456 0a4d0002 000000000000 0a4d0002";
        let address = Ipv4Addr::new(10, 77, 0, 2);
        assert_eq!(gratuitous_arp(STATION, address), padded(wanted));
        let tagged = Station {
            vlan: Some(42),
            ..STATION
        };
        let wanted = "ffffffffffff 525400123456 8100 002a 0806 0001 0800 06 04 0001 \
                      525400123456 0a4d0002 000000000000 0a4d0002";
        assert_eq!(gratuitous_arp(tagged, address), padded(wanted));
    }

    #[test]
    fn neighbour_advertisement_is_whole() {
        let address: Ipv6Addr = "fe80::5054:ff:fe12:3456".parse().unwrap();
        let claim = |is_router| Claim {
            station: STATION,
            address: address.into(),
            is_router,
        };
        let wanted = "333300000001 525400123456 86dd 60000000 0020 3a ff \
                      fe80000000000000505400fffe123456 ff020000000000000000000000000001 \
                      88 00 cb68 20000000 fe80000000000000505400fffe123456 02 01 525400123456";
        let made = neighbour_advertisement(&claim(false), address);
        assert_eq!(made, hex(wanted));
        // Summed with its checksum, the message gives all ones.
        assert_eq!(icmpv6_checksum(address, ALL_NODES, &made[54..]), 0);
        let router = neighbour_advertisement(&claim(true), address);
        assert_eq!(router[58], 0xa0);
        assert_eq!(icmpv6_checksum(address, ALL_NODES, &router[54..]), 0);
    }

    #[test]
    fn everything_that_was_learned_is_announced_the_device_first() {
        assert_eq!(frames(MAC, &Learned::default()), [rarp(STATION)]);
        let mut learned = Learned::default();
        let address = Ipv4Addr::new(10, 77, 0, 2);
        learned.observe(&gratuitous_arp(STATION, address));
        let other = Station {
            mac: [2, 0, 0, 0, 0, 9],
            vlan: Some(7),
        };
        let local: Ipv6Addr = "fe80::9".parse().unwrap();
        let claim = Claim {
            station: other,
            address: local.into(),
            is_router: true,
        };
        let advertisement = neighbour_advertisement(&claim, local);
        learned.observe(&advertisement);
        let wanted = [
            rarp(STATION),
            rarp(other),
            gratuitous_arp(STATION, address),
            advertisement,
        ];
        assert_eq!(frames(MAC, &learned), wanted);
    }
}
