//! Drivers that do anything at all: devices must not panic, must not work without bound, must write
//! nothing but rings and buffers, and must do the same on every replica.
//!
//! `SAMSARA_FUZZ_SECONDS` says for how long to look, `SAMSARA_FUZZ_SEED` where to start.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use samsara_commitlog::PAGE_BYTES;

use super::driver::{
    BUFFERS, Buffer, Disk, Guest, RINGS, RINGS_BYTES, Raw, available, descriptors, used,
};
use crate::memory::PageIndex;
use crate::pc::virtio::transport::VERSION_1;
use crate::pc::virtio::{Blocks, Device, Reaction, Want, register};

/// Where buffers may be; nothing but they and the rings may be written.
const BUFFERS_BYTES: u64 = 0x1_0000;
const SECTORS: u32 = 256;
/// Inputs after which a device that nobody notifies must have served all.
const STEPS_MAX: usize = 600;

/// Something that a driver does, or the world.
#[derive(Clone, Debug)]
enum Act {
    /// Sets the device up properly.
    Start {
        features: u64,
        size_bits: u8,
    },
    /// Any store to the window.
    Store {
        offset: u64,
        size: u8,
        value: u64,
    },
    /// Any load from it.
    Load {
        offset: u64,
        size: u8,
    },
    /// Any bytes in the rings.
    Garbage {
        place: u64,
        value: u64,
    },
    /// A descriptor, in the table or in the buffers.
    Describe {
        queue: usize,
        indirect: bool,
        index: u16,
        descriptor: Raw,
    },
    /// A head, and more or less of them.
    Offer {
        queue: usize,
        slot: u16,
        head: u16,
        index: u16,
    },
    /// Another chain for the device, as drivers do.
    Proper {
        queue: usize,
        head: u16,
    },
    /// A request to the disk, nearly right.
    Request {
        kind: u32,
        sector: u64,
        bytes: u32,
        flags: u16,
    },
    Notify {
        queue: u32,
    },
    Input {
        bytes: Vec<u8>,
    },
    /// What the device wants, until it wants nothing.
    Serve,
    /// Goes on from a snapshot.
    Snapshot,
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0_u64..0x40).prop_map(|word| word * 4),
        1 => 0_u64..0x1000,
        1 => any::<u64>(),
    ]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0_u64..16,
        2 => (0_u64..RINGS_BYTES * 2).prop_map(|at| RINGS + at / 16 * 16),
        1 => any::<u64>(),
    ]
}

fn size() -> impl Strategy<Value = u8> {
    prop_oneof![8 => Just(4), 1 => Just(8), 1 => any::<u8>()]
}

/// A buffer in its place, or one that is not memory.
fn descriptor() -> impl Strategy<Value = Raw> {
    let inside =
        (0..BUFFERS_BYTES - 0x1000, 0_u32..0x1000).prop_map(|(at, bytes)| (BUFFERS + at, bytes));
    let outside = (16_u64 << 20.., any::<u32>());
    let place = prop_oneof![20 => inside, 1 => outside];
    let flags = prop_oneof![
        4 => Just(0_u16),
        4 => Just(2),
        3 => Just(1),
        3 => Just(3),
        1 => any::<u16>(),
    ];
    let next = prop_oneof![6 => 0_u16..8, 1 => any::<u16>()];
    (place, flags, next, 0_u8..8).prop_map(|((address, bytes), flags, next, round)| Raw {
        address,
        // Tables and requests have even sizes.
        bytes: if round < 4 {
            bytes / 512 * 512 + u32::from(round) * 16
        } else {
            bytes
        },
        flags,
        next,
    })
}

fn request() -> impl Strategy<Value = Act> {
    let kind =
        prop_oneof![4 => Just(0_u32), 4 => Just(1), 1 => Just(11), 1 => Just(13), 2 => 0_u32..20];
    let sector = prop_oneof![8 => 0..u64::from(SECTORS), 1 => any::<u64>()];
    let bytes = prop_oneof![
        6 => (0_u32..32).prop_map(|sectors| sectors * 512),
        2 => (0_u32..20).prop_map(|ranges| ranges * 16),
        1 => 0_u32..0x4000,
    ];
    let flags = prop_oneof![6 => Just(1_u16), 6 => Just(3), 1 => 0_u16..8];
    (kind, sector, bytes, flags).prop_map(|(kind, sector, bytes, flags)| Act::Request {
        kind,
        sector,
        bytes,
        flags,
    })
}

fn act() -> impl Strategy<Value = Act> {
    let queue = 0_usize..2;
    let small = || prop_oneof![12 => 0_u16..8, 1 => any::<u16>()];
    prop_oneof![
        4 => (any::<u64>(), 0_u8..6)
            .prop_map(|(features, size_bits)| Act::Start { features, size_bits }),
        2 => (offset(), size(), value())
            .prop_map(|(offset, size, value)| Act::Store { offset, size, value }),
        1 => (offset(), size()).prop_map(|(offset, size)| Act::Load { offset, size }),
        1 => (0..2 * RINGS_BYTES - 8, value())
            .prop_map(|(place, value)| Act::Garbage { place, value }),
        12 => (queue.clone(), prop::bool::weighted(0.1), 0_u16..8, descriptor()).prop_map(
            |(queue, indirect, index, descriptor)| Act::Describe {
                queue,
                indirect,
                index,
                descriptor
            }
        ),
        1 => (queue.clone(), small(), small(), small())
            .prop_map(|(queue, slot, head, index)| Act::Offer { queue, slot, head, index }),
        8 => (queue, small()).prop_map(|(queue, head)| Act::Proper { queue, head }),
        6 => request(),
        6 => (0_u32..3).prop_map(|queue| Act::Notify { queue }),
        4 => vec(any::<u8>(), 0..100).prop_map(|bytes| Act::Input { bytes }),
        2 => Just(Act::Serve),
        1 => Just(Act::Snapshot),
    ]
}

fn device() -> impl Strategy<Value = Device> {
    let bytes = u64::from(SECTORS) * 512;
    prop_oneof![
        Just(Device::block(bytes, false, *b"01234567890123456789")),
        Just(Device::block(bytes, true, [0; 20])),
        Just(Device::net([2, 0, 0, 0, 0, 7])),
        Just(Device::console()),
        Just(Device::entropy()),
    ]
}

/// A driver that sets the device up, and then a few of these.
fn acts() -> impl Strategy<Value = Vec<Act>> {
    vec(act(), 1..120).prop_map(|mut acts| {
        acts.insert(
            0,
            Act::Start {
                features: u64::MAX,
                size_bits: 3,
            },
        );
        acts
    })
}

/// A device with its guest and its disk.
struct World {
    guest: Guest,
    disk: Disk,
    /// Whether the rings may be anywhere, as far as the driver has told.
    rings_moved: bool,
}

/// What an act did, as others can tell.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    value: u64,
    interrupts: bool,
    console: Vec<u8>,
    frames: Vec<Bytes>,
    want: Option<Want>,
    room: [bool; 2],
    written: Vec<PageIndex>,
}

impl World {
    fn new(device: Device) -> Self {
        Self {
            guest: Guest::new(device),
            disk: Disk::new(SECTORS),
            rings_moved: false,
        }
    }

    fn run(&mut self, act: &Act) -> Seen {
        // What the driver itself writes does not count.
        let mut seen = Seen {
            value: self.prepare(act),
            ..Seen::default()
        };
        self.guest.take_written();
        self.guest.to = Reaction::default();
        self.perform(act);
        seen.written = self.guest.take_written();
        let to = std::mem::take(&mut self.guest.to);
        self.check_bounds(&to, &seen.written);
        (seen.interrupts, seen.console, seen.frames) = (to.interrupts, to.console, to.frames);
        let (device, memory) = (&self.guest.device, self.guest.memory());
        seen.want = device.wants(memory);
        seen.room = [1, 1514].map(|bytes| device.has_room(bytes, memory));
        assert_eq!(device.check(), Ok(()));
        seen
    }

    /// What the driver does in memory, and what it reads.
    fn prepare(&mut self, act: &Act) -> u64 {
        match *act {
            Act::Start {
                features,
                size_bits,
            } => {
                self.guest.size = 1 << size_bits;
                self.guest.start(features | VERSION_1);
                self.rings_moved = false;
            }
            Act::Load { offset, size } => return self.guest.device.read(offset, size),
            Act::Garbage { place, value } => self.guest.poke(RINGS + place, &value.to_le_bytes()),
            Act::Describe {
                queue,
                indirect,
                index,
                ref descriptor,
            } => {
                let table = if indirect {
                    BUFFERS
                } else {
                    descriptors(queue)
                };
                self.guest.poke_descriptor(table, index, descriptor);
            }
            Act::Offer {
                queue,
                slot,
                head,
                index,
            } => {
                let slot = slot % self.guest.size;
                self.guest
                    .poke16(available(queue) + 4 + 2 * u64::from(slot), head);
                self.guest.poke16(available(queue) + 2, index);
            }
            Act::Proper { queue, head } => self.offer(queue, head),
            Act::Request {
                kind,
                sector,
                bytes,
                flags,
            } => self.request(
                kind,
                sector,
                Raw {
                    address: BUFFERS + 0x1000,
                    bytes,
                    flags,
                    next: 2,
                },
            ),
            _ => {}
        }
        0
    }

    fn request(&self, kind: u32, sector: u64, data: Raw) {
        let guest = &self.guest;
        guest.poke(BUFFERS, &kind.to_le_bytes());
        guest.poke(BUFFERS + 8, &sector.to_le_bytes());
        let header = Raw {
            address: BUFFERS,
            bytes: 16,
            flags: 1,
            next: 1,
        };
        let status = Raw::new(Buffer::In(BUFFERS + 0x100, 1));
        for (index, descriptor) in (0..).zip([header, data, status]) {
            guest.poke_descriptor(descriptors(0), index, &descriptor);
        }
        self.offer(0, 0);
    }

    /// Adds a chain as drivers do.
    fn offer(&self, queue: usize, head: u16) {
        let (guest, size) = (&self.guest, self.guest.size);
        let index = guest.peek16(available(queue) + 2);
        let slot = available(queue) + 4 + 2 * u64::from(index % size);
        guest.poke16(slot, head % size);
        guest.poke16(available(queue) + 2, index.wrapping_add(1));
    }

    /// What happens to the device.
    fn perform(&mut self, act: &Act) {
        match *act {
            Act::Store {
                offset,
                size,
                value,
            } => {
                self.rings_moved |=
                    (register::QUEUE_DESC_LOW..=register::QUEUE_DEVICE_HIGH).contains(&offset);
                let memory = self.guest.image.guest_memory();
                let (device, to) = (&mut self.guest.device, &mut self.guest.to);
                device.write(offset, size, value, memory, to);
            }
            Act::Notify { queue } => self.guest.write(register::QUEUE_NOTIFY, queue),
            Act::Input { ref bytes } => self.guest.input(bytes, Some(&self.disk)).unwrap(),
            Act::Serve => self.serve(),
            Act::Snapshot => self.guest.through_snapshot(),
            _ => {}
        }
    }

    fn serve(&mut self) {
        for _ in 0..STEPS_MAX {
            match self.guest.device.wants(self.guest.memory()) {
                None => return,
                Some(Want::Step) => self.guest.input(&[], Some(&self.disk)).unwrap(),
                Some(Want::Random(bytes)) => {
                    assert!((1..=256).contains(&bytes));
                    self.guest.input(&vec![0x42; bytes], None).unwrap();
                }
            }
        }
        // A ring in a buffer or in another ring may fill itself; each step ended, and that is all.
    }

    fn check_bounds(&self, to: &Reaction, written: &[PageIndex]) {
        assert!(to.frames.len() <= 256);
        assert!(
            to.frames
                .iter()
                .all(|frame| (14..=64 << 10).contains(&frame.len()))
        );
        assert!(to.console.len() <= 256 * (64 << 10));
        if self.rings_moved {
            return;
        }
        let may_write = |page: &PageIndex| {
            let address = page.offset() as u64;
            let is_used_ring = (0..2)
                .any(|queue| (used(queue)..used(queue) + PAGE_BYTES as u64).contains(&address));
            is_used_ring || (BUFFERS..BUFFERS + BUFFERS_BYTES).contains(&address)
        };
        assert!(written.iter().all(may_write), "{written:?}");
    }
}

proptest! {
    #![proptest_config(Config { cases: 200, failure_persistence: None, ..Config::default() })]

    /// Two replicas that are fed the same are the same, with or without snapshots on the way.
    #[test]
    fn replicas_agree(device in device(), acts in acts()) {
        let mut primary = World::new(device.clone());
        let mut backup = World::new(device);
        for act in &acts {
            let seen = primary.run(act);
            prop_assert_eq!(&seen, &backup.run(act));
            prop_assert_eq!(&primary.guest.device, &backup.guest.device);
            backup.guest.through_snapshot();
        }
        for page in primary.guest.image.touched_pages() {
            prop_assert!(primary.guest.image.page_equals(&backup.guest.image, page));
        }
        prop_assert!(primary.disk.contents() == backup.disk.contents());
    }

    /// State from outside is taken or refused, and what is taken works.
    #[test]
    fn damaged_state_is_refused_or_harmless(
        device in device(),
        start in prop::bool::ANY,
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        acts in vec(act(), 1..40),
    ) {
        let mut world = World::new(device);
        if start {
            world.guest.start(u64::MAX);
        }
        let mut bytes = postcard::to_stdvec(&world.guest.device).unwrap();
        for (index, value) in damage {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        let Ok(device) = postcard::from_bytes::<Device>(&bytes) else { return Ok(()) };
        if device.check().is_err() {
            return Ok(());
        }
        // It may be a disk of another size now, which this host does not have.
        prop_assume!(!is_foreign(&device, &world.disk));
        world.guest.device = device;
        world.rings_moved = true;
        for act in acts.iter().filter(|act| !matches!(act, Act::Start { .. })) {
            world.run(act);
        }
    }
}

fn is_foreign(device: &Device, disk: &Disk) -> bool {
    device.read(register::DEVICE_ID, 4) == 2
        && device.read(register::CONFIG, 8) > disk.bytes() / 512
}

/// Says which seed it was when a run panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat with SAMSARA_FUZZ_SEED={}", self.0);
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn devices_survive_hostile_drivers() {
    let length = Duration::from_secs(number("SAMSARA_FUZZ_SECONDS", 1));
    let first = number("SAMSARA_FUZZ_SEED", 1);
    let strategy = (device(), acts());
    let start = Instant::now();
    let (mut executions, mut act_count, mut effective) = (0, 0, 0);
    while executions == 0 || start.elapsed() < length {
        let start_at = Seed(first + executions);
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&start_at.0.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let (device, acts) = strategy.new_tree(&mut runner).unwrap().current();
        let mut world = World::new(device);
        for act in &acts {
            let seen = world.run(act);
            effective += usize::from(!seen.written.is_empty());
        }
        executions += 1;
        act_count += acts.len();
    }
    assert!(effective > 0, "devices did nothing");
    println!("{executions} executions of {act_count} acts; in {effective} the device wrote memory");
}
