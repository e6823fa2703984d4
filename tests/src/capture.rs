//! What a process writes, as it writes it, and when.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Nothing that is run here writes more; a process that does is cut off by its pipe.
const BYTES_MAX: usize = 256 << 20;
const PIECE_BYTES: usize = 64 << 10;

/// A pipe's contents.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// When the contents grew to so many bytes.
    growth: Vec<(Instant, usize)>,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a piece; whether there is room for more.
    fn take(&self, piece: &[u8]) -> bool {
        let mut state = self.lock();
        state.bytes.extend_from_slice(piece);
        let bytes = state.bytes.len();
        state.growth.push((Instant::now(), bytes));
        drop(state);
        self.changed.notify_all();
        bytes < BYTES_MAX
    }
}

impl Capture {
    /// Reads a pipe to its end, on a thread of its own.
    pub fn start(mut pipe: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let taker = Arc::clone(&shared);
        let reader = std::thread::spawn(move || {
            let mut piece = vec![0; PIECE_BYTES];
            while let Ok(count @ 1..) = pipe.read(&mut piece) {
                if !taker.take(&piece[..count]) {
                    break;
                }
            }
            taker.lock().ended = true;
            taker.changed.notify_all();
        });
        Self {
            shared,
            reader: Some(reader),
        }
    }

    /// Everything so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.shared.lock().bytes.clone()
    }

    /// How many bytes so far.
    pub fn count(&self) -> usize {
        self.shared.lock().bytes.len()
    }

    /// What came after the first `from` bytes.
    pub fn since(&self, from: usize) -> Vec<u8> {
        self.shared
            .lock()
            .bytes
            .get(from..)
            .unwrap_or_default()
            .to_vec()
    }

    /// When the first byte came.
    pub fn first_at(&self) -> Option<Instant> {
        self.shared.lock().growth.first().map(|(at, _)| *at)
    }

    /// When the first byte of this text came.
    pub fn when(&self, text: &str) -> Option<Instant> {
        let state = self.shared.lock();
        let mut windows = state.bytes.windows(text.len().max(1));
        let place = windows.position(|window| window == text.as_bytes())?;
        state
            .growth
            .iter()
            .find(|(_, bytes)| *bytes > place)
            .map(|(at, _)| *at)
    }

    /// Waits until `look` gives something for the contents, the pipe has ended, or `bound` is over.
    pub fn wait<T>(&self, bound: Duration, mut look: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + bound;
        let mut state = self.shared.lock();
        loop {
            if let Some(value) = look(&state.bytes) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return None;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the pipe has ended: everything that was written is there.
    pub fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            // It panics only if memory is out.
            let _ = reader.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn contents_come_as_they_are_written() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut capture = Capture::start(reader);
        assert_eq!(
            capture.wait(Duration::from_millis(1), |bytes| (!bytes.is_empty())
                .then_some(())),
            None
        );
        writer.write_all(b"one").unwrap();
        let long = Duration::from_secs(20);
        assert_eq!(
            capture.wait(long, |bytes| (bytes == b"one").then_some(1)),
            Some(1)
        );
        let between = Instant::now();
        writer.write_all(b" two").unwrap();
        drop(writer);
        capture.finish();
        assert_eq!(
            (capture.bytes(), capture.since(4)),
            (b"one two".to_vec(), b"two".to_vec())
        );
        assert_eq!(
            capture.wait(long, |_| None::<()>),
            None,
            "a pipe that ended is not waited for"
        );
        assert!(capture.first_at().unwrap() <= between && capture.when("two").unwrap() >= between);
        assert!(capture.when("ne").unwrap() <= between && capture.when("three").is_none());
        assert_eq!((capture.count(), capture.since(99)), (7, Vec::new()));
    }
}
