//! The serial port: a 16550 by vm-superio, kept as plain data between accesses, and a queue of typed
//! bytes behind its receiver.

use std::cell::Cell;
use std::collections::VecDeque;
use std::convert::Infallible;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

use super::super::Signals;
use super::LegacyFault;
use crate::machine::Output;

/// The first port.
pub(super) const PORT: u16 = 0x3f8;
/// The last port.
pub(super) const PORT_LAST: u16 = PORT + 7;

/// The IOAPIC pin of ISA interrupt 4.
const PIN: u32 = 4;
/// Typed bytes that wait for the guest; more are refused until it reads some.
const TYPED_BYTES_MAX: usize = 64 << 10;
/// The size of vm-superio's receiver.
const RECEIVER_BYTES: usize = 64;

/// Remembers that the device asked for an interrupt.
#[derive(Debug, Default)]
struct Request(Cell<bool>);

impl Trigger for Request {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

type Uart = Serial<Request, NoEvents, Vec<u8>>;

/// The serial port's registers and bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SerialPort {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    receiver: Vec<u8>,
    typed: VecDeque<u8>,
}

impl SerialPort {
    pub(super) fn new() -> Self {
        Self::with_state(SerialState::default(), VecDeque::new())
    }

    fn with_state(state: SerialState, typed: VecDeque<u8>) -> Self {
        Self {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            receiver: state.in_buffer,
            typed,
        }
    }

    pub(super) fn check(&self) -> Result<(), LegacyFault> {
        if self.receiver.len() > RECEIVER_BYTES {
            return Err(LegacyFault::Receiver(self.receiver.len()));
        }
        if self.typed.len() > TYPED_BYTES_MAX {
            return Err(LegacyFault::Typed(self.typed.len()));
        }
        Ok(())
    }

    /// The device. None only for a receiver that is too full, which [`Self::check`] refuses.
    fn uart(&self) -> Option<Uart> {
        let state = SerialState {
            baud_divisor_low: self.divisor[0],
            baud_divisor_high: self.divisor[1],
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: self.receiver.clone(),
        };
        let uart = Serial::from_state(&state, Request::default(), NoEvents, Vec::new()).ok()?;
        // It asks again for the interrupts that it has asked for before.
        uart.interrupt_evt().0.set(false);
        Some(uart)
    }

    /// Lets the device do something, then gives it the next typed bytes if its receiver is empty. Not
    /// earlier: so there is one interrupt for a receiver of bytes.
    fn access(&mut self, signals: &mut Signals, act: impl FnOnce(&mut Uart)) {
        let Some(mut uart) = self.uart() else {
            return;
        };
        act(&mut uart);
        if uart.fifo_capacity() == RECEIVER_BYTES && !self.typed.is_empty() {
            let count = self.typed.len().min(RECEIVER_BYTES);
            let bytes: Vec<u8> = self.typed.iter().copied().take(count).collect();
            // None are taken in loopback mode.
            let taken = uart.enqueue_raw_bytes(&bytes).unwrap_or(0);
            self.typed.drain(..taken);
        }
        if uart.interrupt_evt().0.get() {
            signals.pulses |= 1 << PIN;
        }
        let state = uart.state();
        let output = uart.into_writer();
        if !output.is_empty() {
            signals.outputs.push(Output::Console(output.into()));
        }
        *self = Self::with_state(state, std::mem::take(&mut self.typed));
    }

    pub(super) fn read(&self, offset: u8) -> u8 {
        self.uart().map_or(0, |mut uart| uart.read(offset))
    }

    pub(super) fn finish_read(&mut self, offset: u8, signals: &mut Signals) {
        self.access(signals, |uart| {
            uart.read(offset);
        });
    }

    pub(super) fn write(&mut self, offset: u8, value: u8, signals: &mut Signals) {
        self.access(signals, |uart| {
            // Neither a Vec nor a Request ever fails.
            let _ = uart.write(offset, value);
        });
    }

    pub(super) fn type_in(&mut self, bytes: &[u8], signals: &mut Signals) {
        let count = bytes.len().min(self.room());
        self.typed.extend(&bytes[..count]);
        self.access(signals, |_| {});
    }

    pub(super) fn room(&self) -> usize {
        TYPED_BYTES_MAX.saturating_sub(self.typed.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u8 = 0;
    const ENABLE: u8 = 1;
    const IDENTIFICATION: u8 = 2;
    const MODEM_CONTROL: u8 = 4;
    const STATUS: u8 = 5;

    #[test]
    fn bytes_written_are_outputs() {
        let mut port = SerialPort::new();
        let mut signals = Signals::default();
        port.write(DATA, b'a', &mut signals);
        port.write(DATA, b'b', &mut signals);
        let expected = [b"a", b"b"].map(|byte| Output::Console(byte.to_vec().into()));
        assert_eq!(signals.outputs, expected);
        assert_eq!(signals.pulses, 0);
        port.write(ENABLE, 2, &mut signals);
        assert_eq!(signals.pulses, 1 << PIN);
        // Looking does not acknowledge; finishing the load does.
        assert_eq!(
            (port.read(IDENTIFICATION), port.read(IDENTIFICATION)),
            (0xc2, 0xc2)
        );
        port.finish_read(IDENTIFICATION, &mut signals);
        assert_eq!(port.read(IDENTIFICATION), 0xc1);
    }

    #[test]
    fn typed_bytes_come_in_order_with_an_interrupt_for_each_receiver() {
        let mut port = SerialPort::new();
        port.write(ENABLE, 1, &mut Signals::default());
        let typed: Vec<u8> = (0..200).collect();
        let mut pulses = 0;
        let mut read = Vec::new();
        let mut signals = Signals::default();
        port.type_in(&typed, &mut signals);
        loop {
            pulses += u32::from(signals.pulses == 1 << PIN);
            if port.read(STATUS) & 1 == 0 {
                break;
            }
            signals = Signals::default();
            read.push(port.read(DATA));
            port.finish_read(DATA, &mut signals);
        }
        assert_eq!(read, typed);
        assert_eq!(pulses, 4);
    }

    #[test]
    fn the_queue_is_bounded_and_waits_for_the_end_of_loopback() {
        let mut port = SerialPort::new();
        let mut signals = Signals::default();
        port.write(MODEM_CONTROL, 0x10, &mut signals);
        port.type_in(&vec![b'x'; TYPED_BYTES_MAX + 5], &mut signals);
        assert_eq!((port.room(), port.read(STATUS) & 1), (0, 0));
        port.write(MODEM_CONTROL, 0, &mut signals);
        assert_eq!((port.room(), port.read(STATUS) & 1), (RECEIVER_BYTES, 1));
        assert_eq!(port.check(), Ok(()));
    }

    #[test]
    fn a_receiver_from_outside_is_checked() {
        let mut port = SerialPort::new();
        port.receiver = vec![0; RECEIVER_BYTES + 1];
        assert_eq!(port.check(), Err(LegacyFault::Receiver(65)));
        port.finish_read(DATA, &mut Signals::default());
        assert_eq!(port.read(DATA), 0);
    }
}
