//! A vCPU's thread: turns, device operations, and one chunk after the other.

use std::sync::{Arc, PoisonError};

use samsara_commitlog::{Input, VcpuIndex};
use samsara_machine::bare::Operation;

use super::chunk::{ChunkRunner, Outcome};
use super::committer::Shared;
use super::pacing::Company;
use super::rotation::Turn;
use crate::EngineError;
use crate::cpu::Cpu;
use crate::stats::count;

/// What a vCPU does next.
enum Next {
    Chunk,
    /// A step of a device operation, of at most so many bytes.
    Step(Operation, usize),
    /// It has halted.
    Park,
    Leave,
}

/// Runs a vCPU until the machine ends or the recorder stops.
pub(super) fn run<C: Cpu>(
    index: VcpuIndex,
    shared: &Arc<Shared>,
    mut cpu: C,
) -> Result<(), EngineError> {
    cpu.attach()?;
    let state = shared.machine().vcpu(index).clone();
    let mut runner = ChunkRunner::new(index, Arc::clone(shared), cpu, state)?;
    let mut turn = None;
    loop {
        match next(index, shared) {
            Next::Leave => return Ok(()),
            Next::Park => {
                turn = None;
                shared.lane(index).retire();
                shared.park_until_stop();
            }
            Next::Step(operation, bytes) => step(index, shared, operation, bytes)?,
            Next::Chunk => chunk(shared, &mut runner, &mut turn)?,
        }
    }
}

fn next(index: VcpuIndex, shared: &Shared) -> Next {
    let machine = shared.machine();
    if shared.is_stopping() || machine.ended().is_some() {
        return Next::Leave;
    }
    if machine.devices().is_halted(index) {
        return Next::Park;
    }
    match machine.devices().pending(index) {
        Some(pending) => Next::Step(pending.operation, pending.step_bytes()),
        None => Next::Chunk,
    }
}

/// One chunk: beside the others, in turn, or alone, as its recent past asks. A turn may last for
/// more than one chunk.
fn chunk<'a, C: Cpu>(
    shared: &'a Shared,
    runner: &mut ChunkRunner<C>,
    turn: &mut Option<Turn<'a>>,
) -> Result<(), EngineError> {
    shared.outside.wait_for_room();
    let company = runner.next_company();
    if company != Company::Turns {
        *turn = None;
    }
    if company == Company::None {
        shared.kick_all();
        let _alone = shared.turnstile.alone();
        if runner.run_chunk()? == Outcome::Committed {
            count(&runner.stats().exclusive_chunks, 1);
        }
        return Ok(());
    }
    if company == Company::Turns && turn.is_none() {
        *turn = Some(shared.rotation.enter());
    }
    let _beside = shared.turnstile.beside();
    runner.run_chunk()?;
    if !runner.keeps_turn() {
        *turn = None;
    }
    Ok(())
}

/// Moves the next bytes of a device operation, as a commit of its own.
fn step(
    vcpu: VcpuIndex,
    shared: &Shared,
    operation: Operation,
    bytes: usize,
) -> Result<(), EngineError> {
    shared.outside.wait_for_room();
    let _file = shared
        .input_file
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let input = match operation {
        Operation::Output => Input::OutputStep { vcpu },
        Operation::Input => {
            let offset = shared.machine().devices().input_offset();
            let read = shared.outside.read_input(offset, bytes);
            let bytes = read.map_err(|source| EngineError::Input { offset, source })?;
            Input::File { vcpu, bytes }
        }
    };
    let _turn = shared.turnstile.beside();
    Ok(shared.commit_input(|_| Some(input))?)
}
