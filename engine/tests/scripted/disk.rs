//! Disks that fail.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use samsara_commitlog::Gpa;
use samsara_machine::kvm::RawExit;
use samsara_machine::memory::Image;
use samsara_machine::pc::apic::registers::{ICR, SVR};
use samsara_machine::pc::virtio::register::{
    DRIVER_FEATURES, DRIVER_FEATURES_SEL, QUEUE_DESC_LOW, QUEUE_DEVICE_LOW, QUEUE_DRIVER_LOW,
    QUEUE_NOTIFY, QUEUE_NUM, QUEUE_READY, QUEUE_SEL, STATUS,
};
use samsara_machine::pc::virtio::{BASE, Blocks};

use crate::cpu::{Memory, Script, write, write_apic};
use crate::pc::Setup;

const ROUNDS: usize = 20;
/// How long a round may take; it takes some milliseconds.
const BOUND: Duration = Duration::from_secs(10);

const DESCRIPTORS: u64 = 0x30_0000;
const AVAILABLE: u64 = 0x30_1000;
const USED: u64 = 0x30_2000;
/// Of the request's parts: address, bytes, flags (1: another follows, 2: the device writes), next. A
/// header of zeros asks for a read of sector 0.
const REQUEST: [(u64, u32, u16, u16); 3] = [
    (0x30_3000, 16, 1, 1),
    (0x30_4000, 512, 3, 2),
    (0x30_5000, 1, 2, 0),
];
/// The step of the reader at which it notifies the disk: the others are well under way.
const NOTIFY_STEP: u64 = 60;

/// How long the disk tries: by then all vCPUs wait for the lock under which it does.
const READ: Duration = Duration::from_millis(2);

/// A disk that cannot be read.
#[derive(Debug)]
struct BadDisk;

impl Blocks for BadDisk {
    fn bytes(&self) -> u64 {
        1 << 20
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        std::thread::sleep(READ);
        Err(io::Error::other("bad sector"))
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

/// Puts a queue with one request into memory.
fn put_request(image: &Image) {
    let put = |at: u64, bytes: &[u8]| image.write(Gpa(at), bytes).unwrap();
    for (index, (address, bytes, flags, next)) in (0..).zip(REQUEST) {
        let at = DESCRIPTORS + index * 16;
        put(at, &address.to_le_bytes());
        put(at + 8, &bytes.to_le_bytes());
        put(at + 12, &flags.to_le_bytes());
        put(at + 14, &next.to_le_bytes());
    }
    put(AVAILABLE + 2, &1u16.to_le_bytes());
}

/// Starts the other vCPUs, sets the disk up, and has it read while all compute.
#[expect(clippy::unnecessary_wraps, reason = "scripts are of one type")]
fn reader(step: u64, memory: &mut Memory) -> Option<RawExit> {
    let disk = |register, value| write(BASE + register, value);
    let exit = match step {
        0 => write_apic(SVR, 0x1ff),
        // A start-up IPI to all others, at whatever address.
        1 => write_apic(ICR, 0xc_4600),
        // Acknowledge, driver.
        2 => disk(STATUS, 3),
        // Feature 32: version 1.
        3 => disk(DRIVER_FEATURES_SEL, 1),
        4 => disk(DRIVER_FEATURES, 1),
        // Features are settled.
        5 => disk(STATUS, 0xb),
        6 => disk(QUEUE_SEL, 0),
        7 => disk(QUEUE_NUM, 8),
        8 => disk(QUEUE_DESC_LOW, DESCRIPTORS),
        9 => disk(QUEUE_DRIVER_LOW, AVAILABLE),
        10 => disk(QUEUE_DEVICE_LOW, USED),
        11 => disk(QUEUE_READY, 1),
        // The driver is ready.
        12 => disk(STATUS, 0xf),
        NOTIFY_STEP => disk(QUEUE_NOTIFY, 0),
        _ => compute(memory, 0x10_0000, step),
    };
    Some(exit)
}

#[expect(clippy::unnecessary_wraps, reason = "scripts are of one type")]
fn busy(step: u64, memory: &mut Memory) -> Option<RawExit> {
    Some(compute(memory, 0x20_0000, step))
}

/// Chunks of one step: commits are as dense as can be.
fn compute(memory: &mut Memory, address: u64, step: u64) -> RawExit {
    memory.store(address, step);
    RawExit::Cut
}

/// The disk's input does not apply, and leaves the machine half changed, while vCPUs wait for the lock
/// with chunks to commit. Without care, one gets it in every third round or so before the recorder
/// has stopped.
#[test]
fn nothing_commits_after_a_record_that_did_not_apply() {
    for round in 0..ROUNDS {
        let scripts = [reader as Script, busy, busy, busy];
        let setup = Setup::new(&scripts).with_disk(Arc::new(BadDisk));
        put_request(setup.image());
        let recording = setup.start();
        let world = &recording.world;
        let has_failed =
            recording.wait_until(BOUND, |recording| recording.world.failure().is_some());
        recording.recorder.stop();
        assert!(has_failed, "round {round}: the disk has not been read");
        let gaps = world.gaps();
        assert!(
            gaps.is_empty(),
            "round {round}: {gaps:?} after {:?}",
            world.failure()
        );
        // Whoever asks then how far the machine and its disks are is not told of the commit that there is not.
        let last = recording.recorder.peek(samsara_machine::Machine::seq);
        assert_eq!(last.0, world.last(), "round {round}");
    }
}
