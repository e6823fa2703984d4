//! A vCPU between its chunks and inside one.

use std::time::{Duration, Instant};

use samsara_commitlog::{OrderChunk, VcpuIndex};
use samsara_machine::kvm::{RawExit, Restore, host_tsc};
use samsara_machine::pc::apic::LocalApic;
use samsara_machine::pc::{Own, own_access};
use samsara_machine::vcpu::VcpuState;
use samsara_machine::{Platform, Touched};

use super::committer::Settings;
use super::pacing::Pacing;
use super::tsc::Tsc;
use super::yields::Yields;
use crate::EngineError;
use crate::cpu::Cpu;

/// A vCPU, for the thread that runs it.
pub(super) struct Seat<C> {
    pub(super) index: VcpuIndex,
    pub(super) cpu: C,
    pub(super) pacing: Pacing,
    pub(super) yields: Yields,
    /// Its own part of its local APIC, as the running chunk has it.
    pub(super) apic: LocalApic,
    /// The vCPU at its last commit.
    pub(super) start: VcpuState,
    /// Scratch for the state at a chunk's end.
    pub(super) end: VcpuState,
    /// What the chunk repeats, if it is run again: what came from outside is taken from there.
    pub(super) again: Option<OrderChunk>,
}

impl<C: Cpu> Seat<C> {
    /// A vCPU that continues from a state.
    pub(super) fn new(
        index: VcpuIndex,
        mut cpu: C,
        start: VcpuState,
        tsc: Tsc,
        settings: &Settings,
    ) -> Result<Self, EngineError> {
        let (entry, how) = tsc.entry(&start, host_tsc());
        cpu.restore(&entry, how)?;
        let pacing = Pacing::new(
            settings.chunk_min,
            settings.chunk_max,
            settings.squashes_before_exclusive,
        );
        Ok(Self {
            index,
            cpu,
            pacing,
            yields: Yields::default(),
            apic: start.apic(),
            end: start.clone(),
            start,
            again: None,
        })
    }

    /// Takes over what happened to the vCPU's state, which is this now, between two chunks.
    pub(super) fn take_over(
        &mut self,
        state: &VcpuState,
        touched: Touched,
    ) -> Result<(), EngineError> {
        self.start.clone_from(state);
        self.apic = state.apic();
        match touched {
            Touched::No | Touched::Apic => {}
            Touched::Events => self.cpu.set_events(state)?,
            Touched::Whole => {
                // What captures leave out is in it already.
                self.end.clone_from(state);
                self.cpu.restore(state, Restore::KeepTime)?;
            }
        }
        Ok(())
    }

    /// Captures the state at a chunk's end.
    pub(super) fn capture(&mut self) -> Result<(), EngineError> {
        self.cpu.capture(&mut self.end)?;
        self.end.set_apic(&self.apic);
        if let (Some(order), Some(tsc)) = (self.again, self.start.tsc()) {
            self.end.set_tsc(tsc.wrapping_add(order.tsc_gain));
        }
        Ok(())
    }

    /// How much further the TSC is at the chunk's end than at its start.
    pub(super) fn tsc_gain(&self) -> u64 {
        let gain = self.start.tsc().zip(self.end.tsc());
        gain.map_or(0, |(start, end)| end.wrapping_sub(start))
    }

    /// Runs the vCPU until an exit that is not its own APIC's business.
    pub(super) fn run(
        &mut self,
        platform: Platform,
        limit: Duration,
    ) -> Result<RawExit, EngineError> {
        let Self { cpu, apic, .. } = self;
        if platform == Platform::Bare {
            return Ok(cpu.run(limit)?);
        }
        let deadline = Instant::now() + limit;
        let mut rest = limit;
        loop {
            cpu.want_window(apic.deliverable().is_some());
            let raw = cpu.run(rest)?;
            match own_access(apic, &raw) {
                Own::Other => return Ok(raw),
                Own::Done => {}
                Own::Value(value) => {
                    let finished = cpu.complete_read(value)?;
                    if finished.fatal().is_some() {
                        return Ok(finished);
                    }
                }
            }
            rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(RawExit::Cut);
            }
        }
    }
}
