//! Buffers of effects, used again: a large one that is allocated anew costs a fault for each of its pages.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use samsara_commitlog::{ByteRuns, ByteRunsBuilder};

/// A smaller one costs nothing to allocate.
const LARGE: usize = 128 << 10;
/// A buffer with this many times the room of what it was last used for is given up.
const ROOM_MAX: usize = 4;

/// Buffers that nobody uses at present: at most so many.
#[derive(Clone, Debug)]
pub(super) struct Buffers {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    most: usize,
}

impl Buffers {
    pub(super) fn new(most: usize) -> Self {
        Self {
            free: Arc::default(),
            most,
        }
    }

    /// A builder in a buffer with room for so many bytes; it may be a used one.
    pub(super) fn builder(&self, room: usize) -> ByteRunsBuilder {
        let used = if room >= LARGE {
            self.free().pop()
        } else {
            None
        };
        match used {
            Some(buffer) => ByteRunsBuilder::in_buffer(buffer),
            None => ByteRunsBuilder::in_buffer(Vec::with_capacity(room)),
        }
    }

    /// The runs that were built. Their buffer comes back once nobody has a part of it any more.
    pub(super) fn finish(&self, builder: ByteRunsBuilder) -> ByteRuns {
        if builder.encoded().len() < LARGE {
            return builder.finish();
        }
        let buffers = self.clone();
        builder.finish_in(|buffer| Bytes::from_owner(Lent { buffer, buffers }))
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer that effects are in.
struct Lent {
    buffer: Vec<u8>,
    buffers: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut free = self.buffers.free();
        if free.len() < self.buffers.most && buffer.capacity() <= buffer.len() * ROOM_MAX {
            buffer.clear();
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn large(buffers: &Buffers, bytes: usize) -> ByteRuns {
        let mut builder = buffers.builder(bytes);
        builder.push(0x1000, &vec![7; bytes]);
        buffers.finish(builder)
    }

    fn address(runs: &ByteRuns) -> usize {
        runs.encoded().as_ptr() as usize
    }

    #[test]
    fn a_buffer_comes_back_when_nobody_has_a_part_of_it() {
        let buffers = Buffers::new(2);
        let first = large(&buffers, LARGE * 2);
        let part = first.encoded().slice(5..9);
        let at = address(&first);
        drop(first);
        let second = large(&buffers, LARGE);
        assert_ne!(address(&second), at);
        assert_eq!(part[..], [7; 4]);
        drop(part);
        let third = large(&buffers, LARGE);
        assert_eq!(address(&third), at);
        assert_eq!(third.run_bytes(), LARGE as u64);
    }

    #[test]
    fn few_are_kept_and_none_that_are_far_too_large() {
        let buffers = Buffers::new(2);
        let lent: Vec<_> = (0..5).map(|_| large(&buffers, LARGE)).collect();
        drop(lent);
        assert_eq!(buffers.free().len(), 2);
        buffers.free().clear();
        drop(large(&buffers, LARGE * 16));
        assert_eq!(buffers.free().len(), 1);
        drop(large(&buffers, LARGE));
        assert_eq!(buffers.free().len(), 0);
    }
}
