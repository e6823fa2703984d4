//! Disks of a replay that goes back.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use samsara_machine::pc::virtio::Blocks;

/// What one commit may write and still be undone: more than a guest has in its queues, and little beside what is kept.
const WRITTEN_MAX: u64 = 64 << 20;

/// A disk that keeps what was there before each write.
#[derive(Debug)]
pub(super) struct Journal {
    disk: Arc<dyn Blocks>,
    written: Mutex<Written>,
}

/// What was written since somebody last took it.
#[derive(Debug)]
enum Written {
    Here(DiskChange),
    TooMuch,
}

impl Default for Written {
    fn default() -> Self {
        Self::Here(DiskChange::default())
    }
}

/// What turns a disk's contents into those before or after a commit: to be written last first.
#[derive(Debug, Default)]
pub(super) struct DiskChange(Vec<Piece>);

#[derive(Debug)]
struct Piece {
    offset: u64,
    bytes: Vec<u8>,
}

impl DiskChange {
    /// Bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        let pieces = self.0.iter();
        pieces
            .map(|piece| size_of::<Piece>() + piece.bytes.len())
            .sum()
    }
}

impl Journal {
    pub(super) fn new(disk: Arc<dyn Blocks>) -> Self {
        Self {
            disk,
            written: Mutex::default(),
        }
    }

    /// The way back over what was written since the last call; `None` if that was too much to keep.
    pub(super) fn take(&self) -> Option<DiskChange> {
        match std::mem::take(&mut *self.written()) {
            Written::Here(change) => Some(change),
            Written::TooMuch => None,
        }
    }

    /// Takes the disk along a change. Gives the way back.
    pub(super) fn go(&self, change: &DiskChange) -> io::Result<DiskChange> {
        let mut back = Vec::new();
        for Piece { offset, bytes } in change.0.iter().rev() {
            back.push(self.piece(*offset, bytes.len() as u64)?);
            self.disk.write(*offset, bytes)?;
        }
        Ok(DiskChange(back))
    }

    /// What is there now.
    fn piece(&self, offset: u64, bytes: u64) -> io::Result<Piece> {
        let mut here = vec![0; bytes as usize];
        self.disk.read(offset, &mut here)?;
        Ok(Piece {
            offset,
            bytes: here,
        })
    }

    /// Keeps what is about to be written over.
    fn keep(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let mut written = self.written();
        let Written::Here(change) = &mut *written else {
            return Ok(());
        };
        if change.bytes() as u64 + bytes > WRITTEN_MAX {
            *written = Written::TooMuch;
            return Ok(());
        }
        change.0.push(self.piece(offset, bytes)?);
        Ok(())
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blocks for Journal {
    fn bytes(&self) -> u64 {
        self.disk.bytes()
    }

    fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.keep(offset, bytes.len() as u64)?;
        self.disk.write(offset, bytes)
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.keep(offset, bytes)?;
        self.disk.zero(offset, bytes)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::replay::overlay;

    fn all(disk: &Journal) -> Vec<u8> {
        let mut bytes = vec![0; disk.bytes() as usize];
        disk.read(0, &mut bytes).unwrap();
        bytes
    }

    fn disk(bytes: u64) -> Journal {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(bytes).unwrap();
        Journal::new(overlay::open(&[path]).unwrap().remove(0))
    }

    #[test]
    fn what_was_written_is_undone_and_done_again() {
        let disk = disk(64 << 10);
        let mut states = vec![all(&disk)];
        let mut back = Vec::new();
        for round in 1..9_u8 {
            // Each commit writes some bytes twice.
            disk.write(u64::from(round) * 1000, &[round; 3000]).unwrap();
            disk.write(u64::from(round) * 1500, &[!round; 700]).unwrap();
            disk.zero(u64::from(round) * 1600, 9000).unwrap();
            back.push(disk.take().unwrap());
            states.push(all(&disk));
        }
        let mut forth = Vec::new();
        for _ in 0..2 {
            while let Some(change) = back.pop() {
                forth.push(disk.go(&change).unwrap());
                assert!(all(&disk) == states[back.len()]);
            }
            while let Some(change) = forth.pop() {
                back.push(disk.go(&change).unwrap());
                assert!(all(&disk) == states[back.len()]);
            }
        }
        assert_eq!(disk.take().unwrap().bytes(), 0);
    }

    #[test]
    fn too_much_is_not_kept() {
        let disk = disk(WRITTEN_MAX * 2);
        disk.zero(0, WRITTEN_MAX + 1).unwrap();
        disk.write(7, &[1]).unwrap();
        assert!(disk.take().is_none());
        disk.write(7, &[2]).unwrap();
        assert!(disk.take().is_some());
        assert!(disk.write(WRITTEN_MAX * 2, &[1]).is_err());
    }
}
