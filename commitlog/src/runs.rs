//! Byte runs: the changed bytes of an address space, encoded once and read in place.
//!
//! Encoding: for each run, in rising address order without overlap, varint of the distance from the
//! end of the run before it (from 0 for the first), varint of the length (at least 1), the bytes.

use bytes::{BufMut, Bytes, BytesMut};

/// An encoded sequence of `(address, bytes)` runs, rising and without overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByteRuns(Bytes);

/// What is wrong with encoded byte runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunsError {
    /// The encoding ends inside a run.
    #[error("byte runs end inside a run")]
    Truncated,
    /// A run is empty or leaves the address space.
    #[error("byte run of {bytes} bytes at {address:#x} is not possible")]
    BadRun {
        /// Start of the run.
        address: u64,
        /// Its length.
        bytes: u64,
    },
}

impl ByteRuns {
    /// Checks an encoding from outside. Every run lies below `address_end`.
    pub fn decode(encoded: Bytes, address_end: u64) -> Result<Self, RunsError> {
        let mut rest: &[u8] = &encoded;
        let mut address = 0u64;
        while !rest.is_empty() {
            let gap = take_varint(&mut rest).ok_or(RunsError::Truncated)?;
            let bytes = take_varint(&mut rest).ok_or(RunsError::Truncated)?;
            let start = address.saturating_add(gap);
            match start.checked_add(bytes) {
                Some(end) if bytes > 0 && end <= address_end => address = end,
                _ => return Err(RunsError::BadRun { address: start, bytes }),
            }
            let length = usize::try_from(bytes).map_err(|_| RunsError::Truncated)?;
            rest = rest.get(length..).ok_or(RunsError::Truncated)?;
        }
        Ok(Self(encoded))
    }

    /// The encoding.
    pub fn encoded(&self) -> &Bytes {
        &self.0
    }

    /// Whether there are no runs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The runs, in address order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut rest: &[u8] = &self.0;
        let mut address = 0u64;
        std::iter::from_fn(move || {
            let gap = take_varint(&mut rest)?;
            let length = take_varint(&mut rest)? as usize;
            let start = address + gap;
            let (bytes, tail) = rest.split_at(length);
            rest = tail;
            address = start + length as u64;
            Some((start, bytes))
        })
    }
}

/// Builds [`ByteRuns`] from runs given in rising order.
#[derive(Debug, Default)]
pub struct ByteRunsBuilder {
    encoded: BytesMut,
    end: u64,
}

impl ByteRunsBuilder {
    /// Adds a run. Runs must rise and not overlap; empty ones are dropped.
    pub fn push(&mut self, address: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        assert!(address >= self.end, "byte runs must rise: {address:#x} < {:#x}", self.end);
        put_varint(&mut self.encoded, address - self.end);
        put_varint(&mut self.encoded, bytes.len() as u64);
        self.encoded.put_slice(bytes);
        self.end = address + bytes.len() as u64;
    }

    /// Bytes encoded so far.
    pub fn encoded_bytes(&self) -> usize {
        self.encoded.len()
    }

    /// The runs.
    pub fn finish(self) -> ByteRuns {
        ByteRuns(self.encoded.freeze())
    }
}

pub(crate) fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

pub(crate) fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (index, &byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * index as u32)?;
        if byte & 0x80 == 0 {
            *rest = &rest[index + 1..];
            return Some(value);
        }
    }
    None
}
