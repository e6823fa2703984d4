//! Digests: of a chunk's result, and of the whole committed state.

use samsara_commitlog::{ByteRuns, StateDigest};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::Machine;
use crate::vcpu::VcpuState;

/// Digest of a chunk's result: the byte runs that it changed, then the vCPU's whole state.
#[derive(Default)]
pub struct ChunkDigest(Xxh3);

impl std::fmt::Debug for ChunkDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChunkDigest(..)")
    }
}

impl ChunkDigest {
    /// Of this changed memory.
    pub fn new(memory: &ByteRuns) -> Self {
        let mut digest = Self::default();
        digest.add(memory.encoded());
        digest
    }

    /// Adds the next part of the encoded byte runs.
    pub fn add(&mut self, encoded: &[u8]) {
        self.0.update(encoded);
    }

    /// The digest, with the state after the chunk.
    pub fn finish(mut self, state: &VcpuState) -> u64 {
        self.0.update(state.as_bytes());
        self.0.digest()
    }
}

impl Machine {
    /// Digest of the whole committed state. Costs what was written since the last one.
    pub fn digest(&mut self) -> StateDigest {
        let memory = self.digest.update(&self.image);
        let devices = self.devices.encode();
        let mut all = Xxh3::new();
        all.update(&memory.to_le_bytes());
        for vcpu in &self.vcpus {
            all.update(&xxh3_128(vcpu.as_bytes()).to_le_bytes());
        }
        all.update(&devices);
        all.update(&self.guest_time.0.to_le_bytes());
        all.update(&self.seq.0.to_le_bytes());
        all.update(format!("{:?}", self.ended).as_bytes());
        StateDigest {
            seq: self.seq,
            digest: all.digest128(),
        }
    }
}
