//! The device page, register by register, as the contract has it.

use bytes::Bytes;
use samsara_commitlog::{Exit, GuestTime, Input, Space, VcpuIndex};
use samsara_machine::Ended;
use samsara_machine::bare::{BareDevices, DEVICE_PAGE, DeviceError, Effect, register};

use crate::{MIB, Rng, image};

const V0: VcpuIndex = VcpuIndex(0);
const V1: VcpuIndex = VcpuIndex(1);

pub(crate) fn write(offset: u64, size: u8, value: u64) -> Exit {
    Exit::Write {
        space: Space::Mmio,
        address: DEVICE_PAGE.wrapping_add(offset),
        size,
        value,
    }
}

fn read(offset: u64, size: u8, input: Option<u64>) -> Exit {
    Exit::Read {
        space: Space::Mmio,
        address: DEVICE_PAGE.wrapping_add(offset),
        size,
        input,
    }
}

pub(crate) fn fault(effect: &Effect) -> &str {
    match &effect.ended {
        Some(Ended::Fault { message }) => message,
        other => panic!("no fault but {other:?}"),
    }
}

fn is_nothing(effect: &Effect) -> bool {
    effect.console.is_none() && effect.dma.is_empty() && effect.ended.is_none()
}

#[test]
fn console_takes_the_low_byte_and_gives_the_next_one_or_all_ones() {
    let image = image(16 * MIB);
    let mut devices = BareDevices::new(2);
    for size in [1, 8] {
        let effect = devices.exit(V0, &write(register::CONSOLE, size, 0xabcd_ef41), &image);
        assert_eq!(effect.console.as_deref(), Some(&b"A"[..]));
    }
    let typed = Input::Console(Bytes::from_static(b"hi"));
    devices.input(&typed, &image).unwrap();
    for (size, expected) in [(1, u64::from(b'h')), (8, u64::from(b'i')), (8, u64::MAX)] {
        let exit = read(register::CONSOLE, size, None);
        assert_eq!(devices.read_value(&exit, GuestTime(5)), expected);
        assert_eq!(
            devices.read_value(&exit, GuestTime(5)),
            expected,
            "a look changes nothing"
        );
        assert!(is_nothing(&devices.exit(V1, &exit, &image)));
    }
}

#[test]
fn console_input_beyond_its_room_is_refused() {
    let image = image(16 * MIB);
    let mut devices = BareDevices::new(1);
    let room = devices.console_room();
    devices
        .input(&Input::Console(vec![1; room - 1].into()), &image)
        .unwrap();
    assert_eq!(devices.console_room(), 1);
    let two = Input::Console(Bytes::from_static(b"ab"));
    assert_eq!(
        devices.input(&two, &image).unwrap_err(),
        DeviceError::TooLong(2)
    );
    assert_eq!(devices.console_room(), 1);
}

#[test]
fn exit_clock_random_yield_and_mark() {
    let image = image(16 * MIB);
    let mut devices = BareDevices::new(2);
    let clock = read(register::CLOCK, 8, None);
    assert_eq!(devices.read_value(&clock, GuestTime(77)), 77);
    let random = read(register::RANDOM, 8, Some(0xfeed));
    assert_eq!(devices.read_value(&random, GuestTime(77)), 0xfeed);
    assert!(is_nothing(&devices.exit(V0, &clock, &image)));
    assert!(is_nothing(&devices.exit(V0, &random, &image)));
    let before = devices.clone();
    assert!(is_nothing(&devices.exit(
        V0,
        &write(register::YIELD, 8, 9),
        &image
    )));
    assert_eq!(devices, before);
    assert!(is_nothing(&devices.exit(
        V0,
        &write(register::MARK, 8, u64::MAX - 1),
        &image
    )));
    let mark = read(register::MARK, 8, None);
    assert_eq!(devices.read_value(&mark, GuestTime(0)), u64::MAX - 1);
    assert_eq!(devices.mark(), u64::MAX - 1);
    let exit = devices.exit(V0, &write(register::EXIT, 8, 0x1_2a), &image);
    assert_eq!(exit.ended, Some(Ended::Exit { status: 0x2a }));
}

#[test]
fn the_machine_halts_with_its_last_vcpu() {
    let image = image(16 * MIB);
    let mut devices = BareDevices::new(2);
    assert!(is_nothing(&devices.exit(
        V1,
        &write(register::HALT, 8, 1),
        &image
    )));
    assert!(devices.is_halted(V1) && !devices.is_halted(V0));
    let effect = devices.exit(V0, &write(register::HALT, 8, 1), &image);
    assert_eq!(effect.ended, Some(Ended::Halted));
}

/// Every size at every offset of the page and just outside: what the contract does not name stops
/// the machine, and the message has the vCPU and the place.
#[test]
fn accesses_that_the_contract_does_not_name_are_faults() {
    let image = image(16 * MIB);
    let readable = [
        register::CONSOLE,
        register::CLOCK,
        register::RANDOM,
        register::MARK,
    ];
    let not_writable = [register::CLOCK, register::RANDOM];
    for offset in (0..0x90).chain([0xff8, 0x1000, u64::MAX, u64::MAX - 7]) {
        for size in 1..=8 {
            let is_register = offset <= register::OUTPUT
                && (size == 8 && offset % 8 == 0 || size == 1 && offset == register::CONSOLE);
            let place = format!("{:#x}", DEVICE_PAGE.wrapping_add(offset));
            let place = if is_register {
                format!("register {offset:#x}")
            } else {
                place
            };
            let mut devices = BareDevices::new(2);
            let effect = devices.exit(V1, &read(offset, size, None), &image);
            if !is_register || !readable.contains(&offset) {
                let text = fault(&effect);
                assert!(
                    text.starts_with("vCPU 1: read") && text.contains(&place),
                    "{text}"
                );
            } else {
                assert!(is_nothing(&effect), "{offset:#x}, {size}");
            }
            let effect = BareDevices::new(2).exit(V1, &write(offset, size, 0), &image);
            if !is_register || not_writable.contains(&offset) {
                let text = fault(&effect);
                assert!(
                    text.starts_with("vCPU 1: write") && text.contains(&place),
                    "{text}"
                );
            }
        }
    }
    let port = Exit::Write {
        space: Space::Port,
        address: DEVICE_PAGE,
        size: 8,
        value: 0,
    };
    assert!(fault(&BareDevices::new(2).exit(V0, &port, &image)).contains("port"));
}

#[test]
fn exceptions_and_dead_ends_are_told() {
    let image = image(16 * MIB);
    let mut devices = BareDevices::new(2);
    let exit = Exit::Exception {
        vector: 14,
        error_code: 6,
        rip: 0x20_0010,
        cr2: 0xdead_b000,
    };
    assert_eq!(
        fault(&devices.exit(V1, &exit, &image)),
        "vCPU 1: exception 14 (page fault), error code 0x6, RIP 0x200010, CR2 0xdeadb000"
    );
    for vector in 0..=255 {
        let exit = Exit::Exception {
            vector,
            error_code: 0,
            rip: 0,
            cr2: 0,
        };
        assert!(fault(&devices.exit(V0, &exit, &image)).contains(&format!("exception {vector} ")));
    }
    let exit = Exit::Fatal {
        rip: 0x1234,
        reason: "triple fault".into(),
    };
    let text = "vCPU 0: cannot go on at RIP 0x1234: triple fault";
    assert_eq!(fault(&devices.exit(V0, &exit, &image)), text);
}

/// Random states come back from their bytes; changed bytes are refused or are a state.
#[test]
fn device_state_survives_and_hostile_state_is_refused() {
    let image = image(16 * MIB);
    let mut rng = Rng(3);
    for round in 0..200u64 {
        let mut devices = BareDevices::new(2);
        devices.exit(V0, &write(register::MARK, 8, rng.next()), &image);
        devices
            .input(&Input::Console(vec![7; rng.below(50)].into()), &image)
            .unwrap();
        let descriptor = 0x30_0000 + rng.next() % 64 * 8;
        image
            .write(
                samsara_commitlog::Gpa(descriptor),
                &words([0x40_0000, round * 4096]),
            )
            .unwrap();
        let operation = [register::INPUT, register::OUTPUT, register::HALT][rng.below(3)];
        devices.exit(V1, &write(operation, 8, descriptor), &image);
        let bytes = devices.encode();
        assert_eq!(BareDevices::decode(&bytes, 2, &image).unwrap(), devices);
        for end in 0..bytes.len() {
            assert!(BareDevices::decode(&bytes.slice(..end), 2, &image).is_err());
        }
        hostile(&bytes, &image, &mut rng);
    }
}

fn words(words: [u64; 2]) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn hostile(bytes: &Bytes, image: &samsara_machine::memory::Image, rng: &mut Rng) {
    for _ in 0..50 {
        let mut changed = bytes.to_vec();
        let at = rng.below(changed.len());
        changed[at] = [0, 1, 2, 0xff, rng.next() as u8][rng.below(5)];
        let changed = Bytes::from(changed);
        let Ok(mut devices) = BareDevices::decode(&changed, 2, image) else {
            continue;
        };
        assert_eq!(devices.encode(), changed);
        // What was taken for a state can be used.
        for vcpu in [V0, V1] {
            let _ = devices.input(&Input::OutputStep { vcpu }, image);
            let _ = devices.input(
                &Input::File {
                    vcpu,
                    bytes: vec![1; 9].into(),
                },
                image,
            );
        }
    }
}

/// The offset in the input file may be anything in a state from outside.
#[test]
fn an_input_offset_at_the_end_of_numbers_does_no_harm() {
    let image = image(16 * MIB);
    let mut devices = BareDevices::new(2);
    image
        .write(samsara_commitlog::Gpa(0x30_0000), &words([0x40_0000, 16]))
        .unwrap();
    devices.exit(V0, &write(register::INPUT, 8, 0x30_0000), &image);
    let mut bytes = devices.encode().to_vec();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut devices = BareDevices::decode(&bytes.into(), 2, &image).unwrap();
    let input = Input::File {
        vcpu: V0,
        bytes: vec![1; 16].into(),
    };
    devices.input(&input, &image).unwrap();
    assert_eq!(devices.input_offset(), u64::MAX);
}
