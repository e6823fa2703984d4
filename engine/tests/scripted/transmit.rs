//! A device that writes memory while a store to it is acted on.

use std::time::Duration;

use samsara_commitlog::Gpa;
use samsara_engine::Isolation;
use samsara_machine::kvm::RawExit;
use samsara_machine::memory::Image;
use samsara_machine::pc::virtio::BASE;
use samsara_machine::pc::virtio::register::{
    DRIVER_FEATURES, DRIVER_FEATURES_SEL, QUEUE_DESC_LOW, QUEUE_DEVICE_LOW, QUEUE_DRIVER_LOW,
    QUEUE_NOTIFY, QUEUE_NUM, QUEUE_READY, QUEUE_SEL, STATUS,
};

use crate::cpu::{Memory, Script, write};
use crate::pc::Setup;

/// How long the script may take; it takes some milliseconds.
const BOUND: Duration = Duration::from_secs(10);
/// A step well after the last one that has to do with the device.
const END_STEP: u64 = 100;

const DESCRIPTORS: u64 = 0x30_0000;
const AVAILABLE: u64 = 0x30_1000;
const USED: u64 = 0x30_2000;
const TEXT: u64 = 0x30_3000;
/// The console's second queue.
const TRANSMIT: u64 = 1;

/// Puts a queue with one line of text into memory.
fn put_line(image: &Image) {
    let put = |at: u64, bytes: &[u8]| image.write(Gpa(at), bytes).unwrap();
    put(TEXT, b"line\n");
    put(DESCRIPTORS, &TEXT.to_le_bytes());
    put(DESCRIPTORS + 8, &5u32.to_le_bytes());
    put(AVAILABLE + 2, &1u16.to_le_bytes());
}

/// Clears the used ring, as drivers do, sets the console up, sends the line, and goes on.
fn driver(step: u64, memory: &mut Memory) -> Option<RawExit> {
    let console = |register, value| Some(write(BASE + register, value));
    match step {
        0 => {
            memory.store(USED, 1);
            memory.store(USED, 0);
            None
        }
        // Acknowledge, driver.
        1 => console(STATUS, 3),
        // Feature 32: version 1.
        2 => console(DRIVER_FEATURES_SEL, 1),
        3 => console(DRIVER_FEATURES, 1),
        // Features are settled.
        4 => console(STATUS, 0xb),
        5 => console(QUEUE_SEL, TRANSMIT),
        6 => console(QUEUE_NUM, 8),
        7 => console(QUEUE_DESC_LOW, DESCRIPTORS),
        8 => console(QUEUE_DRIVER_LOW, AVAILABLE),
        9 => console(QUEUE_DEVICE_LOW, USED),
        10 => console(QUEUE_READY, 1),
        // The driver is ready.
        11 => console(STATUS, 0xf),
        12 => console(QUEUE_NOTIFY, TRANSMIT),
        _ => {
            memory.store(0x10_0000, step);
            Some(RawExit::Cut)
        }
    }
}

/// The view of the vCPU that notified the device shows the used ring as the vCPU cleared it: its next chunk must
/// not commit that again.
#[test]
fn what_a_device_writes_at_a_store_to_it_stays() {
    for isolation in [Isolation::Parallel, Isolation::Serial] {
        let setup = Setup::new(&[driver as Script])
            .with_console()
            .with_isolation(isolation);
        put_line(setup.image());
        let recording = setup.start();
        let has_come = recording.wait_until(BOUND, |recording| recording.step_of(0) > END_STEP);
        recording.recorder.stop();
        assert!(has_come, "{isolation:?}: the script does not go on");
        let mut used_index = [0; 2];
        let read = |machine: &samsara_machine::Machine| {
            machine.image().read(Gpa(USED + 2), &mut used_index)
        };
        recording.recorder.peek(read).unwrap();
        assert_eq!(u16::from_le_bytes(used_index), 1, "{isolation:?}");
    }
}
