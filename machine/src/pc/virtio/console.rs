//! The console: one port, bytes both ways.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Reaction;
use super::queue::Malformed;
use super::transport::Transport;
use crate::memory::GuestMemory;

pub(super) const ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;

/// Bytes of one buffer that are shown; the rest of a longer one, which no driver sends, is dropped.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// A console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Console;

/// Shows the bytes that wait.
pub(super) fn transmit(
    transport: &mut Transport,
    memory: &GuestMemory,
    to: &mut Reaction,
) -> Result<(), Malformed> {
    let Some(mut ring) = transport.open(TRANSMIT, memory)? else {
        return Ok(());
    };
    for _ in 0..ring.chains_max() {
        let Some(chain) = ring.next()? else { break };
        let chain = chain.only_readable()?;
        let start = to.console.len();
        let bytes = chain.readable_bytes().min(BUFFER_BYTES_MAX);
        to.console.resize(start + bytes, 0);
        chain.read(0, &mut to.console[start..])?;
        ring.complete(&chain, 0)?;
    }
    transport.close(TRANSMIT, ring, to)
}

/// Whether the buffers hold so many bytes.
pub(super) fn has_room(
    transport: &Transport,
    bytes: usize,
    memory: &GuestMemory,
) -> Result<bool, Malformed> {
    let Some(mut ring) = transport.open(RECEIVE, memory)? else {
        return Ok(false);
    };
    let mut room = 0_usize;
    for _ in 0..ring.chains_max() {
        let Some(chain) = ring.next()? else { break };
        room = room.saturating_add(chain.only_writable()?.writable_bytes());
        if room >= bytes {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Gives the guest typed bytes.
pub(super) fn receive(
    transport: &mut Transport,
    bytes: &Bytes,
    memory: &GuestMemory,
    to: &mut Reaction,
) -> Result<(), Malformed> {
    let Some(mut ring) = transport.open(RECEIVE, memory)? else {
        return Ok(());
    };
    ring.fill(bytes)?;
    transport.close(RECEIVE, ring, to)
}
