//! Going back to states that a machine has had.

use bytes::Bytes;
use samsara_commitlog::{ByteRuns, ByteRunsBuilder, CommitSeq, Gpa, GuestTime, StateDigest};

use super::{Devices, Ended, Machine, SnapshotError, Touched};
use crate::memory::{Image, MemoryDigest, MemoryError, PageIndex};
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

/// A copy of a machine, without its disks, that follows it from commit to commit and goes back and forth over what it has
/// followed.
///
/// `follow` after each commit of the machine (or after several), while this is where the machine was before; `go` at any time.
/// That it is a copy costs as much memory as the guest has touched, and makes it all the same how the machine came to its states,
/// and what of them was known before: what devices write is not.
#[derive(Debug)]
pub struct Rewindable(Machine);

impl Rewindable {
    /// A copy of a machine as it is.
    pub fn new(machine: &Machine) -> Result<Self, MemoryError> {
        let image = Image::new(machine.shape)?;
        for page in machine.image.touched_pages() {
            image.adopt_page(&machine.image, page);
        }
        Ok(Self(Machine {
            shape: machine.shape,
            seq: machine.seq,
            guest_time: machine.guest_time,
            digest: MemoryDigest::new(&image),
            image: image.into(),
            vcpus: machine.vcpus.clone(),
            devices: machine.devices.clone(),
            disks: Vec::new(),
            touched: vec![Touched::No; machine.shape.vcpu_count.into()],
            ended: machine.ended.clone(),
            tracked: None,
        }))
    }

    /// Where it is.
    pub fn machine(&self) -> &Machine {
        &self.0
    }

    /// Digest of the whole state where it is.
    pub fn digest(&self) -> StateDigest {
        self.0.digest()
    }

    /// Follows the machine to its present state. `written` are the pages that changed since, rising, each once. Gives the
    /// way back.
    pub fn follow(&mut self, machine: &Machine, written: &[PageIndex]) -> Change {
        let here = &mut self.0;
        let mut memory = ByteRunsBuilder::default();
        for &page in written {
            here.image
                .push_other_bytes(&machine.image, page, &mut memory);
            here.image.adopt_page(&machine.image, page);
        }
        here.digest_pages(written);
        let states = here.vcpus.iter_mut().zip(&machine.vcpus);
        let vcpus = states.map(|(here, there)| replace_state(here, there));
        let vcpus = vcpus.collect();
        let devices = (here.devices != machine.devices).then(|| {
            let old = std::mem::replace(&mut here.devices, machine.devices.clone());
            old.encode()
        });
        Change {
            seq: std::mem::replace(&mut here.seq, machine.seq),
            guest_time: std::mem::replace(&mut here.guest_time, machine.guest_time),
            ended: std::mem::replace(&mut here.ended, machine.ended.clone()),
            vcpus,
            devices,
            memory: memory.finish(),
        }
    }

    /// Goes along a change. Gives the way back.
    ///
    /// An error means that the change is not one of this state; this must not be used further.
    pub fn go(&mut self, change: &Change) -> Result<Change, SnapshotError> {
        let here = &mut self.0;
        let mut memory = ByteRunsBuilder::default();
        let mut written = Vec::new();
        for (address, bytes) in change.memory.iter() {
            let mut old = vec![0; bytes.len()];
            here.image.read(Gpa(address), &mut old)?;
            memory.push(address, &old);
            here.image.write_noted(Gpa(address), bytes, &mut written)?;
        }
        here.digest_pages(&written);
        let mut vcpus = Vec::new();
        for (state, runs) in here.vcpus.iter_mut().zip(&change.vcpus) {
            let mut there = state.clone();
            there.apply(runs)?;
            vcpus.push(replace_state(state, &there));
        }
        let devices = match &change.devices {
            Some(bytes) => {
                let devices = Devices::decode(bytes, here.shape.vcpu_count, &here.image)?;
                Some(std::mem::replace(&mut here.devices, devices).encode())
            }
            None => None,
        };
        Ok(Change {
            seq: std::mem::replace(&mut here.seq, change.seq),
            guest_time: std::mem::replace(&mut here.guest_time, change.guest_time),
            ended: std::mem::replace(&mut here.ended, change.ended.clone()),
            vcpus,
            devices,
            memory: memory.finish(),
        })
    }
}

/// Makes a vCPU's state another one. Gives the way back.
fn replace_state(here: &mut VcpuState, there: &VcpuState) -> ByteRuns {
    if here == there {
        return ByteRuns::default();
    }
    let back = here.changes_since(there);
    here.clone_from(there);
    back
}
