//! The 8254 interval timer, and port 0x61, which has the gate and the output of its channel 2.
//!
//! Channel 0 requests interrupts. A count does not run but follows from guest time. Two simplifications,
//! as other machine monitors have them: a new count always starts at once, also in the modes that would
//! finish a period first; and a strobe requests its interrupt when its count ends, not a tick later.

use samsara_commitlog::GuestTime;
use serde::{Deserialize, Serialize};

use super::super::Signals;
use super::channel::{Channel, Gate};
use super::interval::ticks_at;

/// The first port: three channels, and control.
pub(super) const PORT: u16 = 0x40;
/// The last port.
pub(super) const PORT_LAST: u16 = 0x43;
/// Gate and output of channel 2, and the refresh toggle.
pub(super) const PORT_B: u16 = 0x61;

/// The IOAPIC pin of ISA interrupt 0.
const PIN: u32 = 2;
const CONTROL: u8 = 3;

const GATE_2: u8 = 1;
/// Bits of port 0x61 that can be written: gate, speaker, checks.
const PORT_B_BITS: u8 = 0x0f;
const REFRESH: u8 = 1 << 4;
const OUTPUT_2: u8 = 1 << 5;
/// The refresh toggle changes about every 15 microseconds, as on a PC.
const REFRESH_HZ: u64 = 66_287;

/// The timer's channels, and what was written to port 0x61.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pit {
    channels: [Channel; 3],
    port_b: u8,
}

impl Pit {
    pub(super) fn new() -> Self {
        Self {
            channels: [Gate::Open, Gate::Open, Gate::Closed].map(Channel::new),
            port_b: 0,
        }
    }

    fn channel(&mut self, offset: u8) -> Option<&mut Channel> {
        self.channels.get_mut(usize::from(offset))
    }

    pub(super) fn read(&self, offset: u8, now: GuestTime) -> u8 {
        // The control register cannot be read.
        let channel = self.channels.get(usize::from(offset));
        channel.map_or(u8::MAX, |channel| channel.read(now.0))
    }

    pub(super) fn finish_read(&mut self, offset: u8) {
        if let Some(channel) = self.channel(offset) {
            channel.finish_read();
        }
    }

    pub(super) fn write(&mut self, offset: u8, value: u8, now: GuestTime, signals: &mut Signals) {
        // What was due before the change comes first.
        self.advance(now, signals);
        if offset == CONTROL {
            self.control(value, now);
        } else if let Some(channel) = self.channel(offset) {
            channel.write(value, now.0);
        }
    }

    fn control(&mut self, value: u8, now: GuestTime) {
        if let Some(channel) = self.channel(value >> 6) {
            channel.control(value, now.0);
            return;
        }
        // Read-back: latches count and status, as the bits 5 and 4 do not say, of channels by bits.
        for (index, channel) in (1..).zip(&mut self.channels) {
            if value & 1 << index == 0 {
                continue;
            }
            if value & 1 << 5 == 0 {
                channel.latch_count(now.0);
            }
            if value & 1 << 4 == 0 {
                channel.latch_status(now.0);
            }
        }
    }

    pub(super) fn read_port_b(&self, now: GuestTime) -> u8 {
        let is_refresh = ticks_at(now.0, REFRESH_HZ) & 1 != 0;
        self.port_b
            | if is_refresh { REFRESH } else { 0 }
            | if self.channels[2].output(now.0) {
                OUTPUT_2
            } else {
                0
            }
    }

    pub(super) fn write_port_b(&mut self, value: u8, now: GuestTime) {
        self.port_b = value & PORT_B_BITS;
        let gate = if value & GATE_2 != 0 {
            Gate::Open
        } else {
            Gate::Closed
        };
        self.channels[2].set_gate(gate, now.0);
    }

    pub(super) fn advance(&mut self, now: GuestTime, signals: &mut Signals) {
        if self.channels[0].advance(now.0) {
            signals.pulses |= 1 << PIN;
        }
    }

    pub(super) fn next_deadline(&self) -> Option<GuestTime> {
        self.channels[0].next_deadline().map(GuestTime)
    }
}

#[cfg(test)]
mod tests {
    use super::super::channel::INPUT_HZ;
    use super::super::interval::ns_of;
    use super::*;

    fn ns(ticks: u128) -> GuestTime {
        GuestTime(ns_of(ticks, INPUT_HZ).unwrap())
    }

    fn write(pit: &mut Pit, now: u128, writes: &[(u8, u8)]) -> u32 {
        let mut signals = Signals::default();
        for &(offset, value) in writes {
            pit.write(offset, value, ns(now), &mut signals);
        }
        signals.pulses
    }

    fn read(pit: &mut Pit, offset: u8, now: u128) -> u8 {
        let value = pit.read(offset, ns(now));
        assert_eq!(pit.read(offset, ns(now)), value);
        pit.finish_read(offset);
        value
    }

    fn pulses(pit: &mut Pit, now: u128) -> bool {
        let mut signals = Signals::default();
        pit.advance(ns(now), &mut signals);
        signals.pulses == 1 << PIN
    }

    #[test]
    fn a_periodic_channel_keeps_its_phase_and_coalesces() {
        let mut pit = Pit::new();
        assert_eq!(pit.next_deadline(), None);
        // 4772 ticks: Linux at 250 Hz.
        write(&mut pit, 0, &[(3, 0x34), (0, 0xa4), (0, 0x12)]);
        assert_eq!(pit.next_deadline(), Some(ns(4772)));
        assert!(!pulses(&mut pit, 4771));
        assert!(pulses(&mut pit, 4772));
        assert!(pulses(&mut pit, 10 * 4772 + 9));
        assert!(!pulses(&mut pit, 10 * 4772 + 9));
        assert_eq!(pit.next_deadline(), Some(ns(11 * 4772)));
    }

    #[test]
    fn one_shots_fire_once_and_an_idle_channel_never() {
        for control in [0x30, 0x38] {
            let mut pit = Pit::new();
            write(&mut pit, 0, &[(3, control), (0, 100), (0, 0)]);
            assert!(pulses(&mut pit, 1000));
            assert_eq!(pit.next_deadline(), None);
            assert!(!pulses(&mut pit, 100_000));
            // What was due comes before what a new setting would make of it.
            write(&mut pit, 100_000, &[(0, 100), (0, 0)]);
            assert_eq!(write(&mut pit, 100_200, &[(3, 0x30)]), 1 << PIN);
            assert_eq!(pit.next_deadline(), None);
        }
    }

    #[test]
    fn counts_are_latched_and_read_by_halves() {
        let mut pit = Pit::new();
        write(&mut pit, 0, &[(3, 0x34), (0, 0x00), (0, 0x10)]);
        write(&mut pit, 0x123, &[(3, 0x00)]);
        write(&mut pit, 0x200, &[(3, 0x00)]);
        assert_eq!(
            [read(&mut pit, 0, 0x300), read(&mut pit, 0, 0x400)],
            [0xdd, 0x0e]
        );
        assert_eq!(
            [read(&mut pit, 0, 0x500), read(&mut pit, 0, 0x500)],
            [0x00, 0x0b]
        );
        // Read-back of count and status: the status comes first.
        write(&mut pit, 0x123, &[(3, 0xc2)]);
        let bytes = [0; 3].map(|_| read(&mut pit, 0, 0x600));
        assert_eq!(bytes, [0xb4, 0xdd, 0x0e]);
        assert_eq!(pit.read(3, ns(0)), 0xff);
    }

    #[test]
    fn square_waves_count_by_two() {
        let mut pit = Pit::new();
        write(&mut pit, 0, &[(3, 0x16), (0, 100)]);
        assert_eq!(
            [0, 10, 49, 50, 60, 100].map(|at| read(&mut pit, 0, at)),
            [100, 80, 2, 100, 80, 100]
        );
        assert!(pulses(&mut pit, 100));
    }

    #[test]
    fn bcd_counts_in_decimal() {
        let mut pit = Pit::new();
        write(&mut pit, 0, &[(3, 0x31), (0, 0x00), (0, 0x10)]);
        assert_eq!([read(&mut pit, 0, 1), read(&mut pit, 0, 1)], [0x99, 0x09]);
        assert_eq!(pit.next_deadline(), Some(ns(1000)));
    }

    /// Ticks of half a second: it begins with a tick.
    const HALF: u128 = 596_591;

    /// Linux calibrates the TSC with channel 2.
    #[test]
    fn channel_2_has_a_gate_and_an_output() {
        let mut pit = Pit::new();
        let output = |pit: &Pit, now| pit.read_port_b(ns(now)) & OUTPUT_2 != 0;
        write(&mut pit, 0, &[(3, 0xb0), (2, 0xff), (2, 0xff)]);
        assert_eq!([0; 2].map(|_| read(&mut pit, 2, 500)), [0xff, 0xff]);
        pit.write_port_b(1, ns(HALF));
        assert_eq!([0; 2].map(|_| read(&mut pit, 2, HALF + 256)), [0xff, 0xfe]);
        assert!(!output(&pit, HALF + 65_534));
        // A closed gate holds the count.
        pit.write_port_b(0, ns(HALF + 65_534));
        assert!(!output(&pit, 2 * HALF));
        pit.write_port_b(1, ns(2 * HALF));
        assert!(!output(&pit, 2 * HALF));
        assert!(output(&pit, 2 * HALF + 1));
        assert_eq!(pit.read_port_b(ns(2 * HALF)) & PORT_B_BITS, 1);
    }

    #[test]
    fn an_open_gate_triggers_the_modes_that_wait_for_it() {
        let mut pit = Pit::new();
        write(&mut pit, 0, &[(3, 0x92), (2, 100)]);
        let outputs = |pit: &Pit, now| {
            [50, 99, 100].map(|ticks| pit.read_port_b(ns(now + ticks)) & OUTPUT_2 != 0)
        };
        assert_eq!(outputs(&pit, 0), [true; 3]);
        for start in [HALF, 2 * HALF] {
            pit.write_port_b(1, ns(start));
            assert_eq!(outputs(&pit, start), [false, false, true]);
            pit.write_port_b(0, ns(start + 200));
            assert_eq!(outputs(&pit, start + 200), [true; 3]);
        }
    }

    #[test]
    fn the_refresh_toggle_toggles() {
        let pit = Pit::new();
        let seen = [0, 16_000, 31_000].map(|at| pit.read_port_b(GuestTime(at)) & REFRESH);
        assert_eq!(seen, [0, REFRESH, 0]);
    }
}
