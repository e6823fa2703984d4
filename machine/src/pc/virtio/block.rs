//! The block device. Its requests are served by inputs of their own, not when the guest notifies: a
//! completion is a commit, and the vCPU that notified goes on meanwhile.

use std::fmt::Debug;
use std::io;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk as blk;

use super::queue::{Chain, Malformed, QUEUE_SIZE_MAX, Ring};
use super::transport::Transport;
use super::{DeviceFault, Reaction, StateFault, Trouble, Want};
use crate::memory::GuestMemory;

pub(super) const ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
const REQUESTS: usize = 0;

const SECTOR_BYTES: u64 = 512;
const HEADER_BYTES: usize = 16;
/// Bytes of a range in a discard or write-zeroes request.
const RANGE_BYTES: usize = 16;

/// Requests that one input serves, at most: a commit is to be short.
const STEP_REQUESTS: usize = 64;
/// What these cost together, at most, unless the first is more; in bytes read or written.
const STEP_COST: usize = 1 << 20;
/// Data of a request, at most. [`SEGMENTS_MAX`] and [`SEGMENT_BYTES_MAX`] tell the driver.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// Buffers of a request's data: with header and status they fill the largest queue.
const SEGMENTS_MAX: u32 = QUEUE_SIZE_MAX as u32 - 2;
const SEGMENT_BYTES_MAX: u32 = 4096;
const _: () = assert!((SEGMENTS_MAX * SEGMENT_BYTES_MAX) as usize <= REQUEST_BYTES_MAX);
/// Ranges of a discard or write-zeroes request, at most.
const RANGES_MAX: u32 = 16;
/// Sectors of such a range, at most: 16 MiB.
const RANGE_SECTORS_MAX: u32 = 1 << 15;
/// Discarded ranges best start at multiples of this: a page of most file systems.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;
/// So many bytes to zero cost as much as one to read or write: files take holes.
const ZERO_BYTES_PER_COST: u64 = 64;

const OK: u8 = blk::VIRTIO_BLK_S_OK as u8;
const IO_ERROR: u8 = blk::VIRTIO_BLK_S_IOERR as u8;
const UNSUPPORTED: u8 = blk::VIRTIO_BLK_S_UNSUPP as u8;

/// The host's disk, with the same contents on all replicas at the same commit.
///
/// An error is this host's failure and ends its part in the machine: the guest never sees it.
pub trait Blocks: Debug + Send + Sync {
    /// Its size.
    fn bytes(&self) -> u64;
    /// Whether writes fail.
    fn is_read_only(&self) -> bool;
    /// Reads bytes; all of them, or it fails.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes bytes; all of them, or it fails.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Sets bytes to zero, and may give their space back.
    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()>;
    /// Makes what was written last.
    fn flush(&self) -> io::Result<()>;
}

/// A disk, as the guest sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// A multiple of [`SECTOR_BYTES`].
    bytes: u64,
    is_read_only: bool,
    serial: [u8; 20],
}

/// What the device waits for.
pub(super) fn wants(transport: &Transport, memory: &GuestMemory) -> Option<Want> {
    if !transport.is_notified(REQUESTS) {
        return None;
    }
    let ring = transport.open(REQUESTS, memory);
    let pending = ring.and_then(|ring| ring.map_or(Ok(0), |ring| ring.pending()));
    (pending != Ok(0)).then_some(Want::Step)
}

impl Block {
    pub(super) fn new(bytes: u64, is_read_only: bool, serial: [u8; 20]) -> Self {
        Self {
            bytes: bytes - bytes % SECTOR_BYTES,
            is_read_only,
            serial,
        }
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn check(&self) -> Result<(), StateFault> {
        let is_right = self.bytes.is_multiple_of(SECTOR_BYTES);
        is_right
            .then_some(())
            .ok_or(StateFault::Capacity(self.bytes))
    }

    pub(super) fn features(&self) -> u64 {
        let common = 1 << blk::VIRTIO_BLK_F_SIZE_MAX
            | 1 << blk::VIRTIO_BLK_F_SEG_MAX
            | 1 << blk::VIRTIO_BLK_F_BLK_SIZE
            | 1 << blk::VIRTIO_BLK_F_FLUSH;
        if self.is_read_only {
            common | 1 << blk::VIRTIO_BLK_F_RO
        } else {
            common | 1 << blk::VIRTIO_BLK_F_DISCARD | 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    /// `struct virtio_blk_config`.
    pub(super) fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut set = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        set(0, &(self.bytes / SECTOR_BYTES).to_le_bytes());
        set(8, &SEGMENT_BYTES_MAX.to_le_bytes());
        set(12, &SEGMENTS_MAX.to_le_bytes());
        set(20, &(SECTOR_BYTES as u32).to_le_bytes());
        if !self.is_read_only {
            set(36, &RANGE_SECTORS_MAX.to_le_bytes());
            set(40, &RANGES_MAX.to_le_bytes());
            set(44, &DISCARD_ALIGNMENT_SECTORS.to_le_bytes());
            set(48, &RANGE_SECTORS_MAX.to_le_bytes());
            set(52, &RANGES_MAX.to_le_bytes());
            set(56, &[1]);
        }
        config
    }

    /// Serves the next requests, a bounded number of them.
    pub(super) fn serve(
        &self,
        transport: &mut Transport,
        memory: &GuestMemory,
        disk: Option<&dyn Blocks>,
        to: &mut Reaction,
    ) -> Result<(), Trouble> {
        let Some(mut ring) = transport.open(REQUESTS, memory)? else {
            return Ok(());
        };
        let disk = self.fitting(disk)?;
        let mut cost = 0;
        for served in 0..STEP_REQUESTS {
            let Some(chain) = ring.next()? else { break };
            let request = Request::new(self, &chain)?;
            cost += request.cost();
            if served > 0 && cost > STEP_COST {
                ring.put_back();
                break;
            }
            self.serve_one(&request, &chain, &mut ring, disk)?;
        }
        Ok(transport.close(REQUESTS, ring, to)?)
    }

    fn fitting<'a>(&self, disk: Option<&'a dyn Blocks>) -> Result<&'a dyn Blocks, DeviceFault> {
        let disk = disk.ok_or(DeviceFault::NoDisk)?;
        let is_writable = !disk.is_read_only();
        if disk.bytes() < self.bytes || !is_writable && !self.is_read_only {
            return Err(DeviceFault::WrongDisk {
                expected: self.bytes,
                found: disk.bytes(),
                is_writable,
            });
        }
        Ok(disk)
    }

    fn serve_one(
        &self,
        request: &Request,
        chain: &Chain<'_>,
        ring: &mut Ring<'_>,
        disk: &dyn Blocks,
    ) -> Result<(), Trouble> {
        let status_at = chain.writable_bytes() - 1;
        let (status, filled) = match request {
            Request::Refused(status) => (*status, 0),
            _ => (OK, self.execute(request, chain, disk)?),
        };
        chain.write(status_at, &[status])?;
        // The length is of what was written without a gap from the start on.
        let written = if filled == status_at {
            filled + 1
        } else {
            filled
        };
        Ok(ring.complete(chain, written)?)
    }

    /// Does what the request asks for. The answer is how many bytes of it are written.
    fn execute(
        &self,
        request: &Request,
        chain: &Chain<'_>,
        disk: &dyn Blocks,
    ) -> Result<usize, Trouble> {
        let failed = DeviceFault::Disk;
        match *request {
            Request::Read { offset, bytes } => {
                let mut data = vec![0; bytes];
                disk.read(offset, &mut data).map_err(failed)?;
                chain.write(0, &data)?;
                return Ok(bytes);
            }
            Request::Write { offset, bytes } => {
                let mut data = vec![0; bytes];
                chain.read(HEADER_BYTES, &mut data)?;
                disk.write(offset, &data).map_err(failed)?;
            }
            Request::Zero(ref ranges) => {
                for range in ranges {
                    disk.zero(range.offset, range.bytes).map_err(failed)?;
                }
            }
            Request::Flush => disk.flush().map_err(failed)?,
            Request::Identify { bytes } => {
                chain.write(0, &self.serial[..bytes])?;
                return Ok(bytes);
            }
            Request::Refused(_) => {}
        }
        Ok(0)
    }

    /// The place on the disk of so many sectors, if there is one.
    fn range(&self, sector: u64, bytes: u64) -> Option<Range> {
        let offset = sector.checked_mul(SECTOR_BYTES)?;
        let is_right =
            bytes.is_multiple_of(SECTOR_BYTES) && offset.checked_add(bytes)? <= self.bytes;
        is_right.then_some(Range { offset, bytes })
    }
}

#[derive(Debug)]
struct Range {
    offset: u64,
    bytes: u64,
}

/// A request that can be served, or the status that refuses it.
#[derive(Debug)]
enum Request {
    Read {
        offset: u64,
        bytes: usize,
    },
    Write {
        offset: u64,
        bytes: usize,
    },
    /// A discard is the same: what the guest reads afterwards must not depend on the host.
    Zero(Vec<Range>),
    Flush,
    Identify {
        bytes: usize,
    },
    Refused(u8),
}

impl Request {
    fn new(block: &Block, chain: &Chain<'_>) -> Result<Self, Malformed> {
        // The last writable byte is for the status: without it there is no answer.
        let in_bytes = chain.writable_bytes().checked_sub(1).ok_or(Malformed)?;
        let readable = chain.readable_bytes();
        let out_bytes = readable.checked_sub(HEADER_BYTES).ok_or(Malformed)?;
        let mut header = [0; HEADER_BYTES];
        chain.read(0, &mut header)?;
        let (kind, sector) = (le32(&header, 0), le64(&header, 8));
        Ok(match kind {
            blk::VIRTIO_BLK_T_IN => Self::transfer(block, sector, in_bytes, |offset, bytes| {
                Self::Read { offset, bytes }
            }),
            blk::VIRTIO_BLK_T_OUT if block.is_read_only => Self::Refused(IO_ERROR),
            blk::VIRTIO_BLK_T_OUT => Self::transfer(block, sector, out_bytes, |offset, bytes| {
                Self::Write { offset, bytes }
            }),
            blk::VIRTIO_BLK_T_FLUSH => Self::Flush,
            blk::VIRTIO_BLK_T_GET_ID => Self::Identify {
                bytes: in_bytes.min(block.serial.len()),
            },
            blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES => {
                Self::zero(block, kind, chain, out_bytes)?
            }
            _ => Self::Refused(UNSUPPORTED),
        })
    }

    fn transfer(
        block: &Block,
        sector: u64,
        bytes: usize,
        request: impl FnOnce(u64, usize) -> Self,
    ) -> Self {
        if bytes > REQUEST_BYTES_MAX {
            return Self::Refused(IO_ERROR);
        }
        match block.range(sector, bytes as u64) {
            Some(range) => request(range.offset, bytes),
            None => Self::Refused(IO_ERROR),
        }
    }

    fn zero(block: &Block, kind: u32, chain: &Chain<'_>, bytes: usize) -> Result<Self, Malformed> {
        let count = bytes / RANGE_BYTES;
        let is_right =
            bytes.is_multiple_of(RANGE_BYTES) && (1..=RANGES_MAX as usize).contains(&count);
        if block.is_read_only || !is_right {
            return Ok(Self::Refused(IO_ERROR));
        }
        let known_flags = if kind == blk::VIRTIO_BLK_T_WRITE_ZEROES {
            blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
        } else {
            0
        };
        let mut ranges = Vec::with_capacity(count);
        for index in 0..count {
            let mut raw = [0; RANGE_BYTES];
            chain.read(HEADER_BYTES + index * RANGE_BYTES, &mut raw)?;
            let (sector, sectors, flags) = (le64(&raw, 0), le32(&raw, 8), le32(&raw, 12));
            if flags & !known_flags != 0 {
                return Ok(Self::Refused(UNSUPPORTED));
            }
            let range = block.range(sector, u64::from(sectors) * SECTOR_BYTES);
            match range.filter(|_| sectors <= RANGE_SECTORS_MAX) {
                Some(range) => ranges.push(range),
                None => return Ok(Self::Refused(IO_ERROR)),
            }
        }
        Ok(Self::Zero(ranges))
    }

    fn cost(&self) -> usize {
        match self {
            Self::Read { bytes, .. } | Self::Write { bytes, .. } => *bytes,
            Self::Zero(ranges) => {
                let bytes: u64 = ranges.iter().map(|range| range.bytes).sum();
                (bytes / ZERO_BYTES_PER_COST) as usize
            }
            Self::Flush | Self::Identify { .. } | Self::Refused(_) => 0,
        }
    }
}

fn le32(bytes: &[u8; 16], at: usize) -> u32 {
    (le64(bytes, at) & u64::from(u32::MAX)) as u32
}

/// Eight bytes, or as many as there are.
fn le64(bytes: &[u8; 16], at: usize) -> u64 {
    (u128::from_le_bytes(*bytes) >> (8 * at)) as u64
}
