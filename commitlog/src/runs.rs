//! Byte runs: the changed bytes of an address space, encoded once and read in place.
//!
//! Encoding: for each run, in rising address order without overlap, varint of the distance from the
//! end of the run before it (from 0 for the first), varint of the length (at least 1), the bytes.

use bytes::Bytes;

use crate::varint::{take_varint, varint};

/// An encoded sequence of `(address, bytes)` runs, rising and without overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByteRuns(Bytes);

/// What is wrong with encoded byte runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunsError {
    /// The encoding ends inside a run, or one of its numbers is not a varint.
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
        Self::decode_within(encoded, |start, bytes| {
            start
                .checked_add(bytes)
                .is_some_and(|end| end <= address_end)
        })
    }

    /// Checks an encoding from outside. `lies_within` says of a run's address and length whether
    /// the address space has all of it.
    pub(crate) fn decode_within(
        encoded: Bytes,
        lies_within: impl Fn(u64, u64) -> bool,
    ) -> Result<Self, RunsError> {
        let mut rest: &[u8] = &encoded;
        let mut address = 0u64;
        while !rest.is_empty() {
            let gap = take_varint(&mut rest).ok_or(RunsError::Truncated)?;
            let bytes = take_varint(&mut rest).ok_or(RunsError::Truncated)?;
            let start = address.saturating_add(gap);
            match start.checked_add(bytes) {
                Some(end) if bytes > 0 && lies_within(start, bytes) => address = end,
                _ => {
                    return Err(RunsError::BadRun {
                        address: start,
                        bytes,
                    });
                }
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

    /// Sum of the lengths of the runs.
    pub fn run_bytes(&self) -> u64 {
        self.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// The runs, in address order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut rest: &[u8] = &self.0;
        let mut address = 0u64;
        std::iter::from_fn(move || {
            let gap = take_varint(&mut rest)?;
            let length = take_varint(&mut rest)? as usize;
            let start = address + gap;
            // Cannot fail: every way to a `ByteRuns` checks the lengths.
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
    encoded: Vec<u8>,
    end: u64,
}

impl ByteRunsBuilder {
    /// A builder that encodes into this buffer, whose contents are dropped.
    pub fn in_buffer(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        Self {
            encoded: buffer,
            end: 0,
        }
    }

    /// Adds a run. Runs must rise and not overlap; empty ones are dropped.
    #[inline]
    pub fn push(&mut self, address: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        assert!(
            address >= self.end,
            "byte runs must rise: {address:#x} < {:#x}",
            self.end
        );
        let (gap, length) = (address - self.end, bytes.len() as u64);
        if gap < 0x80 && length < 0x80 {
            self.encoded.extend_from_slice(&[gap as u8, length as u8]);
        } else {
            for number in [gap, length] {
                let (digits, count) = varint(number);
                self.encoded.extend_from_slice(&digits[..count]);
            }
        }
        // Most runs of a page with many are one word, which is copied without a call.
        match <&[u8; 8]>::try_from(bytes) {
            Ok(word) => self.encoded.extend_from_slice(word),
            Err(_) => self.encoded.extend_from_slice(bytes),
        }
        self.end = address + length;
    }

    /// What is encoded so far.
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// The runs.
    pub fn finish(self) -> ByteRuns {
        self.finish_in(Bytes::from)
    }

    /// The runs, in what `make` makes of the buffer: the same bytes.
    pub fn finish_in(self, make: impl FnOnce(Vec<u8>) -> Bytes) -> ByteRuns {
        let length = self.encoded.len();
        let encoded = make(self.encoded);
        assert_eq!(encoded.len(), length, "the runs are what was encoded");
        ByteRuns(encoded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(list: &[(u64, &[u8])]) -> ByteRuns {
        let mut builder = ByteRunsBuilder::default();
        for &(address, bytes) in list {
            builder.push(address, bytes);
        }
        builder.finish()
    }

    #[test]
    fn runs_come_back_in_order() {
        let list: [(u64, &[u8]); 3] = [(0, b"a"), (1, b"bc"), (1 << 40, b"far")];
        let runs = runs(&list);
        assert_eq!(runs.iter().collect::<Vec<_>>(), list);
        assert_eq!(runs.run_bytes(), 6);
        let end = (1 << 40) + 3;
        assert_eq!(
            ByteRuns::decode(runs.encoded().clone(), end),
            Ok(runs.clone())
        );
        let beyond = RunsError::BadRun {
            address: 1 << 40,
            bytes: 3,
        };
        assert_eq!(
            ByteRuns::decode(runs.encoded().clone(), end - 1),
            Err(beyond)
        );
    }

    #[test]
    fn decoding_does_not_copy() {
        let encoded = runs(&[(16, &[7; 100])]).encoded().clone();
        let decoded = ByteRuns::decode(encoded.clone(), 4096).unwrap();
        assert_eq!(decoded.encoded().as_ptr(), encoded.as_ptr());
    }

    #[test]
    fn bad_runs_are_refused() {
        let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let past_the_end = [&[1][..], &huge, b"x"].concat();
        let far_gap = [&huge[..], &[1], b"x"].concat();
        for bad in [
            &[0, 0][..],
            &[0, 2, 1],
            &[0],
            &[5, 0x80],
            &past_the_end,
            &far_gap,
        ] {
            assert!(
                ByteRuns::decode(Bytes::copy_from_slice(bad), u64::MAX - 1).is_err(),
                "{bad:x?}"
            );
        }
    }
}
