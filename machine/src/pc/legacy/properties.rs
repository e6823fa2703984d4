//! Properties of all the ports together.

use proptest::prelude::*;
use samsara_commitlog::GuestTime;

use super::*;
use crate::machine::{Ended, Output};

const NOW: GuestTime = GuestTime(5_000_000_000);

fn legacy() -> Legacy {
    Legacy::new(1_735_689_600_000_000_000)
}

#[test]
fn ports_reach_their_devices() {
    let mut legacy = legacy();
    let mut signals = Signals::default();
    for byte in b"ok" {
        legacy.write(0x3f8, 1, u64::from(*byte), NOW, &mut signals);
    }
    assert_eq!(signals.outputs.len(), 2);
    assert_eq!(signals.outputs[0], Output::Console(b"o".to_vec().into()));
    assert_eq!(legacy.read(0x3fd, 1, NOW), 0x60);
    legacy.write(0x21, 1, 0xfb, NOW, &mut signals);
    assert_eq!(legacy.read(0x21, 1, NOW), 0xfb);
    assert_eq!(legacy.read(0x608, 4, NOW), 3_579_545 * 5);
    assert_eq!(legacy.read(0x64, 1, NOW), 1);
    assert_eq!(legacy.read(0x505, 1, NOW), 3);
    assert_eq!(legacy.read(0x604, 2, NOW), 1);
    legacy.write(0x70, 1, 0x00, NOW, &mut signals);
    assert_eq!(legacy.read(0x71, 1, NOW), 0x05);
    legacy.write(0x43, 1, 0x34, NOW, &mut signals);
    legacy.write(0x40, 1, 100, NOW, &mut signals);
    legacy.write(0x40, 1, 0, NOW, &mut signals);
    let due = legacy.next_deadline().unwrap();
    legacy.advance(due, &mut signals);
    assert_eq!(signals.pulses, 1 << 2);
    assert_eq!(signals.ended, None);
    legacy.write(0x604, 2, 0x3400, NOW, &mut signals);
    assert_eq!(signals.ended, Some(Ended::Exit { status: 0 }));
}

#[test]
fn where_no_device_is_loads_give_all_ones() {
    let mut legacy = legacy();
    let mut signals = Signals::default();
    for (size, ones) in [(1, 0xff), (2, 0xffff), (4, 0xffff_ffff)] {
        legacy.write(0x2f8, size, 0, NOW, &mut signals);
        assert_eq!(legacy.read(0x2f8, size, NOW), ones);
    }
    for (size, ones) in [(0, 0), (3, 0xff_ffff), (8, u64::MAX), (u8::MAX, u64::MAX)] {
        assert_eq!(legacy.read(0x3f8, size, NOW), ones);
        legacy.write(0x3f8, size, 0, NOW, &mut signals);
        legacy.finish_read(0x3f8, size, NOW, &mut signals);
    }
    assert_eq!(legacy, self::legacy());
    assert!(signals.outputs.is_empty());
}

#[test]
fn a_pci_configuration_address_is_not_a_reset() {
    let mut legacy = legacy();
    let mut signals = Signals::default();
    for port in 0xcf6..=0xcf9 {
        legacy.write(port, 4, 0x0606_0606, NOW, &mut signals);
        legacy.write(port, 2, 0x0606, NOW, &mut signals);
    }
    assert_eq!(signals.ended, None);
    assert_eq!(legacy.read(0xcf8, 4, NOW), 0xffff_ffff);
    legacy.write(0xcf9, 1, 0x06, NOW, &mut signals);
    assert_eq!(signals.ended, Some(Ended::Reset));
}

/// Ports with a device behind them, most of the time.
fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        0x20u16..0x22,
        0x40u16..0x44,
        0x60u16..0x65,
        0x70u16..0x72,
        0x3f8u16..0x400,
        0x600u16..0x60c,
        any::<u16>(),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    Read(u16, u8),
    Write(u16, u8, u64),
    Type(Vec<u8>),
    Advance,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let size = || prop_oneof![4 => Just(1u8), 1 => any::<u8>()];
    prop_oneof![
        4 => (port(), size()).prop_map(|(port, size)| Step::Read(port, size)),
        8 => (port(), size(), any::<u64>()).prop_map(|(port, size, value)| Step::Write(port, size, value)),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Type),
        2 => Just(Step::Advance),
        2 => prop_oneof![0u64..100_000, 0u64..1 << 40, Just(u64::MAX)].prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever a guest does: no panic, looking changes nothing, and a timer that has fired is due later.
    #[test]
    fn hostile_traffic_is_harmless(steps in prop::collection::vec(step(), 0..300)) {
        let mut legacy = legacy();
        let mut now = GuestTime(0);
        for step in steps {
            let mut signals = Signals::default();
            match step {
                Step::Read(port, size) => {
                    let value = legacy.read(port, size, now);
                    prop_assert!(size >= 8 || value >> (8 * u32::from(size)) == 0);
                    prop_assert_eq!(legacy.read(port, size, now), value);
                    legacy.finish_read(port, size, now, &mut signals);
                }
                Step::Write(port, size, value) => {
                    legacy.write(port, size, value, now, &mut signals);
                    prop_assert!(signals.outputs.len() <= 1);
                }
                Step::Type(bytes) => legacy.type_in(&bytes, &mut signals),
                Step::Advance => {
                    legacy.advance(now, &mut signals);
                    prop_assert!(legacy.next_deadline().is_none_or(|due| due > now));
                }
                Step::Wait(ns) => now = GuestTime(now.0.saturating_add(ns)),
            }
            prop_assert!(legacy.check().is_ok());
        }
        let bytes = postcard::to_stdvec(&legacy).unwrap();
        prop_assert_eq!(postcard::from_bytes::<Legacy>(&bytes).unwrap(), legacy);
    }
}
