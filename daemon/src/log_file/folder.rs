//! The directory of a log in segments.
//!
//! ```text
//! DIRECTORY/run-<seconds since 1970>/<last commit of the checkpoint, 20 digits>.log
//!                                    next.part     a checkpoint that is being taken
//! ```
//!
//! Each run has a directory of its own, so a daemon that is started again after a crash leaves what came before it. The
//! bounds are for all runs together.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use samsara_commitlog::{CommitSeq, LogError, LogWriter};
use samsara_config::LogConfig;

const RUN_PREFIX: &str = "run-";
const SUFFIX: &str = ".log";
const PART: &str = "next.part";
/// Digits of every number of 64 bits.
const SEQ_DIGITS: usize = 20;
/// So many segments a bound of bytes is for, at least, if checkpoints are small.
const SEGMENTS_IN_BOUND: u64 = 4;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Nothing newer is removed for its age.
    keep: Option<Duration>,
    bytes: Option<u64>,
}

/// A segment that nothing more is written to.
#[derive(Clone, Debug)]
struct Segment {
    path: PathBuf,
    bytes: u64,
    /// When its last record was written.
    ended: SystemTime,
}

/// The directory, this process's alone.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
    /// Of this process.
    run: PathBuf,
    /// What the newest segment begins after.
    newest: CommitSeq,
    bounds: Bounds,
    checkpoint_every: Duration,
    /// Oldest first.
    segments: VecDeque<Segment>,
}

impl Folder {
    /// Takes a directory. Nothing in it changes yet.
    pub(super) fn claim(path: &Path, config: &LogConfig) -> Result<Self, LogError> {
        let lock = File::open(path).map_err(failed(path, "open"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let path = path.to_owned();
                return Err(LogError::InUse { path });
            }
            Err(TryLockError::Error(source)) => return Err(failed(path, "lock")(source)),
        }
        // That it cannot be written is found out now, not when the guest has been started for it.
        let probe = path.join(PART);
        File::create(&probe)
            .and_then(|_| fs::remove_file(&probe))
            .map_err(failed(path, "write to"))?;
        let minutes = u64::from(config.keep_minutes);
        Ok(Self {
            run: PathBuf::new(),
            newest: CommitSeq::BOOT,
            bounds: Bounds {
                keep: (minutes > 0).then(|| Duration::from_secs(minutes * 60)),
                bytes: config.max_bytes.map(samsara_config::ByteSize::bytes),
            },
            checkpoint_every: Duration::from_secs(config.checkpoint_every_s.into()),
            segments: found(path).map_err(failed(path, "read"))?.into(),
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Begins the first segment of this run.
    pub(super) fn begin(&mut self, seq: CommitSeq) -> Result<LogWriter, LogError> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut seconds = now.unwrap_or_default().as_secs();
        // A name that is taken is one of the same second.
        self.run = loop {
            let run = self.path.join(format!("{RUN_PREFIX}{seconds:010}"));
            match DirBuilder::new().mode(0o700).create(&run) {
                Ok(()) => break run,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => seconds += 1,
                Err(error) => return Err(failed(&run, "make the directory of")(error)),
            }
        };
        self.newest = seq;
        LogWriter::create(self.segment(seq))
    }

    /// Makes a complete checkpoint, written to [`Self::part`], the newest segment.
    pub(super) fn add(&mut self, writer: &mut LogWriter, seq: CommitSeq) -> Result<(), LogError> {
        writer.rename(self.segment(seq))?;
        self.newest = seq;
        Ok(())
    }

    /// What the newest segment begins after.
    pub(super) fn newest(&self) -> CommitSeq {
        self.newest
    }

    /// The name of the segment that begins after a commit.
    fn segment(&self, seq: CommitSeq) -> PathBuf {
        self.run.join(segment_name(seq))
    }

    /// The name of a segment whose first commit is not known yet.
    pub(super) fn part(&self) -> PathBuf {
        self.run.join(PART)
    }

    pub(super) fn checkpoint_every(&self) -> Duration {
        self.checkpoint_every
    }

    /// Whether a segment has so much in records that what is removed next would be too much at once.
    pub(super) fn is_long(&self, record_bytes: u64) -> bool {
        let bound = self.bounds.bytes;
        bound.is_some_and(|bound| record_bytes > bound / SEGMENTS_IN_BOUND)
    }

    /// A segment is complete.
    pub(super) fn retire(&mut self, path: &Path, bytes: u64) {
        self.segments.push_back(Segment {
            path: path.to_owned(),
            bytes,
            ended: SystemTime::now(),
        });
    }

    /// Removes the oldest segments, as far as the bounds say; `bytes` are those of the segments that are written now.
    pub(super) fn trim(&mut self, bytes: u64) {
        let count = excess(&self.segments, bytes, self.bounds, SystemTime::now());
        for segment in self.segments.drain(..count) {
            if let Err(error) = fs::remove_file(&segment.path)
                && error.kind() != io::ErrorKind::NotFound
            {
                // Said once: it is forgotten.
                let path = segment.path.display();
                tracing::warn!("cannot remove log file {path}, remove it yourself: {error}");
            }
            // The last one of a run takes its directory with it; others leave it, as it is not empty.
            if let Some(run) = segment.path.parent().filter(|run| *run != self.run) {
                let _ = fs::remove_dir(run);
            }
        }
    }
}

/// How many of the oldest segments are too many.
fn excess(segments: &VecDeque<Segment>, bytes: u64, bounds: Bounds, now: SystemTime) -> usize {
    let mut total = bytes + segments.iter().map(|segment| segment.bytes).sum::<u64>();
    let is_excess = |segment: &&Segment| {
        let age = now.duration_since(segment.ended).unwrap_or_default();
        let is_old = bounds.keep.is_some_and(|keep| age > keep);
        let is_over = bounds.bytes.is_some_and(|bound| total > bound);
        total -= segment.bytes;
        is_old || is_over
    };
    segments.iter().take_while(is_excess).count()
}

/// Segments that earlier runs left, oldest first. What they did not finish goes.
fn found(path: &Path) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for run in runs(path)? {
        let _ = fs::remove_file(run.join(PART));
        for (_, path) in segments_of(&run)? {
            let metadata = fs::metadata(&path)?;
            segments.push(Segment {
                path,
                bytes: metadata.len(),
                ended: metadata.modified()?,
            });
        }
    }
    Ok(segments)
}

/// The runs in a directory, oldest first.
pub(crate) fn runs(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_run = name
            .to_str()
            .is_some_and(|name| name.starts_with(RUN_PREFIX));
        if is_run && entry.file_type()?.is_dir() {
            runs.push(entry.path());
        }
    }
    runs.sort();
    Ok(runs)
}

/// The segments in the directory of a run, with the commits that they begin after, in their order.
pub(crate) fn segments_of(run: &Path) -> io::Result<Vec<(CommitSeq, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(run)? {
        let entry = entry?;
        if let Some(seq) = entry.file_name().to_str().and_then(segment_seq) {
            segments.push((seq, entry.path()));
        }
    }
    segments.sort();
    Ok(segments)
}

fn segment_name(seq: CommitSeq) -> String {
    format!("{:0SEQ_DIGITS$}{SUFFIX}", seq.0)
}

fn segment_seq(name: &str) -> Option<CommitSeq> {
    let digits = name.strip_suffix(SUFFIX)?;
    let is_number = digits.len() == SEQ_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok().map(CommitSeq))?
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io {
        path,
        action,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(keep_minutes: u32, max_bytes: Option<&str>) -> LogConfig {
        LogConfig {
            keep_minutes,
            max_bytes: max_bytes.map(|size| size.parse().unwrap()),
            ..LogConfig::default()
        }
    }

    fn write(path: &Path, bytes: usize) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![0; bytes]).unwrap();
    }

    #[test]
    fn the_oldest_are_too_many() {
        let now = SystemTime::now();
        let segment = |minutes: u64, bytes| Segment {
            path: PathBuf::new(),
            bytes,
            ended: now - Duration::from_secs(minutes * 60),
        };
        let segments = VecDeque::from([segment(30, 100), segment(20, 100), segment(10, 100)]);
        let excess_for = |minutes: Option<u64>, bytes| {
            let keep = minutes.map(|minutes| Duration::from_secs(minutes * 60));
            excess(&segments, 50, Bounds { keep, bytes }, now)
        };
        assert_eq!(excess_for(None, None), 0);
        assert_eq!(excess_for(Some(40), None), 0);
        assert_eq!(excess_for(Some(25), None), 1);
        assert_eq!(excess_for(Some(5), None), 3);
        assert_eq!(excess_for(None, Some(350)), 0);
        assert_eq!(excess_for(None, Some(349)), 1);
        assert_eq!(excess_for(None, Some(150)), 2);
        assert_eq!(excess_for(None, Some(10)), 3);
        assert_eq!(excess_for(Some(25), Some(150)), 2);
    }

    #[test]
    fn runs_follow_each_other_and_the_oldest_segments_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("run-0000000007");
        let names = [3, 12].map(|seq| old.join(segment_name(CommitSeq(seq))));
        for path in &names {
            write(path, 700 << 10);
        }
        write(&old.join(PART), 10);
        write(&dir.path().join("notes/mine.log"), 10);
        let mut folder = Folder::claim(dir.path(), &config(0, Some("1MiB"))).unwrap();
        assert!(!old.join(PART).exists());
        let again = Folder::claim(dir.path(), &config(0, None)).unwrap_err();
        assert!(matches!(again, LogError::InUse { .. }), "{again}");

        let first = folder.begin(CommitSeq(0)).unwrap();
        assert_eq!(runs(dir.path()).unwrap().len(), 2);
        folder.trim(first.log_bytes());
        assert_eq!([names[0].exists(), names[1].exists()], [false, true]);
        assert!(folder.is_long(300 << 10) && !folder.is_long(200 << 10));
        let path = folder.segment(CommitSeq(0));
        drop(first);
        folder.retire(&path, 600 << 10);
        folder.trim(0);
        assert!(!old.exists() && path.exists());
        // What is not ours stays.
        assert!(dir.path().join("notes/mine.log").exists());
        assert_eq!(segments_of(&folder.run).unwrap(), [(CommitSeq(0), path)]);
    }

    #[test]
    fn names_are_numbers_of_commits() {
        for seq in [0, 7, u64::MAX] {
            assert_eq!(
                segment_seq(&segment_name(CommitSeq(seq))),
                Some(CommitSeq(seq))
            );
        }
        for other in [
            "7.log",
            "99999999999999999999.log",
            "0000000000000000000a.log",
            "next.part",
        ] {
            assert_eq!(segment_seq(other), None, "{other}");
        }
    }
}
