//! The threads of a recorded machine: turns, device operations, and one chunk after the other.

use std::sync::{Arc, PoisonError};

use samsara_commitlog::{Input, VcpuIndex};
use samsara_machine::Machine;
use samsara_machine::bare::Operation;

use super::chunk::{ChunkRunner, Outcome};
use super::committer::Shared;
use super::lane::LaneIndex;
use super::pacing::Company;
use super::rotation::Turn;
use super::seat::Seat;
use crate::EngineError;
use crate::cpu::Cpu;
use crate::spent::Phase;
use crate::stats::count;

/// What a thread does next.
enum Next {
    /// A chunk of this vCPU.
    Chunk(VcpuIndex),
    /// A step of this vCPU's device operation, of at most so many bytes.
    Step(VcpuIndex, Operation, usize),
    /// The vCPU, or all, have halted for good.
    Park,
    Leave,
}

/// What a vCPU could do.
enum Could {
    Run,
    Step(Operation, usize),
    Wait,
    Park,
}

fn could(machine: &Machine, vcpu: VcpuIndex) -> Could {
    let devices = machine.devices();
    if devices.is_halted(vcpu) {
        return Could::Park;
    }
    match devices.pending(vcpu) {
        Some(pending) => Could::Step(pending.operation, pending.step_bytes()),
        None if devices.can_run(vcpu) => Could::Run,
        None => Could::Wait,
    }
}

/// What the first of these vCPUs that can do something does next; waits until one can.
fn next(shared: &Shared, vcpus: &(impl Iterator<Item = VcpuIndex> + Clone)) -> Next {
    let mut machine = shared.machine();
    loop {
        if shared.is_over(&machine) {
            return Next::Leave;
        }
        let mut is_waiting = false;
        for vcpu in vcpus.clone() {
            match could(&machine, vcpu) {
                Could::Run => return Next::Chunk(vcpu),
                Could::Step(operation, bytes) => return Next::Step(vcpu, operation, bytes),
                Could::Wait => is_waiting = true,
                Could::Park => {}
            }
        }
        if !is_waiting {
            return Next::Park;
        }
        machine = shared.wait(machine, None);
    }
}

pub(super) fn seat<C: Cpu>(
    index: VcpuIndex,
    shared: &Shared,
    mut cpu: C,
) -> Result<Seat<C>, EngineError> {
    cpu.attach()?;
    let start = {
        let mut machine = shared.machine();
        machine.take_touched(index);
        machine.vcpu(index).clone()
    };
    Seat::new(index, cpu, start, shared.tsc, &shared.settings)
}

/// Runs a vCPU beside the others until the machine ends or the recorder stops.
pub(super) fn run<C: Cpu>(
    index: VcpuIndex,
    shared: &Arc<Shared>,
    cpu: C,
) -> Result<(), EngineError> {
    let seat = seat(index, shared, cpu)?;
    let lane = LaneIndex(index.0.into());
    let mut runner = ChunkRunner::new(lane, Arc::clone(shared), seat);
    let mut turn = None;
    loop {
        match next(shared, &std::iter::once(index)) {
            Next::Leave => return Ok(()),
            Next::Park => {
                turn = None;
                shared.lane(lane).retire();
                shared.park_until_stop();
            }
            Next::Step(vcpu, operation, bytes) => step(vcpu, shared, operation, bytes)?,
            Next::Chunk(_) => {
                chunk(shared, &mut runner, &mut turn)?;
                // One that waits now, for an interrupt perhaps that another sends in its own turn.
                if !shared.machine().devices().can_run(index) {
                    turn = None;
                }
            }
        }
    }
}

/// Runs all vCPUs, one chunk at a time, in turn.
pub(super) fn run_all<C: Cpu>(shared: &Arc<Shared>, cpus: Vec<C>) -> Result<(), EngineError> {
    let indices = (0..).map(VcpuIndex);
    let seats = indices
        .zip(cpus)
        .map(|(index, cpu)| seat(index, shared, cpu));
    let mut seats = seats.collect::<Result<Vec<_>, _>>()?;
    let count = seats.len() as u8;
    // The runner has the seat of `at`; what stands in its place among the others is nobody's.
    let mut at = VcpuIndex(count - 1);
    let first = seats.pop().ok_or(EngineError::NoVcpus)?;
    let mut runner = ChunkRunner::new(LaneIndex(0), Arc::clone(shared), first);
    let mut others: Vec<_> = seats.into_iter().map(Some).chain([None]).collect();
    loop {
        let in_turn = (1..=count).map(move |step| VcpuIndex((at.0 + step) % count));
        match next(shared, &in_turn) {
            Next::Leave => return Ok(()),
            Next::Park => shared.park_until_stop(),
            Next::Step(vcpu, operation, bytes) => step(vcpu, shared, operation, bytes)?,
            Next::Chunk(vcpu) => {
                if let Some(seat) = others[usize::from(vcpu.0)].take() {
                    others[usize::from(at.0)] = Some(std::mem::replace(runner.seat(), seat));
                    at = vcpu;
                }
                runner.laps.lap(Phase::Rest);
                shared.outside.wait_for_room();
                runner.laps.lap(Phase::Backup);
                let _beside = shared.turnstile.beside();
                runner.laps.lap(Phase::Turn);
                if runner.get_ready()? {
                    runner.run_chunk()?;
                }
            }
        }
    }
}

/// One chunk: beside the others, in turn, or alone, as its recent past asks. A turn may last for
/// more than one chunk.
fn chunk<'a, C: Cpu>(
    shared: &'a Shared,
    runner: &mut ChunkRunner<C>,
    turn: &mut Option<Turn<'a>>,
) -> Result<(), EngineError> {
    runner.laps.lap(Phase::Rest);
    shared.outside.wait_for_room();
    runner.laps.lap(Phase::Backup);
    let company = runner.next_company();
    if company != Company::Turns {
        *turn = None;
    }
    if company == Company::None {
        shared.kick_all();
        let _alone = shared.turnstile.alone();
        runner.laps.lap(Phase::Turn);
        if runner.get_ready()? && runner.run_chunk()? == Outcome::Committed {
            count(&runner.stats().exclusive_chunks, 1);
        }
        return Ok(());
    }
    if company == Company::Turns && turn.is_none() {
        *turn = Some(shared.rotation.enter());
    }
    let beside = shared.turnstile.beside();
    runner.laps.lap(Phase::Turn);
    if runner.get_ready()? {
        runner.run_chunk()?;
    }
    if !runner.keeps_turn() {
        *turn = None;
    }
    drop(beside);
    if let Some(rest) = runner.rest.take() {
        *turn = None;
        let had_news = shared.rest(runner.lane, rest);
        runner.seat().yields.rested(had_news);
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
    let _floor = shared.floor();
    Ok(shared.commit_input(|_| Some(input))?)
}
