//! The console, both ways; and what interrupts and notifications depend on.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT};

use super::driver::Buffer::{In, Out};
use super::driver::{BUFFERS, Guest, NO_EVENT_IDX, Raw, available, descriptors};
use crate::pc::virtio::{Device, register};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

#[test]
fn what_is_transmitted_leaves_at_once() {
    let mut guest = Guest::started(Device::console());
    guest.poke(BUFFERS, b"hello, world");
    let head = guest.send(TRANSMIT, &[Out(BUFFERS, 7), Out(BUFFERS + 7, 5)]);
    assert_eq!(guest.to.console, b"hello, world");
    assert_eq!(guest.returned(TRANSMIT), [(head.into(), 0)]);
    assert_eq!(guest.take_pulses(), 1);
    assert_eq!(guest.read(register::INTERRUPT_STATUS), 1);
    guest.write(register::INTERRUPT_ACK, 1);
    assert_eq!(guest.read(register::INTERRUPT_STATUS), 0);
    // Nothing new: nothing happens.
    guest.notify(TRANSMIT);
    assert_eq!(guest.to.console.len(), 12);
    assert_eq!(guest.take_pulses(), 0);
}

#[test]
fn indirect_chains_are_followed() {
    let mut guest = Guest::started(Device::console());
    guest.poke(BUFFERS, b"abcdef");
    let table = BUFFERS + 0x1000;
    let mut first = Raw::new(Out(BUFFERS + 3, 3));
    (first.flags, first.next) = (VRING_DESC_F_NEXT as u16, 2);
    guest.poke_descriptor(table, 0, &first);
    guest.poke_descriptor(table, 2, &Raw::new(Out(BUFFERS, 3)));
    let mut direct = Raw::new(Out(table, 48));
    direct.flags = VRING_DESC_F_INDIRECT as u16;
    guest.poke_descriptor(descriptors(TRANSMIT), 5, &direct);
    guest.offer_head(TRANSMIT, 5);
    guest.notify(TRANSMIT);
    assert_eq!(guest.to.console, b"defabc");
    assert_eq!(guest.returned(TRANSMIT), [(5, 0)]);
}

#[test]
fn a_buffer_shows_a_bounded_number_of_bytes() {
    let mut guest = Guest::started(Device::console());
    let head = guest.send(TRANSMIT, &[Out(0, 8 << 20), Out(0, 8 << 20)]);
    assert_eq!(guest.to.console.len(), 64 << 10);
    assert_eq!(guest.returned(TRANSMIT), [(head.into(), 0)]);
}

#[test]
fn typed_bytes_fill_the_buffers_in_order() {
    let mut guest = Guest::started(Device::console());
    assert!(!guest.device.has_room(1, guest.memory()));
    let first = guest.offer(RECEIVE, &[In(BUFFERS, 3), In(BUFFERS + 3, 1)]);
    let second = guest.offer(RECEIVE, &[In(BUFFERS + 4, 8)]);
    assert!(guest.device.has_room(12, guest.memory()));
    assert!(!guest.device.has_room(13, guest.memory()));
    guest.input(b"typed", None).unwrap();
    assert_eq!(guest.peek(BUFFERS, 6), b"typed\0");
    let returned = guest.returned(RECEIVE);
    assert_eq!(returned, [(first.into(), 4), (second.into(), 1)]);
    assert_eq!(guest.take_pulses(), 1);
    // The rest of the second buffer went back with it.
    assert!(!guest.device.has_room(1, guest.memory()));
    guest.input(b"lost", None).unwrap();
    assert_eq!(guest.returned(RECEIVE), []);
    assert_eq!(guest.take_pulses(), 0);
}

#[test]
fn a_snapshot_in_the_middle_changes_nothing() {
    let run = |snapshots: bool| {
        let mut guest = Guest::started(Device::console());
        for round in 0..40_u8 {
            guest.poke(BUFFERS, &[b'a' + round % 26; 4]);
            guest.send(TRANSMIT, &[Out(BUFFERS, 4)]);
            guest.offer(RECEIVE, &[In(BUFFERS + 64, 2)]);
            if snapshots {
                guest.through_snapshot();
            }
            guest.input(&[round, round, round], None).unwrap();
        }
        let rings = guest.peek(descriptors(0), 0x2_0000);
        (guest.device, guest.to.console, guest.pulses, rings)
    };
    let (plain, snapshots) = (run(false), run(true));
    assert_eq!(plain.1.len(), 160);
    assert!(plain == snapshots);
}

#[test]
fn drivers_say_without_event_idx_whether_they_want_interrupts() {
    let mut guest = Guest::new(Device::console());
    guest.start(NO_EVENT_IDX);
    guest.send(TRANSMIT, &[Out(BUFFERS, 1)]);
    assert_eq!(guest.take_pulses(), 1);
    guest.poke16(available(TRANSMIT), 1);
    guest.send(TRANSMIT, &[Out(BUFFERS, 1)]);
    assert_eq!(guest.take_pulses(), 0);
    assert_eq!(guest.returned(TRANSMIT).len(), 2);
    assert_eq!(guest.avail_event(TRANSMIT), 0);
}

#[test]
fn drivers_say_with_event_idx_for_which_buffer_they_want_an_interrupt() {
    let mut guest = Guest::started(Device::console());
    // The flag counts for nothing then.
    guest.poke16(available(TRANSMIT), 1);
    guest.set_used_event(TRANSMIT, 2);
    for expected in [0, 0, 1, 0] {
        guest.send(TRANSMIT, &[Out(BUFFERS, 1)]);
        assert_eq!(guest.take_pulses(), expected);
    }
    assert_eq!(guest.avail_event(TRANSMIT), 4);
    // Several at once: one of them is the one.
    guest.set_used_event(TRANSMIT, 5);
    for _ in 0..3 {
        guest.offer(TRANSMIT, &[Out(BUFFERS, 1)]);
    }
    guest.notify(TRANSMIT);
    assert_eq!(guest.take_pulses(), 1);
    assert_eq!(guest.avail_event(TRANSMIT), 7);
}

#[test]
fn indices_wrap() {
    let mut guest = Guest::started(Device::console());
    for round in 0..0x1_0010_u32 {
        guest.set_used_event(TRANSMIT, round as u16);
        guest.send(TRANSMIT, &[Out(BUFFERS, 1)]);
        assert_eq!(guest.take_pulses(), 1, "round {round}");
        guest.to.console.clear();
        assert_eq!(guest.returned(TRANSMIT).len(), 1);
    }
    assert!(!guest.needs_reset());
    assert_eq!(guest.avail_event(TRANSMIT), 0x10);
}
