//! A disk of the guest on this host: a raw image, a regular file or a block device.
//!
//! The image is this host's own copy. It stays equal to the other host's because the same commits
//! write both; what was written while the hosts were apart is known by range ([`DiskFile::track`]),
//! and where even that is lost, ranges are compared by digest ([`DiskFile::digests`]).

mod ranges;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use twox_hash::XxHash3_128;

use crate::pc::virtio::Blocks;
use ranges::Marks;

pub use ranges::{RANGE_BYTES, RangeIndex, RangeSet, Tracker, range_count};

/// What a disk's size is a multiple of.
pub const SECTOR_BYTES: u64 = 512;

/// The largest disk: its ranges can be counted, and its offsets are ones of files.
pub const DISK_BYTES_MAX: u64 = u32::MAX as u64 * RANGE_BYTES;

/// Zeros are written in pieces of this size where holes cannot be punched.
const ZEROS_BYTES: usize = 256 << 10;

/// Why an image cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The operating system refused.
    #[error("cannot {action} disk image {}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("disk image {} is neither a regular file nor a block device", path.display())]
    NotADisk {
        /// The image.
        path: PathBuf,
    },
    /// Another process has it open as a disk.
    #[error("disk image {} is in use by another process; give each VM on each host its own", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// A size that no disk has.
    #[error("disk image {} has {bytes} bytes; a disk has a multiple of {SECTOR_BYTES}, \
        at least one and at most {DISK_BYTES_MAX}: resize it", path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
}

/// How a guest may use a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is the guest's alone.
    ReadWrite,
    /// Nobody changes it, so others may read it too.
    ReadOnly,
}

/// A raw image, locked against every other process that keeps to the lock.
#[derive(Debug)]
pub struct DiskFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    access: Access,
    trackers: Mutex<Vec<Weak<Marks>>>,
    flush_count: AtomicU64,
}

impl DiskFile {
    /// Opens and locks an image.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Self, DiskError> {
        let path = path.as_ref().to_owned();
        // Before it is opened, because opening a pipe waits for its other end; and after, as the
        // name may have moved.
        let metadata = fs::metadata(&path).map_err(io_error(&path, "look at"))?;
        check_kind(&path, &metadata)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(access == Access::ReadWrite)
            .open(&path)
            .map_err(io_error(&path, "open"))?;
        let metadata = file.metadata().map_err(io_error(&path, "look at"))?;
        check_kind(&path, &metadata)?;
        lock(&path, &file, access)?;
        // The metadata of a block device has no size.
        let end = file.seek(SeekFrom::End(0));
        let bytes = end.map_err(io_error(&path, "find the size of"))?;
        if bytes == 0 || bytes > DISK_BYTES_MAX || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(DiskError::Size { path, bytes });
        }
        Ok(Self {
            path,
            file,
            bytes,
            access,
            trackers: Mutex::default(),
            flush_count: AtomicU64::new(0),
        })
    }

    /// The image.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many ranges it has.
    pub fn range_count(&self) -> u32 {
        range_count(self.bytes)
    }

    /// Bytes of a range; fewer than [`RANGE_BYTES`] in the last, none beyond it.
    pub fn range_bytes(&self, range: RangeIndex) -> u64 {
        self.bytes.saturating_sub(range.offset()).min(RANGE_BYTES)
    }

    /// From here on, knows which ranges are written. Any number of trackers may be out.
    pub fn track(&self) -> Tracker {
        let marks = Arc::new(Marks::new(self.range_count()));
        let mut trackers = self.trackers();
        trackers.retain(|tracker| tracker.strong_count() > 0);
        trackers.push(Arc::downgrade(&marks));
        Tracker(marks)
    }

    /// What was written before this call survives the loss of the host when it returns. As
    /// [`Blocks::flush`], but of the host's own accord, and so not counted.
    pub fn sync(&self) -> io::Result<()> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        let synced = self.file.sync_data();
        synced.map_err(|error| self.named("flush", &error))
    }

    /// How many times it was flushed by the guest.
    pub fn flush_count(&self) -> u64 {
        self.flush_count.load(Ordering::Acquire)
    }

    /// Digests of `count` ranges from `first` on, as many of them as there are. Holes are not read.
    pub fn digests(&self, first: RangeIndex, count: u32) -> io::Result<Vec<u128>> {
        let end = first.0.saturating_add(count).min(self.range_count());
        let mut buffer = vec![0; RANGE_BYTES as usize];
        let mut data = self.data_from(first.offset())?;
        (first.0..end)
            .map(RangeIndex)
            .map(|range| {
                let bytes = self.range_bytes(range);
                if data < range.offset() {
                    data = self.data_from(range.offset())?;
                }
                if data >= range.offset() + bytes {
                    return Ok(zero_digest(bytes));
                }
                let buffer = &mut buffer[..bytes as usize];
                self.read(range.offset(), buffer)?;
                Ok(XxHash3_128::oneshot(buffer))
            })
            .collect()
    }

    /// How many ranges from `first` on are in a hole of the image, and so are zero, without a look at
    /// any data.
    pub fn hole_ranges(&self, first: RangeIndex) -> io::Result<u32> {
        let left = self.range_count().saturating_sub(first.0);
        if left == 0 {
            return Ok(0);
        }
        let data = self.data_from(first.offset())?;
        if data >= self.bytes {
            return Ok(left);
        }
        Ok(((data / RANGE_BYTES) as u32).saturating_sub(first.0))
    }

    /// Where the first data at or after `offset` is, or the disk's end. Where the file system does
    /// not tell holes from data, all is data.
    fn data_from(&self, offset: u64) -> io::Result<u64> {
        if offset >= self.bytes {
            return Ok(self.bytes);
        }
        // SAFETY: the descriptor is open, and nothing depends on its position: all reads and writes
        // say where.
        let found = unsafe {
            libc::lseek(
                self.file.as_raw_fd(),
                offset as libc::off_t,
                libc::SEEK_DATA,
            )
        };
        if let Ok(found) = u64::try_from(found) {
            return Ok(found.max(offset));
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(self.bytes),
            error if error.raw_os_error() == Some(libc::EINVAL) => Ok(offset),
            error => Err(error),
        }
    }

    /// Changes bytes. They are marked after they are written: whoever takes a mark and then reads
    /// has the new bytes, and one who read too early finds the mark later. A write that failed may
    /// have been done in part.
    fn change(
        &self,
        offset: u64,
        bytes: u64,
        write: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if self.access == Access::ReadOnly {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        self.check_within(offset, bytes)?;
        let written = write();
        let mut some_gone = false;
        let mut trackers = self.trackers();
        for tracker in trackers.iter() {
            match tracker.upgrade() {
                Some(marks) => marks.mark(offset, bytes),
                None => some_gone = true,
            }
        }
        if some_gone {
            trackers.retain(|tracker| tracker.strong_count() > 0);
        }
        written
    }

    fn check_within(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let end = offset.checked_add(bytes);
        if end.is_some_and(|end| end <= self.bytes) {
            return Ok(());
        }
        let message = format!("{bytes} bytes at {offset} of a disk of {}", self.bytes);
        Err(io::Error::new(ErrorKind::InvalidInput, message))
    }

    /// Gives the space back where the image can have holes, writes zeros where not.
    fn write_zeros(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (start, length) = (offset as libc::off_t, bytes as libc::off_t);
        // SAFETY: the descriptor is open; only the image's contents change.
        let punched = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, start, length) };
        if punched == 0 {
            return Ok(());
        }
        let zeros = vec![0; ZEROS_BYTES.min(bytes as usize)];
        let mut at = offset;
        let end = offset + bytes;
        while at < end {
            let piece = &zeros[..zeros.len().min((end - at) as usize)];
            self.file.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn trackers(&self) -> MutexGuard<'_, Vec<Weak<Marks>>> {
        self.trackers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which disk an error is of.
    fn named(&self, action: &str, error: &io::Error) -> io::Error {
        let message = format!(
            "cannot {action} disk image {}: {error}",
            self.path.display()
        );
        io::Error::new(error.kind(), message)
    }
}

impl Blocks for DiskFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn is_read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check_within(offset, out.len() as u64)
            .and_then(|()| self.file.read_exact_at(out, offset))
            .map_err(|error| self.named("read", &error))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let write = || self.file.write_all_at(bytes, offset);
        self.change(offset, bytes.len() as u64, write)
            .map_err(|error| self.named("write", &error))
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return self.check_within(offset, 0);
        }
        self.change(offset, bytes, || self.write_zeros(offset, bytes))
            .map_err(|error| self.named("write", &error))
    }

    fn flush(&self) -> io::Result<()> {
        self.sync()?;
        self.flush_count.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}

/// The digest of so many zero bytes, at most a range of them.
pub fn zero_digest(bytes: u64) -> u128 {
    static ZEROS: [u8; RANGE_BYTES as usize] = [0; RANGE_BYTES as usize];
    static WHOLE: std::sync::LazyLock<u128> =
        std::sync::LazyLock::new(|| XxHash3_128::oneshot(&ZEROS));
    if bytes == RANGE_BYTES {
        return *WHOLE;
    }
    XxHash3_128::oneshot(&ZEROS[..bytes.min(RANGE_BYTES) as usize])
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> DiskError {
    move |source| DiskError::Io {
        path: path.to_owned(),
        action,
        source,
    }
}

fn check_kind(path: &Path, metadata: &fs::Metadata) -> Result<(), DiskError> {
    if metadata.is_file() || metadata.file_type().is_block_device() {
        return Ok(());
    }
    Err(DiskError::NotADisk {
        path: path.to_owned(),
    })
}

fn lock(path: &Path, file: &File, access: Access) -> Result<(), DiskError> {
    let locked = match access {
        Access::ReadWrite => file.try_lock(),
        Access::ReadOnly => file.try_lock_shared(),
    };
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(DiskError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(io_error(path, "lock")(source)),
    }
}

#[cfg(test)]
mod tests;
