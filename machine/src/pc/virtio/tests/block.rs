//! Requests to the disk.

use std::sync::atomic::Ordering;

use super::driver::Buffer::{self, In, Out};
use super::driver::{BUFFERS, Disk, Guest};
use crate::pc::virtio::{Device, DeviceFault, Want, register};

const SECTORS: u32 = 4096;
const SERIAL: [u8; 20] = *b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x100;
const DATA: u64 = BUFFERS + 0x1000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn device() -> Device {
    Device::block(u64::from(SECTORS) * 512, false, SERIAL)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

/// Adds a request with its header, and a status that no device writes.
fn offer(guest: &mut Guest, kind: u32, sector: u64, data: &[Buffer]) -> u16 {
    guest.poke(HEADER, &header(kind, sector));
    guest.poke(STATUS, &[0xff]);
    let mut buffers = vec![Out(HEADER, 16)];
    buffers.extend_from_slice(data);
    buffers.push(In(STATUS, 1));
    guest.offer(0, &buffers)
}

/// Has one request served, and returns its status and length.
fn request(guest: &mut Guest, disk: &Disk, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
    let head = offer(guest, kind, sector, data);
    guest.notify(0);
    assert_eq!(guest.device.wants(guest.memory()), Some(Want::Step));
    assert_eq!(guest.returned(0), []);
    guest.input(&[], Some(disk)).unwrap();
    assert_eq!(guest.device.wants(guest.memory()), None);
    let returned = guest.returned(0);
    assert_eq!(returned.len(), 1);
    assert_eq!(returned[0].0, u32::from(head));
    assert_eq!(guest.take_pulses(), usize::from(!guest.needs_reset()));
    guest.set_used_event(0, guest.avail_event(0));
    (guest.peek(STATUS, 1)[0], returned[0].1)
}

#[test]
fn it_says_how_large_it_is() {
    let writable = device();
    assert_eq!(writable.read(register::CONFIG, 8), u64::from(SECTORS));
    assert_eq!(writable.read(register::CONFIG + 8, 4), 4096);
    assert_eq!(writable.read(register::CONFIG + 12, 4), 254);
    assert_eq!(writable.read(register::CONFIG + 20, 4), 512);
    assert_eq!(writable.read(register::CONFIG + 36, 4), 1 << 15);
    assert_eq!(writable.read(register::CONFIG + 56, 1), 1);
    let mut guest = Guest::new(writable);
    assert_eq!(guest.offered() & 0xff_ffff, 0b110_0010_0100_0110);
    let mut guest = Guest::new(Device::block(1023, true, SERIAL));
    assert_eq!(guest.offered() & 0xff_ffff, 0b10_0110_0110);
    assert_eq!(guest.read(register::CONFIG), 1);
    assert_eq!(guest.read(register::CONFIG + 36), 0);
}

#[test]
fn reads_and_writes_reach_the_disk() {
    let (mut guest, disk) = (Guest::started(device()), Disk::new(SECTORS));
    let before = disk.contents();
    let buffers = [In(DATA, 512), In(DATA + 0x1000, 1024)];
    assert_eq!(request(&mut guest, &disk, IN, 3, &buffers), (OK, 1537));
    assert_eq!(guest.peek(DATA, 512), before[3 * 512..4 * 512]);
    assert_eq!(guest.peek(DATA + 0x1000, 1024), before[4 * 512..6 * 512]);

    guest.poke(DATA, &[0x5a; 1024]);
    let buffers = [Out(DATA, 1000), Out(DATA + 1000, 24)];
    let last = u64::from(SECTORS) - 2;
    assert_eq!(request(&mut guest, &disk, OUT, last, &buffers), (OK, 1));
    let after = disk.contents();
    assert_eq!(after[..last as usize * 512], before[..last as usize * 512]);
    assert_eq!(after[last as usize * 512..], [0x5a; 1024]);
}

#[test]
fn header_and_status_may_be_anywhere_in_the_buffers() {
    let (mut guest, disk) = (Guest::plain(device()), Disk::new(SECTORS));
    let mut bytes = header(OUT, 7);
    bytes.extend([0x77; 512]);
    guest.poke(DATA, &bytes);
    let buffers = [Out(DATA, 9), Out(DATA + 9, 519), In(STATUS, 1)];
    guest.send(0, &buffers);
    guest.input(&[], Some(&disk)).unwrap();
    assert_eq!(guest.peek(STATUS, 1), [OK]);
    assert_eq!(disk.contents()[7 * 512..8 * 512], [0x77; 512]);
    guest.poke(DATA, &header(IN, 7));
    guest.send(0, &[Out(DATA, 16), In(DATA + 0x1000, 513)]);
    guest.input(&[], Some(&disk)).unwrap();
    assert_eq!(
        guest.peek(DATA + 0x1000, 513),
        [[0x77; 512].as_slice(), &[OK]].concat()
    );
    assert_eq!(guest.returned(0).last(), Some(&(3, 513)));
}

#[test]
fn flush_identify_and_unknown_requests() {
    let (mut guest, disk) = (Guest::started(device()), Disk::new(SECTORS));
    assert_eq!(request(&mut guest, &disk, FLUSH, 0, &[]), (OK, 1));
    assert_eq!(disk.flush_count.load(Ordering::Relaxed), 1);
    assert_eq!(
        request(&mut guest, &disk, GET_ID, 0, &[In(DATA, 20)]),
        (OK, 21)
    );
    assert_eq!(guest.peek(DATA, 20), SERIAL);
    assert_eq!(
        request(&mut guest, &disk, GET_ID, 0, &[In(DATA, 6)]),
        (OK, 7)
    );
    assert_eq!(
        request(&mut guest, &disk, GET_ID, 0, &[In(DATA, 30)]),
        (OK, 20)
    );
    for kind in [2, 3, 14, 99, u32::MAX] {
        let answer = request(&mut guest, &disk, kind, 0, &[In(DATA, 512)]);
        assert_eq!(answer, (UNSUPPORTED, 0));
    }
}

#[test]
fn sectors_that_are_not_there_are_the_guests_error() {
    let (mut guest, disk) = (Guest::started(device()), Disk::new(SECTORS));
    let (before, end) = (disk.contents(), u64::from(SECTORS));
    for sector in [end, end - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        let read = request(&mut guest, &disk, IN, sector, &[In(DATA, 1024)]);
        assert_eq!(read, (IO_ERROR, 0));
        let written = request(&mut guest, &disk, OUT, sector, &[Out(DATA, 1024)]);
        assert_eq!(written, (IO_ERROR, 1));
    }
    for bytes in [1, 511, 513, (1 << 20) + 512] {
        let read = request(&mut guest, &disk, IN, 0, &[In(DATA, bytes)]);
        assert_eq!(read, (IO_ERROR, 0));
        let written = request(&mut guest, &disk, OUT, 0, &[Out(DATA, bytes)]);
        assert_eq!(written, (IO_ERROR, 1));
    }
    assert!(disk.contents() == before);
    let (most, data) = (1 << 20, [In(DATA, 1 << 20)]);
    assert_eq!(request(&mut guest, &disk, IN, 0, &data), (OK, most + 1));
}

/// A range of a discard or write-zeroes request.
fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeros() {
    let (mut guest, disk) = (Guest::started(device()), Disk::new(SECTORS));
    let before = disk.contents();
    guest.poke(DATA, &[range(8, 8, 0), range(32, 1, 0)].concat());
    assert_eq!(
        request(&mut guest, &disk, DISCARD, 0, &[Out(DATA, 32)]),
        (OK, 1)
    );
    guest.poke(DATA, &range(100, 2, 1));
    let zeroed = request(&mut guest, &disk, WRITE_ZEROES, 0, &[Out(DATA, 16)]);
    assert_eq!(zeroed, (OK, 1));
    let after = disk.contents();
    for sector in 0..SECTORS as usize {
        let bytes = sector * 512..(sector + 1) * 512;
        if matches!(sector, 8..16 | 32 | 100..102) {
            assert_eq!(after[bytes], [0; 512]);
        } else {
            assert_eq!(after[bytes.clone()], before[bytes]);
        }
    }
}

#[test]
fn wrong_ranges_change_nothing() {
    let (mut guest, disk) = (Guest::started(device()), Disk::new(SECTORS));
    let before = disk.contents();
    let cases = [
        (DISCARD, range(0, 8, 1), UNSUPPORTED),
        (WRITE_ZEROES, range(0, 8, 2), UNSUPPORTED),
        (WRITE_ZEROES, range(0, (1 << 15) + 1, 0), IO_ERROR),
        (
            DISCARD,
            [range(0, 8, 0), range(SECTORS.into(), 1, 0)].concat(),
            IO_ERROR,
        ),
        (DISCARD, range(u64::MAX, u32::MAX, 0), IO_ERROR),
        (DISCARD, vec![0; 15], IO_ERROR),
        (DISCARD, vec![0; 17 * 16], IO_ERROR),
    ];
    for (kind, bytes, expected) in cases {
        guest.poke(DATA, &bytes);
        let data = [Out(DATA, bytes.len() as u32)];
        assert_eq!(request(&mut guest, &disk, kind, 0, &data), (expected, 1));
    }
    assert_eq!(request(&mut guest, &disk, DISCARD, 0, &[]), (IO_ERROR, 1));
    assert!(disk.contents() == before);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let device = Device::block(u64::from(SECTORS) * 512, true, SERIAL);
    let (mut guest, mut disk) = (Guest::started(device), Disk::new(SECTORS));
    disk.is_read_only = true;
    guest.poke(DATA, &range(0, 1, 0));
    for (kind, bytes) in [(OUT, 512), (DISCARD, 16), (WRITE_ZEROES, 16)] {
        let answer = request(&mut guest, &disk, kind, 0, &[Out(DATA, bytes)]);
        assert_eq!(answer, (IO_ERROR, 1));
    }
    assert_eq!(
        request(&mut guest, &disk, IN, 0, &[In(DATA, 512)]),
        (OK, 513)
    );
    assert_eq!(request(&mut guest, &disk, FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn the_hosts_failures_are_not_the_guests() {
    let (mut guest, mut disk) = (Guest::started(device()), Disk::new(SECTORS));
    disk.fails = true;
    offer(&mut guest, IN, 0, &[In(DATA, 512)]);
    guest.notify(0);
    let fault = guest.input(&[], Some(&disk)).unwrap_err();
    assert!(matches!(fault, DeviceFault::Disk(_)), "{fault:?}");
    assert_eq!(guest.peek(STATUS, 1), [0xff]);
    let fault = guest.input(&[], None).unwrap_err();
    assert!(matches!(fault, DeviceFault::NoDisk), "{fault:?}");
    let fault = guest.input(&[], Some(&Disk::new(SECTORS - 1))).unwrap_err();
    assert!(matches!(fault, DeviceFault::WrongDisk { .. }), "{fault:?}");
    assert!(!guest.needs_reset());
}

#[test]
fn one_input_serves_a_bounded_number_of_requests() {
    let mut guest = Guest::new(device());
    guest.size = 256;
    guest.start(u64::MAX);
    let disk = Disk::new(SECTORS);
    for _ in 0..80 {
        offer(&mut guest, FLUSH, 0, &[]);
    }
    guest.notify(0);
    guest.input(&[], Some(&disk)).unwrap();
    assert_eq!(guest.returned(0).len(), 64);
    assert_eq!(guest.device.wants(guest.memory()), Some(Want::Step));
    guest.through_snapshot();
    guest.input(&[], Some(&disk)).unwrap();
    assert_eq!(guest.returned(0).len(), 16);
    assert_eq!(guest.device.wants(guest.memory()), None);
    assert_eq!(disk.flush_count.load(Ordering::Relaxed), 80);
    guest.input(&[], Some(&disk)).unwrap();
    assert_eq!(guest.returned(0), []);
}

#[test]
fn one_input_serves_a_bounded_number_of_bytes() {
    let mut guest = Guest::new(device());
    guest.size = 64;
    guest.start(u64::MAX);
    let disk = Disk::new(SECTORS);
    for bytes in [512 << 10, 512 << 10, 512, 1 << 20, 512] {
        offer(&mut guest, IN, 0, &[In(DATA, bytes)]);
    }
    guest.notify(0);
    for served in [2, 1, 1, 1] {
        guest.input(&[], Some(&disk)).unwrap();
        assert_eq!(guest.returned(0).len(), served);
    }
    assert_eq!(guest.device.wants(guest.memory()), None);
}

#[test]
fn a_request_that_comes_while_others_wait_is_served_with_them() {
    let (mut guest, disk) = (Guest::started(device()), Disk::new(SECTORS));
    offer(&mut guest, FLUSH, 0, &[]);
    guest.notify(0);
    // The index of the event is behind: the driver does not notify of this one.
    offer(&mut guest, FLUSH, 0, &[]);
    assert_eq!(guest.avail_event(0), 0);
    guest.input(&[], Some(&disk)).unwrap();
    assert_eq!(guest.returned(0).len(), 2);
    assert_eq!(guest.avail_event(0), 2);
}
