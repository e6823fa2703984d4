//! The one place where committed state changes.

use bytes::Bytes;
use samsara_commitlog::{
    Chunk, Commit, CommitSeq, Effects, Exit, GuestTime, Input, Record, VcpuIndex,
};

use super::{ChunkDigest, Devices, Ended, Machine, Output, Touched};
use crate::bare::{DeviceError, Effect};
use crate::memory::{MemoryError, PageIndex, View};
use crate::pc::virtio::DeviceFault;
use crate::pc::{Board, InputFault, Signals};
use crate::vcpu::{StateError, VcpuState};

/// Why a record cannot follow this state. The record, or the state, is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It is not the next one.
    #[error("record {found} cannot follow commit {after}")]
    OutOfOrder {
        /// The last commit.
        after: CommitSeq,
        /// The record's place.
        found: CommitSeq,
    },
    /// The machine has stopped.
    #[error("record {0} comes after the machine has stopped")]
    AfterEnd(CommitSeq),
    /// The guest clock would move back.
    #[error("record {0} moves the guest clock back")]
    TimeMovesBack(CommitSeq),
    /// It names a vCPU that this machine does not have, or one that has halted or waits.
    #[error("record {seq} is of vCPU {vcpu}, which cannot run")]
    NoSuchVcpu {
        /// The record.
        seq: CommitSeq,
        /// The vCPU.
        vcpu: VcpuIndex,
    },
    /// Its effects do not fit the machine.
    #[error("record {seq}: {source}")]
    Memory {
        /// The record.
        seq: CommitSeq,
        /// What does not fit.
        #[source]
        source: MemoryError,
    },
    /// Its vCPU state does not fit.
    #[error("record {seq}: {source}")]
    State {
        /// The record.
        seq: CommitSeq,
        /// What does not fit.
        #[source]
        source: StateError,
    },
    /// It is a chunk in order form, which somebody has to run again first.
    #[error("record {0} says only where its chunk ends: it has to be run again")]
    NotRun(CommitSeq),
    /// Its input does not fit.
    #[error("record {seq}: {source}")]
    Device {
        /// The record.
        seq: CommitSeq,
        /// What does not fit.
        #[source]
        source: DeviceError,
    },
    /// A device of a PC cannot take its input, or its disk fails.
    #[error("record {seq}: {source}")]
    Virtio {
        /// The record.
        seq: CommitSeq,
        /// Why.
        #[source]
        source: DeviceFault,
    },
    /// The state after it is not what the producer had.
    #[error("record {seq} has digest {expected:#018x}, but the state after it {found:#018x}")]
    Divergence {
        /// The record.
        seq: CommitSeq,
        /// The producer's digest.
        expected: u64,
        /// This machine's.
        found: u64,
    },
}

/// Where a chunk's result is taken from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The record, by consumers: it came from elsewhere, so its digest is compared.
    Record,
    /// The view that produced it, with the pages that the chunk changed (rising):
    /// whole pages are copied faster than many small runs. The vCPU stands still, and nobody else
    /// has committed to these pages since the changes were found.
    View(&'a View, &'a [Changed]),
}

/// A page that a chunk changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Which.
    pub page: PageIndex,
    /// What its digest is now.
    pub digest: u128,
}

/// What a commit did besides changing the state.
#[derive(Debug, Default)]
pub struct Applied {
    /// Pages of memory that changed, rising, each once.
    pub written: Vec<PageIndex>,
    /// Those of them that devices wrote, in any order: the view that a chunk ran in does not show that.
    pub by_devices: Vec<PageIndex>,
    /// What wants to leave the host, in order.
    pub outputs: Vec<Output>,
}

impl Machine {
    /// Applies the next record.
    ///
    /// On an error the state may be half changed: the machine must not be used further. It, and its disks,
    /// are then still at the commit before, of which they have all.
    pub fn apply(&mut self, record: &Record, source: Source<'_>) -> Result<Applied, ApplyError> {
        self.check_order(record)?;
        let before = std::mem::replace(&mut self.seq, record.seq);
        let applied = self.apply_next(record, source);
        if applied.is_err() {
            self.seq = before;
        }
        applied
    }

    fn apply_next(&mut self, record: &Record, source: Source<'_>) -> Result<Applied, ApplyError> {
        self.guest_time = record.guest_time;
        let mut applied = Applied::default();
        match &record.commit {
            Commit::Chunk(chunk) => {
                self.apply_result(chunk, source, &mut applied.written)?;
                let of_chunk = applied.written.len();
                self.exit(chunk.vcpu, &chunk.exit, &mut applied)?;
                applied.by_devices = applied.written[of_chunk..].to_vec();
                self.digest_pages(&applied.by_devices);
            }
            Commit::Order(_) => return Err(ApplyError::NotRun(record.seq)),
            Commit::Input(input) => {
                self.input(input, &mut applied)?;
                applied.by_devices.clone_from(&applied.written);
                self.digest_pages(&applied.by_devices);
            }
        }
        applied.written.sort_unstable();
        applied.written.dedup();
        if let Some(tracked) = &mut self.tracked {
            applied
                .written
                .iter()
                .for_each(|&page| tracked.insert(page));
        }
        Ok(applied)
    }

    /// These pages have changed.
    pub(super) fn digest_pages(&mut self, pages: &[PageIndex]) {
        for &page in pages {
            self.digest.refresh(&self.image, page);
        }
    }

    /// Has the devices act on an exit of a vCPU that is not recorded.
    pub fn exit_natively(
        &mut self,
        vcpu: VcpuIndex,
        exit: &Exit,
        now: GuestTime,
    ) -> Result<Applied, ApplyError> {
        self.guest_time = self.guest_time.max(now);
        let mut applied = Applied::default();
        self.exit(vcpu, exit, &mut applied)?;
        Ok(applied)
    }

    /// Has the devices take an input that is not recorded.
    pub fn input_natively(&mut self, input: &Input, now: GuestTime) -> Result<Applied, ApplyError> {
        self.guest_time = self.guest_time.max(now);
        let mut applied = Applied::default();
        self.input(input, &mut applied)?;
        Ok(applied)
    }

    /// A vCPU's state, for the thread that runs it without a record.
    pub fn vcpu_mut(&mut self, vcpu: VcpuIndex) -> &mut VcpuState {
        &mut self.vcpus[usize::from(vcpu.0)]
    }

    fn exit(
        &mut self,
        vcpu: VcpuIndex,
        exit: &Exit,
        applied: &mut Applied,
    ) -> Result<(), ApplyError> {
        match &mut self.devices {
            Devices::Bare(bare) => {
                let effect = bare.exit(vcpu, exit, &self.image);
                self.apply_effect(effect, applied)
            }
            Devices::Pc(_) => self.on_board(applied, Some(vcpu), |board| {
                board.exit(vcpu, exit);
                Ok(())
            }),
        }
    }

    fn input(&mut self, input: &Input, applied: &mut Applied) -> Result<(), ApplyError> {
        let seq = self.seq;
        match &mut self.devices {
            Devices::Bare(bare) => {
                let effect = bare.input(input, &self.image);
                let effect = effect.map_err(|source| ApplyError::Device { seq, source })?;
                self.apply_effect(effect, applied)
            }
            Devices::Pc(_) => self.on_board(applied, None, |board| board.input(input)),
        }
    }

    /// Lets the devices of a PC act: time moves first, and interrupts are delivered last. `own` is the
    /// vCPU whose chunk has just ended.
    fn on_board(
        &mut self,
        applied: &mut Applied,
        own: Option<VcpuIndex>,
        act: impl FnOnce(&mut Board<'_>) -> Result<(), InputFault>,
    ) -> Result<(), ApplyError> {
        let Devices::Pc(pc) = &mut self.devices else {
            return Ok(());
        };
        let mut signals = Signals::default();
        let mut board = Board {
            pc,
            vcpus: &mut self.vcpus,
            touched: &mut self.touched,
            disks: &self.disks,
            image: &self.image,
            now: self.guest_time,
            signals: &mut signals,
        };
        board.advance();
        let acted = act(&mut board);
        board.deliver(own);
        self.image.take_dma(&mut applied.written);
        let seq = self.seq;
        acted.map_err(|fault| match fault {
            InputFault::Device(source) => ApplyError::Virtio { seq, source },
            InputFault::NoSuchDevice => ApplyError::Device {
                seq,
                source: DeviceError::NoSuchDevice,
            },
        })?;
        applied.outputs.append(&mut signals.outputs);
        if let Some(ended) = signals.ended {
            self.end(ended, applied);
        }
        Ok(())
    }

    fn end(&mut self, ended: Ended, applied: &mut Applied) {
        self.ended = Some(ended.clone());
        applied.outputs.push(Output::Ended(ended));
    }

    fn check_order(&self, record: &Record) -> Result<(), ApplyError> {
        if record.seq != self.seq.next() {
            return Err(ApplyError::OutOfOrder {
                after: self.seq,
                found: record.seq,
            });
        }
        if self.ended.is_some() {
            return Err(ApplyError::AfterEnd(record.seq));
        }
        if record.guest_time < self.guest_time {
            return Err(ApplyError::TimeMovesBack(record.seq));
        }
        if let Some(vcpu) = record.chunk_vcpu() {
            let can_run = vcpu.0 < self.shape.vcpu_count && self.devices.can_run(vcpu);
            if !can_run {
                return Err(ApplyError::NoSuchVcpu {
                    seq: record.seq,
                    vcpu,
                });
            }
        }
        Ok(())
    }

    fn apply_result(
        &mut self,
        chunk: &Chunk,
        source: Source<'_>,
        written: &mut Vec<PageIndex>,
    ) -> Result<(), ApplyError> {
        let Effects { memory, vcpu } = &chunk.effects;
        let seq = self.seq;
        let state = &mut self.vcpus[usize::from(chunk.vcpu.0)];
        let applied = state.apply(vcpu);
        applied.map_err(|source| ApplyError::State { seq, source })?;
        match source {
            Source::View(view, changes) => {
                for &Changed { page, digest } in changes {
                    view.copy_to_image(page);
                    debug_assert_eq!(digest, view.digest_page(page), "page {}", page.0);
                    self.digest.replace(&self.image, page, digest);
                    written.push(page);
                }
            }
            Source::Record => {
                self.touched[usize::from(chunk.vcpu.0)] = Touched::Whole;
                let stored = self.image.write_runs(memory, written);
                stored.map_err(|source| ApplyError::Memory { seq, source })?;
                let mut digest = ChunkDigest::default();
                let before = self.digest.get();
                self.digest_pages(written);
                digest.moved(before, self.digest.get());
                let found = digest.finish(&self.vcpus[usize::from(chunk.vcpu.0)]);
                if found != chunk.digest {
                    let expected = chunk.digest;
                    return Err(ApplyError::Divergence {
                        seq,
                        expected,
                        found,
                    });
                }
            }
        }
        Ok(())
    }

    fn apply_effect(&mut self, effect: Effect, applied: &mut Applied) -> Result<(), ApplyError> {
        for (gpa, bytes) in &effect.dma {
            let stored = self.image.write_noted(*gpa, bytes, &mut applied.written);
            stored.map_err(|source| ApplyError::Memory {
                seq: self.seq,
                source,
            })?;
        }
        applied.outputs.extend(effect.console.map(Output::Console));
        if let Some(ended) = effect.ended {
            self.end(ended, applied);
        }
        Ok(())
    }
}

impl Ended {
    /// Whether the guest chose to stop.
    pub fn is_orderly(&self) -> bool {
        !matches!(self, Self::Fault { .. } | Self::Panicked)
    }
}

impl Output {
    /// Bytes that it holds while it waits.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Console(bytes) | Self::Frame { bytes, .. } => Bytes::len(bytes),
            Self::Ended(_) => 0,
        }
    }
}
