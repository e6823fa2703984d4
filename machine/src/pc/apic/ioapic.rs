//! The IOAPIC: 24 pins, version 0x20 (with an EOI register).

use serde::{Deserialize, Serialize};

use super::message::{Address, Delivery, Destination, Message};
use super::registers::MASKED;
use super::shared::Trigger;

/// Interrupt input pins.
pub(super) const PIN_COUNT: u8 = 24;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const REDIRECTION: u8 = 0x10;
const REDIRECTION_LAST: u8 = REDIRECTION + 2 * PIN_COUNT - 1;

const VERSION_VALUE: u32 = (PIN_COUNT as u32 - 1) << 16 | 0x20;
const ID_BITS: u32 = 0x0f00_0000;

const STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
/// Bits of a redirection entry that can be written.
const ENTRY_BITS: u64 = 0xff00_0000_0001_ffff & !STATUS & !REMOTE_IRR;

/// What a store to a register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IoApicWrite {
    Done,
    /// A redirection entry changed: its pin may have something to send now.
    Entry(u8),
    /// The end of the interrupts with this vector.
    EndOfInterrupt(u8),
}

/// The IOAPIC's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IoApic {
    select: u8,
    id: u32,
    entries: [u64; PIN_COUNT as usize],
    /// Lines that are up, by pin.
    lines: u32,
    /// Level-triggered pins that were pulsed and have not sent a message for that yet: a pulse is a line
    /// that stays up until its message is accepted, so that none is lost during a service routine.
    pulses: u32,
}

impl IoApic {
    pub(super) fn new() -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [MASKED.into(); PIN_COUNT as usize],
            lines: 0,
            pulses: 0,
        }
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            SELECT => self.select.into(),
            WINDOW => match self.select {
                ID | ARBITRATION => self.id,
                VERSION => VERSION_VALUE,
                REDIRECTION..=REDIRECTION_LAST => {
                    let (pin, shift) = self.selected();
                    (self.entries[pin] >> shift) as u32
                }
                _ => 0,
            },
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32) -> IoApicWrite {
        match (offset, self.select) {
            (SELECT, _) => self.select = value as u8,
            (EOI, _) => return IoApicWrite::EndOfInterrupt(value as u8),
            (WINDOW, ID) => self.id = value & ID_BITS,
            (WINDOW, REDIRECTION..=REDIRECTION_LAST) => {
                let (pin, shift) = self.selected();
                self.write_entry(pin, shift, value);
                return IoApicWrite::Entry(pin as u8);
            }
            _ => {}
        }
        IoApicWrite::Done
    }

    /// The pin and the half of its entry that the window shows.
    fn selected(&self) -> (usize, u32) {
        let index = self.select.wrapping_sub(REDIRECTION) % (2 * PIN_COUNT);
        (usize::from(index / 2), u32::from(index % 2) * 32)
    }

    fn write_entry(&mut self, pin: usize, shift: u32, value: u32) {
        let bits = ENTRY_BITS & u64::from(u32::MAX) << shift;
        let entry = self.entries[pin] & !bits | u64::from(value) << shift & bits;
        self.entries[pin] = entry;
        if entry & LEVEL == 0 {
            // Operating systems clear a stuck remote IRR this way.
            self.entries[pin] &= !REMOTE_IRR;
            self.pulses &= !(1 << pin);
        }
    }

    /// A line goes up and down. The message that this sends.
    pub(super) fn pulse(&mut self, pin: u8) -> Option<Message> {
        let entry = *self.entries.get(usize::from(pin))?;
        if !is_level(entry) {
            return message(entry);
        }
        self.pulses |= 1 << pin;
        self.pending(pin)
    }

    /// A line goes up or down. The message that this sends.
    pub(super) fn set_line(&mut self, pin: u8, high: bool) -> Option<Message> {
        let entry = *self.entries.get(usize::from(pin))?;
        let was_high = self.lines & 1 << pin != 0;
        self.lines = self.lines & !(1 << pin) | u32::from(high) << pin;
        if is_level(entry) {
            self.pending(pin)
        } else if high && !was_high {
            message(entry)
        } else {
            None
        }
    }

    /// The message that a level-triggered pin has to send.
    pub(super) fn pending(&self, pin: u8) -> Option<Message> {
        let entry = *self.entries.get(usize::from(pin))?;
        let is_up = (self.lines | self.pulses) & 1 << pin != 0;
        let is_due = is_level(entry) && is_up && entry & REMOTE_IRR == 0;
        is_due.then(|| message(entry)).flatten()
    }

    /// A local APIC accepted the pin's message.
    pub(super) fn accepted(&mut self, pin: u8) {
        if let Some(entry) = self.entries.get_mut(usize::from(pin))
            && is_level(*entry)
        {
            *entry |= REMOTE_IRR;
            self.pulses &= !(1 << pin);
        }
    }

    /// The end of a level-triggered interrupt, for one pin. Whether the pin waited for it.
    pub(super) fn end_of_interrupt(&mut self, pin: u8, vector: u8) -> bool {
        let Some(entry) = self.entries.get_mut(usize::from(pin)) else {
            return false;
        };
        let is_meant = *entry & REMOTE_IRR != 0 && *entry as u8 == vector;
        if is_meant {
            *entry &= !REMOTE_IRR;
        }
        is_meant
    }
}

fn is_level(entry: u64) -> bool {
    // Other messages have no end that could be waited for.
    entry & LEVEL != 0 && Delivery::from_bits(entry as u32).is_some_and(Delivery::has_vector)
}

fn message(entry: u64) -> Option<Message> {
    let low = entry as u32;
    if low & MASKED != 0 {
        return None;
    }
    Some(Message {
        delivery: Delivery::from_bits(low)?,
        vector: low as u8,
        trigger: if is_level(entry) {
            Trigger::Level
        } else {
            Trigger::Edge
        },
        destination: Destination::from_bits(low, Address::Narrow((entry >> 56) as u8)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ioapic: &mut IoApic, pin: u8, low: u32) {
        ioapic.write(SELECT, u32::from(REDIRECTION + 2 * pin));
        ioapic.write(WINDOW, low);
    }

    #[test]
    fn registers_read_back_what_can_be_written() {
        let mut ioapic = IoApic::new();
        ioapic.write(SELECT, 1);
        assert_eq!(ioapic.read(WINDOW), 0x0017_0020);
        ioapic.write(SELECT, 0x13);
        ioapic.write(WINDOW, u32::MAX);
        assert_eq!(ioapic.read(WINDOW), 0xff00_0000);
        set(&mut ioapic, 1, u32::MAX);
        assert_eq!(ioapic.read(WINDOW), 0x0001_afff);
        ioapic.write(SELECT, 0x40);
        ioapic.write(WINDOW, u32::MAX);
        assert_eq!((ioapic.read(WINDOW), ioapic.read(0x20)), (0, 0));
        ioapic.write(SELECT, 0);
        ioapic.write(WINDOW, u32::MAX);
        assert_eq!(ioapic.read(WINDOW), ID_BITS);
    }

    #[test]
    fn an_edge_on_a_masked_pin_is_lost_and_a_level_is_not() {
        let mut ioapic = IoApic::new();
        assert_eq!(ioapic.pulse(3), None);
        set(&mut ioapic, 3, 0x43);
        assert_eq!(ioapic.pending(3), None);
        assert!(ioapic.set_line(3, true).is_some());
        assert_eq!(ioapic.set_line(3, true), None);

        set(&mut ioapic, 4, LEVEL as u32 | MASKED | 0x44);
        assert_eq!(ioapic.set_line(4, true), None);
        assert_eq!(ioapic.pulse(5), None);
        set(&mut ioapic, 4, LEVEL as u32 | 0x44);
        assert!(ioapic.pending(4).is_some());
        assert_eq!(ioapic.set_line(4, false), None);
        assert_eq!(ioapic.pulse(PIN_COUNT), None);
    }

    #[test]
    fn switching_to_edge_clears_the_remote_irr() {
        let mut ioapic = IoApic::new();
        set(&mut ioapic, 4, LEVEL as u32 | 0x44);
        assert!(ioapic.pulse(4).is_some());
        ioapic.accepted(4);
        assert_eq!(u64::from(ioapic.read(WINDOW)), LEVEL | REMOTE_IRR | 0x44);
        assert_eq!(ioapic.pulse(4), None);
        set(&mut ioapic, 4, MASKED | 0x44);
        assert_eq!(ioapic.read(WINDOW), MASKED | 0x44);
    }
}
