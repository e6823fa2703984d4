//! Rings and chains that no right driver makes: the device stops, and writes nothing.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::driver::Buffer::{In, Out};
use super::driver::{BUFFERS, Disk, Guest, Raw, available, descriptors, used};
use crate::pc::virtio::{Device, Want, register};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

fn raw(address: u64, bytes: u32, flags: u16, next: u16) -> Raw {
    Raw {
        address,
        bytes,
        flags,
        next,
    }
}

/// Every device, with a queue of it that is looked at by a notification or an input.
fn devices() -> [(Device, usize); 6] {
    let net = Device::net([2; 6]);
    [
        (Device::block(1 << 20, false, [0; 20]), 0),
        (net.clone(), 0),
        (net, 1),
        (Device::console(), 0),
        (Device::console(), 1),
        (Device::entropy(), 0),
    ]
}

/// Gives the device all it could wait for: it must find out, write nothing, and stop.
fn expect_stop(mut guest: Guest, queue: usize, what: &str) {
    let disk = Disk::new(2048);
    let before = disk.contents();
    guest.take_written();
    guest.notify(queue);
    if !guest.needs_reset() {
        let is_awaited = guest.device.wants(guest.memory()).is_some()
            || guest.device.has_room(1, guest.memory());
        assert!(is_awaited, "{what}: nobody would find out");
        guest.input(&[1; 64], Some(&disk)).unwrap();
    }
    assert!(
        guest.needs_reset(),
        "{what}, queue {queue} of {:?}",
        guest.device
    );
    assert_eq!(guest.take_written(), [], "{what}");
    assert_eq!(guest.take_pulses(), 1, "{what}");
    assert_eq!(guest.read(register::INTERRUPT_STATUS), 2, "{what}");
    // It stands still.
    guest.notify(queue);
    guest.input(&[1; 64], Some(&disk)).unwrap();
    assert_eq!(guest.device.wants(guest.memory()), None);
    assert!(!guest.device.has_room(1, guest.memory()));
    assert_eq!(guest.take_pulses(), 0);
    assert_eq!(guest.take_written(), []);
    assert!(guest.to.frames.is_empty() && guest.to.console.is_empty());
    assert!(disk.contents() == before);
    guest.through_snapshot();
    // Until the driver resets it.
    guest.start(u64::MAX);
    assert!(!guest.needs_reset());
}

#[test]
fn wrong_chains_stop_every_device() {
    let memory_end = 16 << 20;
    let cases: &[(&str, &[Raw])] = &[
        ("outside memory", &[raw(memory_end, 64, 0, 0)]),
        ("across the end", &[raw(memory_end - 32, 64, 0, 0)]),
        ("wraps around", &[raw(u64::MAX - 8, 64, 0, 0)]),
        ("too long", &[raw(BUFFERS, u32::MAX, 0, 0)]),
        ("loop of one", &[raw(BUFFERS, 4, NEXT, 0)]),
        (
            "loop of two",
            &[raw(BUFFERS, 4, NEXT, 1), raw(BUFFERS, 4, NEXT, 0)],
        ),
        ("next outside", &[raw(BUFFERS, 64, NEXT, 8)]),
        ("empty", &[raw(BUFFERS, 0, 0, 0)]),
        ("empty table", &[raw(BUFFERS, 0, INDIRECT, 0)]),
        ("odd table", &[raw(BUFFERS, 24, INDIRECT, 0)]),
        ("table outside", &[raw(memory_end, 16, INDIRECT, 0)]),
        ("table of itself", &[raw(descriptors(0), 16, INDIRECT, 0)]),
        ("huge table", &[raw(BUFFERS, 16 << 16, INDIRECT, 0)]),
    ];
    for (device, queue) in devices() {
        for (what, chain) in cases {
            for flags in [0, WRITE] {
                let mut guest = Guest::started(device.clone());
                for (index, descriptor) in (0..).zip(*chain) {
                    let mut descriptor = *descriptor;
                    descriptor.flags |= flags;
                    // "itself" is the table of the queue at hand.
                    if descriptor.address == descriptors(0) {
                        descriptor.address = descriptors(queue);
                    }
                    guest.poke_descriptor(descriptors(queue), index, &descriptor);
                }
                guest.offer_head(queue, 0);
                expect_stop(guest, queue, what);
            }
        }
    }
}

#[test]
fn a_long_indirect_table_is_malformed_and_a_looping_one_ends() {
    for (device, queue) in devices() {
        for next in [None, Some(7)] {
            let mut guest = Guest::started(device.clone());
            for index in 0..300 {
                let next = next.unwrap_or(index + 1);
                guest.poke_descriptor(BUFFERS, index, &raw(BUFFERS + 0x4000, 1, NEXT, next));
            }
            guest.poke_descriptor(BUFFERS, 300, &raw(BUFFERS + 0x4000, 1, 0, 0));
            let table = raw(BUFFERS, 301 * 16, INDIRECT, 0);
            guest.poke_descriptor(descriptors(queue), 0, &table);
            guest.offer_head(queue, 0);
            expect_stop(guest, queue, "long table");
        }
    }
}

#[test]
fn wrong_indices_stop_every_device() {
    for (device, queue) in devices() {
        let mut guest = Guest::started(device.clone());
        guest.offer_head(queue, 8);
        expect_stop(guest, queue, "head outside");
        for index in [9, 0x8000, 0xffff] {
            let guest = Guest::started(device.clone());
            guest.poke16(available(queue) + 2, index);
            expect_stop(guest, queue, "index jumps");
        }
    }
}

#[test]
fn buffers_in_the_wrong_direction_stop_every_device() {
    for (device, queue) in devices() {
        let cases: &[&[_]] = match device.read(register::DEVICE_ID, 4) {
            // No status, no header, too short a header, header after data.
            2 => &[
                &[Out(BUFFERS, 16)],
                &[In(BUFFERS, 513)],
                &[Out(BUFFERS, 15), In(BUFFERS, 1)],
                &[In(BUFFERS, 1), Out(BUFFERS, 16)],
            ],
            1 if queue == 1 => &[
                &[In(BUFFERS, 100)],
                &[Out(BUFFERS, 100), In(BUFFERS, 1)],
                &[Out(BUFFERS, 11)],
            ],
            3 if queue == 1 => &[&[In(BUFFERS, 100)], &[Out(BUFFERS, 9), In(BUFFERS, 1)]],
            _ => &[
                &[Out(BUFFERS, 1600)],
                &[Out(BUFFERS, 16), In(BUFFERS, 1600)],
                &[In(BUFFERS, 1600), Out(BUFFERS, 16)],
            ],
        };
        for case in cases {
            let mut guest = Guest::started(device.clone());
            guest.offer(queue, case);
            expect_stop(guest, queue, "wrong direction");
        }
    }
}

#[test]
fn what_came_before_a_malformed_chain_is_done() {
    let mut guest = Guest::started(Device::console());
    guest.poke(BUFFERS, b"last words");
    guest.offer(1, &[Out(BUFFERS, 10)]);
    guest.send(1, &[Out(u64::MAX, 10)]);
    assert_eq!(guest.to.console, b"last words");
    assert!(guest.needs_reset());
    assert_eq!(guest.returned(1), [(0, 0)]);

    let mut guest = Guest::started(Device::entropy());
    guest.offer(0, &[In(BUFFERS, 4)]);
    guest.send(0, &[In(u64::MAX, 10)]);
    assert_eq!(guest.device.wants(guest.memory()), Some(Want::Random(1)));
    guest.input(&[9], None).unwrap();
    assert_eq!(guest.device.wants(guest.memory()), Some(Want::Random(1)));
    guest.input(&[9], None).unwrap();
    assert!(guest.needs_reset());
}

#[test]
fn rings_that_are_written_as_they_are_worked_on_end() {
    // The used ring lies where the available ring is: every completion makes more available.
    let mut guest = Guest::new(Device::console());
    guest.negotiate(u64::MAX);
    guest.set_up_queue(1);
    guest.write(register::QUEUE_READY, 0);
    guest.write(register::QUEUE_DEVICE_LOW, available(1) as u32);
    guest.write(register::QUEUE_READY, 1);
    guest.write(register::STATUS, super::driver::ALL_STEPS.into());
    guest.poke(BUFFERS, b"x");
    for _ in 0..16 {
        guest.send(1, &[Out(BUFFERS, 1)]);
        assert!(guest.to.console.len() <= 8 * 16);
    }
    assert_eq!(guest.peek(used(1), 64), [0; 64]);
}
