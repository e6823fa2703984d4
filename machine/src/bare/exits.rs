//! What a raw exit means for a bare guest.

use samsara_commitlog::{Exit, Space};

use super::tables::EXCEPTION_PORT;
use crate::kvm::RawExit;
use crate::memory::{Image, View};
use crate::vcpu::VcpuState;

/// Guest memory as the vCPU that exited sees it.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// Through its view.
    View(&'a View),
    /// The image itself.
    Image(&'a Image),
}

impl Seen<'_> {
    fn read(self, address: u64, out: &mut [u8]) -> Option<()> {
        let layout = match self {
            Self::View(view) => view.layout(),
            Self::Image(image) => image.layout(),
        };
        let gpa = samsara_commitlog::Gpa(address);
        let offset = layout.offset_of(gpa, out.len() as u64)?;
        match self {
            Self::View(view) => view.read(offset, out),
            Self::Image(image) => image.read(gpa, out).ok()?,
        }
        Some(())
    }
}

/// Whether a vCPU has nothing to do until others commit, for all that it says.
pub fn is_yield(raw: &RawExit) -> bool {
    const YIELD: u64 = super::devices::DEVICE_PAGE + super::register::YIELD;
    matches!(
        raw,
        RawExit::Write {
            space: Space::Mmio,
            address: YIELD,
            ..
        }
    )
}

/// Turns a raw exit into the exit that a record has. `random` answers reads that need bits from
/// outside. The state is that of the exit.
pub fn interpret(
    raw: &RawExit,
    state: &VcpuState,
    memory: Seen<'_>,
    random: impl FnOnce() -> u64,
) -> Exit {
    match *raw {
        RawExit::Cut | RawExit::RingFull | RawExit::Window => Exit::Cut,
        RawExit::Write {
            space: Space::Port,
            address,
            ..
        } if address == u64::from(EXCEPTION_PORT) => exception(state, memory),
        RawExit::Write {
            space,
            address,
            size,
            value,
        } => Exit::Write {
            space,
            address,
            size,
            value,
        },
        RawExit::Read {
            space,
            address,
            size,
        } => {
            let is_random = address == super::devices::DEVICE_PAGE + super::register::RANDOM;
            Exit::Read {
                space,
                address,
                size,
                input: is_random.then(random),
            }
        }
        RawExit::Halt => fatal(state, "HLT outside an exception handler".into()),
        RawExit::Fatal(ref reason) | RawExit::Refused(ref reason) => fatal(state, reason.clone()),
    }
}

fn fatal(state: &VcpuState, reason: String) -> Exit {
    Exit::Fatal {
        rip: state.regs().rip,
        reason,
    }
}

/// Reads what the stub left on the exception stack: vector, error code, RIP.
fn exception(state: &VcpuState, memory: Seen<'_>) -> Exit {
    let mut frame = [0; 24];
    if memory.read(state.regs().rsp, &mut frame).is_none() {
        return fatal(state, "an exception with its stack outside memory".into());
    }
    let mut words = frame.chunks_exact(8).map(|word| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(word);
        u64::from_le_bytes(bytes)
    });
    let mut next = || words.next().unwrap_or_default();
    let (vector, error_code, rip) = (next(), next(), next());
    Exit::Exception {
        vector: vector as u8,
        error_code,
        rip,
        cr2: state.sregs().cr2,
    }
}
