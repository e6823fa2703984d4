//! The source of random bytes. They come as inputs: in the log, so that replicas agree.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::queue::Malformed;
use super::transport::Transport;
use super::{Reaction, Want};
use crate::memory::GuestMemory;

pub(super) const ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
const REQUESTS: usize = 0;

/// Random bytes in one input, at most: they travel to the backup, and drivers seed generators of
/// their own with less.
const INPUT_BYTES_MAX: usize = 256;

/// A source of random bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entropy;

/// What the device waits for.
pub(super) fn wants(transport: &Transport, memory: &GuestMemory) -> Option<Want> {
    if !transport.is_notified(REQUESTS) {
        return None;
    }
    match wanted_bytes(transport, memory) {
        Ok(0) => None,
        Ok(bytes) => Some(Want::Random(bytes)),
        Err(Malformed) => Some(Want::Random(1)),
    }
}

fn wanted_bytes(transport: &Transport, memory: &GuestMemory) -> Result<usize, Malformed> {
    let Some(mut ring) = transport.open(REQUESTS, memory)? else {
        return Ok(0);
    };
    let mut wanted = 0;
    for _ in 0..ring.chains_max() {
        let Some(chain) = ring.next()? else { break };
        wanted += chain.only_writable()?.writable_bytes();
        if wanted >= INPUT_BYTES_MAX {
            return Ok(INPUT_BYTES_MAX);
        }
    }
    Ok(wanted)
}

/// Fills the buffers that come next.
pub(super) fn fill(
    transport: &mut Transport,
    bytes: &Bytes,
    memory: &GuestMemory,
    to: &mut Reaction,
) -> Result<(), Malformed> {
    let Some(mut ring) = transport.open(REQUESTS, memory)? else {
        return Ok(());
    };
    ring.fill(bytes)?;
    transport.close(REQUESTS, ring, to)
}
