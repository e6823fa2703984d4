use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use samsara_machine::tap::Tap;

use super::*;
use crate::pauses::{PauseMeter, echo};

const LONG: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(300);

fn exists(name: &str) -> bool {
    Path::new(DIRECTORY).join(name).exists()
}

#[test]
fn names_tell_who_made_them() {
    assert_eq!(maker("samsara-12-0-hosts"), Some(12));
    assert_eq!(maker("samsara-12-3-client"), Some(12));
    for name in [
        "samsara-12-0-other",
        "samsara-x-0-hosts",
        "samsara-12-hosts",
        "hosts",
        "samsara-1-1-hosts-1",
    ] {
        assert_eq!(maker(name), None, "{name}");
    }
}

#[test]
fn a_wire_goes_when_it_is_dropped_even_by_a_panic() {
    let Some(wire) = Wire::new_or_skip("a_wire_goes_when_it_is_dropped") else {
        return;
    };
    let names = [&wire.hosts, &wire.client].map(|namespace| namespace.name().to_owned());
    assert!(names.iter().all(|name| exists(name)));
    let panicked = std::thread::spawn(move || {
        let _wire = wire;
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    assert!(!names.iter().any(|name| exists(name)));
    // What a process that was killed has left goes with the next wire.
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let left = format!("{PREFIX}{}-0-hosts", gone.id());
    ip(&["netns", "add", &left]).unwrap();
    clear_leftovers();
    assert!(!exists(&left));
}

/// What a frame from the client asks for, if it asks for the guest's Ethernet address.
fn asks_for_guest(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[8, 6]) && frame.get(38..42) == Some(&GUEST.octets()[..])
}

fn wait_frame(tap: &Tap, mut is_wanted: impl FnMut(&[u8]) -> bool) -> bool {
    let deadline = Instant::now() + LONG;
    let mut buffer = vec![0; 4096];
    while Instant::now() < deadline {
        match tap.receive(&mut buffer) {
            Ok(bytes) if is_wanted(&buffer[..bytes]) => return true,
            Ok(_) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    false
}

#[test]
fn a_client_reaches_both_taps() {
    let Some(wire) = Wire::new_or_skip("a_client_reaches_both_taps") else {
        return;
    };
    let open = |name| wire.hosts.run(|| Tap::open(name)).unwrap().unwrap();
    let taps = [open(TAP_A), open(TAP_B)];
    let socket = wire
        .client
        .run(|| UdpSocket::bind((CLIENT, 0)))
        .unwrap()
        .unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let client = wire.client.spawn(move || {
        while !over.load(Ordering::Relaxed) {
            // The first may find no carrier.
            let _ = socket.send_to(b"hello", (GUEST, 9));
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let asked = taps.each_ref().map(|tap| wait_frame(tap, asks_for_guest));
    is_over.store(true, Ordering::Relaxed);
    client.join().unwrap().unwrap();
    assert_eq!(asked, [true, true]);
    // A pulled plug: frames of alpha's tap do not reach beta's.
    let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5], &[7; 46]].concat();
    let is_ours = |got: &[u8]| got == frame;
    taps[0].send(&frame).unwrap();
    assert!(wait_frame(&taps[1], is_ours));
    wire.unplug(TAP_A).unwrap();
    taps[0].send(&frame).unwrap();
    wire.plug(TAP_A).unwrap();
    let marked = [&frame[..14], &[8; 46]].concat();
    taps[0].send(&marked).unwrap();
    assert!(wait_frame(&taps[1], |got| {
        assert!(!is_ours(got));
        got == marked
    }));
}

#[test]
fn commands_and_threads_are_within() {
    let Some(wire) = Wire::new_or_skip("commands_and_threads_are_within") else {
        return;
    };
    let links = |command: &mut Command| {
        let output = command.args(["-o", "link"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let [first, rest @ ..] = wire.hosts.command_prefix();
    let prefixed = links(Command::new(first).args(rest).arg("ip"));
    for name in ["br0", TAP_A, TAP_B, "uplink"] {
        assert!(prefixed.contains(name), "{prefixed}");
    }
    assert!(links(&mut wire.client.command("ip")).contains("eth0"));
    // A thread's processes are where it is.
    let inherited = wire.hosts.run(|| links(&mut Command::new("ip"))).unwrap();
    assert!(inherited.contains("br0"));
    assert!(!links(&mut Command::new("ip")).contains(TAP_A));
}

#[test]
fn the_meter_sees_a_pause() {
    let Some(wire) = Wire::new_or_skip("the_meter_sees_a_pause") else {
        return;
    };
    let is_paused = Arc::new(std::sync::Mutex::new(()));
    let pause = Arc::clone(&is_paused);
    let listener = wire
        .client
        .run(|| TcpListener::bind((CLIENT, 0)))
        .unwrap()
        .unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let mut stream = listener.accept().unwrap().0;
        let mut buffer = [0; 100];
        while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
            let _running = pause.lock().unwrap();
            stream.write_all(&buffer[..bytes]).unwrap();
        }
    });
    let meter = PauseMeter::start(&wire.client, Duration::from_millis(2), echo(address, LONG));
    meter.wait_answers(20, LONG).unwrap();
    let stopped = is_paused.lock().unwrap();
    let from = Instant::now();
    std::thread::sleep(PAUSE);
    assert!(meter.pauses().longest > PAUSE / 2, "while it lasts");
    drop(stopped);
    let answers = meter.pauses().answers;
    meter.wait_answers(answers + 20, LONG).unwrap();
    let pauses = meter.stop().unwrap();
    assert!(pauses.longest >= PAUSE / 6 * 5, "{pauses:?}");
    assert!(pauses.longest_from.unwrap() <= from + Duration::from_millis(50));
    assert_eq!((pauses.failures, pauses.errors), (0, Vec::new()));
    server.join().unwrap();
}
