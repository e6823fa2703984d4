//! Several devices that wait for what is done between chunks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use samsara_commitlog::Gpa;
use samsara_machine::kvm::RawExit;
use samsara_machine::memory::Image;
use samsara_machine::pc::virtio::register::{
    DRIVER_FEATURES, DRIVER_FEATURES_SEL, QUEUE_DESC_LOW, QUEUE_DEVICE_LOW, QUEUE_DRIVER_LOW,
    QUEUE_NOTIFY, QUEUE_NUM, QUEUE_READY, QUEUE_SEL, STATUS,
};
use samsara_machine::pc::virtio::{BASE, Blocks, WINDOW_BYTES};

use crate::cpu::{Memory, Script, write};
use crate::pc::Setup;

/// How long it may take for the second disk's turn to come; it comes at once.
const BOUND: Duration = Duration::from_secs(10);

/// Where a disk's queue is, by disk, and its parts.
const QUEUES: u64 = 0x30_0000;
const QUEUE_BYTES: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADER: u64 = 0x3000;
const STATUS_BYTE: u64 = 0x5000;
/// Registers that the driver of a disk writes.
const STEPS: u64 = 12;

/// A disk all of whose sectors say, where they are read into its available ring, that there is one more
/// request than there was.
#[derive(Debug, Default)]
struct CountingDisk(AtomicU16);

impl Blocks for CountingDisk {
    fn bytes(&self) -> u64 {
        1 << 20
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, _: u64, out: &mut [u8]) -> io::Result<()> {
        let read = self.0.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
        out[2..4].copy_from_slice(&read.wrapping_add(1).to_le_bytes());
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn zero(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts a disk's queue into memory, with a request to read a sector to this address.
fn put_request(image: &Image, disk: u64, target: u64) {
    let queue = QUEUES + disk * QUEUE_BYTES;
    let put = |at: u64, bytes: &[u8]| image.write(Gpa(queue + at), bytes).unwrap();
    // Address, bytes, flags (1: another follows, 2: the device writes), next.
    let parts: [(u64, u32, u16, u16); 3] = [
        (queue + HEADER, 16, 1, 1),
        (target, 512, 3, 2),
        (queue + STATUS_BYTE, 1, 2, 0),
    ];
    for (index, (address, bytes, flags, next)) in (0..).zip(parts) {
        let at = index * 16;
        put(at, &address.to_le_bytes());
        put(at + 8, &bytes.to_le_bytes());
        put(at + 12, &flags.to_le_bytes());
        put(at + 14, &next.to_le_bytes());
    }
    put(AVAILABLE + 2, &1u16.to_le_bytes());
}

/// Sets both disks up, has them read, and goes on.
#[expect(clippy::unnecessary_wraps, reason = "scripts are of one type")]
fn driver(step: u64, memory: &mut Memory) -> Option<RawExit> {
    let disk = step / STEPS;
    if disk > 1 {
        memory.store(0x10_0000, step);
        return Some(RawExit::Cut);
    }
    let queue = QUEUES + disk * QUEUE_BYTES;
    let (register, value) = match step % STEPS {
        // Acknowledge, driver.
        0 => (STATUS, 3),
        // Feature 32: version 1.
        1 => (DRIVER_FEATURES_SEL, 1),
        2 => (DRIVER_FEATURES, 1),
        // Features are settled.
        3 => (STATUS, 0xb),
        4 => (QUEUE_SEL, 0),
        5 => (QUEUE_NUM, 8),
        6 => (QUEUE_DESC_LOW, queue),
        7 => (QUEUE_DRIVER_LOW, queue + AVAILABLE),
        8 => (QUEUE_DEVICE_LOW, queue + USED),
        9 => (QUEUE_READY, 1),
        // The driver is ready.
        10 => (STATUS, 0xf),
        _ => (QUEUE_NOTIFY, 0),
    };
    Some(write(BASE + disk * WINDOW_BYTES + register, value))
}

/// The first disk never runs out of requests.
#[test]
fn a_disk_that_is_always_busy_leaves_others_their_turns() {
    let disks: [Arc<CountingDisk>; 2] = Default::default();
    let setup = Setup::new(&[driver as Script])
        .with_disk(disks[0].clone())
        .with_disk(disks[1].clone());
    put_request(setup.image(), 0, QUEUES + AVAILABLE);
    put_request(setup.image(), 1, 0x40_0000);
    let recording = setup.start();
    let reads = || disks.each_ref().map(|disk| disk.0.load(Ordering::SeqCst));
    let is_served = recording.wait_until(BOUND, |_| reads()[1] > 0);
    let is_busy = recording.wait_until(BOUND, |_| reads()[0] > 200);
    recording.recorder.stop();
    assert_eq!(recording.world.failure(), None);
    assert!(is_busy, "the first disk is not busy: {:?}", reads());
    assert!(is_served, "the second disk is not served: {:?}", reads());
}
