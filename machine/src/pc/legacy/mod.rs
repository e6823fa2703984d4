//! What a PC has at its I/O ports: serial port, clocks and timers, power management, reset.
//!
//! A load is in two steps. [`Legacy::read`] says what it gives and changes nothing: a chunk that ends in
//! a load may still be squashed. [`Legacy::finish_read`] does at the commit what the load does to the
//! device.
//!
//! Devices have 8-bit registers. Accesses of 2 and 4 bytes are that many accesses to neighbours, as on a
//! PC; of other sizes, they reach no device. Where there is no device, loads give all ones.

mod channel;
mod cmos;
mod date;
mod interval;
mod pic;
mod pit;
mod power;
#[cfg(test)]
mod properties;
mod reset;
mod serial;

use samsara_commitlog::GuestTime;
use serde::{Deserialize, Serialize};

use super::Signals;
use cmos::Cmos;
use pic::Pics;
use pit::Pit;
use power::PowerManagement;
use reset::Resets;
use serial::SerialPort;

/// What is wrong with devices from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LegacyFault {
    /// The serial port's receiver has room for less.
    #[error("{0} bytes in the serial port's receiver")]
    Receiver(usize),
    /// The queue of typed bytes has room for less.
    #[error("{0} typed bytes")]
    Typed(usize),
}

/// The devices at I/O ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Legacy {
    serial: SerialPort,
    pit: Pit,
    pics: Pics,
    cmos: Cmos,
    power: PowerManagement,
    resets: Resets,
}

impl Legacy {
    /// Devices at boot, which is at this time of day.
    pub fn new(unix_time_ns_at_boot: u64) -> Self {
        Self {
            serial: SerialPort::new(),
            pit: Pit::new(),
            pics: Pics::default(),
            cmos: Cmos::new(unix_time_ns_at_boot),
            power: PowerManagement::default(),
            resets: Resets::default(),
        }
    }

    /// Checks a state from outside.
    pub fn check(&self) -> Result<(), LegacyFault> {
        self.serial.check()
    }

    /// What a load gives. Changes nothing.
    pub fn read(&self, port: u16, size: u8, now: GuestTime) -> u64 {
        if !is_split(port, size) {
            return all_ones(size);
        }
        (0..size).rev().fold(0, |value, index| {
            let byte = self.read_byte(port.wrapping_add(index.into()), now);
            value << 8 | u64::from(byte)
        })
    }

    fn read_byte(&self, port: u16, now: GuestTime) -> u8 {
        match port {
            serial::PORT..=serial::PORT_LAST => self.serial.read((port - serial::PORT) as u8),
            pit::PORT..=pit::PORT_LAST => self.pit.read((port - pit::PORT) as u8, now),
            pit::PORT_B => self.pit.read_port_b(now),
            cmos::DATA => self.cmos.read(now),
            power::PORT..=power::PORT_LAST => self.power.read((port - power::PORT) as u8, now),
            pic::MASTER
            | pic::MASTER_DATA
            | pic::SLAVE
            | pic::SLAVE_DATA
            | pic::EDGE_LEVEL
            | pic::EDGE_LEVEL_LAST => self.pics.read(port),
            _ => self.resets.read(port),
        }
    }

    /// Does what a load does to the device, at its commit.
    pub fn finish_read(&mut self, port: u16, size: u8, now: GuestTime, signals: &mut Signals) {
        if !is_split(port, size) {
            return;
        }
        for index in 0..size {
            let port = port.wrapping_add(index.into());
            match port {
                serial::PORT..=serial::PORT_LAST => {
                    self.serial
                        .finish_read((port - serial::PORT) as u8, signals);
                }
                pit::PORT..=pit::PORT_LAST => self.pit.finish_read((port - pit::PORT) as u8),
                cmos::DATA => self.cmos.finish_read(now),
                _ => {}
            }
        }
    }

    /// Acts on a store.
    pub fn write(
        &mut self,
        port: u16,
        size: u8,
        value: u64,
        now: GuestTime,
        signals: &mut Signals,
    ) {
        if !is_split(port, size) {
            return;
        }
        for index in 0..size {
            let byte = (value >> (8 * u32::from(index))) as u8;
            self.write_byte(port.wrapping_add(index.into()), byte, now, signals);
        }
    }

    fn write_byte(&mut self, port: u16, value: u8, now: GuestTime, signals: &mut Signals) {
        match port {
            serial::PORT..=serial::PORT_LAST => {
                self.serial
                    .write((port - serial::PORT) as u8, value, signals);
            }
            pit::PORT..=pit::PORT_LAST => {
                self.pit
                    .write((port - pit::PORT) as u8, value, now, signals);
            }
            pit::PORT_B => self.pit.write_port_b(value, now),
            cmos::INDEX => self.cmos.select(value),
            cmos::DATA => self.cmos.write(value, now),
            power::PORT..=power::PORT_LAST => {
                self.power.write((port - power::PORT) as u8, value, signals);
            }
            pic::MASTER
            | pic::MASTER_DATA
            | pic::SLAVE
            | pic::SLAVE_DATA
            | pic::EDGE_LEVEL
            | pic::EDGE_LEVEL_LAST => self.pics.write(port, value),
            _ => self.resets.write(port, value, signals),
        }
    }

    /// Bytes typed at the console. What there is no room for is lost.
    pub fn type_in(&mut self, bytes: &[u8], signals: &mut Signals) {
        self.serial.type_in(bytes, signals);
    }

    /// Room for typed bytes.
    pub fn console_room(&self) -> usize {
        self.serial.room()
    }

    /// Lets the timers that are due request their interrupts.
    pub fn advance(&mut self, now: GuestTime, signals: &mut Signals) {
        self.pit.advance(now, signals);
    }

    /// When the next timer will request an interrupt.
    pub fn next_deadline(&self) -> Option<GuestTime> {
        self.pit.next_deadline()
    }
}

/// Whether an access is split into those of single registers. The reset register takes single bytes
/// only: it lies within PCI's configuration address, and stores to that are not meant for it.
fn is_split(port: u16, size: u8) -> bool {
    let reaches_reset = reset::RESET_CONTROL.wrapping_sub(port) < size.into();
    matches!(size, 1 | 2 | 4) && (size == 1 || !reaches_reset)
}

fn all_ones(size: u8) -> u64 {
    1u64.checked_shl(u32::from(size) * 8)
        .map_or(u64::MAX, |bit| bit - 1)
}
