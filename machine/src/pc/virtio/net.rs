//! The network interface: whole frames, no offloads.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;

use super::Reaction;
use super::queue::{Chain, Malformed};
use super::transport::Transport;
use crate::memory::GuestMemory;

pub(super) const ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_NET;
pub(super) const FEATURES: u64 = 1 << VIRTIO_NET_F_MAC;
const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;

/// `struct virtio_net_hdr_v1`, before every frame.
const HEADER_BYTES: usize = 12;
/// No offloads; the frame is in one buffer.
const RECEIVED_HEADER: [u8; HEADER_BYTES] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// A received frame that every right driver's buffers hold (Virtio 1.2, 5.1.6.3.1).
pub const FRAME_BYTES_MAX: usize = 1514;
/// Longer ones that the guest transmits are dropped: without offloads there are none.
const TRANSMITTED_BYTES_MAX: usize = 64 << 10;
/// An Ethernet header.
const FRAME_BYTES_MIN: usize = 14;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    mac: [u8; 6],
}

impl Net {
    pub(super) fn new(mac: [u8; 6]) -> Self {
        Self { mac }
    }

    /// The part of `struct virtio_net_config` that there is with these features.
    pub(super) fn config(&self) -> Vec<u8> {
        self.mac.to_vec()
    }
}

/// Sends the frames that wait.
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
        to.frames.extend(frame(&chain)?);
        ring.complete(&chain, 0)?;
    }
    transport.close(TRANSMIT, ring, to)
}

/// The frame in a buffer, if it is one.
fn frame(chain: &Chain<'_>) -> Result<Option<Bytes>, Malformed> {
    let readable = chain.readable_bytes();
    let bytes = readable.checked_sub(HEADER_BYTES).ok_or(Malformed)?;
    if !(FRAME_BYTES_MIN..=TRANSMITTED_BYTES_MAX).contains(&bytes) {
        return Ok(None);
    }
    let mut frame = vec![0; bytes];
    chain.read(HEADER_BYTES, &mut frame)?;
    Ok(Some(frame.into()))
}

/// Whether the next buffer holds a frame of so many bytes.
pub(super) fn has_room(
    transport: &Transport,
    bytes: usize,
    memory: &GuestMemory,
) -> Result<bool, Malformed> {
    let Some(mut ring) = transport.open(RECEIVE, memory)? else {
        return Ok(false);
    };
    let Some(chain) = ring.next()? else {
        return Ok(false);
    };
    Ok(fits(&chain.only_writable()?, bytes))
}

fn fits(chain: &Chain<'_>, bytes: usize) -> bool {
    let room = chain.writable_bytes().checked_sub(HEADER_BYTES);
    room.is_some_and(|room| bytes <= room)
}

/// Gives the guest a frame.
pub(super) fn receive(
    transport: &mut Transport,
    frame: &Bytes,
    memory: &GuestMemory,
    to: &mut Reaction,
) -> Result<(), Malformed> {
    let Some(mut ring) = transport.open(RECEIVE, memory)? else {
        return Ok(());
    };
    let Some(chain) = ring.next()? else {
        return Ok(());
    };
    let chain = chain.only_writable()?;
    if !fits(&chain, frame.len()) {
        return Ok(());
    }
    chain.write(0, &RECEIVED_HEADER)?;
    chain.write(HEADER_BYTES, frame)?;
    ring.complete(&chain, HEADER_BYTES + frame.len())?;
    transport.close(RECEIVE, ring, to)
}
