//! Reading a log file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::salvage::find_frame;
use super::{LogError, Tail, io_error, open_regular};
use crate::codec::is_compact;
use crate::{DecodeError, Fault, Frame, FrameReader, Limits, Medium, StreamHeader};

/// Reads a log file frame by frame, from a file that may still be growing as from one that a crash
/// cut off.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    source: Positioned,
    frames: FrameReader,
    tail: Option<Tail>,
    failed: bool,
}

/// Reads a file at a place of its own, whatever else is done with the file.
#[derive(Debug)]
struct Positioned {
    file: File,
    offset: u64,
}

impl Read for Positioned {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl LogReader {
    /// Opens a log file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LogError> {
        let path = path.as_ref();
        let file = open_regular(path, OpenOptions::new().read(true))?;
        Ok(Self::of_file(path, file))
    }

    pub(super) fn of_file(path: &Path, file: File) -> Self {
        Self {
            path: path.to_owned(),
            source: Positioned { file, offset: 0 },
            frames: FrameReader::new(Medium::File),
            tail: None,
            failed: false,
        }
    }

    /// The next frame; `None` at the end of the log, when [`tail`](Self::tail) says what end it is.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, LogError> {
        if self.tail.is_some() {
            return Ok(None);
        }
        match self
            .frames
            .pull(&mut self.source)
            .map_err(io_error(&self.path, "read"))?
        {
            Ok(Some(frame)) => return Ok(Some(frame)),
            Ok(None) => self.tail = Some(self.end()?),
            Err(error) => self.tail = Some(self.judge(error)?),
        }
        Ok(None)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file as it is now.
    pub fn file_bytes(&self) -> Result<u64, LogError> {
        let metadata = self.source.file.metadata();
        let metadata = metadata.map_err(io_error(&self.path, "look at"))?;
        Ok(metadata.len())
    }

    /// How the file ends, once all frames are read.
    pub fn tail(&self) -> Option<Tail> {
        self.tail
    }

    /// Where the last frame that was read starts in the file.
    pub fn frame_offset(&self) -> u64 {
        self.frames.frame_offset()
    }

    /// Bytes of the file up to the end of the last frame that was read.
    pub fn valid_bytes(&self) -> u64 {
        self.frames.offset()
    }

    /// What is known of the machine from the frames read so far.
    pub fn limits(&self) -> Limits {
        self.frames.limits()
    }

    /// The end of the file was reached without a bad frame.
    fn end(&self) -> Result<Tail, LogError> {
        let pending = self.frames.pending();
        if self.valid_bytes() == 0 && !StreamHeader::CURRENT.encode().starts_with(pending) {
            return Err(LogError::NotALog {
                path: self.path.clone(),
            });
        }
        match self.frames.finish() {
            Ok(()) => Ok(Tail::Clean),
            // Its length has no check of its own: what it reaches past may be whole frames.
            Err(error) if is_compact(pending) => self.judge(DecodeError {
                fault: Fault::HeaderDamaged,
                ..error
            }),
            Err(_) => Ok(self.torn()),
        }
    }

    fn torn(&self) -> Tail {
        Tail::Torn {
            valid_bytes: self.valid_bytes(),
        }
    }

    /// Whether `error` is an unfinished write, which only the end of a file can be.
    fn judge(&self, error: DecodeError) -> Result<Tail, LogError> {
        let path = self.path.clone();
        let search_from = match error.fault {
            Fault::NotALog => return Err(LogError::NotALog { path }),
            // Its length is not known, so the next frame may be anywhere.
            Fault::HeaderDamaged => error.offset + 1,
            // The header is whole: the next frame is behind this one, and what looks like a frame
            // inside is something the guest has in its memory.
            Fault::ChecksumWrong { bytes } => error.offset + bytes,
            // No write of ours, finished or not, looks like this.
            _ => return Err(LogError::Bad { path, error }),
        };
        match find_frame(&self.source.file, search_from).map_err(io_error(&path, "read"))? {
            None => Ok(self.torn()),
            Some(follows) => Err(LogError::Damaged {
                path,
                error,
                follows,
            }),
        }
    }
}

/// Ends after the first error.
impl Iterator for LogReader {
    type Item = Result<Frame, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_frame().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}
