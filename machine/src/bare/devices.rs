//! The device page of bare guests. State changes only here, from `apply`, on every replica alike.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use samsara_commitlog::{Exit, Gpa, GuestTime, Input, Space, VcpuIndex};

use super::operation::{Operation, Pending};
use crate::machine::Ended;
use crate::memory::Image;

/// Physical and virtual address of the device page.
pub const DEVICE_PAGE: u64 = 0xd000_0000;

/// Offsets of the registers in the device page.
pub mod register {
    /// Console byte in and out.
    pub const CONSOLE: u64 = 0x00;
    /// Exit status of the run.
    pub const EXIT: u64 = 0x08;
    /// Guest clock.
    pub const CLOCK: u64 = 0x10;
    /// Random bits.
    pub const RANDOM: u64 = 0x18;
    /// Ends the chunk.
    pub const YIELD: u64 = 0x20;
    /// Stops the vCPU.
    pub const HALT: u64 = 0x28;
    /// Progress mark.
    pub const MARK: u64 = 0x30;
    /// Read from the input file by DMA.
    pub const INPUT: u64 = 0x38;
    /// Write to the console by DMA.
    pub const OUTPUT: u64 = 0x40;
}

use register::{CLOCK, CONSOLE, EXIT, HALT, INPUT, MARK, OUTPUT, RANDOM, YIELD};

/// Console bytes that wait for the guest; more are refused until it reads some.
const CONSOLE_QUEUE_BYTES: usize = 64 << 10;

/// What a device did to the world outside its own state.
#[derive(Debug, Default)]
pub struct Effect {
    /// Bytes for the console.
    pub console: Option<Bytes>,
    /// Stores to guest memory by DMA.
    pub dma: Vec<(Gpa, Bytes)>,
    /// The machine stops.
    pub ended: Option<Ended>,
}

/// An input that does not follow from the state; the log that has it is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No operation waits for it.
    #[error("vCPU {0} has no operation that this input continues")]
    NotWaiting(VcpuIndex),
    /// The machine has no device that takes such an input.
    #[error("the machine has no device that takes this input")]
    NoSuchDevice,
    /// More bytes than were asked for.
    #[error("input of {0} bytes is more than was asked for")]
    TooLong(usize),
    /// Encoded state that is not one.
    #[error("device state of {0} bytes is damaged")]
    Damaged(usize),
}

/// The state of the device page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BareDevices {
    mark: u64,
    input_offset: u64,
    halted: u32,
    console: VecDeque<u8>,
    pending: Vec<Option<Pending>>,
}

impl BareDevices {
    /// Devices at boot.
    pub fn new(vcpu_count: u8) -> Self {
        Self {
            mark: 0,
            input_offset: 0,
            halted: 0,
            console: VecDeque::new(),
            pending: vec![None; vcpu_count.into()],
        }
    }

    /// The last MARK.
    pub fn mark(&self) -> u64 {
        self.mark
    }

    /// Where the next INPUT reads the input file.
    pub fn input_offset(&self) -> u64 {
        self.input_offset
    }

    /// Whether a vCPU has stopped for good.
    pub fn is_halted(&self, vcpu: VcpuIndex) -> bool {
        self.halted & 1 << vcpu.0 != 0
    }

    /// The operation that a vCPU waits for.
    pub fn pending(&self, vcpu: VcpuIndex) -> Option<&Pending> {
        self.pending.get(usize::from(vcpu.0))?.as_ref()
    }

    /// Room for console input, in bytes.
    pub fn console_room(&self) -> usize {
        CONSOLE_QUEUE_BYTES.saturating_sub(self.console.len())
    }

    /// What a load from a device register gives. Changes nothing.
    pub fn read_value(&self, exit: &Exit, time: GuestTime) -> u64 {
        let &Exit::Read { address, input, .. } = exit else {
            return 0;
        };
        match address.wrapping_sub(DEVICE_PAGE) {
            CONSOLE => self.console.front().map_or(u64::MAX, |&byte| byte.into()),
            CLOCK => time.0,
            RANDOM => input.unwrap_or(0),
            MARK => self.mark,
            _ => 0,
        }
    }

    /// Acts on the exit that ended a chunk of `vcpu`.
    pub fn exit(&mut self, vcpu: VcpuIndex, exit: &Exit, image: &Image) -> Effect {
        match exit {
            Exit::Cut => Effect::default(),
            Exit::Halt | Exit::Window => fault_effect(format!("vCPU {vcpu}: HLT in a bare guest")),
            &Exit::Write {
                space,
                address,
                size,
                value,
            } => match check_access(vcpu, "write", space, address, size) {
                Ok(offset) => self.write(vcpu, offset, value, image),
                Err(fault) => fault_effect(fault),
            },
            &Exit::Read {
                space,
                address,
                size,
                ..
            } => match check_access(vcpu, "read", space, address, size) {
                Ok(offset) => self.read(vcpu, offset),
                Err(fault) => fault_effect(fault),
            },
            Exit::Exception {
                vector,
                error_code,
                rip,
                cr2,
            } => fault_effect(format!(
                "vCPU {vcpu}: exception {vector} ({}), error code {error_code:#x}, RIP {rip:#x}, \
                 CR2 {cr2:#x}",
                exception_name(*vector)
            )),
            Exit::Fatal { rip, reason } => fault_effect(format!(
                "vCPU {vcpu}: cannot go on at RIP {rip:#x}: {reason}"
            )),
        }
    }

    fn read(&mut self, vcpu: VcpuIndex, offset: u64) -> Effect {
        match offset {
            CONSOLE => {
                self.console.pop_front();
            }
            CLOCK | RANDOM | MARK => {}
            _ => {
                return fault_effect(format!(
                    "vCPU {vcpu}: read of device register {offset:#x}, which cannot be read"
                ));
            }
        }
        Effect::default()
    }

    fn write(&mut self, vcpu: VcpuIndex, offset: u64, value: u64, image: &Image) -> Effect {
        let mut effect = Effect::default();
        match offset {
            CONSOLE => effect.console = Some(Bytes::copy_from_slice(&[value as u8])),
            EXIT => {
                effect.ended = Some(Ended::Exit {
                    status: value as u8,
                });
            }
            YIELD => {}
            MARK => self.mark = value,
            HALT => {
                self.halted |= 1 << vcpu.0;
                if self.halted.count_ones() as usize == self.pending.len() {
                    effect.ended = Some(Ended::Halted);
                }
            }
            INPUT | OUTPUT => {
                let operation = if offset == INPUT {
                    Operation::Input
                } else {
                    Operation::Output
                };
                match Pending::start(operation, Gpa(value), vcpu, image) {
                    Ok(pending) => self.pending[usize::from(vcpu.0)] = Some(pending),
                    Err(fault) => return fault_effect(fault),
                }
            }
            _ => {
                return fault_effect(format!(
                    "vCPU {vcpu}: write to device register {offset:#x}, which cannot be written"
                ));
            }
        }
        effect
    }

    /// Takes an input.
    pub fn input(&mut self, input: &Input, image: &Image) -> Result<Effect, DeviceError> {
        match input {
            Input::Console(bytes) => {
                if bytes.len() > self.console_room() {
                    return Err(DeviceError::TooLong(bytes.len()));
                }
                self.console.extend(bytes);
                Ok(Effect::default())
            }
            Input::File { vcpu, bytes } => self.file_input(*vcpu, bytes),
            Input::OutputStep { vcpu } => self.output_step(*vcpu, image),
            Input::Clock | Input::Device { .. } => Err(DeviceError::NoSuchDevice),
        }
    }

    fn waiting(
        &mut self,
        vcpu: VcpuIndex,
        operation: Operation,
    ) -> Result<(&mut Option<Pending>, Pending), DeviceError> {
        let slot = self.pending.get_mut(usize::from(vcpu.0));
        let slot = slot.ok_or(DeviceError::NotWaiting(vcpu))?;
        match *slot {
            Some(pending) if pending.operation == operation => Ok((slot, pending)),
            _ => Err(DeviceError::NotWaiting(vcpu)),
        }
    }

    fn file_input(&mut self, vcpu: VcpuIndex, bytes: &Bytes) -> Result<Effect, DeviceError> {
        let (slot, pending) = self.waiting(vcpu, Operation::Input)?;
        if bytes.len() > pending.step_bytes() {
            return Err(DeviceError::TooLong(bytes.len()));
        }
        *slot = None;
        self.input_offset = self.input_offset.saturating_add(bytes.len() as u64);
        let done = (bytes.len() as u64).to_le_bytes();
        let mut effect = Effect::default();
        if !bytes.is_empty() {
            effect.dma.push((pending.buffer, bytes.clone()));
        }
        effect
            .dma
            .push((pending.done_address(), Bytes::copy_from_slice(&done)));
        Ok(effect)
    }

    fn output_step(&mut self, vcpu: VcpuIndex, image: &Image) -> Result<Effect, DeviceError> {
        let (slot, mut pending) = self.waiting(vcpu, Operation::Output)?;
        let mut bytes = vec![0; pending.step_bytes()];
        // No bytes may be anywhere.
        if !bytes.is_empty() {
            let read = image.read(pending.position(), &mut bytes);
            read.map_err(|_| DeviceError::NotWaiting(vcpu))?;
        }
        pending.moved += bytes.len() as u64;
        let mut effect = Effect::default();
        if pending.moved == pending.bytes {
            let done = pending.moved.to_le_bytes();
            effect
                .dma
                .push((pending.done_address(), Bytes::copy_from_slice(&done)));
            *slot = None;
        } else {
            *slot = Some(pending);
        }
        if !bytes.is_empty() {
            effect.console = Some(bytes.into());
        }
        Ok(effect)
    }

    /// The state as bytes, for snapshots and digests.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        for word in [
            self.mark,
            self.input_offset,
            self.halted.into(),
            self.console.len() as u64,
        ] {
            out.put_u64_le(word);
        }
        let (front, back) = self.console.as_slices();
        out.put_slice(front);
        out.put_slice(back);
        for pending in &self.pending {
            let Some(pending) = pending else {
                out.put_u8(0);
                continue;
            };
            out.put_u8(match pending.operation {
                Operation::Input => 1,
                Operation::Output => 2,
            });
            for word in [
                pending.descriptor.0,
                pending.buffer.0,
                pending.bytes,
                pending.moved,
            ] {
                out.put_u64_le(word);
            }
        }
        out.freeze()
    }

    /// Reads [`Self::encode`]'s bytes back, checked against the machine they are for.
    pub fn decode(bytes: &Bytes, vcpu_count: u8, image: &Image) -> Result<Self, DeviceError> {
        let damaged = DeviceError::Damaged(bytes.len());
        let mut rest = bytes.clone();
        let mut word = || rest.try_get_u64_le().map_err(|_| damaged);
        let (mark, input_offset, halted, queued) = (word()?, word()?, word()?, word()?);
        let halted = u32::try_from(halted).map_err(|_| damaged)?;
        let queued = usize::try_from(queued).map_err(|_| damaged)?;
        if halted >> vcpu_count != 0 || queued > CONSOLE_QUEUE_BYTES || queued > rest.len() {
            return Err(damaged);
        }
        let console = rest.split_to(queued).into_iter().collect();
        let mut pending = Vec::new();
        for _ in 0..vcpu_count {
            pending.push(decode_pending(&mut rest, image).map_err(|()| damaged)?);
        }
        if !rest.is_empty() {
            return Err(damaged);
        }
        Ok(Self {
            mark,
            input_offset,
            halted,
            console,
            pending,
        })
    }
}

fn decode_pending(rest: &mut Bytes, image: &Image) -> Result<Option<Pending>, ()> {
    let operation = match rest.try_get_u8().map_err(|_| ())? {
        0 => return Ok(None),
        1 => Operation::Input,
        2 => Operation::Output,
        _ => return Err(()),
    };
    let mut word = || rest.try_get_u64_le().map_err(|_| ());
    let (descriptor, buffer) = (Gpa(word()?), Gpa(word()?));
    let (bytes, moved) = (word()?, word()?);
    let layout = image.layout();
    let fits = layout.offset_of(descriptor, 24).is_some()
        && (bytes == 0 || layout.offset_of(buffer, bytes).is_some())
        && moved <= bytes;
    if fits {
        Ok(Some(Pending {
            operation,
            descriptor,
            buffer,
            bytes,
            moved,
        }))
    } else {
        Err(())
    }
}

/// The register of an access that the contract allows.
fn check_access(
    vcpu: VcpuIndex,
    what: &str,
    space: Space,
    address: u64,
    size: u8,
) -> Result<u64, String> {
    let offset = address.wrapping_sub(DEVICE_PAGE);
    let is_register = space == Space::Mmio && offset <= OUTPUT;
    let is_whole = size == 8 && offset.is_multiple_of(8);
    let is_console_byte = size == 1 && offset == CONSOLE;
    if is_register && (is_whole || is_console_byte) {
        return Ok(offset);
    }
    let place = match space {
        Space::Mmio => "address",
        Space::Port => "port",
        Space::Msr => "MSR",
    };
    Err(format!(
        "vCPU {vcpu}: {what} of {size} bytes at {place} {address:#x} is no access to a device register"
    ))
}

fn fault_effect(message: String) -> Effect {
    Effect {
        ended: Some(Ended::Fault { message }),
        ..Effect::default()
    }
}

fn exception_name(vector: u8) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 floating point",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD floating point",
        21 => "control protection",
        _ => "reserved",
    }
}
