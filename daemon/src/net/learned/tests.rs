//! What is learned from which frames, and that whatever a guest sends is bounded.

use super::*;
use crate::net::announce::{gratuitous_arp, rarp};

const MAC: Mac = [0x52, 0x54, 0, 0, 0, 1];
const STATION: Station = Station {
    mac: MAC,
    vlan: None,
};

fn frame(mac: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

fn ipv4_packet(source: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    packet[12..16].copy_from_slice(&source);
    frame(MAC, ETHERTYPE_IPV4, &packet)
}

fn ipv6_packet(source: &str, hop_limit: u8, message: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    (packet[0], packet[6], packet[7]) = (0x60, ICMPV6, hop_limit);
    packet[8..24].copy_from_slice(&source.parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(message);
    frame(MAC, ETHERTYPE_IPV6, &packet)
}

fn discovery(kind: u8, flags: u8, target: &str) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.parse::<Ipv6Addr>().unwrap().octets());
    message
}

fn learn(frames: &[Vec<u8>]) -> Learned {
    let mut learned = Learned::default();
    for frame in frames {
        learned.observe(frame);
    }
    learned
}

/// Addresses, those of routers with an "R".
fn claims(frames: &[Vec<u8>]) -> Vec<String> {
    let claims = learn(frames).claims();
    let text = |claim: &Claim| {
        let mark = if claim.is_router { " R" } else { "" };
        format!("{}{mark}", claim.address)
    };
    claims.iter().map(text).collect()
}

#[test]
fn arp_and_packets_tell_addresses() {
    let address = Ipv4Addr::new(10, 77, 0, 2);
    let learned = learn(&[gratuitous_arp(STATION, address)]);
    let claim = Claim {
        station: STATION,
        address: address.into(),
        is_router: false,
    };
    assert_eq!(learned.claims(), [claim]);
    assert_eq!(learned.stations().collect::<Vec<_>>(), [STATION]);
    assert_eq!(claims(&[ipv4_packet([10, 77, 0, 3])]), ["10.77.0.3"]);
}

#[test]
fn tags_are_part_of_a_station() {
    let tagged = Station {
        vlan: Some(42),
        ..STATION
    };
    let address = Ipv4Addr::new(10, 77, 0, 2);
    let mut frame = gratuitous_arp(tagged, address);
    // A priority is none.
    frame[14] |= 0xe0;
    let learned = learn(&[frame, gratuitous_arp(STATION, address)]);
    let stations: Vec<_> = learned.claims().iter().map(|claim| claim.station).collect();
    assert_eq!(stations, [tagged, STATION]);
}

#[test]
fn what_a_router_passes_on_is_not_its_own() {
    let own = gratuitous_arp(STATION, Ipv4Addr::new(10, 77, 0, 1));
    let frames = [ipv4_packet([8, 8, 8, 8]), own, ipv4_packet([9, 9, 9, 9])];
    assert_eq!(claims(&frames), ["10.77.0.1"]);
    let solicitation = discovery(NEIGHBOUR_SOLICITATION, 0, "fe80::2");
    let frames = [
        ipv6_packet("2001:db8::9", 64, &[]),
        ipv6_packet("fe80::1", 255, &solicitation),
    ];
    assert_eq!(claims(&frames), ["fe80::1"]);
}

#[test]
fn neighbour_discovery_tells_addresses_and_routers() {
    let advertised = |flags| discovery(NEIGHBOUR_ADVERTISEMENT, flags, "2001:db8::1");
    let advertise = |flags| ipv6_packet("fe80::1", 255, &advertised(flags));
    assert_eq!(claims(&[advertise(0x60)]), ["2001:db8::1"]);
    assert_eq!(claims(&[advertise(0xe0)]), ["2001:db8::1 R"]);
    assert_eq!(claims(&[advertise(0xe0), advertise(0x60)]), ["2001:db8::1"]);
    let router = ipv6_packet("fe80::1", 255, &[ROUTER_ADVERTISEMENT; 16]);
    assert_eq!(
        claims(&[advertise(0x60), router]),
        ["2001:db8::1 R", "fe80::1 R"]
    );
    // From another link it says nothing of this one.
    let distant = ipv6_packet("2001:db8::7", 254, &advertised(0xe0));
    assert_eq!(claims(&[distant]), ["2001:db8::7"]);
    // Detecting whether the address is somebody's: it is not this station's yet.
    let probe = ipv6_packet("::", 255, &discovery(NEIGHBOUR_SOLICITATION, 0, "fe80::1"));
    assert!(claims(&[probe]).is_empty());
}

#[test]
fn addresses_of_no_host_are_not_learned() {
    for source in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
        assert!(claims(&[ipv4_packet(source)]).is_empty(), "{source:?}");
    }
    for source in ["::", "::1", "ff02::1", "::ffff:1.2.3.4"] {
        assert!(
            claims(&[ipv6_packet(source, 64, &[])]).is_empty(),
            "{source}"
        );
    }
    let mut foreign = gratuitous_arp(STATION, Ipv4Addr::new(10, 0, 0, 1));
    foreign[22] ^= 2;
    assert!(claims(&[foreign]).is_empty(), "said of another station");
    for mac in [[0; 6], [1, 0, 0, 0, 0, 1], [0xff; 6]] {
        assert_eq!(
            learn(&[frame(mac, ETHERTYPE_ARP, &[])]).stations().count(),
            0
        );
    }
    // It asks for its address, it has none.
    assert!(claims(&[rarp(STATION)]).is_empty());
}

#[test]
fn an_address_that_moves_to_another_station_is_that_ones() {
    let address = Ipv4Addr::new(10, 77, 0, 2);
    let other = Station {
        mac: [2, 0, 0, 0, 0, 2],
        vlan: None,
    };
    let mut moved = vec![
        gratuitous_arp(STATION, address),
        gratuitous_arp(other, address),
    ];
    // A router passing it on does not make it the router's.
    moved.push(ipv4_packet(address.octets()));
    let learned = learn(&moved);
    let stations: Vec<_> = learned.claims().iter().map(|claim| claim.station).collect();
    assert_eq!(stations, [other]);
}

#[test]
fn tables_are_bounded_and_keep_what_is_used_and_what_is_claimed() {
    let mut learned = Learned::default();
    let own = gratuitous_arp(STATION, Ipv4Addr::new(10, 77, 0, 2));
    learned.observe(&own);
    for number in 0..5000u32 {
        let [.., high, low] = number.to_be_bytes();
        learned.observe(&ipv4_packet([11, 0, high, low]));
        let station = Station {
            mac: [2, 0, 0, 0, high, low],
            vlan: None,
        };
        learned.observe(&rarp(station));
        assert!(learned.entries.len() <= ADDRESSES_MAX);
        assert!(learned.stations.len() <= STATIONS_MAX);
    }
    assert_eq!(learned.claims().len(), 1);
    assert!(learned.stations().any(|station| station == STATION));
    for number in 0..200 {
        learned.observe(&gratuitous_arp(STATION, Ipv4Addr::new(12, 0, 0, number)));
        learned.observe(&own);
    }
    assert_eq!(learned.claims().len(), ADDRESSES_MAX);
    let is_kept = |claim: &Claim| claim.address == IpAddr::from([10, 77, 0, 2]);
    assert!(learned.claims().iter().any(is_kept));
}

#[test]
fn frames_that_end_anywhere_are_taken() {
    let frames = [
        gratuitous_arp(STATION, Ipv4Addr::new(10, 77, 0, 2)),
        ipv4_packet([10, 77, 0, 2]),
        ipv6_packet(
            "fe80::1",
            255,
            &discovery(NEIGHBOUR_ADVERTISEMENT, 0, "fe80::1"),
        ),
        ipv6_packet("fe80::1", 255, &[ROUTER_ADVERTISEMENT]),
        frame(MAC, ETHERTYPE_VLAN, &[0, 1, 0x86, 0xdd]),
    ];
    let mut learned = Learned::default();
    for frame in frames {
        for length in 0..=frame.len() {
            learned.observe(&frame[..length]);
        }
    }
    let mut state = 1u32;
    for round in 0..20_000usize {
        let mut noise = [0; 96];
        for byte in &mut noise {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (state >> 24) as u8;
        }
        let ethertypes = [0x0800u16, 0x0806, 0x8100, 0x86dd];
        noise[12..14].copy_from_slice(&ethertypes[round % 4].to_be_bytes());
        learned.observe(&noise[..round % 97]);
    }
}
