//! The registers, and the steps to a live device.

use super::driver::{ALL_STEPS, Guest, descriptors, used};
use crate::pc::virtio::transport::{EVENT_IDX, VERSION_1, status};
use crate::pc::virtio::{Device, QUEUE_SIZE_MAX, Reaction, register};

fn kinds() -> [Device; 4] {
    [
        Device::block(1 << 20, false, *b"serial number 012345"),
        Device::net([2, 0, 0, 0, 0, 1]),
        Device::console(),
        Device::entropy(),
    ]
}

#[test]
fn devices_say_what_they_are() {
    for (device, id) in kinds().into_iter().zip([2, 1, 3, 4]) {
        let mut guest = Guest::new(device);
        assert_eq!(guest.read(register::MAGIC_VALUE), 0x7472_6976);
        assert_eq!(guest.read(register::VERSION), 2);
        assert_eq!(guest.read(register::DEVICE_ID), id);
        assert_eq!(guest.read(register::CONFIG_GENERATION), 0);
        assert_eq!(guest.read(register::SHM_LEN_LOW), u32::MAX);
        assert_eq!(guest.offered() & VERSION_1, VERSION_1);
        guest.write(register::DEVICE_FEATURES_SEL, 2);
        assert_eq!(guest.read(register::DEVICE_FEATURES), 0);
    }
}

#[test]
fn configuration_is_read_in_all_sizes_and_ends_in_zeros() {
    let net = Device::net([1, 2, 3, 4, 5, 6]);
    assert_eq!(net.read(register::CONFIG, 1), 1);
    assert_eq!(net.read(register::CONFIG + 2, 2), 0x0403);
    assert_eq!(net.read(register::CONFIG + 4, 4), 0x0605);
    assert_eq!(net.read(register::CONFIG, 8), 0x0605_0403_0201);
    assert_eq!(net.read(register::CONFIG + 5, 8), 6);
    assert_eq!(net.read(register::CONFIG + 6, 8), 0);
    assert_eq!(net.read(u64::MAX, 8), 0);
    assert_eq!(net.read(register::CONFIG, 3), 0);
}

#[test]
fn other_sizes_and_offsets_read_zero_and_write_nothing() {
    let mut guest = Guest::new(Device::console());
    let before = guest.device.clone();
    for size in [0, 1, 2, 8, 255] {
        assert_eq!(guest.device.read(register::MAGIC_VALUE, size), 0);
        let memory = guest.image.guest_memory();
        let mut to = Reaction::default();
        guest
            .device
            .write(register::STATUS, size, 1, memory, &mut to);
    }
    for offset in [0x71, 0x28, 0x1000, u64::MAX, register::CONFIG] {
        guest.write(offset, 1);
        assert_eq!(guest.read(offset), 0);
    }
    assert_eq!(guest.device, before);
}

#[test]
fn steps_out_of_turn_are_not_taken() {
    let mut guest = Guest::new(Device::console());
    guest.write(register::STATUS, status::DRIVER.into());
    assert_eq!(guest.status(), 0);
    guest.write(register::STATUS, status::NEEDS_RESET.into());
    assert_eq!(guest.status(), 0);
    guest.write(register::STATUS, status::ACKNOWLEDGE.into());
    guest.write(register::STATUS, status::DRIVER_OK.into());
    assert_eq!(guest.status(), status::ACKNOWLEDGE);
    // Bits stay once they are set, but for a reset.
    guest.write(register::STATUS, status::DRIVER.into());
    assert_eq!(guest.status(), status::ACKNOWLEDGE | status::DRIVER);
    guest.write(register::STATUS, 0x100);
    assert_eq!(guest.status(), status::ACKNOWLEDGE | status::DRIVER);
    guest.write(register::STATUS, 0);
    assert_eq!(guest.status(), 0);
}

#[test]
fn features_must_be_offered_and_modern() {
    let mut guest = Guest::new(Device::console());
    guest.negotiate(!VERSION_1);
    assert_eq!(guest.status() & status::FEATURES_OK, 0);
    // One more than is offered.
    guest.write(register::DRIVER_FEATURES_SEL, 1);
    guest.write(register::DRIVER_FEATURES, 0b11);
    guest.write(register::STATUS, ALL_STEPS.into());
    assert_eq!(guest.status(), status::ACKNOWLEDGE | status::DRIVER);
    guest.write(register::DRIVER_FEATURES, 0b1);
    guest.write(register::STATUS, ALL_STEPS.into());
    assert_eq!(guest.status(), ALL_STEPS);
}

#[test]
fn features_are_fixed_once_agreed_on() {
    let mut guest = Guest::new(Device::console());
    guest.negotiate(VERSION_1);
    let agreed = guest.device.clone();
    guest.write(register::DRIVER_FEATURES_SEL, 1);
    guest.write(register::DRIVER_FEATURES, 0);
    assert_eq!(guest.device, agreed);
}

#[test]
fn queues_are_set_up_between_features_and_driver_ok() {
    let mut guest = Guest::new(Device::console());
    guest.set_up_queue(0);
    assert_eq!(guest.read(register::QUEUE_READY), 0);
    guest.negotiate(u64::MAX);
    guest.set_up_queue(0);
    assert_eq!(guest.read(register::QUEUE_READY), 1);
    // A queue in use stays as it is.
    let ready = guest.device.clone();
    guest.write(register::QUEUE_NUM, 3);
    guest.write(register::QUEUE_DEVICE_HIGH, 7);
    assert_eq!(guest.device, ready);
    guest.write(register::QUEUE_READY, 0);
    assert_eq!(guest.read(register::QUEUE_READY), 0);
    guest.write(register::STATUS, ALL_STEPS.into());
    guest.set_up_queue(0);
    assert_eq!(guest.read(register::QUEUE_READY), 0);
}

#[test]
fn there_are_no_other_queues() {
    for (device, count) in kinds().into_iter().zip([1, 2, 2, 1]) {
        let mut guest = Guest::started(device);
        for queue in [0, 1, 2, u32::MAX] {
            guest.write(register::QUEUE_SEL, queue);
            let expected = if queue < count {
                QUEUE_SIZE_MAX.into()
            } else {
                0
            };
            assert_eq!(guest.read(register::QUEUE_NUM_MAX), expected);
        }
        let before = guest.device.clone();
        guest.write(register::QUEUE_READY, 1);
        guest.write(register::QUEUE_NOTIFY, u32::MAX);
        assert_eq!(guest.device, before);
    }
}

#[test]
fn a_queue_that_cannot_be_needs_a_reset() {
    let high = |address: u64| (address >> 32) as u32;
    let wrong: [&[(u64, u32)]; 8] = [
        &[(register::QUEUE_NUM, 0)],
        &[(register::QUEUE_NUM, 6)],
        &[(register::QUEUE_NUM, 512)],
        &[(register::QUEUE_NUM, 0x1_0008)],
        &[(register::QUEUE_DESC_LOW, descriptors(0) as u32 + 8)],
        &[(register::QUEUE_DEVICE_LOW, used(0) as u32 + 2)],
        &[(register::QUEUE_DEVICE_LOW, (16 << 20) - 64)],
        &[
            (register::QUEUE_DRIVER_LOW, u32::MAX - 1),
            (register::QUEUE_DRIVER_HIGH, high(u64::MAX)),
        ],
    ];
    for writes in wrong {
        let mut guest = Guest::new(Device::console());
        guest.negotiate(u64::MAX);
        guest.set_up_queue(0);
        guest.write(register::QUEUE_READY, 0);
        for &(offset, value) in writes {
            guest.write(offset, value);
        }
        guest.write(register::QUEUE_READY, 1);
        assert!(guest.needs_reset(), "{writes:x?}");
        assert_eq!(guest.read(register::QUEUE_READY), 0);
        // The driver is not up: it is told by the status alone.
        assert_eq!(guest.take_pulses(), 0);
        guest.start(u64::MAX);
        assert!(!guest.needs_reset());
    }
}

#[test]
fn a_reset_forgets_everything() {
    for device in kinds() {
        let mut guest = Guest::started(device.clone());
        guest.notify(0);
        guest.write(register::STATUS, 0);
        assert_eq!(guest.device, device);
        guest.start(EVENT_IDX | VERSION_1);
        guest.device.reset();
        assert_eq!(guest.device, device);
    }
}

#[test]
fn a_driver_that_gives_up_stops_the_device() {
    let mut guest = Guest::started(Device::entropy());
    guest.write(register::STATUS, u32::from(ALL_STEPS | status::FAILED));
    assert_eq!(guest.status(), ALL_STEPS | status::FAILED);
    guest.send(0, &[super::driver::Buffer::In(0x1000, 8)]);
    assert_eq!(guest.device.wants(guest.memory()), None);
}
