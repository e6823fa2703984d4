//! Frames, both ways.

use super::driver::Buffer::{In, Out};
use super::driver::{BUFFERS, Guest};
use crate::pc::virtio::{Device, FRAME_BYTES_MAX, register};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const HEADER: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

fn guest() -> Guest {
    Guest::started(Device::net([2, 0, 0, 0, 0, 9]))
}

#[test]
fn it_offers_a_mac_and_no_offloads() {
    let mut guest = guest();
    assert_eq!(guest.offered() & 0xff_ffff, 1 << 5);
    assert_eq!(guest.read(register::CONFIG), 2);
}

#[test]
fn frames_leave_without_their_header() {
    let mut guest = guest();
    guest.poke(BUFFERS, &[0xee; 12]);
    let frame: Vec<u8> = (0..60).collect();
    guest.poke(BUFFERS + 12, &frame);
    // Split in the header and in the frame: the layout is free.
    let buffers = [Out(BUFFERS, 5), Out(BUFFERS + 5, 20), Out(BUFFERS + 25, 47)];
    let head = guest.send(TRANSMIT, &buffers);
    assert_eq!(guest.to.frames, [frame]);
    assert_eq!(guest.returned(TRANSMIT), [(head.into(), 0)]);
    assert_eq!(guest.take_pulses(), 1);
}

#[test]
fn all_that_wait_leave_at_one_notification() {
    let mut guest = guest();
    for number in 0..8 {
        let place = BUFFERS + 0x100 * u64::from(number);
        guest.poke(place + 12, &[number; 14]);
        guest.offer(TRANSMIT, &[Out(place, 26)]);
    }
    guest.notify(TRANSMIT);
    let numbers: Vec<u8> = guest.to.frames.iter().map(|frame| frame[0]).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(guest.returned(TRANSMIT).len(), 8);
    assert_eq!(guest.take_pulses(), 1);
}

#[test]
fn what_is_no_frame_is_returned_and_dropped() {
    let mut guest = guest();
    for bytes in [12, 12 + 13, 12 + (64 << 10) + 1] {
        guest.send(TRANSMIT, &[Out(BUFFERS, bytes)]);
    }
    assert!(guest.to.frames.is_empty());
    assert_eq!(guest.returned(TRANSMIT).len(), 3);
    guest.send(TRANSMIT, &[Out(BUFFERS, 12 + (64 << 10))]);
    assert_eq!(guest.to.frames[0].len(), 64 << 10);
    assert!(!guest.needs_reset());
}

#[test]
fn received_frames_come_with_a_header() {
    let mut guest = guest();
    assert!(!guest.device.has_room(60, guest.memory()));
    let head = guest.offer(RECEIVE, &[In(BUFFERS, 12), In(BUFFERS + 100, 1514)]);
    assert!(guest.device.has_room(FRAME_BYTES_MAX, guest.memory()));
    assert!(!guest.device.has_room(FRAME_BYTES_MAX + 1, guest.memory()));
    guest.input(&[7; 60], None).unwrap();
    assert_eq!(guest.peek(BUFFERS, 12), HEADER);
    assert_eq!(
        guest.peek(BUFFERS + 100, 61),
        [[7; 60].as_slice(), &[0]].concat()
    );
    assert_eq!(guest.returned(RECEIVE), [(head.into(), 72)]);
    assert_eq!(guest.take_pulses(), 1);
}

#[test]
fn frames_without_room_are_dropped() {
    let mut guest = guest();
    guest.input(&[1; 60], None).unwrap();
    let head = guest.offer(RECEIVE, &[In(BUFFERS, 70)]);
    guest.input(&[2; 60], None).unwrap();
    assert_eq!(guest.returned(RECEIVE), []);
    assert_eq!(guest.take_pulses(), 0);
    guest.input(&[3; 58], None).unwrap();
    assert_eq!(guest.returned(RECEIVE), [(head.into(), 70)]);
    assert_eq!(guest.peek(BUFFERS + 12, 1), [3]);
}

#[test]
fn the_receive_queue_is_notified_of_when_it_was_empty() {
    let mut guest = guest();
    for _ in 0..3 {
        guest.offer(RECEIVE, &[In(BUFFERS, 1526)]);
    }
    for received in 1..=3 {
        guest.input(&[0; 60], None).unwrap();
        assert_eq!(guest.avail_event(RECEIVE), received);
    }
}

#[test]
fn a_snapshot_in_the_middle_changes_nothing() {
    let mut plain = guest();
    let mut other = guest();
    for round in 0..50_u8 {
        for (guest, snapshots) in [(&mut plain, false), (&mut other, true)] {
            guest.offer(RECEIVE, &[In(BUFFERS, 1526)]);
            guest.poke(BUFFERS + 0x1000, &[round; 80]);
            guest.send(TRANSMIT, &[Out(BUFFERS + 0x1000, 80)]);
            if snapshots {
                guest.through_snapshot();
            }
            guest.input(&[round; 64], None).unwrap();
        }
    }
    assert_eq!(plain.device, other.device);
    assert_eq!(plain.to.frames, other.to.frames);
    assert_eq!(plain.returned(RECEIVE), other.returned(RECEIVE));
}
