//! Reading a log file as the history that it must be.

use std::path::Path;

use super::{LogError, LogReader};
use crate::{CommitSeq, Frame, GuestTime, Shape, StreamOrder};

/// Reads a log file frame by frame and checks that the frames are one history, see [`StreamOrder`].
#[derive(Debug)]
pub struct LogHistory {
    reader: LogReader,
    order: StreamOrder,
}

impl LogHistory {
    /// Opens a log file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, LogError> {
        LogReader::open(path).map(Self::of_reader)
    }

    pub(super) fn of_reader(reader: LogReader) -> Self {
        Self {
            reader,
            order: StreamOrder::new(),
        }
    }

    /// The next frame; `None` at the end of the log.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, LogError> {
        let Some(frame) = self.reader.next_frame()? else {
            return Ok(None);
        };
        let followed = self.order.handle_frame(&frame);
        followed.map_err(|error| LogError::Order {
            path: self.reader.path().to_owned(),
            offset: self.reader.frame_offset(),
            error,
        })?;
        Ok(Some(frame))
    }

    /// Where it is in the file, and how the file ends.
    pub fn reader(&self) -> &LogReader {
        &self.reader
    }

    /// The last commit whose state the frames so far give; `None` until the snapshot is complete.
    pub fn seq(&self) -> Option<CommitSeq> {
        self.order.seq()
    }

    /// What the next record follows.
    pub(super) fn last(&self) -> Option<(CommitSeq, GuestTime)> {
        self.order.last()
    }

    /// The machine's shape, once the snapshot has started.
    pub fn shape(&self) -> Option<Shape> {
        self.order.shape()
    }
}
