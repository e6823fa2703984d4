//! The simple machine that recorded history is compared with: one memory, one chunk at a time.

use std::collections::HashMap;
use std::sync::Arc;

use samsara_commitlog::{Chunk, Commit, Exit, Gpa, Input, Record, VcpuIndex};
use samsara_machine::{Machine, Output};

use crate::program::{self, Memory, Op, Regs, finish_read, step};

#[derive(Default)]
struct Words(HashMap<u64, u64>);

impl Memory for Words {
    fn load(&mut self, address: u64) -> u64 {
        self.0.get(&address).copied().unwrap_or(0)
    }

    fn store(&mut self, address: u64, value: u64) {
        self.0.insert(address, value);
    }
}

/// Executes committed chunks one after another, in commit order.
pub(crate) struct Model {
    programs: Vec<Arc<[Op]>>,
    regs: Vec<Regs>,
    words: Words,
}

impl Model {
    pub(crate) fn new(programs: &[Arc<[Op]>]) -> Self {
        let start = Regs {
            pc: 0,
            mix: 0,
            temp: 0,
            steps: 0,
        };
        Self {
            programs: programs.to_vec(),
            regs: vec![start; programs.len()],
            words: Words::default(),
        }
    }

    pub(crate) fn store(&mut self, address: u64, value: u64) {
        self.words.store(address, value);
    }

    /// Does what a record says was done. `before` is the machine that the record follows.
    pub(crate) fn follow(&mut self, record: &Record, before: &Machine) -> Result<(), String> {
        match &record.commit {
            Commit::Chunk(chunk) => self.chunk(record, chunk, before),
            Commit::Input(Input::File { vcpu, bytes }) => {
                let [buffer, _] = program::buffers(vcpu.0.into());
                let [descriptor, _] = program::descriptors(vcpu.0.into());
                for (place, word) in bytes.chunks(8).enumerate() {
                    let word = u64::from_le_bytes(word.try_into().unwrap());
                    self.store(buffer + place as u64 * 8, word);
                }
                self.store(descriptor + 16, bytes.len() as u64);
                Ok(())
            }
            Commit::Input(Input::Clock | Input::Device { .. }) => {
                panic!("a bare guest has no such device")
            }
            Commit::Input(Input::OutputStep { vcpu }) => {
                self.store(
                    program::descriptors(vcpu.0.into())[1] + 16,
                    program::BUFFER_BYTES,
                );
                Ok(())
            }
            Commit::Input(Input::Console(_)) => Ok(()),
            Commit::Order(_) => Err(format!("commit {} is in order form", record.seq)),
        }
    }

    /// Runs a vCPU for as many steps as its committed chunk took. What it loads is in the mixed
    /// register, so equal registers mean equal loads.
    fn chunk(&mut self, record: &Record, chunk: &Chunk, before: &Machine) -> Result<(), String> {
        let vcpu = usize::from(chunk.vcpu.0);
        let mut after = before.vcpu(chunk.vcpu).clone();
        let effects = &chunk.effects;
        after
            .apply(&effects.vcpu)
            .map_err(|error| error.to_string())?;
        let (program, regs) = (Arc::clone(&self.programs[vcpu]), &mut self.regs[vcpu]);
        let end = Regs::of(&after);
        while regs.steps < end.steps {
            if step(&program, regs, &mut self.words).is_some() && regs.steps < end.steps {
                if !matches!(chunk.exit, Exit::Read { .. }) {
                    return Err(format!(
                        "commit {}: goes on after {:?}",
                        record.seq, chunk.exit
                    ));
                }
                let value = before
                    .devices()
                    .read_value(chunk.vcpu, &chunk.exit, record.guest_time);
                finish_read(&program, regs, &mut self.words, value);
            }
        }
        if *regs == end {
            return Ok(());
        }
        Err(format!(
            "commit {}, vCPU {vcpu}: alone {regs:?}, recorded {end:?}",
            record.seq
        ))
    }

    /// Compares what a step of OUTPUT emitted with memory.
    pub(crate) fn check_output(
        &mut self,
        vcpu: VcpuIndex,
        outputs: &[Output],
    ) -> Result<(), String> {
        let [_, buffer] = program::buffers(vcpu.0.into());
        let words = (0..program::BUFFER_BYTES / 8).map(|word| self.words.load(buffer + word * 8));
        let expected: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        match outputs {
            [Output::Console(bytes)] if *bytes == expected => Ok(()),
            other => Err(format!("OUTPUT of vCPU {vcpu} gave {other:?}")),
        }
    }

    /// Compares all of memory.
    pub(crate) fn check_memory(&self, machine: &Machine) -> Result<(), String> {
        for (&address, &expected) in &self.words.0 {
            let mut found = [0; 8];
            machine
                .image()
                .read(Gpa(address), &mut found)
                .map_err(|error| error.to_string())?;
            let found = u64::from_le_bytes(found);
            if found != expected {
                return Err(format!(
                    "{address:#x}: alone {expected:#x}, recorded {found:#x}"
                ));
            }
        }
        Ok(())
    }
}
