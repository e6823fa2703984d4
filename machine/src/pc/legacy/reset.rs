//! The ways to reset a PC, and pvpanic: ports that end the machine.

use serde::{Deserialize, Serialize};

use super::super::Signals;
use crate::machine::Ended;

/// Keyboard controller, data.
const KEYBOARD_DATA: u16 = 0x60;
/// Keyboard controller, status and commands.
const KEYBOARD_COMMAND: u16 = 0x64;
/// A20 gate and fast reset.
const FAST_RESET: u16 = 0x92;
/// The panic device.
const PVPANIC: u16 = 0x505;
/// The chipset's reset register.
pub(super) const RESET_CONTROL: u16 = 0xcf9;

/// There always is a byte to read, and always room for one. So Linux finds out after a few reads that
/// there is no controller, and does not wait before it sends the reset command.
const KEYBOARD_STATUS: u8 = 0x01;
const WRITE_OUTPUT_PORT: u8 = 0xd1;
const A20_ON: u8 = 0x02;
const RESET_CPU: u8 = 0x04;
/// A panic, and a panic for which the guest has a crash kernel of its own.
const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 2;

/// What the reset ports remember.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Resets {
    control: u8,
    /// The next keyboard data byte is for the controller's output port.
    is_output_port_next: bool,
}

impl Resets {
    pub(super) fn read(&self, port: u16) -> u8 {
        match port {
            KEYBOARD_DATA => 0,
            KEYBOARD_COMMAND => KEYBOARD_STATUS,
            FAST_RESET => A20_ON,
            PVPANIC => PANICKED | CRASH_LOADED,
            RESET_CONTROL => self.control,
            _ => u8::MAX,
        }
    }

    pub(super) fn write(&mut self, port: u16, value: u8, signals: &mut Signals) {
        match port {
            KEYBOARD_COMMAND => {
                self.is_output_port_next = value == WRITE_OUTPUT_PORT;
                // 0xfX pulses the output bits that are 0; the lowest is the processors' reset.
                if value & 0xf1 == 0xf0 {
                    end(signals, Ended::Reset);
                }
            }
            KEYBOARD_DATA => {
                let is_output_port = std::mem::take(&mut self.is_output_port_next);
                if is_output_port && value & 1 == 0 {
                    end(signals, Ended::Reset);
                }
            }
            FAST_RESET if value & 1 != 0 => end(signals, Ended::Reset),
            PVPANIC if value & PANICKED != 0 => end(signals, Ended::Panicked),
            RESET_CONTROL => {
                // Bit 1 chooses a reset of the whole machine or of its processors: the same here.
                let is_rising = value & !self.control & RESET_CPU != 0;
                self.control = value & 0x0e;
                if is_rising {
                    end(signals, Ended::Reset);
                }
            }
            _ => {}
        }
    }
}

/// The machine stops; the first reason counts.
pub(super) fn end(signals: &mut Signals, ended: Ended) {
    signals.ended.get_or_insert(ended);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended_by(writes: &[(u16, u8)]) -> Option<Ended> {
        let mut resets = Resets::default();
        let mut signals = Signals::default();
        for &(port, value) in writes {
            resets.write(port, value, &mut signals);
        }
        signals.ended
    }

    #[test]
    fn each_way_ends_the_machine() {
        let ways: [&[(u16, u8)]; 5] = [
            &[(0x64, 0xfe)],
            &[(0x64, 0xf0)],
            &[(0x64, 0xd1), (0x60, 0xfe)],
            &[(0x92, 0x01)],
            &[(0xcf9, 0x02), (0xcf9, 0x06)],
        ];
        for writes in ways {
            assert_eq!(ended_by(writes), Some(Ended::Reset), "{writes:?}");
        }
        assert_eq!(ended_by(&[(0x505, 1)]), Some(Ended::Panicked));
        assert_eq!(ended_by(&[(0x505, 1), (0x64, 0xfe)]), Some(Ended::Panicked));
    }

    #[test]
    fn nothing_else_does() {
        let others: [&[(u16, u8)]; 6] = [
            &[(0x64, 0xff)],
            &[(0x60, 0xfe), (0x64, 0xd1), (0x60, 0xdf)],
            &[(0x64, 0xd1), (0x64, 0xaa), (0x60, 0xfe)],
            &[(0x92, 0x02)],
            &[(0xcf9, 0x02), (0xcf9, 0x0a)],
            &[(0x505, 2)],
        ];
        for writes in others {
            assert_eq!(ended_by(writes), None, "{writes:?}");
        }
    }
}
