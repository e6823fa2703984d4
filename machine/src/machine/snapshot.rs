//! A machine as frames, and frames as a machine.

use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use samsara_commitlog::{
    ByteRuns, ByteRunsBuilder, Gpa, PAGE_BYTES, SNAPSHOT_PAGES_BYTES, SnapshotStart, StateDigest,
};

use super::{Devices, Ended, Machine, Touched};
use crate::bare::DeviceError;
use crate::memory::{Image, MemoryDigest, MemoryError, PageIndex};
use crate::pc::virtio::Blocks;
use crate::vcpu::{STATE_VERSION, StateError, VcpuState};

/// Why frames do not make a machine.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The layout of states is of another version.
    #[error("the snapshot has state layout {found}; this build has {STATE_VERSION}")]
    Version {
        /// The snapshot's.
        found: u32,
    },
    /// There are not as many vCPU states as vCPUs.
    #[error("the snapshot has {found} vCPU states for {expected} vCPUs")]
    VcpuCount {
        /// As many states.
        found: usize,
        /// As many vCPUs.
        expected: u8,
    },
    /// A vCPU's state does not fit.
    #[error(transparent)]
    State(#[from] StateError),
    /// The devices' state does not fit.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Memory cannot be had, or a page is outside it.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// This host's disks are not those of the machine.
    #[error("the machine has disks of {expected:?} bytes, this host vm.disks of {found:?}")]
    Disks {
        /// The machine's.
        expected: Vec<u64>,
        /// This host's.
        found: Vec<u64>,
    },
    /// Something was lost or changed on the way.
    #[error("the snapshot at commit {} has another digest than its sender's", expected.seq)]
    Digest {
        /// The sender's.
        expected: StateDigest,
    },
}

impl Machine {
    /// Everything but memory.
    pub fn snapshot_start(&self) -> SnapshotStart {
        SnapshotStart {
            shape: self.shape,
            seq: self.seq,
            guest_time: self.guest_time,
            state_version: STATE_VERSION,
            vcpus: self
                .vcpus
                .iter()
                .map(|vcpu| vcpu.as_bytes().to_vec().into())
                .collect(),
            devices: [encode_end(self.ended.as_ref()), self.devices.encode()]
                .concat()
                .into(),
        }
    }

    /// Memory that is not zero, in pieces that fit a frame. Nothing may commit meanwhile.
    pub fn snapshot_pages(&self) -> impl Iterator<Item = Result<ByteRuns, MemoryError>> {
        page_runs(&self.image, self.image.touched_pages(), Zeros::Skip)
    }
}

/// What becomes of pages that are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// Nothing: whoever loads them begins with zeros.
    Skip,
    /// They are like others: whoever loads them may have something else there.
    Keep,
}

/// Contents of pages (rising), in pieces that fit a frame. Those that are committed to meanwhile may be neither
/// old nor new.
pub fn page_runs(
    image: &Image,
    pages: impl Iterator<Item = PageIndex>,
    zeros: Zeros,
) -> impl Iterator<Item = Result<ByteRuns, MemoryError>> {
    const PIECE_PAGES: usize = SNAPSHOT_PAGES_BYTES / (PAGE_BYTES + 16);
    let mut pages = pages.peekable();
    std::iter::from_fn(move || {
        pages.peek()?;
        let mut piece = ByteRunsBuilder::default();
        let mut bytes = [0; PAGE_BYTES];
        for page in pages.by_ref().take(PIECE_PAGES) {
            let gpa = image.layout().gpa_of(page);
            if let Err(error) = image.read(gpa, &mut bytes) {
                return Some(Err(error));
            }
            if zeros == Zeros::Keep || bytes.iter().any(|&byte| byte != 0) {
                piece.push(gpa.0, &bytes);
            }
        }
        Some(Ok(piece.finish()))
    })
}

/// How the guest ended, if it has: a kind, and what belongs to it. Stands before the devices' own state.
fn encode_end(ended: Option<&Ended>) -> Bytes {
    let mut out = BytesMut::new();
    match ended {
        None => out.put_u8(end_tag::RUNS),
        Some(Ended::Exit { status }) => out.put_slice(&[end_tag::EXIT, *status]),
        Some(Ended::Halted) => out.put_u8(end_tag::HALTED),
        Some(Ended::Reset) => out.put_u8(end_tag::RESET),
        Some(Ended::Panicked) => out.put_u8(end_tag::PANICKED),
        Some(Ended::Fault { message }) => {
            out.put_u8(end_tag::FAULT);
            out.put_u64_le(message.len() as u64);
            out.put_slice(message.as_bytes());
        }
    }
    out.freeze()
}

fn decode_end(rest: &mut Bytes) -> Result<Option<Ended>, DeviceError> {
    let damaged = DeviceError::Damaged(rest.len());
    let Ok(tag) = rest.try_get_u8() else {
        return Err(damaged);
    };
    if tag == end_tag::RUNS {
        return Ok(None);
    }
    decode_how(tag, rest).map(Some).ok_or(damaged)
}

/// `None` if these bytes are not an end.
fn decode_how(tag: u8, rest: &mut Bytes) -> Option<Ended> {
    Some(match tag {
        end_tag::EXIT => Ended::Exit {
            status: rest.try_get_u8().ok()?,
        },
        end_tag::HALTED => Ended::Halted,
        end_tag::RESET => Ended::Reset,
        end_tag::PANICKED => Ended::Panicked,
        end_tag::FAULT => {
            let bytes = usize::try_from(rest.try_get_u64_le().ok()?).ok()?;
            if bytes > rest.len() {
                return None;
            }
            let message = String::from_utf8(rest.split_to(bytes).to_vec()).ok()?;
            Ended::Fault { message }
        }
        _ => return None,
    })
}

mod end_tag {
    pub(super) const RUNS: u8 = 0;
    pub(super) const EXIT: u8 = 1;
    pub(super) const HALTED: u8 = 2;
    pub(super) const FAULT: u8 = 3;
    pub(super) const RESET: u8 = 4;
    pub(super) const PANICKED: u8 = 5;
}

/// Builds a machine from the frames of a snapshot: `new`, `pages` for each piece, `finish`. Between pieces, `restart`
/// where the machine ran while the snapshot was taken.
#[derive(Debug)]
pub struct SnapshotLoader {
    start: SnapshotStart,
    image: Arc<Image>,
}

impl SnapshotLoader {
    /// Begins with the first frame.
    pub fn new(start: SnapshotStart) -> Result<Self, SnapshotError> {
        check_start(&start)?;
        let image = Arc::new(Image::new(start.shape)?);
        Ok(Self { start, image })
    }

    /// Goes on with a later state of the same machine. Memory that has come stays until it comes again.
    pub fn restart(self, start: SnapshotStart) -> Result<Self, SnapshotError> {
        if start.shape != self.start.shape {
            return Self::new(start);
        }
        check_start(&start)?;
        Ok(Self { start, ..self })
    }

    /// Takes a piece of memory.
    pub fn pages(&mut self, runs: &ByteRuns) -> Result<(), SnapshotError> {
        for (address, bytes) in runs.iter() {
            self.image.write(Gpa(address), bytes)?;
        }
        Ok(())
    }

    /// The machine, if its digest is the sender's.
    /// `disks` are this host's, by block device.
    pub fn finish(
        self,
        expected: StateDigest,
        disks: Vec<Arc<dyn Blocks>>,
    ) -> Result<Machine, SnapshotError> {
        let Self { start, image } = self;
        let vcpus: Result<Vec<_>, _> = start
            .vcpus
            .iter()
            .map(|bytes| VcpuState::from_bytes(bytes))
            .collect();
        let mut rest = start.devices.clone();
        let ended = decode_end(&mut rest)?;
        let devices = Devices::decode(&rest, start.shape.vcpu_count, &image)?;
        check_disks(&devices, &disks)?;
        let machine = Machine {
            shape: start.shape,
            seq: start.seq,
            guest_time: start.guest_time,
            digest: MemoryDigest::new(&image),
            image,
            vcpus: vcpus?,
            devices,
            disks,
            touched: vec![Touched::No; start.shape.vcpu_count.into()],
            ended,
            tracked: None,
        };
        if machine.digest() == expected {
            Ok(machine)
        } else {
            Err(SnapshotError::Digest { expected })
        }
    }
}

fn check_start(start: &SnapshotStart) -> Result<(), SnapshotError> {
    if start.state_version != STATE_VERSION {
        return Err(SnapshotError::Version {
            found: start.state_version,
        });
    }
    let (found, expected) = (start.vcpus.len(), start.shape.vcpu_count);
    if found != usize::from(expected) {
        return Err(SnapshotError::VcpuCount { found, expected });
    }
    Ok(())
}

fn check_disks(devices: &Devices, disks: &[Arc<dyn Blocks>]) -> Result<(), SnapshotError> {
    let expected = devices
        .pc()
        .map_or_else(Vec::new, |pc| pc.disk_bytes().collect());
    let found: Vec<_> = disks.iter().map(|disk| disk.bytes()).collect();
    if expected == found {
        Ok(())
    } else {
        Err(SnapshotError::Disks { expected, found })
    }
}
