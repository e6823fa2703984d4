//! Frames through real taps, each test in a network namespace of its own.
//!
//! The namespace's kernel is the neighbour of a guest that is made up here, frame by frame.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::atomic::AtomicU8;
use std::sync::mpsc;

use rustix::thread::UnshareFlags;

use super::*;

const MAC: Mac = [0x52, 0x54, 0, 0, 0, 2];
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const DEVICE: DeviceIndex = DeviceIndex(3);
const LONG: Duration = Duration::from_secs(10);

/// Runs a test on a thread in a fresh network namespace.
fn in_namespace(test: &str, body: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Only the network: nothing that threads share, file descriptors say, is taken apart.
            #[expect(
                deprecated,
                reason = "the other one is unsafe for FILES, not asked for here"
            )]
            if let Err(error) = rustix::thread::unshare(UnshareFlags::NEWNET) {
                println!("skipped: {test}: no network namespace of its own: {error}");
                return;
            }
            if !std::path::Path::new("/dev/net/tun").exists() {
                println!("skipped: {test}: no /dev/net/tun");
                return;
            }
            body();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn config(name: &str) -> TapConfig {
    TapConfig {
        device: DEVICE,
        tap: name.to_owned(),
        mac: MAC,
    }
}

/// A tap that carries no IPv6: nobody asks for routers or joins groups by himself.
fn make_tap() {
    ip("tuntap add dev tap0 mode tap");
    ip("link set tap0 addrgenmode none");
}

/// A network with one tap that carries IPv4 to a guest, and nothing that the kernel says by itself.
fn network() -> Network {
    make_tap();
    let network = Network::open(&[config("tap0")]).unwrap();
    ip("addr add 10.77.0.1/24 dev tap0");
    ip("neigh add 10.77.0.2 lladdr 52:54:00:00:00:02 dev tap0");
    network
}

/// An answer of the recorder: none has room yet, one less with each try, and then there is.
const NO_ROOM_FIRST: u8 = 10;

/// What a guest's recorder is given, and what it answers.
struct Recorder {
    frames: mpsc::Receiver<(DeviceIndex, Bytes)>,
    answer: Arc<AtomicU8>,
}

fn recorder() -> (Recorder, Arc<Take>) {
    let (sender, frames) = mpsc::channel();
    let answer = Arc::new(AtomicU8::new(0));
    let recorder = Recorder {
        frames,
        answer: Arc::clone(&answer),
    };
    let take = move |device, frame| match answer.load(Ordering::SeqCst) {
        0 => {
            let _ = sender.send((device, frame));
            Taken::Yes
        }
        1 => Taken::NoRoom,
        2 => Taken::Gone,
        more => {
            let next = if more == NO_ROOM_FIRST { 0 } else { more - 1 };
            answer.store(next, Ordering::SeqCst);
            Taken::NoRoom
        }
    };
    (recorder, Arc::new(take))
}

impl Recorder {
    /// The payload of the next UDP packet for the guest.
    fn payload(&self) -> Vec<u8> {
        let deadline = Instant::now() + LONG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (device, frame) = self.frames.recv_timeout(left).unwrap();
            assert_eq!(device, DEVICE);
            if frame[12..14] == [8, 0] && frame[30..34] == GUEST.octets() {
                assert_eq!(frame[..6], MAC);
                return frame[42..].to_vec();
            }
        }
    }
}

/// A UDP packet of the guest, without a UDP checksum.
fn udp(host_mac: Mac, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [host_mac, MAC].concat();
    frame.extend([8, 0]);
    let length = |extra: usize| ((payload.len() + extra) as u16).to_be_bytes();
    let mut header = vec![0x45, 0];
    header.extend(length(28));
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend(GUEST.octets());
    header.extend(HOST.octets());
    let words = header.as_chunks::<2>().0.iter();
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(header);
    frame.extend(9u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend(length(8));
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

fn host_mac() -> Mac {
    let shown = Command::new("ip")
        .args(["-o", "link", "show", "tap0"])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let text = shown.split("link/ether ").nth(1).unwrap();
    let bytes: Vec<u8> = text[..17]
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

fn counts(network: &Network) -> DeviceCounts {
    network.counts()[0]
}

fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !until() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn frames_pass_both_ways() {
    in_namespace("frames_pass_both_ways", || {
        let network = network();
        network.start().unwrap();
        let (recorder, take) = recorder();
        network.go_live(take).unwrap();
        let socket = UdpSocket::bind((HOST, 0)).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        let port = socket.local_addr().unwrap().port();
        for round in 0..50u8 {
            let sent = vec![round; usize::from(round) * 29 + 1];
            socket.send_to(&sent, (GUEST, 9)).unwrap();
            assert_eq!(recorder.payload(), sent);
            network.emit(DEVICE, &udp(host_mac(), port, &sent));
            let mut got = [0; 2000];
            let (bytes, from) = socket.recv_from(&mut got).unwrap();
            assert_eq!((&got[..bytes], from.ip()), (&sent[..], GUEST.into()));
        }
        let counts = counts(&network);
        assert!(
            counts.frames_in >= 50 && counts.bytes_in > 50 * 42,
            "{counts:?}"
        );
        assert_eq!(counts.frames_out, 50);
        assert_eq!(counts.lost_for(Lost::NoRoom), 0);
    });
}

#[test]
fn checksums_are_whole_and_frames_are_no_larger_than_the_mtu() {
    in_namespace("checksums_are_whole", || {
        let network = network();
        network.start().unwrap();
        let (recorder, take) = recorder();
        network.go_live(take).unwrap();
        let socket = UdpSocket::bind((HOST, 0)).unwrap();
        // Larger than a packet: it comes in fragments, none of which is left to the receiver.
        socket.send_to(&[7; 4000], (GUEST, 9)).unwrap();
        socket.send_to(b"whole", (GUEST, 9)).unwrap();
        loop {
            let (_, frame) = recorder.frames.recv_timeout(LONG).unwrap();
            assert!(frame.len() <= 1514, "{}", frame.len());
            if frame[12..14] != [8, 0] || !frame.ends_with(b"whole") {
                continue;
            }
            let pseudo = [&frame[26..34], &[0, 17], &frame[38..40]].concat();
            let mut covered = [&pseudo, &frame[34..]].concat();
            covered.resize(covered.len().next_multiple_of(2), 0);
            let words = covered.as_chunks::<2>().0.iter();
            let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
            while sum >> 16 != 0 {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            assert_eq!(sum, 0xffff, "{frame:02x?}");
            break;
        }
    });
}

#[test]
fn a_backup_drops_what_arrives_and_a_guest_gets_only_what_is_new() {
    in_namespace("a_backup_drops_what_arrives", || {
        let network = network();
        let socket = UdpSocket::bind((HOST, 0)).unwrap();
        socket.send_to(b"before anybody reads", (GUEST, 9)).unwrap();
        network.start().unwrap();
        let standby = || counts(&network).lost_for(Lost::Standby);
        wait("the first is read", || standby() >= 1);
        let before = standby();
        socket.send_to(b"while on standby", (GUEST, 9)).unwrap();
        wait("the second is read", || standby() > before);
        assert_eq!(
            counts(&network).announcements,
            0,
            "it is not the guest's host"
        );
        let (recorder, take) = recorder();
        network.go_live(take).unwrap();
        socket.send_to(b"new", (GUEST, 9)).unwrap();
        assert_eq!(recorder.payload(), b"new");
        network.stop();
        let taken = counts(&network).frames_in;
        socket.send_to(b"late", (GUEST, 9)).unwrap();
        assert_eq!(counts(&network).frames_in, taken);
    });
}

#[test]
fn a_guest_without_room_is_waited_for_once() {
    in_namespace("a_guest_without_room_is_waited_for_once", || {
        let network = network();
        network.start().unwrap();
        let (recorder, take) = recorder();
        recorder.answer.store(1, Ordering::SeqCst);
        network.go_live(take).unwrap();
        let socket = UdpSocket::bind((HOST, 0)).unwrap();
        let send = |text: &[u8]| socket.send_to(text, (GUEST, 9)).unwrap();
        let lost = || counts(&network).lost_for(Lost::NoRoom);
        for _ in 0..200 {
            send(b"no room");
        }
        let start = Instant::now();
        wait("all are dropped", || lost() >= 200);
        let each = 200 * Duration::from_millis(20);
        assert!(start.elapsed() < each / 2, "{:?}", start.elapsed());
        // One that has room again gets what comes then, and is waited for again.
        recorder.answer.store(0, Ordering::SeqCst);
        send(b"room");
        assert_eq!(recorder.payload(), b"room");
        let (before, begin) = (counts(&network), Instant::now());
        recorder.answer.store(NO_ROOM_FIRST + 5, Ordering::SeqCst);
        send(b"soon");
        let passed = || counts(&network).frames_in > before.frames_in;
        wait("it is taken or dropped", || {
            passed() || lost() > before.lost_for(Lost::NoRoom)
        });
        if passed() {
            assert_eq!(recorder.payload(), b"soon");
        } else {
            assert!(begin.elapsed() >= Duration::from_millis(20));
        }
        recorder.answer.store(2, Ordering::SeqCst);
        send(b"gone");
        wait("it is counted", || {
            counts(&network).lost_for(Lost::Gone) >= 1
        });
    });
}

#[test]
fn a_promotion_is_announced_to_neighbours() {
    in_namespace("a_promotion_is_announced_to_neighbours", || {
        let network = Network::open(&[config("tap0")]).unwrap();
        ip("addr add 10.77.0.1/24 dev tap0");
        // A neighbour that has somebody else's address for the guest.
        ip("neigh add 10.77.0.2 lladdr 02:00:00:00:00:99 nud stale dev tap0");
        network.start().unwrap();
        let station = learned::Station {
            mac: MAC,
            vlan: None,
        };
        network.observe(DEVICE, &announce::gratuitous_arp(station, GUEST));
        let (_recorder, take) = recorder();
        network.go_live(take).unwrap();
        wait("the neighbour knows", || {
            let shown = Command::new("ip")
                .args(["neigh", "show", "10.77.0.2"])
                .output();
            String::from_utf8_lossy(&shown.unwrap().stdout).contains("52:54:00:00:00:02")
        });
        // RARP and ARP, so many times.
        let all = 2 * announce::DELAYS.len() as u64;
        wait("all are sent", || counts(&network).announcements >= all);
        assert_eq!(counts(&network).announcements, all);
        assert_eq!(counts(&network).frames_out, 0);
    });
}

#[test]
fn stopping_ends_announcements_and_threads_at_once() {
    in_namespace("stopping_ends_announcements", || {
        let network = network();
        network.start().unwrap();
        let (_recorder, take) = recorder();
        network.go_live(take).unwrap();
        let start = Instant::now();
        network.stop();
        assert!(start.elapsed() < Duration::from_millis(500));
        assert!(network.threads().is_empty());
        network.emit(DEVICE, &[0; 60]);
        assert_eq!(
            counts(&network).frames_out,
            1,
            "what the gate lets through is sent"
        );
        network.stop();
    });
}

#[test]
fn what_the_network_does_not_take_is_counted() {
    in_namespace("what_the_network_does_not_take_is_counted", || {
        let network = network();
        network.emit(DEVICE, &[0; 5]);
        network.emit(DEVICE, &[]);
        network.emit(DEVICE, &vec![0; 1 << 20]);
        network.emit(DeviceIndex(9), &[0; 60]);
        network.observe(DeviceIndex(9), &[0; 60]);
        assert_eq!(counts(&network).frames_out, 0);
        let lost: u64 = counts(&network).lost.iter().sum();
        assert_eq!((lost, network.unwired_frames()), (3, 2));
        assert_eq!(counts(&network).lost_for(Lost::Refused), 3);
        ip("link set tap0 down");
        network.emit(DEVICE, &[0; 60]);
        network.emit(DEVICE, &[0; 60]);
        assert_eq!(counts(&network).lost_for(Lost::Down), 2);
        ip("link set tap0 up");
        network.emit(DEVICE, &[0; 60]);
        assert_eq!(counts(&network).frames_out, 1);
    });
}

#[test]
fn a_tap_that_is_removed_and_made_again_is_taken_up() {
    in_namespace("a_tap_that_is_removed_and_made_again_is_taken_up", || {
        let network = network();
        network.start().unwrap();
        let (recorder, take) = recorder();
        network.go_live(take).unwrap();
        ip("link del tap0");
        wait("it is noticed", || counts(&network).read_errors >= 1);
        network.emit(DEVICE, &[0; 60]);
        assert!(counts(&network).lost_for(Lost::Down) >= 1);
        make_tap();
        ip("addr add 10.77.0.1/24 dev tap0");
        let socket = UdpSocket::bind((HOST, 0)).unwrap();
        wait("it is taken up", || {
            let sent = counts(&network).frames_out;
            network.emit(DEVICE, &[0; 60]);
            counts(&network).frames_out > sent
        });
        ip("neigh replace 10.77.0.2 lladdr 52:54:00:00:00:02 dev tap0");
        socket.send_to(b"again", (GUEST, 9)).unwrap();
        assert_eq!(recorder.payload(), b"again");
        assert!(
            counts(&network).read_errors < 20,
            "it is not asked without end"
        );
    });
}

#[test]
fn taps_that_cannot_be_had_are_named() {
    in_namespace("taps_that_cannot_be_had_are_named", || {
        let error = |taps: &[TapConfig]| Network::open(taps).unwrap_err().to_string();
        let first = Network::open(&[config("tap0")]).unwrap();
        assert!(error(&[config("tap0")]).contains("tap tap0 is in use"));
        drop(first);
        // A process that another test is just starting has its descriptors until it runs its program.
        wait("it is free", || Network::open(&[config("tap0")]).is_ok());
        assert!(error(&[config("lo")]).contains("lo is an interface that is no tap"));
        let other = TapConfig {
            device: DeviceIndex(4),
            ..config("tap1")
        };
        assert!(error(&[config("tap1"), other]).contains("tap tap1 is named for two"));
        let same_device = [config("tap1"), config("tap2")];
        assert!(error(&same_device).contains("two taps are named for network device 3"));
        ip("tuntap add dev tun0 mode tun");
        assert!(error(&[config("tun0")]).contains("tun0 is an interface that is no tap"));
    });
}

#[test]
fn a_guest_without_network_has_nothing_to_do() {
    let network = Network::open(&[]).unwrap();
    network.start().unwrap();
    let (_recorder, take) = recorder();
    network.go_live(take).unwrap();
    assert!(network.threads().is_empty() && network.counts().is_empty());
}
