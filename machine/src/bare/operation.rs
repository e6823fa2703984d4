//! DMA operations of the INPUT and OUTPUT registers.
//!
//! A store to the register starts one; commits of their own move its bytes. Until it is done the
//! vCPU does not run.

use samsara_commitlog::{Gpa, Input, VcpuIndex};

use crate::memory::Image;

/// Bytes in a descriptor: buffer, bytes, done.
const DESCRIPTOR_BYTES: usize = 24;
const DONE_OFFSET: u64 = 16;

/// An operation that has started and is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// What it does.
    pub operation: Operation,
    pub(super) descriptor: Gpa,
    pub(super) buffer: Gpa,
    /// Bytes to move in all.
    pub(super) bytes: u64,
    /// Bytes moved so far.
    pub(super) moved: u64,
}

/// The direction of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// From the input file to guest memory: waits for [`Input::File`].
    Input,
    /// From guest memory to the console: waits for [`Input::OutputStep`].
    Output,
}

impl Pending {
    /// Reads and checks a descriptor. The error is the text of the guest's fault.
    pub(super) fn start(
        operation: Operation,
        descriptor: Gpa,
        vcpu: VcpuIndex,
        image: &Image,
    ) -> Result<Self, String> {
        let name = match operation {
            Operation::Input => "INPUT",
            Operation::Output => "OUTPUT",
        };
        if !descriptor.0.is_multiple_of(8) {
            return Err(format!(
                "vCPU {vcpu}: {name} descriptor at {descriptor} is not 8-byte aligned"
            ));
        }
        let mut words = [0u8; DESCRIPTOR_BYTES];
        if image.read(descriptor, &mut words).is_err() {
            return Err(format!(
                "vCPU {vcpu}: {name} descriptor at {descriptor} is outside guest memory"
            ));
        }
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&words[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let (buffer, asked) = (Gpa(word(0)), word(8));
        let bytes = match operation {
            Operation::Input => asked.min(Input::FILE_BYTES_MAX as u64),
            Operation::Output => asked,
        };
        if bytes > 0 && image.layout().offset_of(buffer, bytes).is_none() {
            return Err(format!(
                "vCPU {vcpu}: {name} buffer of {asked} bytes at {buffer} is outside guest memory"
            ));
        }
        Ok(Self {
            operation,
            descriptor,
            buffer,
            bytes,
            moved: 0,
        })
    }

    /// The most bytes that the next step of this operation moves.
    pub fn step_bytes(&self) -> usize {
        (self.bytes - self.moved).min(Input::FILE_BYTES_MAX as u64) as usize
    }

    pub(super) fn position(&self) -> Gpa {
        Gpa(self.buffer.0 + self.moved)
    }

    pub(super) fn done_address(&self) -> Gpa {
        Gpa(self.descriptor.0 + DONE_OFFSET)
    }
}
