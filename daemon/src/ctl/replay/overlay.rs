//! A disk image that a replay reads, and never writes.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use samsara_machine::disk::{Access, DiskFile};
use samsara_machine::pc::virtio::Blocks;

use crate::ctl::CtlError;
use crate::exit::ExitCode;
use crate::failure::Failure;

/// What is copied from the image at a time, when a part of it is written.
const BLOCK_BYTES: u64 = 4096;

/// An image, and over it what was written since, in a temporary file without a name. So a replay can be
/// repeated, and a wrong image costs nothing.
#[derive(Debug)]
struct Overlay {
    image: DiskFile,
    written: File,
    /// Blocks that are in `written`.
    blocks: Mutex<HashSet<u64>>,
}

/// Opens the images of a guest's disks.
pub(super) fn open(paths: &[PathBuf]) -> Result<Vec<Arc<dyn Blocks>>, CtlError> {
    let open = |path: &PathBuf| Overlay::open(path).map(|disk| Arc::new(disk) as Arc<dyn Blocks>);
    let disks: Result<Vec<_>, _> = paths.iter().map(open).collect();
    disks.map_err(CtlError::Replay)
}

impl Overlay {
    fn open(path: &Path) -> Result<Self, Failure> {
        let image = DiskFile::open(path, Access::ReadOnly);
        let image = image.map_err(|error| Failure::new(ExitCode::Input, &error))?;
        let written = tempfile::tempfile().map_err(|error| {
            let message =
                format!("cannot make a temporary file for what the guest writes: {error}");
            Failure::text(ExitCode::Output, message)
        })?;
        Ok(Self {
            image,
            written,
            blocks: Mutex::default(),
        })
    }

    fn blocks(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let end = offset.checked_add(bytes);
        if end.is_some_and(|end| end <= self.image.bytes()) {
            return Ok(());
        }
        Err(ErrorKind::InvalidInput.into())
    }

    /// Makes a block one of `written`, with the image's contents unless all of it is about to be written.
    fn take_over(&self, block: u64, piece: &Piece) -> io::Result<()> {
        let mut blocks = self.blocks();
        let start = block * BLOCK_BYTES;
        let bytes = BLOCK_BYTES.min(self.image.bytes() - start);
        if !blocks.contains(&block) && piece.bytes < bytes {
            let mut contents = vec![0; bytes as usize];
            self.image.read(start, &mut contents)?;
            self.written.write_all_at(&contents, start)?;
        }
        blocks.insert(block);
        Ok(())
    }
}

/// A part of a range that lies in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    block: u64,
    offset: u64,
    bytes: u64,
    /// Where it is in the range.
    at: usize,
}

/// A range of a disk, cut at the ends of blocks.
fn pieces(offset: u64, bytes: u64) -> impl Iterator<Item = Piece> {
    let end = offset + bytes;
    let mut next = offset;
    std::iter::from_fn(move || {
        let (start, block) = (next, next / BLOCK_BYTES);
        next = end.min((block + 1) * BLOCK_BYTES);
        (start < end).then(|| Piece {
            block,
            offset: start,
            bytes: next - start,
            at: (start - offset) as usize,
        })
    })
}

impl Blocks for Overlay {
    fn bytes(&self) -> u64 {
        self.image.bytes()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check(offset, out.len() as u64)?;
        for piece in pieces(offset, out.len() as u64) {
            let target = &mut out[piece.at..piece.at + piece.bytes as usize];
            if self.blocks().contains(&piece.block) {
                self.written.read_exact_at(target, piece.offset)?;
            } else {
                self.image.read(piece.offset, target)?;
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len() as u64)?;
        for piece in pieces(offset, bytes.len() as u64) {
            self.take_over(piece.block, &piece)?;
            let source = &bytes[piece.at..piece.at + piece.bytes as usize];
            self.written.write_all_at(source, piece.offset)?;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        const ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
        self.check(offset, bytes)?;
        for piece in pieces(offset, bytes) {
            self.take_over(piece.block, &piece)?;
            let zeros = &ZEROS[..piece.bytes as usize];
            self.written.write_all_at(zeros, piece.offset)?;
        }
        Ok(())
    }

    /// Nothing of a replay outlives it.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Not a whole number of blocks.
    const BYTES: usize = 5 * BLOCK_BYTES as usize + 1024;

    fn disk(folder: &Path) -> (PathBuf, Vec<u8>, Overlay) {
        let path = folder.join("disk.raw");
        let contents: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, &contents).unwrap();
        let overlay = Overlay::open(&path).unwrap();
        (path, contents, overlay)
    }

    fn all(disk: &Overlay) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        disk.read(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_written_is_read_and_the_image_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (path, image, disk) = disk(folder.path());
        let mut expected = image.clone();
        let mut seed = 7_usize;
        for round in 0..200 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(11);
            let start = (seed >> 20) % BYTES;
            let bytes = ((seed >> 40) % 9000).min(BYTES - start);
            let new = vec![round as u8; bytes];
            if round % 3 == 0 {
                disk.zero(start as u64, bytes as u64).unwrap();
                expected[start..start + bytes].fill(0);
            } else {
                disk.write(start as u64, &new).unwrap();
                expected[start..start + bytes].copy_from_slice(&new);
            }
            assert!(all(&disk) == expected, "round {round}");
        }
        assert_ne!(expected, image);
        assert_eq!(std::fs::read(&path).unwrap(), image);
    }

    #[test]
    fn nothing_is_there_beyond_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (_, image, disk) = disk(folder.path());
        let end = BYTES as u64;
        assert!(disk.read(end - 1, &mut [0; 2]).is_err());
        assert!(disk.write(end, &[1]).is_err());
        assert!(disk.zero(u64::MAX, 2).is_err());
        assert!(disk.zero(end - 4, 8).is_err());
        disk.write(end - 1, &[9]).unwrap();
        assert_eq!(all(&disk)[BYTES - 1], 9);
        assert_eq!(all(&disk)[..BYTES - 1], image[..BYTES - 1]);
    }

    #[test]
    fn an_image_that_cannot_be_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.raw");
        let failure = Overlay::open(&missing).unwrap_err();
        assert_eq!(failure.code, ExitCode::Input);
        assert!(failure.message.contains("missing.raw"), "{failure}");
    }
}
