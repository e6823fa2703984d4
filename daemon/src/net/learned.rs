//! Which stations and addresses a guest's network device speaks for, learned from the frames that
//! the guest sends.
//!
//! The primary learns from what it emits; a backup from the same outputs when it retains them. A
//! guest decides what it sends: the table is bounded, and nothing in a frame is trusted to be whole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Stations behind one device. A guest has one, unless it has bridges or VLANs of its own.
const STATIONS_MAX: usize = 16;
/// Addresses behind one device: as many are announced at a promotion.
const ADDRESSES_MAX: usize = 64;

pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
pub(super) const ETHERTYPE_VLAN: u16 = 0x8100;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(super) const ICMPV6: u8 = 58;
pub(super) const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const ROUTER_ADVERTISEMENT: u8 = 134;
/// Neighbour discovery comes from the same link only if nobody has lowered this.
pub(super) const NDP_HOP_LIMIT: u8 = 255;
const IPV6_HEADER_BYTES: usize = 40;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Who sends, as a switch sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Station {
    /// Its Ethernet address.
    pub mac: Mac,
    /// The VLAN of its frames, if they are tagged.
    pub vlan: Option<u16>,
}

/// How it is known that an address is a station's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Evidence {
    /// It sent packets from the address, which a router does with addresses of others.
    Used,
    /// It told its neighbours so, by ARP or neighbour discovery.
    Claimed,
}

/// An address and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose.
    pub station: Station,
    /// The address.
    pub address: IpAddr,
    /// Whether the station is a router, by what it told.
    pub is_router: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    claim: Claim,
    evidence: Evidence,
    seen: u64,
}

/// See the module's description.
#[derive(Clone, Debug, Default)]
pub struct Learned {
    stations: Vec<(Station, u64)>,
    entries: Vec<Entry>,
    /// Counts frames: the order in which things were last seen.
    frames: u64,
}

impl Learned {
    /// Learns from a frame that the guest sent.
    pub fn observe(&mut self, frame: &[u8]) {
        let Some((station, ethertype, payload)) = ethernet(frame) else {
            return;
        };
        self.frames = self.frames.wrapping_add(1);
        self.note_station(station);
        let found = match ethertype {
            ETHERTYPE_ARP => arp(station, payload),
            ETHERTYPE_IPV4 => ipv4(payload),
            ETHERTYPE_IPV6 => ipv6(payload),
            _ => None,
        };
        if let Some((address, evidence, is_router)) = found {
            self.note_address(station, address, evidence, is_router);
        }
    }

    /// The stations that sent something.
    pub fn stations(&self) -> impl Iterator<Item = Station> + '_ {
        self.stations.iter().map(|(station, _)| *station)
    }

    /// The addresses to announce. Those that a station only sent from count if it claimed none of
    /// their kind: else it may be a router that passes on what others sent.
    pub fn claims(&self) -> Vec<Claim> {
        let is_alike = |a: &Entry, b: &Entry| {
            a.claim.station == b.claim.station
                && a.claim.address.is_ipv4() == b.claim.address.is_ipv4()
        };
        let counts = |entry: &&Entry| {
            entry.evidence == Evidence::Claimed
                || !self
                    .entries
                    .iter()
                    .any(|other| other.evidence == Evidence::Claimed && is_alike(entry, other))
        };
        let is_router = |station| {
            let mut own = self.entries.iter().map(|entry| entry.claim);
            own.any(|claim| claim.station == station && claim.is_router)
        };
        let claims = self.entries.iter().filter(counts).map(|entry| Claim {
            is_router: is_router(entry.claim.station),
            ..entry.claim
        });
        claims.collect()
    }

    fn note_station(&mut self, station: Station) {
        let now = self.frames;
        if let Some((_, seen)) = self
            .stations
            .iter_mut()
            .find(|(known, _)| *known == station)
        {
            *seen = now;
            return;
        }
        if self.stations.len() >= STATIONS_MAX {
            let oldest = self
                .stations
                .iter()
                .enumerate()
                .min_by_key(|(_, (_, seen))| *seen);
            let Some((index, _)) = oldest else { return };
            self.stations.swap_remove(index);
        }
        self.stations.push((station, now));
    }

    /// `is_router` is none if the frame does not tell.
    fn note_address(
        &mut self,
        station: Station,
        address: IpAddr,
        evidence: Evidence,
        is_router: Option<bool>,
    ) {
        let seen = self.frames;
        // An address has one station: the one that spoke for it last.
        let known = self.entries.iter_mut().find(|entry| {
            entry.claim.address == address && entry.claim.station.vlan == station.vlan
        });
        if let Some(entry) = known {
            if entry.claim.station != station {
                if evidence < entry.evidence {
                    return;
                }
                entry.claim.is_router = false;
            }
            entry.claim.station = station;
            entry.claim.is_router = is_router.unwrap_or(entry.claim.is_router);
            entry.evidence = entry.evidence.max(evidence);
            entry.seen = seen;
            return;
        }
        if self.entries.len() >= ADDRESSES_MAX && !self.evict_for(evidence) {
            return;
        }
        let is_router = is_router.unwrap_or(false);
        let claim = Claim {
            station,
            address,
            is_router,
        };
        self.entries.push(Entry {
            claim,
            evidence,
            seen,
        });
    }

    /// Makes room, if there is an entry that is worth no more than the new one.
    fn evict_for(&mut self, evidence: Evidence) -> bool {
        let least = self
            .entries
            .iter()
            .enumerate()
            .min_by_key(|(_, entry)| (entry.evidence, entry.seen))
            .filter(|(_, entry)| entry.evidence <= evidence)
            .map(|(index, _)| index);
        if let Some(index) = least {
            self.entries.swap_remove(index);
        }
        least.is_some()
    }
}

type Found = Option<(IpAddr, Evidence, Option<bool>)>;

/// Sender, type and payload.
fn ethernet(frame: &[u8]) -> Option<(Station, u16, &[u8])> {
    let mac: Mac = array(frame, 6)?;
    let is_unicast = mac[0] & 1 == 0 && mac != [0; 6];
    let outer = word(frame, 12)?;
    let (vlan, ethertype, payload) = if outer == ETHERTYPE_VLAN {
        // Without its priority.
        let vlan = word(frame, 14)? & 0x0fff;
        (Some(vlan), word(frame, 16)?, frame.get(18..)?)
    } else {
        (None, outer, frame.get(14..)?)
    };
    is_unicast.then_some((Station { mac, vlan }, ethertype, payload))
}

fn arp(station: Station, packet: &[u8]) -> Found {
    // Ethernet and IPv4, six and four bytes long.
    if packet.get(..6)? != [0, 1, 8, 0, 6, 4] || !matches!(word(packet, 6)?, 1 | 2) {
        return None;
    }
    let sender: Mac = array(packet, 8)?;
    let address = Ipv4Addr::from(array::<4>(packet, 14)?);
    let is_own = sender == station.mac && is_host_v4(address);
    is_own.then_some((address.into(), Evidence::Claimed, None))
}

fn ipv4(packet: &[u8]) -> Found {
    let address = Ipv4Addr::from(array::<4>(packet, 12)?);
    let is_packet = packet[0] >> 4 == 4 && packet.len() >= 20;
    (is_packet && is_host_v4(address)).then_some((address.into(), Evidence::Used, None))
}

fn ipv6(packet: &[u8]) -> Found {
    let source = Ipv6Addr::from(array::<16>(packet, 8)?);
    if packet[0] >> 4 != 6 || packet.len() < IPV6_HEADER_BYTES {
        return None;
    }
    let message = &packet[IPV6_HEADER_BYTES..];
    let is_discovery = packet[6] == ICMPV6 && packet[7] == NDP_HOP_LIMIT;
    let kind = message.first().filter(|_| is_discovery);
    let (address, evidence, is_router) = match kind.copied() {
        Some(NEIGHBOUR_ADVERTISEMENT) => {
            let target = Ipv6Addr::from(array::<16>(message, 8)?);
            (target, Evidence::Claimed, Some(message[4] & 0x80 != 0))
        }
        Some(NEIGHBOUR_SOLICITATION) => (source, Evidence::Claimed, None),
        Some(ROUTER_ADVERTISEMENT) => (source, Evidence::Claimed, Some(true)),
        _ => (source, Evidence::Used, None),
    };
    is_host_v6(address).then_some((address.into(), evidence, is_router))
}

fn is_host_v4(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    // Neither "this network", nor loopback, nor multicast, reserved or broadcast.
    first != 0 && first != 127 && first < 224
}

fn is_host_v6(address: Ipv6Addr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.to_ipv4_mapped().is_some())
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests;
