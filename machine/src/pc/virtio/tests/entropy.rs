//! Random bytes.

use super::driver::Buffer::In;
use super::driver::{BUFFERS, Guest};
use crate::pc::virtio::{Device, Want};

#[test]
fn buffers_are_wanted_and_filled() {
    let mut guest = Guest::started(Device::entropy());
    assert_eq!(guest.device.wants(guest.memory()), None);
    let first = guest.offer(0, &[In(BUFFERS, 8), In(BUFFERS + 8, 8)]);
    guest.notify(0);
    assert_eq!(guest.device.wants(guest.memory()), Some(Want::Random(16)));
    assert_eq!(guest.returned(0), []);
    let second = guest.offer(0, &[In(BUFFERS + 16, 64)]);
    assert_eq!(guest.device.wants(guest.memory()), Some(Want::Random(80)));
    guest.through_snapshot();
    guest.input(&[0xa5; 20], None).unwrap();
    assert_eq!(
        guest.peek(BUFFERS, 21),
        [[0xa5; 20].as_slice(), &[0]].concat()
    );
    assert_eq!(guest.returned(0), [(first.into(), 16), (second.into(), 4)]);
    assert_eq!(guest.take_pulses(), 1);
    assert_eq!(guest.device.wants(guest.memory()), None);
    // Not until it is notified again.
    guest.offer(0, &[In(BUFFERS, 8)]);
    assert_eq!(guest.device.wants(guest.memory()), None);
    guest.notify(0);
    guest.input(&[2; 8], None).unwrap();
    assert_eq!(guest.returned(0), [(3, 8)]);
    guest.take_pulses();
    // Nobody waits any more.
    guest.input(&[1; 8], None).unwrap();
    assert_eq!(guest.returned(0), []);
    assert_eq!(guest.take_pulses(), 0);
}

#[test]
fn a_bounded_number_is_wanted_at_a_time() {
    let mut guest = Guest::plain(Device::entropy());
    guest.offer(0, &[In(BUFFERS, 200)]);
    guest.offer(0, &[In(BUFFERS, 1 << 20)]);
    guest.send(0, &[In(BUFFERS, 10)]);
    assert_eq!(guest.device.wants(guest.memory()), Some(Want::Random(256)));
    guest.input(&[3; 256], None).unwrap();
    assert_eq!(guest.returned(0), [(0, 200), (1, 56)]);
    assert_eq!(guest.device.wants(guest.memory()), Some(Want::Random(10)));
}

#[test]
fn buffers_from_before_the_driver_was_up_count() {
    let mut guest = Guest::new(Device::entropy());
    guest.negotiate(u64::MAX);
    guest.set_up_queue(0);
    guest.send(0, &[In(BUFFERS, 10)]);
    assert_eq!(guest.device.wants(guest.memory()), None);
    let all = super::driver::ALL_STEPS.into();
    guest.write(crate::pc::virtio::register::STATUS, all);
    assert_eq!(guest.device.wants(guest.memory()), Some(Want::Random(10)));
}
