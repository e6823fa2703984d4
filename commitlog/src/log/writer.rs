//! Writing a log file.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::summary::summarize;
use super::{LogError, LogHistory, LogReader, LogSummary, Tail, io_error, open_regular};
use crate::{Frame, FrameEncoder, Medium, StreamHeader};

/// How much is collected before a write: many small records, or a part of a large one.
const BUFFER_BYTES: usize = 256 << 10;

/// Appends frames to a log file. The file is locked against other writers, and, as it has all of the
/// guest's memory in it, readable by its owner only.
///
/// Frames are buffered until [`flush`](Self::flush) (another process sees them), until
/// [`sync`](Self::sync) (they survive the loss of the host) or until the writer is dropped, which
/// cannot report errors.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    out: BufWriter<File>,
    encoder: FrameEncoder,
    log_bytes: u64,
    stopped: bool,
}

/// A file that is to hold a new log and still has what it had: for who may yet fail to have
/// anything to write.
#[derive(Debug)]
pub struct LogClaim {
    path: PathBuf,
    file: File,
}

impl LogClaim {
    /// Opens or makes the file and checks that it may be replaced: it must be empty or a samsara
    /// log, and nobody else's at the moment.
    pub fn new(path: impl AsRef<Path>) -> Result<Self, LogError> {
        let path = path.as_ref();
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).mode(0o600);
        let file = open_locked(path, &mut options)?;
        check_replaceable(path, &file)?;
        let path = path.to_owned();
        Ok(Self { path, file })
    }

    /// Begins the new log; what was in the file is gone.
    pub fn start(self) -> Result<LogWriter, LogError> {
        let Self { path, file } = self;
        file.set_len(0).map_err(io_error(&path, "truncate"))?;
        let writer = LogWriter::start(&path, file)?;
        sync_folder(&path)?;
        Ok(writer)
    }
}

impl LogWriter {
    /// Starts a new log. A file that is there already must be empty or a samsara log, and is
    /// truncated; anything else is left alone, with an error.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, LogError> {
        LogClaim::new(path)?.start()
    }

    /// Goes on with a log that is there, and says what is in it. All of it is checked; a torn tail is
    /// cut off. Whether records can follow is for the caller to see: without a complete snapshot
    /// ([`LogSummary::last_seq`]) they cannot.
    pub fn reopen(path: impl AsRef<Path>) -> Result<(Self, LogSummary), LogError> {
        let path = path.as_ref();
        let file = open_locked(path, &mut OpenOptions::new())?;
        let duplicate = file.try_clone().map_err(io_error(path, "read"))?;
        let mut history = LogHistory::of_reader(LogReader::of_file(path, duplicate));
        let summary = summarize(&mut history)?;
        if let Tail::Torn { valid_bytes } = summary.tail {
            file.set_len(valid_bytes)
                .map_err(io_error(path, "truncate"))?;
            file.sync_all().map_err(io_error(path, "sync"))?;
        }
        if summary.valid_bytes == 0 {
            return Ok((Self::start(path, file)?, summary));
        }
        let mut writer = Self::of_file(path, file, summary.valid_bytes);
        if let Some((seq, guest_time)) = history.last() {
            writer.encoder = FrameEncoder::after(Medium::File, seq, guest_time);
        }
        writer
            .out
            .seek(SeekFrom::Start(summary.valid_bytes))
            .map_err(io_error(path, "go to the end of"))?;
        Ok((writer, summary))
    }

    /// Appends a frame. One in order form must follow a record that was appended so, too.
    pub fn append(&mut self, frame: &Frame) -> Result<(), LogError> {
        let encoded = self.encoder.encode(frame);
        self.append_encoded(&encoded)
    }

    /// Appends whole frames as [`FrameEncoder::encode`], for [`Medium::File`], or [`Frame::encode`] made them.
    pub fn append_encoded(&mut self, frames: &[u8]) -> Result<(), LogError> {
        self.attempt("write", |out| out.write_all(frames))?;
        self.log_bytes += frames.len() as u64;
        Ok(())
    }

    /// Hands everything appended to the operating system.
    pub fn flush(&mut self) -> Result<(), LogError> {
        self.attempt("write", BufWriter::flush)
    }

    /// Everything appended is on stable storage when this returns.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.flush()?;
        self.attempt("sync", |out| out.get_ref().sync_data())
    }

    /// Bytes of the log, the buffered ones included.
    pub fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file another name in the same file system; a file that has it is replaced.
    pub fn rename(&mut self, to: impl AsRef<Path>) -> Result<(), LogError> {
        let to = to.as_ref();
        self.attempt("write", BufWriter::flush)?;
        fs::rename(&self.path, to).map_err(io_error(&self.path, "rename"))?;
        to.clone_into(&mut self.path);
        sync_folder(to)
    }

    /// A log in an empty file.
    fn start(path: &Path, file: File) -> Result<Self, LogError> {
        let mut writer = Self::of_file(path, file, 0);
        writer.append_encoded(&StreamHeader::CURRENT.encode())?;
        writer.sync()?;
        Ok(writer)
    }

    fn of_file(path: &Path, file: File, log_bytes: u64) -> Self {
        let out = BufWriter::with_capacity(BUFFER_BYTES, file);
        Self {
            path: path.to_owned(),
            out,
            log_bytes,
            encoder: FrameEncoder::new(Medium::File),
            stopped: false,
        }
    }

    /// Does something with the file. After a failure a frame may be there in part, and one appended
    /// behind it would turn a torn tail into damage; so a failure is final.
    fn attempt(
        &mut self,
        action: &'static str,
        operation: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
    ) -> Result<(), LogError> {
        if self.stopped {
            return Err(LogError::Stopped {
                path: self.path.clone(),
            });
        }
        operation(&mut self.out).map_err(|source| {
            self.stopped = true;
            io_error(&self.path, action)(source)
        })
    }
}

fn open_locked(path: &Path, options: &mut OpenOptions) -> Result<File, LogError> {
    let file = open_regular(path, options.read(true).write(true))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LogError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(io_error(path, "lock")(source)),
    }
}

/// That nothing is lost with the file's content but a samsara log, of whatever version.
fn check_replaceable(path: &Path, file: &File) -> Result<(), LogError> {
    let mut start = [0; StreamHeader::MAGIC.len()];
    let length = file.metadata().map_err(io_error(path, "look at"))?.len();
    let present = usize::try_from(length)
        .unwrap_or(usize::MAX)
        .min(start.len());
    file.read_exact_at(&mut start[..present], 0)
        .map_err(io_error(path, "read"))?;
    if !StreamHeader::MAGIC.starts_with(&start[..present]) {
        return Err(LogError::NotALog {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// Makes the file's name survive the loss of the host.
fn sync_folder(path: &Path) -> Result<(), LogError> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let sync = File::open(folder).and_then(|folder| folder.sync_all());
    sync.map_err(io_error(path, "make durable the name of"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_appended_after_a_failed_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        drop(LogWriter::create(&path).unwrap());
        // Open for reading only: every write fails.
        let mut writer = LogWriter::of_file(&path, File::open(&path).unwrap(), 12);
        writer.append_encoded(b"buffered").unwrap();
        let failed = writer.sync().unwrap_err();
        assert_eq!(
            failed.to_string(),
            format!("cannot write log file {}", path.display())
        );
        for result in [
            writer.append_encoded(b"more"),
            writer.flush(),
            writer.sync(),
        ] {
            assert!(matches!(result, Err(LogError::Stopped { .. })));
        }
        assert_eq!(writer.log_bytes(), 20);
    }
}
