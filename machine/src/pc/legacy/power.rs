//! ACPI power management registers: power off, and the power management timer.

use samsara_commitlog::GuestTime;
use serde::{Deserialize, Serialize};

use super::super::Signals;
use super::interval::ticks_at;
use super::reset::end;
use crate::machine::Ended;

/// The first port: the `PM1a` event block (status, enable), at 4 the control register, at 8 the timer.
pub(super) const PORT: u16 = 0x600;
/// The last port.
pub(super) const PORT_LAST: u16 = PORT + 11;

const TIMER_HZ: u64 = 3_579_545;
const SCI_ENABLED: u8 = 1;
/// Of the control register's upper byte.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE: u8 = 7 << 2;
/// The sleep type of the soft-off state, as the ACPI tables say.
const SOFT_OFF: u8 = 5 << 2;

/// The power management registers. No event ever happens, so the status register stays 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PowerManagement {
    enable: [u8; 2],
    control: [u8; 2],
}

impl PowerManagement {
    pub(super) fn read(&self, offset: u8, now: GuestTime) -> u8 {
        match offset {
            2 | 3 => self.enable[usize::from(offset - 2)],
            4 => self.control[0] | SCI_ENABLED,
            5 => self.control[1],
            8..=11 => (ticks_at(now.0, TIMER_HZ) >> (8 * u32::from(offset - 8))) as u8,
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u8, value: u8, signals: &mut Signals) {
        match offset {
            2 | 3 => self.enable[usize::from(offset - 2)] = value,
            // Bus master reload; global release is write-only.
            4 => self.control[0] = value & 2,
            5 => {
                self.control[1] = value & SLEEP_TYPE;
                if value & SLEEP_ENABLE != 0 && value & SLEEP_TYPE == SOFT_OFF {
                    end(signals, Ended::Exit { status: 0 });
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_off_ends_the_machine_and_other_sleep_does_not() {
        let mut power = PowerManagement::default();
        let mut signals = Signals::default();
        power.write(5, 0x34 & !SLEEP_ENABLE, &mut signals);
        power.write(5, 0x24, &mut signals);
        assert_eq!(signals.ended, None);
        assert_eq!(power.read(5, GuestTime(0)), 0x04);
        assert_eq!(power.read(4, GuestTime(0)), SCI_ENABLED);
        power.write(5, 0x34, &mut signals);
        assert_eq!(signals.ended, Some(Ended::Exit { status: 0 }));
    }

    #[test]
    fn the_timer_has_its_frequency_and_wraps() {
        let power = PowerManagement::default();
        let timer = |now| {
            (8..12).rev().fold(0u32, |value, at| {
                value << 8 | u32::from(power.read(at, GuestTime(now)))
            })
        };
        assert_eq!(timer(0), 0);
        assert_eq!(timer(1_000_000_000), 3_579_545);
        assert_eq!(timer(2_000_000_000_000), (2000 * 3_579_545u64) as u32);
        timer(u64::MAX);
    }

    #[test]
    fn events_can_be_enabled_and_never_happen() {
        let mut power = PowerManagement::default();
        let mut signals = Signals::default();
        for offset in 0..4 {
            power.write(offset, 0xff, &mut signals);
        }
        assert_eq!(
            (power.read(0, GuestTime(0)), power.read(3, GuestTime(0))),
            (0, 0xff)
        );
    }
}
