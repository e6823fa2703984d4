//! A log to read: one file, or the segments of a run, which are one history.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use samsara_commitlog::{CommitSeq, Frame, LogError, LogHistory, Tail};

use crate::ctl::CtlError;
use crate::log_file::{runs, segments_of};

/// Reads frames, segment after segment. Each segment begins with a snapshot; that of the second and all others is the state
/// that the one before it led to.
pub(in crate::ctl) struct Series {
    path: PathBuf,
    /// What is still to be read, with the commits that they begin after, if their names say so.
    segments: VecDeque<(CommitSeq, PathBuf)>,
    current: Option<LogHistory>,
    /// The last commit of the segments that were read.
    last: Option<CommitSeq>,
    segment_count: usize,
    file_bytes: u64,
    /// Bytes of whole frames of the segments that were read.
    read_bytes: u64,
}

impl Series {
    /// Opens a log: a file, the directory of a run, or one that `--record` was given, of which the newest run is taken.
    pub(in crate::ctl) fn open(path: &Path) -> Result<Self, CtlError> {
        let (path, segments) = if path.is_dir() {
            run_of(path)?
        } else {
            (path.to_owned(), vec![(CommitSeq::BOOT, path.to_owned())])
        };
        let segments = VecDeque::from(segments);
        Ok(Self {
            path,
            file_bytes: bytes_of(&segments),
            segment_count: segments.len(),
            segments,
            current: None,
            last: None,
            read_bytes: 0,
        })
    }

    /// Begins at the last segment that has the state after this commit, if one does. Before anything is read.
    pub(in crate::ctl) fn begin_at(&mut self, seq: CommitSeq) {
        while let Some((first, _)) = self.segments.get(1)
            && *first <= seq
        {
            self.segments.pop_front();
        }
        self.file_bytes = bytes_of(&self.segments);
        self.segment_count = self.segments.len();
    }

    /// The commit that the first of several segments begins after. Before anything is read.
    pub(in crate::ctl) fn begins_after(&self) -> Option<CommitSeq> {
        let (first, _) = self.segments.front()?;
        (self.segment_count > 1).then_some(*first)
    }

    /// What the last segment begins after that has the state after this commit, by its name. Before anything is read.
    pub(in crate::ctl) fn checkpoint_before(&self, seq: CommitSeq) -> Option<CommitSeq> {
        let seqs = self.segments.iter().map(|(first, _)| *first);
        seqs.take_while(|first| *first <= seq).last()
    }

    /// The next frame; `None` at the end of the last segment.
    pub(in crate::ctl) fn next_frame(&mut self) -> Result<Option<Frame>, CtlError> {
        loop {
            if self.current.is_none() && !self.open_next()? {
                return Ok(None);
            }
            let Some(history) = &mut self.current else {
                return Ok(None);
            };
            if let Some(frame) = history.next_frame()? {
                self.check_continued(&frame)?;
                return Ok(Some(frame));
            }
            if self.segments.is_empty() {
                return Ok(None);
            }
            self.leave()?;
        }
    }

    /// Whether what is read now goes on from a segment before it.
    pub(in crate::ctl) fn is_continued(&self) -> bool {
        self.last.is_some()
    }

    /// The file, or the directory of the run.
    pub(in crate::ctl) fn path(&self) -> &Path {
        &self.path
    }

    /// The file that is read now.
    pub(in crate::ctl) fn current_path(&self) -> &Path {
        let current = self.current.as_ref();
        current.map_or(&self.path, |history| history.reader().path())
    }

    /// How many segments are read; 1 for a file.
    pub(in crate::ctl) fn segment_count(&self) -> usize {
        self.segment_count
    }

    /// Bytes of all of them.
    pub(in crate::ctl) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes of whole frames that were read.
    pub(in crate::ctl) fn valid_bytes(&self) -> u64 {
        let current = self.current.as_ref();
        self.read_bytes + current.map_or(0, |history| history.reader().valid_bytes())
    }

    /// Bytes of the last frame.
    pub(in crate::ctl) fn frame_bytes(&self) -> u64 {
        let current = self.current.as_ref().map(LogHistory::reader);
        current.map_or(0, |reader| reader.valid_bytes() - reader.frame_offset())
    }

    /// The last commit whose state the frames so far give.
    pub(in crate::ctl) fn seq(&self) -> Option<CommitSeq> {
        let current = self.current.as_ref().and_then(LogHistory::seq);
        current.or(self.last)
    }

    /// The last commit, once all was read; an error if there was not even a snapshot.
    pub(in crate::ctl) fn check_snapshot(&self) -> Result<CommitSeq, CtlError> {
        let seq = self.seq();
        seq.ok_or_else(|| CtlError::NoSnapshot(self.path.clone()))
    }

    /// How it ends, once all was read.
    pub(in crate::ctl) fn tail(&self) -> Option<Tail> {
        let tail = self.current.as_ref()?.reader().tail()?;
        self.segments.is_empty().then_some(tail)
    }

    /// Whether there was another segment to open.
    fn open_next(&mut self) -> Result<bool, CtlError> {
        let Some((_, path)) = self.segments.pop_front() else {
            return Ok(false);
        };
        self.current = Some(LogHistory::open(path)?);
        Ok(true)
    }

    /// Leaves a segment that was read to its end.
    fn leave(&mut self) -> Result<(), CtlError> {
        let Some(history) = self.current.take() else {
            return Ok(());
        };
        let seq = history.seq();
        let path = history.reader().path().to_owned();
        self.last = Some(seq.ok_or(CtlError::NoSnapshot(path))?);
        self.read_bytes += history.reader().valid_bytes();
        Ok(())
    }

    /// That a segment's snapshot is of the state that the segment before it ends with.
    fn check_continued(&self, frame: &Frame) -> Result<(), CtlError> {
        match (self.last, frame) {
            (Some(last), Frame::SnapshotEnd(digest)) if digest.seq != last => {
                Err(CtlError::SegmentMissing {
                    path: self.current_path().to_owned(),
                    first: digest.seq,
                    last,
                })
            }
            _ => Ok(()),
        }
    }
}

/// Bytes of files. One that cannot be looked at is found out when it is opened.
fn bytes_of(segments: &VecDeque<(CommitSeq, PathBuf)>) -> u64 {
    let sizes = segments.iter().map(|(_, path)| {
        let metadata = fs::metadata(path);
        metadata.map_or(0, |metadata| metadata.len())
    });
    sizes.sum()
}

/// The segments of a run, and its directory.
fn run_of(path: &Path) -> Result<(PathBuf, Vec<(CommitSeq, PathBuf)>), CtlError> {
    let failed = |source: io::Error| LogError::Io {
        path: path.to_owned(),
        action: "read",
        source,
    };
    let mut candidates = runs(path).map_err(failed)?;
    candidates.insert(0, path.to_owned());
    while let Some(run) = candidates.pop() {
        let segments = segments_of(&run).map_err(failed)?;
        if !segments.is_empty() {
            return Ok((run, segments));
        }
    }
    Err(CtlError::NoLogs(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use samsara_commitlog::LogWriter;

    use super::*;
    use crate::ctl::made::Made;
    use crate::exit::ExitCode;

    /// A run in segments that begin after commits 0, 3 and 5.
    fn segments(folder: &Path) -> Made {
        let mut made = Made::run();
        made.write_segments(folder, &[3, 5]);
        // What a daemon that was killed leaves of a checkpoint.
        drop(LogWriter::create(folder.join("run-0000000009/next.part")).unwrap());
        made
    }

    fn kinds(series: &mut Series) -> Result<String, CtlError> {
        let mut kinds = String::new();
        while let Some(frame) = series.next_frame()? {
            kinds.push(match frame {
                Frame::SnapshotEnd(_) => 'S',
                Frame::Record(_) => 'r',
                Frame::Digest(_) => 'd',
                _ => continue,
            });
        }
        Ok(kinds)
    }

    #[test]
    fn segments_are_one_history() {
        let folder = tempfile::tempdir().unwrap();
        segments(folder.path());
        let run = folder.path().join("run-0000000009");
        std::fs::create_dir(folder.path().join("run-0000000010")).unwrap();
        for path in [folder.path(), &run] {
            let mut series = Series::open(path).unwrap();
            assert_eq!(
                kinds(&mut series).unwrap(),
                "SrrrdSrrSrr",
                "{}",
                path.display()
            );
            assert_eq!((series.path(), series.segment_count()), (&*run, 3));
            assert_eq!(
                (series.seq(), series.tail()),
                (Some(CommitSeq(7)), Some(Tail::Clean))
            );
            assert_eq!(series.valid_bytes(), series.file_bytes());
        }
        for (seq, expected) in [
            (0, "SrrrdSrrSrr"),
            (2, "SrrrdSrrSrr"),
            (3, "SrrSrr"),
            (4, "SrrSrr"),
            (99, "Srr"),
        ] {
            let mut series = Series::open(folder.path()).unwrap();
            series.begin_at(CommitSeq(seq));
            assert_eq!(kinds(&mut series).unwrap(), expected, "from {seq}");
        }
    }

    #[test]
    fn a_missing_segment_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        segments(folder.path());
        let run = folder.path().join("run-0000000009");
        let middle = segments_of(&run).unwrap().remove(1).1;
        let contents = std::fs::read(&middle).unwrap();
        std::fs::remove_file(&middle).unwrap();
        let error = kinds(&mut Series::open(&run).unwrap()).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::LogFile);
        assert!(
            error
                .line()
                .contains("begins after commit 5, the segment before it ends at commit 3"),
            "{}",
            error.line()
        );
        // The same if its end is missing.
        std::fs::write(&middle, &contents[..contents.len() - 1]).unwrap();
        let error = kinds(&mut Series::open(&run).unwrap()).unwrap_err();
        assert!(
            error.line().contains("ends at commit 4"),
            "{}",
            error.line()
        );
        let none = tempfile::tempdir().unwrap();
        let error = Series::open(none.path()).map(drop).unwrap_err();
        assert!(
            error.line().contains("has no logs in it"),
            "{}",
            error.line()
        );
    }
}
