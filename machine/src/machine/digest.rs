//! Digests: of a chunk's result, and of the whole committed state.

use samsara_commitlog::{ByteRuns, Shape, StateDigest};
use twox_hash::{XxHash3_64, XxHash3_128};

use super::Machine;
use crate::memory::{Image, MemoryDigest, MemoryError};
use crate::vcpu::VcpuState;

/// Digest of a chunk's result: by how much it moves the digest of memory, then the vCPU's whole state. It does not depend on how
/// the changes are encoded, and pages that are written with what they had change nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkDigest(u128);

impl ChunkDigest {
    /// The digest of memory was moved from one value to the other; or that of a page.
    pub fn moved(&mut self, from: u128, to: u128) {
        self.0 = self.0.wrapping_sub(from).wrapping_add(to);
    }

    /// Of byte runs (rising) that somebody will write to this image.
    pub fn of_runs(image: &Image, memory: &ByteRuns) -> Result<Self, MemoryError> {
        let after = Image::new(Shape {
            vcpu_count: 1,
            memory_bytes: image.layout().bytes(),
        })?;
        let mut written = Vec::new();
        after.write_runs(memory, &mut written)?;
        for &page in &written {
            after.adopt_page(image, page);
        }
        after.write_runs(memory, &mut Vec::new())?;
        let after = MemoryDigest::new(&after).get();
        let before = written.iter().map(|&page| image.digest_of(page));
        let mut digest = Self::default();
        digest.moved(before.fold(0, u128::wrapping_add), after);
        Ok(digest)
    }

    /// The digest, with the state after the chunk.
    pub fn finish(self, state: &VcpuState) -> u64 {
        let parts = [self.0, XxHash3_128::oneshot(state.as_bytes())];
        XxHash3_64::oneshot(parts.map(u128::to_le_bytes).as_flattened())
    }
}

impl Machine {
    /// Digest of the whole committed state.
    pub fn digest(&self) -> StateDigest {
        let mut all = self.digest.get().to_le_bytes().to_vec();
        for vcpu in &self.vcpus {
            all.extend_from_slice(&XxHash3_128::oneshot(vcpu.as_bytes()).to_le_bytes());
        }
        all.extend_from_slice(&self.devices.encode());
        all.extend_from_slice(&self.guest_time.0.to_le_bytes());
        all.extend_from_slice(&self.seq.0.to_le_bytes());
        all.extend_from_slice(format!("{:?}", self.ended).as_bytes());
        StateDigest {
            seq: self.seq,
            digest: XxHash3_128::oneshot(&all),
        }
    }
}
