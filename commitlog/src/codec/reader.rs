//! Frames out of bytes as they arrive.

use std::io::{self, Read};

use bytes::BytesMut;

use super::compact::{self, Before, Medium};
use super::{DecodeError, FRAME_HEADER_BYTES, Fault, FrameHeader, StreamHeader};
use crate::{Frame, Limits};

/// How much [`FrameReader::pull`] asks its source for at a time.
const PULL_BYTES: usize = 256 << 10;

/// Turns a commit stream, in pieces of any size, into frames. Does no I/O of its own.
///
/// Call [`push`](Self::push) with what arrived, then [`poll_frame`](Self::poll_frame) until it has
/// no more; at the end of the stream, [`finish`](Self::finish). What is held between the calls is less
/// than one frame, whose length was checked against the cap for its kind when its header arrived; memory
/// grows with the bytes that came, not with what a header claims. The first error is final.
///
/// The bytes inside a frame are slices of what was read, and keep that piece alive.
#[derive(Debug)]
pub struct FrameReader {
    medium: Medium,
    buffer: BytesMut,
    /// Where `buffer` starts in the stream.
    offset: u64,
    /// Where the last frame starts.
    frame_offset: u64,
    limits: Limits,
    /// What the next frame follows.
    before: Option<Before>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Header,
    Frames,
    Failed(DecodeError),
}

impl FrameReader {
    /// A reader of a stream from its [`StreamHeader`] on.
    pub fn new(medium: Medium) -> Self {
        Self::start(medium, Stage::Header, 0, Limits::BEFORE_SNAPSHOT)
    }

    /// A reader from a boundary between frames on: the header was seen elsewhere, and so was the
    /// machine's shape if `limits` has one. Errors count offsets from `offset`.
    pub fn resume(medium: Medium, offset: u64, limits: Limits) -> Self {
        Self::start(medium, Stage::Frames, offset, limits)
    }

    fn start(medium: Medium, stage: Stage, offset: u64, limits: Limits) -> Self {
        Self {
            medium,
            buffer: BytesMut::new(),
            offset,
            frame_offset: offset,
            limits,
            before: None,
            stage,
        }
    }

    /// Takes bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if !matches!(self.stage, Stage::Failed(_)) {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next frame, or `None` until more bytes are pushed.
    pub fn poll_frame(&mut self) -> Result<Option<Frame>, DecodeError> {
        let polled = match &self.stage {
            Stage::Failed(error) => Err(error.clone()),
            Stage::Header => self.stream_header(),
            Stage::Frames => self.frame(),
        };
        if let Err(error) = &polled {
            self.stage = Stage::Failed(error.clone());
            self.buffer = BytesMut::new();
        }
        polled
    }

    /// Reads from `source` until a frame is complete. `None` is the end of the source, which may be
    /// inside a frame: [`finish`](Self::finish) tells. May read beyond the frame.
    pub fn pull(
        &mut self,
        source: &mut impl Read,
    ) -> io::Result<Result<Option<Frame>, DecodeError>> {
        loop {
            match self.poll_frame() {
                Ok(None) if self.fill(source)? > 0 => {}
                done => return Ok(done),
            }
        }
    }

    /// Says whether the stream may end here: at a boundary between frames.
    pub fn finish(&self) -> Result<(), DecodeError> {
        let fault = match &self.stage {
            Stage::Failed(error) => return Err(error.clone()),
            Stage::Frames if self.buffer.is_empty() => return Ok(()),
            Stage::Header | Stage::Frames => Fault::EndsInsideFrame,
        };
        Err(DecodeError {
            offset: self.offset,
            fault,
        })
    }

    /// Where the next frame starts in the stream.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Where the last frame that came out starts in the stream.
    pub fn frame_offset(&self) -> u64 {
        self.frame_offset
    }

    /// What is known of the machine so far.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Bytes taken that no frame has come from yet.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.buffer
    }

    /// Reads some bytes of `source` into the buffer; 0 at its end.
    fn fill(&mut self, source: &mut impl Read) -> io::Result<usize> {
        let held = self.buffer.len();
        self.buffer.resize(held + PULL_BYTES, 0);
        let filled = loop {
            match source.read(&mut self.buffer[held..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                filled => break filled,
            }
        };
        self.buffer.truncate(held + *filled.as_ref().unwrap_or(&0));
        filled
    }

    fn stream_header(&mut self) -> Result<Option<Frame>, DecodeError> {
        if self.buffer.len() < StreamHeader::BYTES {
            return Ok(None);
        }
        StreamHeader::decode(&self.buffer)?;
        let _header = self.buffer.split_to(StreamHeader::BYTES);
        self.offset += StreamHeader::BYTES as u64;
        self.stage = Stage::Frames;
        self.frame()
    }

    fn frame(&mut self) -> Result<Option<Frame>, DecodeError> {
        let offset = self.offset;
        let decoded = if compact::is_compact(&self.buffer) {
            self.compact_frame()?
        } else {
            self.whole_frame()?
        };
        let Some((frame, bytes)) = decoded else {
            return Ok(None);
        };
        if let Frame::SnapshotStart(start) = &frame {
            self.limits = Limits::of(start.shape);
        }
        self.before = Before::after(&frame).or(self.before);
        self.frame_offset = offset;
        self.offset += bytes as u64;
        Ok(Some(frame))
    }

    fn whole_frame(&mut self) -> Result<Option<(Frame, usize)>, DecodeError> {
        let offset = self.offset;
        let Some(header) = self.buffer.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = FrameHeader::decode(header).map_err(|fault| DecodeError { offset, fault })?;
        if self.buffer.len() < header.frame_bytes() {
            return Ok(None);
        }
        let frame = self.buffer.split_to(header.frame_bytes()).freeze();
        let decoded = header.decode_frame(&frame, offset, self.limits)?;
        Ok(Some((decoded, frame.len())))
    }

    fn compact_frame(&mut self) -> Result<Option<(Frame, usize)>, DecodeError> {
        let bytes = compact::frame_bytes(&self.buffer, self.medium);
        let Some(bytes) = bytes.filter(|&bytes| bytes <= self.buffer.len()) else {
            return Ok(None);
        };
        let frame = self.buffer.split_to(bytes).freeze();
        let before = self.before.zip(self.limits.shape());
        let record = compact::decode(frame, self.offset, self.medium, before)?;
        Ok(Some((Frame::Record(record), bytes)))
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;
    use crate::codec::header_check;
    use crate::{BODY_BYTES_MAX, FrameKind};

    /// The header of the longest frame there may be, and nothing behind it.
    fn longest_header() -> [u8; FRAME_HEADER_BYTES] {
        let mut header = [0; FRAME_HEADER_BYTES];
        let (length, kind) = (BODY_BYTES_MAX as u32, FrameKind::Record as u8);
        let mut fields = &mut header[..];
        fields.put_u8(kind);
        fields.put_u32_le(length);
        fields.put_uint_le(header_check(length, 0, kind), 3);
        fields.put_u64_le(0);
        header
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        let mut reader = FrameReader::resume(Medium::File, 0, Limits::BEFORE_SNAPSHOT);
        reader.push(&longest_header());
        assert_eq!(reader.poll_frame(), Ok(None));
        assert!(reader.buffer.capacity() < 4096);
        assert_eq!(reader.pull(&mut &[0; 100][..]).unwrap(), Ok(None));
        assert!(reader.buffer.capacity() < 4 * PULL_BYTES);
    }

    #[test]
    fn after_an_error_nothing_is_held() {
        let mut reader = FrameReader::new(Medium::File);
        reader.push(&[1; 10_000]);
        assert!(reader.poll_frame().is_err());
        reader.push(&[1; 10_000]);
        assert_eq!(reader.buffer.capacity(), 0);
    }
}
