//! Going back to states that a machine has had.

use bytes::Bytes;
use samsara_commitlog::{ByteRuns, ByteRunsBuilder, CommitSeq, GuestTime};

use super::{Devices, Ended, Machine, SnapshotError};
use crate::memory::{Image, MemoryError, PageIndex};
use crate::vcpu::VcpuState;

/// What turns one state of a machine into another one of its history. Disks are no part of it.
#[derive(Debug)]
pub struct Change {
    seq: CommitSeq,
    guest_time: GuestTime,
    ended: Option<Ended>,
    /// By vCPU.
    vcpus: Vec<ByteRuns>,
    /// Nothing if they are the same in both.
    devices: Option<Bytes>,
    memory: ByteRuns,
}

impl Change {
    /// The last commit of the state that it leads to.
    pub fn seq(&self) -> CommitSeq {
        self.seq
    }

    /// The bytes of memory that differ, as they are in the state that it leads to. The way back has the same addresses.
    pub fn memory(&self) -> &ByteRuns {
        &self.memory
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        let vcpus = self.vcpus.iter().map(|runs| runs.encoded().len());
        let devices = self.devices.as_ref().map_or(0, Bytes::len);
        let runs_bytes = self.vcpus.len() * size_of::<ByteRuns>();
        size_of::<Self>()
            + runs_bytes
            + vcpus.sum::<usize>()
            + devices
            + self.memory.encoded().len()
    }
}

/// A copy of a machine's state that follows it from commit to commit, and tells the way back.
///
/// Call [`Self::follow`] after each commit (or after several), or [`Self::go`]; nothing else may change the machine. It has
/// a copy of all the memory that the guest has touched: what devices write is known only afterwards.
#[derive(Debug)]
pub struct Shadow {
    image: Image,
    seq: CommitSeq,
    guest_time: GuestTime,
    ended: Option<Ended>,
    vcpus: Vec<VcpuState>,
    devices: Bytes,
}

impl Shadow {
    /// A copy of the machine as it is.
    pub fn new(machine: &Machine) -> Result<Self, MemoryError> {
        let image = Image::new(machine.shape)?;
        for page in machine.image.touched_pages() {
            image.adopt_page(&machine.image, page);
        }
        Ok(Self {
            image,
            seq: machine.seq,
            guest_time: machine.guest_time,
            ended: machine.ended.clone(),
            vcpus: machine.vcpus.clone(),
            devices: machine.devices.encode(),
        })
    }

    /// Follows the machine to its present state. `written` are the pages that changed since, rising, each once. Gives the
    /// way back.
    pub fn follow(&mut self, machine: &Machine, written: &[PageIndex]) -> Change {
        let mut memory = ByteRunsBuilder::default();
        for &page in written {
            self.image
                .push_other_bytes(&machine.image, page, &mut memory);
            self.image.adopt_page(&machine.image, page);
        }
        let states = self.vcpus.iter_mut().zip(&machine.vcpus);
        let vcpus = states.map(|(old, new)| {
            if old == new {
                return ByteRuns::default();
            }
            let back = old.changes_since(new);
            old.clone_from(new);
            back
        });
        let vcpus = vcpus.collect();
        let devices = machine.devices.encode();
        let devices =
            (devices != self.devices).then(|| std::mem::replace(&mut self.devices, devices));
        Change {
            seq: std::mem::replace(&mut self.seq, machine.seq),
            guest_time: std::mem::replace(&mut self.guest_time, machine.guest_time),
            ended: std::mem::replace(&mut self.ended, machine.ended.clone()),
            vcpus,
            devices,
            memory: memory.finish(),
        }
    }

    /// Takes the machine from the state that this is a copy of to another one. Gives the way back.
    ///
    /// An error means that the change is not of this state; the machine must not be used further.
    pub fn go(&mut self, machine: &mut Machine, change: &Change) -> Result<Change, SnapshotError> {
        let mut written = Vec::new();
        machine.image.write_runs(&change.memory, &mut written)?;
        machine.note_written(&written);
        for (state, runs) in machine.vcpus.iter_mut().zip(&change.vcpus) {
            state.apply(runs)?;
        }
        if let Some(devices) = &change.devices {
            let vcpu_count = machine.shape.vcpu_count;
            machine.devices = Devices::decode(devices, vcpu_count, &machine.image)?;
        }
        machine.seq = change.seq;
        machine.guest_time = change.guest_time;
        machine.ended.clone_from(&change.ended);
        Ok(self.follow(machine, &written))
    }
}
