//! INPUT and OUTPUT: descriptors, buffers and steps.

use bytes::Bytes;
use samsara_commitlog::{Gpa, Input, VcpuIndex};
use samsara_machine::bare::{BareDevices, DeviceError, Effect, register};
use samsara_machine::memory::Image;

use crate::devices::{fault, write};
use crate::{GIB, MIB, image};

const V1: VcpuIndex = VcpuIndex(1);
const DESCRIPTOR: u64 = 0x30_0000;

fn describe(image: &Image, descriptor: u64, buffer: u64, bytes: u64) {
    let words = [buffer, bytes, 0xdddd]
        .into_iter()
        .flat_map(u64::to_le_bytes);
    image
        .write(Gpa(descriptor), &words.collect::<Vec<_>>())
        .unwrap();
}

fn begin(image: &Image, register: u64, buffer: u64, bytes: u64) -> (BareDevices, Effect) {
    describe(image, DESCRIPTOR, buffer, bytes);
    let mut devices = BareDevices::new(2);
    let effect = devices.exit(V1, &write(register, 8, DESCRIPTOR), image);
    (devices, effect)
}

fn store(image: &Image, effect: &Effect) {
    effect
        .dma
        .iter()
        .for_each(|(gpa, bytes)| image.write(*gpa, bytes).unwrap());
}

fn done(image: &Image) -> u64 {
    let mut bytes = [0; 8];
    image.read(Gpa(DESCRIPTOR + 16), &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 % 251) as u8).collect()
}

#[test]
fn input_fills_the_buffer_and_moves_on_in_the_file() {
    let image = image(16 * MIB);
    let (mut devices, effect) = begin(&image, register::INPUT, 0x40_0001, 100);
    assert!(effect.ended.is_none());
    assert_eq!(devices.pending(V1).unwrap().step_bytes(), 100);
    let too_long = Input::File {
        vcpu: V1,
        bytes: pattern(101).into(),
    };
    assert_eq!(
        devices.input(&too_long, &image).unwrap_err(),
        DeviceError::TooLong(101)
    );
    let other = Input::File {
        vcpu: VcpuIndex(0),
        bytes: Bytes::new(),
    };
    assert!(matches!(
        devices.input(&other, &image),
        Err(DeviceError::NotWaiting(_))
    ));
    let nobody = Input::OutputStep {
        vcpu: VcpuIndex(200),
    };
    assert!(matches!(
        devices.input(&nobody, &image),
        Err(DeviceError::NotWaiting(_))
    ));
    let bytes = pattern(60);
    let file = Input::File {
        vcpu: V1,
        bytes: bytes.clone().into(),
    };
    store(&image, &devices.input(&file, &image).unwrap());
    let mut found = vec![0; 60];
    image.read(Gpa(0x40_0001), &mut found).unwrap();
    assert_eq!(
        (found, done(&image), devices.input_offset()),
        (bytes, 60, 60)
    );
    assert!(devices.pending(V1).is_none());
    assert!(
        devices.input(&file, &image).is_err(),
        "nothing waits any more"
    );
}

#[test]
fn input_takes_at_most_a_mebibyte_and_ends_with_zero() {
    let image = image(16 * MIB);
    let (mut devices, effect) = begin(&image, register::INPUT, 0x40_0000, u64::MAX);
    assert!(effect.ended.is_none());
    assert_eq!(devices.pending(V1).unwrap().step_bytes(), 1 << 20);
    let end = Input::File {
        vcpu: V1,
        bytes: Bytes::new(),
    };
    store(&image, &devices.input(&end, &image).unwrap());
    assert_eq!((done(&image), devices.input_offset()), (0, 0));
}

#[test]
fn output_goes_in_steps_and_is_done_with_the_last() {
    let image = image(16 * MIB);
    let bytes = pattern(5 * (MIB as usize) / 2);
    image.write(Gpa(0x40_0003), &bytes).unwrap();
    let (mut devices, _) = begin(&image, register::OUTPUT, 0x40_0003, bytes.len() as u64);
    let mut console = Vec::new();
    for step in 0..3 {
        assert_eq!(done(&image), 0xdddd, "done before step {step}");
        let effect = devices
            .input(&Input::OutputStep { vcpu: V1 }, &image)
            .unwrap();
        store(&image, &effect);
        console.extend(effect.console.unwrap());
    }
    assert_eq!((console, done(&image)), (bytes.clone(), bytes.len() as u64));
    assert!(devices.pending(V1).is_none());
}

/// No bytes may be anywhere: there is nothing that could lie outside memory.
#[test]
fn operations_of_no_bytes_are_done_at_once() {
    for buffer in [0x40_0000, 16 * MIB, 3 * GIB, u64::MAX] {
        let image = image(16 * MIB);
        let (mut devices, effect) = begin(&image, register::OUTPUT, buffer, 0);
        assert!(effect.ended.is_none(), "{buffer:#x}");
        let effect = devices
            .input(&Input::OutputStep { vcpu: V1 }, &image)
            .unwrap();
        store(&image, &effect);
        assert!(effect.console.is_none());
        assert_eq!(done(&image), 0);
        let (mut devices, _) = begin(&image, register::INPUT, buffer, 0);
        let end = Input::File {
            vcpu: V1,
            bytes: Bytes::new(),
        };
        store(&image, &devices.input(&end, &image).unwrap());
        assert_eq!(done(&image), 0);
    }
}

#[test]
fn buffers_end_where_memory_does() {
    let image = image(5 * GIB);
    let (low, high, end) = (3 * GIB, 4 * GIB, 6 * GIB);
    let cases = [
        (low - 4096, 4096, true),
        (low - 4096, 4097, false),
        (low - 1, 1, true),
        (low, 1, false),
        (high - 1, 1, false),
        (high - 1, 2, false),
        (high, 4096, true),
        (end - 1, 1, true),
        (end - 1, 2, false),
        (low - 4096, GIB + 8192, false),
        (u64::MAX, 1, false),
        (u64::MAX - 7, 16, false),
        (8, u64::MAX - 4, false),
    ];
    for (buffer, bytes, fits) in cases {
        let (devices, effect) = begin(&image, register::OUTPUT, buffer, bytes);
        assert_eq!(
            devices.pending(V1).is_some(),
            fits,
            "{bytes} at {buffer:#x}"
        );
        if !fits {
            let text = fault(&effect);
            assert!(text.starts_with("vCPU 1: OUTPUT buffer"), "{text}");
            assert!(text.contains(&format!("{buffer:#x}")), "{text}");
        }
        if fits {
            let mut devices = devices;
            assert!(
                devices
                    .input(&Input::OutputStep { vcpu: V1 }, &image)
                    .is_ok()
            );
        }
    }
}

#[test]
fn descriptors_are_aligned_and_in_memory() {
    let image = image(16 * MIB);
    for (descriptor, expected) in [
        (DESCRIPTOR + 4, "not 8-byte aligned"),
        (16 * MIB - 16, "outside guest memory"),
        (16 * MIB, "outside guest memory"),
        (0xd000_0000, "outside guest memory"),
        (u64::MAX - 7, "outside guest memory"),
    ] {
        for register in [register::INPUT, register::OUTPUT] {
            let mut devices = BareDevices::new(2);
            let effect = devices.exit(V1, &write(register, 8, descriptor), &image);
            let text = fault(&effect);
            assert!(
                text.starts_with("vCPU 1: ") && text.contains(expected),
                "{text}"
            );
            assert!(text.contains(&format!("{descriptor:#x}")), "{text}");
        }
    }
    describe(&image, 16 * MIB - 24, 0x40_0000, 8);
    let mut devices = BareDevices::new(2);
    let effect = devices.exit(V1, &write(register::OUTPUT, 8, 16 * MIB - 24), &image);
    assert!(effect.ended.is_none());
}

/// The descriptor was read when the operation began: what DMA or others store there later counts
/// for nothing, and `done` is stored last.
#[test]
fn a_buffer_may_lie_over_its_descriptor() {
    let image = image(16 * MIB);
    let (mut devices, _) = begin(&image, register::INPUT, DESCRIPTOR, 24);
    let file = Input::File {
        vcpu: V1,
        bytes: vec![0xee; 24].into(),
    };
    store(&image, &devices.input(&file, &image).unwrap());
    let mut words = [0; 24];
    image.read(Gpa(DESCRIPTOR), &mut words).unwrap();
    assert_eq!(words[..16], [0xee; 16]);
    assert_eq!(done(&image), 24);

    let (mut devices, _) = begin(&image, register::OUTPUT, DESCRIPTOR, 24);
    describe(&image, DESCRIPTOR, u64::MAX, u64::MAX);
    let effect = devices
        .input(&Input::OutputStep { vcpu: V1 }, &image)
        .unwrap();
    assert_eq!(effect.console.as_ref().unwrap()[..16], [0xff; 16]);
    store(&image, &effect);
    assert_eq!(done(&image), 24);
}
